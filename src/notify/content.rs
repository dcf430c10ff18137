//! What a notification is about, as templates see it: the fields of an event's body under fixed names. Pure.
//!
//! Every name is defined for every event, null if the event has no such field, so that a template that misspells one fails when
//! it is checked. Every text is one line without characters that are invisible or change the direction of text: whatever a template
//! does with what an order contains, it begins no line. Only the recipient and the raw body are as they came: a program reads
//! them, or they are checked as addresses.

use std::borrow::Cow;
use std::collections::BTreeMap;

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value;

use crate::domain::{Currency, is_locale};
use crate::escape::is_escaped;

/// The fields of a body that templates use.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Content {
    /// What happened: `processed`, `failed`, `cancelled`, or another event of the shop.
    pub event: String,
    pub order_id: Option<String>,
    pub customer_id: Option<String>,
    /// The lines; one for an order with a single product.
    pub items: Vec<Line>,
    pub quantity: Option<i64>,
    pub goods_total: Option<Decimal>,
    pub shipping: Option<Decimal>,
    pub fees: Option<Decimal>,
    pub tax: Option<Decimal>,
    pub tax_included: Option<bool>,
    pub discount: Option<Decimal>,
    pub total: Option<Decimal>,
    pub currency: Option<Currency>,
    pub placed_at: Option<Timestamp>,
    /// Why, for events that say it.
    pub reason: Option<String>,
    /// The whole body.
    pub body: Value,
    /// The whole body as it came, for programs.
    #[serde(skip)]
    pub raw_body: Value,
    /// Where it goes.
    #[serde(skip)]
    pub recipient: Recipient,
}

/// One line of an order.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Line {
    pub product: String,
    pub quantity: Option<i64>,
    pub price: Option<Decimal>,
    pub total: Option<Decimal>,
}

/// Where a notification goes, and in which language.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Recipient {
    pub email: Option<String>,
    pub phone: Option<String>,
    pub locale: Option<String>,
}

/// The event of a body that names none.
const DEFAULT_EVENT: &str = "processed";

impl Content {
    /// Reads a body. Fields with another type than orderd's own events have count as missing.
    ///
    /// # Errors
    /// It is not a JSON object.
    pub fn read(body: &str) -> Result<Self, serde_json::Error> {
        let raw: BTreeMap<String, Value> = serde_json::from_str(body)?;
        let raw_text = |name: &str| raw.get(name).and_then(as_text);
        let recipient = Recipient {
            email: raw_text("email"),
            phone: raw_text("phone"),
            locale: raw_text("locale").filter(|locale| is_locale(locale)),
        };
        let event = raw_text("event").unwrap_or_else(|| DEFAULT_EVENT.to_owned());
        let raw_body = Value::Object(raw.into_iter().collect());
        let body = in_one_line(&raw_body);
        let text = |name: &str| body.get(name).and_then(as_text);
        let amount = |name: &str| body.get(name).and_then(as_amount);
        let quantity = body.get("quantity").and_then(Value::as_i64);
        let total = amount("total");
        let goods_total = amount("goods_total");
        let items = match body.get("items").and_then(Value::as_array) {
            Some(items) => items.iter().filter_map(line).collect(),
            None => Vec::from_iter(text("product").map(|product| Line {
                product,
                quantity,
                price: amount("price"),
                total: goods_total.or(total),
            })),
        };
        Ok(Content {
            event,
            order_id: text("order_id"),
            customer_id: text("customer_id"),
            items,
            quantity,
            goods_total,
            shipping: amount("shipping"),
            fees: amount("fees"),
            tax: amount("tax"),
            tax_included: body.get("tax_included").and_then(Value::as_bool),
            discount: amount("discount"),
            total,
            currency: text("currency").and_then(|code| code.parse().ok()),
            placed_at: text("placed_at").and_then(|at| at.parse().ok()),
            reason: text("reason"),
            recipient,
            body,
            raw_body,
        })
    }
}

/// A text without line breaks, and without characters that are invisible or change the direction of text. Those that join or separate
/// letters and emoji are kept: Persian names need them.
pub(super) fn one_line(text: &str) -> Cow<'_, str> {
    let is_kept = |c: char| !is_escaped(c) || matches!(c, '\u{200c}' | '\u{200d}');
    if text.chars().all(is_kept) {
        return Cow::Borrowed(text);
    }
    let plain = |c: char| match c {
        c if is_kept(c) => Some(c),
        c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => Some(' '),
        _ => None,
    };
    Cow::Owned(text.chars().filter_map(plain).collect())
}

/// The value with all its texts, and the names of its fields, in one line.
fn in_one_line(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(one_line(text).into_owned()),
        Value::Array(items) => Value::Array(items.iter().map(in_one_line).collect()),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| (one_line(name).into_owned(), in_one_line(value));
            Value::Object(fields.iter().map(field).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    }
}

/// A text, or a whole number in its place.
fn as_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_i64() || number.is_u64() => Some(number.to_string()),
        _ => None,
    }
}

fn as_amount(value: &Value) -> Option<Decimal> {
    as_text(value)?.parse().ok()
}

fn line(value: &Value) -> Option<Line> {
    Some(Line {
        product: as_text(value.get("product")?)?,
        quantity: value.get("quantity").and_then(Value::as_i64),
        price: value.get("price").and_then(as_amount),
        total: value.get("total").and_then(as_amount),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_with_one_product_has_one_line_and_fields_of_a_wrong_type_count_as_missing() {
        let content = Content::read(
            r#"{"event":"processed","order_id":7,"product":"Lamp","quantity":2,"total":"20.00","currency":"EUR","tax":["1"],
                "email":{"a":1},"locale":"../../etc"}"#,
        )
        .unwrap();
        assert_eq!(content.order_id.as_deref(), Some("7"));
        assert_eq!((content.items.len(), content.items[0].total), (1, content.total));
        assert_eq!((content.tax, content.recipient), (None, Recipient::default()));
        assert!(Content::read("[]").is_err());
    }

    #[test]
    fn no_text_of_an_order_has_a_second_line_except_for_programs_and_the_recipient() {
        let content = Content::read(
            r#"{"event":"processed","order_id":"1\r\nBcc: eve","items":[{"product":"a\u2028b\u202ec\u200b","quantity":1}],
                "email":"ada@example.com\r\n","extra":{"k\n":["x\ny"]},"reason":"a\tb\u0085","customer_id":"رسول\u200cپور"}"#,
        )
        .unwrap();
        assert_eq!(content.order_id.as_deref(), Some("1  Bcc: eve"));
        assert_eq!(content.items[0].product, "a bc");
        assert_eq!(content.reason.as_deref(), Some("a b "));
        assert_eq!(content.customer_id.as_deref(), Some("رسول\u{200c}پور"));
        assert_eq!(content.body["extra"]["k "][0], "x y");
        assert_eq!(content.raw_body["extra"]["k\n"][0], "x\ny");
        assert_eq!(content.recipient.email.as_deref(), Some("ada@example.com\r\n"));
    }
}
