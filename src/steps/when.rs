//! `when`: the condition under which a step is called. Few and declarative; all parts must hold.
//!
//! Pure.

use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::Value as Json;

use crate::config::{Section, Value, value_parser};
use crate::domain::Currency;

/// Longest JSON pointer, in bytes.
const MAX_POINTER_BYTES: usize = 1024;
/// Longest text that a field is compared with, in bytes.
const MAX_TEXT_BYTES: usize = 1024;

/// The condition. Empty: always.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct When {
    /// Whether the order is a priority order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<bool>,
    /// What the order's total is at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_total: Option<Decimal>,
    /// The order's currency.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub currency: Option<Currency>,
    /// A field of the message, as a JSON pointer. Without `equals` it must be there, and not null or false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// The field's value: text, a whole number, or true or false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub equals: Option<Json>,
}

/// What conditions are about, of an order.
#[derive(Debug, Clone, Copy)]
pub struct OrderFacts {
    /// Whether it is a priority order.
    pub priority: bool,
    /// Its total.
    pub total: Decimal,
    /// The total's currency.
    pub currency: Currency,
}

impl When {
    /// Reads and checks the section. `of_orders`: whether the messages are orders.
    pub(super) fn read(mut section: Section<'_>, of_orders: bool) -> Self {
        let when = When {
            priority: section.optional("priority", &value_parser::boolean),
            min_total: section.optional("min_total", &amount),
            currency: section.optional("currency", &currency),
            pointer: section.optional("pointer", &pointer),
            equals: section.optional("equals", &scalar),
        };
        let about_orders = [
            ("priority", when.priority.is_some()),
            ("min_total", when.min_total.is_some()),
            ("currency", when.currency.is_some()),
        ];
        for (key, _) in about_orders.into_iter().filter(|(_, is_set)| *is_set && !of_orders) {
            section.problem(key, "has no effect: the messages are not orders; use pointer");
        }
        if when.equals.is_some() && when.pointer.is_none() {
            section.problem("equals", "has no effect without pointer");
        }
        section.finish();
        when
    }

    /// Whether it needs the message as JSON.
    pub(super) fn reads_message(&self) -> bool {
        self.pointer.is_some()
    }

    /// Whether the condition holds. `message` is `None` if the message is not JSON.
    pub(super) fn holds(&self, order: Option<OrderFacts>, message: Option<&Json>) -> bool {
        let of_order = |wanted: bool, holds: &dyn Fn(OrderFacts) -> bool| !wanted || order.is_some_and(holds);
        let field = self.pointer.as_ref().map(|pointer| message.and_then(|message| message.pointer(pointer)));
        let field_holds = match (field, &self.equals) {
            (None, _) => true,
            (Some(None), _) => false,
            (Some(Some(found)), Some(wanted)) => found == wanted,
            (Some(Some(found)), None) => !matches!(found, Json::Null | Json::Bool(false)),
        };
        field_holds
            && of_order(self.priority.is_some(), &|order| Some(order.priority) == self.priority)
            && of_order(self.min_total.is_some(), &|order| self.min_total.is_none_or(|least| order.total >= least))
            && of_order(self.currency.is_some(), &|order| Some(order.currency) == self.currency)
    }
}

fn amount(value: &Value) -> Result<Decimal, String> {
    let text = match value {
        Value::Text(text) | Value::Untyped(text) => text.as_str(),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Time | Value::List(_) | Value::Table(_) => "",
    };
    text.parse().map_err(|_| format!("must be an amount in quotes, such as \"99.90\", is {value}"))
}

fn currency(value: &Value) -> Result<Currency, String> {
    let text = value_parser::text(MAX_TEXT_BYTES)(value)?;
    text.parse().map_err(|_| format!("must be three letters, such as \"EUR\", is {value}"))
}

fn pointer(value: &Value) -> Result<String, String> {
    let text = value_parser::text(MAX_POINTER_BYTES)(value)?;
    let is_pointer = text.starts_with('/') && !text.replace("~0", "").replace("~1", "").contains('~');
    if is_pointer { Ok(text) } else { Err(format!("must be a JSON pointer, such as \"/shipping/method\", is {value}")) }
}

fn scalar(value: &Value) -> Result<Json, String> {
    match value {
        Value::Text(text) | Value::Untyped(text) => Ok(Json::from(text.as_str())),
        Value::Boolean(truth) => Ok(Json::from(*truth)),
        Value::Integer(number) => i64::try_from(*number).map(Json::from).map_err(|_| "is too large".to_owned()),
        Value::Float(_) | Value::Time | Value::List(_) | Value::Table(_) => {
            Err(format!("must be text, a whole number, true or false, is {value}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_parts_of_a_condition_must_hold() {
        let order = OrderFacts { priority: true, total: Decimal::from(100), currency: "EUR".parse().unwrap() };
        let message = json!({"shipping": {"method": "express", "weight": 3, "insured": false, "note": null}});
        let holds = |when: When| when.holds(Some(order), Some(&message));
        let field =
            |pointer: &str, equals: Option<Json>| When { pointer: Some(pointer.to_owned()), equals, ..When::default() };
        assert!(holds(When::default()));
        for (when, expected) in [
            (When { priority: Some(true), ..When::default() }, true),
            (When { priority: Some(false), ..When::default() }, false),
            (When { min_total: Some("100.00".parse().unwrap()), ..When::default() }, true),
            (When { min_total: Some("100.01".parse().unwrap()), ..When::default() }, false),
            (When { currency: Some("EUR".parse().unwrap()), ..When::default() }, true),
            (When { currency: Some("USD".parse().unwrap()), ..When::default() }, false),
            (field("/shipping/method", Some(json!("express"))), true),
            (field("/shipping/method", Some(json!("slow"))), false),
            (field("/shipping/weight", Some(json!(3))), true),
            (field("/shipping/weight", None), true),
            (field("/shipping/insured", None), false),
            (field("/shipping/insured", Some(json!(false))), true),
            (field("/shipping/note", None), false),
            (field("/shipping/none", None), false),
            (When { priority: Some(false), ..field("/shipping/weight", None) }, false),
        ] {
            assert_eq!(holds(when.clone()), expected, "{when:?}");
        }
        assert!(!When { priority: Some(true), ..When::default() }.holds(None, Some(&message)));
        assert!(!field("/a", None).holds(None, None), "a message that is not JSON has no fields");
    }
}
