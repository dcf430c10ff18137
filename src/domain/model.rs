//! An order, and the rules it must follow. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::currency::Currency;
use super::item::{self, Amounts, Charges, Item, StatedTotal};
use super::limits::MAX_ID_BYTES;
use super::rule::{RuleError, TextField, shown};

/// The id of an order. A number and its decimal text are the same id: `2` equals `"2"`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct OrderId(String);

impl OrderId {
    /// An id from text; `None` if the text is empty or longer than [`MAX_ID_BYTES`].
    pub fn new(text: impl Into<String>) -> Option<Self> {
        let text = text.into();
        (!text.is_empty() && text.len() <= MAX_ID_BYTES).then_some(Self(text))
    }

    /// An id from text that is not empty. Text that is too long is cut, which `broken` then says.
    pub(super) fn cut(text: String, broken: &mut Option<RuleError>) -> Self {
        Self(TextField::Id.cut(text, broken))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for OrderId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = OrderId;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an id: a whole number or 1 to {MAX_ID_BYTES} bytes of text")
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<OrderId, E> {
                Ok(OrderId(v.to_string()))
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<OrderId, E> {
                Ok(OrderId(v.to_string()))
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<OrderId, E> {
                OrderId::new(v).ok_or_else(|| E::invalid_length(v.len(), &self))
            }
        }
        deserializer.deserialize_any(IdVisitor)
    }
}

/// An order as the producer sent it, except that texts which are too long are cut, fields which are too many are left out,
/// and a number that is too large or too precise is replaced. [`Order::check`] rejects such an order.
#[derive(Debug, Clone)]
pub struct Order {
    /// The id. Two orders with the same id are the same order.
    pub id: OrderId,
    /// The lines, 1 to 1,000 in a valid order.
    pub items: Arc<[Item]>,
    /// What is charged besides the goods.
    pub charges: Charges,
    /// The total that the producer states.
    pub stated_total: StatedTotal,
    /// Whether the producer marked it as priority. It does not decide what is processed first; the queue does.
    pub priority: bool,
    /// Id of the customer.
    pub customer_id: Option<String>,
    /// The customer's email address, for notifications.
    pub email: Option<String>,
    /// The customer's telephone number as sent, for notifications.
    pub phone: Option<String>,
    /// The customer's language as sent, for notifications, such as `de-AT`.
    pub locale: Option<String>,
    /// The currency code as sent; [`Order::checked_currency`] checks it.
    pub currency: Option<String>,
    /// When the customer placed the order.
    pub placed_at: Option<Timestamp>,
    /// The channel to notify the customer by: one word of a routing key, such as `email` or `sms`.
    pub notify: Option<String>,
    /// Fields that this version does not know, unchanged. Empty if they have more than [`MAX_EXTRA_BYTES`](super::limits::MAX_EXTRA_BYTES).
    pub extra: UnknownFields,
    /// The lines' fields that this version does not know, by line. Empty if no line has any, or if there are too many.
    pub item_extra: Vec<UnknownFields>,
    /// The order has unknown fields that are neither in `extra` nor in `item_extra`.
    pub extra_dropped: bool,
    /// The rule that a part of the order breaks which was not kept.
    pub(super) broken: Option<RuleError>,
}

/// Fields by name, with their values as JSON.
pub type UnknownFields = BTreeMap<String, Box<RawValue>>;

/// What a log line says about an order.
#[derive(Debug)]
pub struct OrderSummary<'a> {
    /// The product, unless the order has several lines.
    pub product: Option<&'a str>,
    /// The number of lines, if the order has several.
    pub lines: Option<usize>,
    /// Number of pieces.
    pub quantity: String,
    /// The price of one piece, unless the order has several lines.
    pub price: Option<String>,
}

/// Longest tag of a language, in bytes (RFC 5646, section 4.4.1).
const MAX_LOCALE_BYTES: usize = 35;

/// The notification channel of an order that asks for none.
pub const DEFAULT_NOTIFY: &str = "email";

impl Order {
    /// An order with this id and these lines, and nothing else.
    pub fn new(id: OrderId, items: Vec<Item>) -> Self {
        Order {
            id,
            items: items.into(),
            charges: Charges::default(),
            stated_total: StatedTotal::default(),
            priority: false,
            customer_id: None,
            email: None,
            phone: None,
            locale: None,
            currency: None,
            placed_at: None,
            notify: None,
            extra: UnknownFields::new(),
            item_extra: Vec::new(),
            extra_dropped: false,
            broken: None,
        }
    }

    /// Checks the shop's rules. Returns the order's amounts.
    ///
    /// # Errors
    /// The first rule that it breaks.
    pub fn check(&self) -> Result<Amounts, RuleError> {
        match &self.broken {
            Some(broken) => Err(broken.clone()),
            None => item::amounts(&self.items, self.charges, self.stated_total, || self.checked_currency()),
        }
    }

    /// The order for a log line. A number that is too long for a quantity or a price is described only: it may be the number of
    /// a card in the wrong field.
    pub fn summary(&self) -> OrderSummary<'_> {
        match &*self.items {
            [item] => OrderSummary {
                product: Some(&item.product),
                lines: None,
                quantity: shown(&item.quantity),
                price: Some(shown(&item.price)),
            },
            items => {
                let quantity = items.iter().fold(0, |sum: i64, item| sum.saturating_add(item.quantity));
                OrderSummary { product: None, lines: Some(items.len()), quantity: shown(&quantity), price: None }
            }
        }
    }

    /// The order's currency; [`Currency::NONE`] if it names none.
    pub fn checked_currency(&self) -> Result<Currency, RuleError> {
        self.currency.as_deref().map_or(Ok(Currency::NONE), str::parse)
    }

    /// The channel to notify the customer by: the one the order asks for if it is at most 32 ASCII letters, digits, `_`
    /// or `-`, else [`DEFAULT_NOTIFY`].
    pub fn notification_channel(&self) -> &str {
        self.wanted_channel().unwrap_or(DEFAULT_NOTIFY)
    }

    /// The channel that the order asks for: at most 32 ASCII letters, digits, `_` or `-`.
    pub fn wanted_channel(&self) -> Option<&str> {
        self.notify.as_deref().filter(|word| is_channel(word))
    }

    /// The customer's telephone number: at most 32 digits, spaces and the characters that are usual between them.
    pub fn customer_phone(&self) -> Option<&str> {
        self.phone.as_deref().map(str::trim).filter(|phone| is_phone(phone))
    }

    /// The customer's language, such as `de-AT` or `pt_BR`.
    pub fn customer_locale(&self) -> Option<&str> {
        self.locale.as_deref().filter(|locale| is_locale(locale))
    }
}

/// Whether a text may be a telephone number.
pub fn is_phone(text: &str) -> bool {
    (1..=32).contains(&text.len())
        && text.bytes().any(|b| b.is_ascii_digit())
        && text.bytes().all(|b| b.is_ascii_digit() || b" +-./()".contains(&b))
}

/// Whether a text may be the name of a notification channel.
pub fn is_channel(word: &str) -> bool {
    (1..=32).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// Whether a text may be the tag of a language: the code of one (ISO 639), two or three letters, and perhaps more words. The name of a
/// language, such as `german`, is none.
pub fn is_locale(text: &str) -> bool {
    let is_word = |word: &str| (1..=8).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphanumeric());
    let is_code = |word: &str| (2..=3).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_alphabetic());
    let mut words = text.split(['-', '_']);
    text.len() <= MAX_LOCALE_BYTES && words.next().is_some_and(is_code) && words.all(is_word)
}

#[cfg(test)]
mod tests {
    use super::super::DecodeError;
    use super::super::limits::{MAX_EXTRA_BYTES, MAX_EXTRA_FIELDS};
    use super::*;

    fn order(json: &str) -> Result<Order, DecodeError> {
        Order::decode(json.as_bytes())
    }

    #[test]
    fn a_number_and_its_text_are_the_same_id() {
        let number = order(r#"{"id": 2, "product": "Laptop", "quantity": 3, "price": 400}"#).unwrap();
        let text = order(r#"{"id": "2", "product": "Laptop", "quantity": 3, "price": "400.00"}"#).unwrap();
        assert_eq!(number.id, text.id);
        assert_eq!(number.items, text.items);
    }

    #[test]
    fn a_price_never_passes_through_a_float() {
        let order = order(r#"{"id":1,"product":"p","quantity":3,"price":0.1}"#).unwrap();
        assert_eq!(order.check().unwrap().total.to_string(), "0.3");
        let long = r#"{"id":1,"product":"p","quantity":1,"price":9007199254740993.01}"#;
        assert_eq!(super::Order::decode(long.as_bytes()).unwrap().items[0].price.to_string(), "9007199254740993.01");
    }

    #[test]
    fn unknown_fields_are_kept() {
        let order = order(r#"{"id":1,"product":"p","quantity":1,"price":1,"gift":{"wrap":true}}"#).unwrap();
        assert_eq!(order.extra["gift"].get(), r#"{"wrap":true}"#);
    }

    #[test]
    fn unknown_fields_that_are_too_long_for_events_are_not_kept() {
        let note = "x".repeat(MAX_EXTRA_BYTES);
        let json = format!(r#"{{"id":1,"gift":1,"note":"{note}","a":1,"product":"p","quantity":1,"price":1}}"#);
        let order = order(&json).unwrap();
        assert!(order.extra.is_empty() && order.extra_dropped && order.check().is_ok());
    }

    #[test]
    fn invalid_utf_8_is_malformed_anywhere_in_the_body() {
        let valid = br#"{"id":1,"product":"p","quantity":1,"price":1,"gift":"g","_":0} "#;
        assert!(Order::decode(valid).is_ok());
        for place in [br#"p""#.as_slice(), br#"g""#, b"_", b" "] {
            let at = valid.windows(place.len()).rposition(|window| window == place).unwrap();
            let mut body = valid.to_vec();
            body[at] = 0xff;
            assert!(Order::decode(&body).is_err(), "{}", String::from_utf8_lossy(&body));
        }
    }

    #[test]
    fn a_wrong_shape_is_malformed() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"id":null,"product":"p","quantity":1,"price":1}"#,
            r#"{"id":"","product":"p","quantity":1,"price":1}"#,
            r#"{"id":1,"product":"p","quantity":1.5,"price":1}"#,
            r#"{"id":1,"product":"p","quantity":1,"price":"cheap"}"#,
            r#"{"id":1,"product":"p","quantity":1,"price":true}"#,
            r#"{"id":1,"product":"p","quantity":1,"price":"1_0"}"#,
            r#"{"id":1,"id":2,"product":"p","quantity":1,"price":1}"#,
            r#"{"id":1,"product":"p","quantity":1,"price":1} trailing"#,
        ] {
            assert!(order(body).is_err(), "accepted {body}");
        }
    }

    #[test]
    fn a_broken_rule_has_its_code() {
        let code = |fields: &str| {
            let body = format!(r#"{{"id":1,"product":"p",{fields}}}"#);
            super::Order::decode(body.as_bytes()).unwrap().check().unwrap_err().code()
        };
        assert_eq!(code(r#""quantity":0,"price":1"#), "invalid_quantity");
        assert_eq!(code(r#""quantity":-4,"price":1"#), "invalid_quantity");
        assert_eq!(code(r#""quantity":1,"price":-0.01"#), "invalid_price");
        assert_eq!(code(r#""quantity":1,"price":1,"currency":"euro""#), "invalid_currency");
        assert_eq!(code(r#""quantity":1000000000001,"price":0"#), "invalid_quantity");
        assert_eq!(code(r#""quantity":1000000000000,"price":"79228162514264337593543950335""#), "total_too_large");
    }

    #[test]
    fn a_text_that_is_too_long_is_a_broken_rule_and_not_a_wrong_shape() {
        let code = |id: &str, product: &str, more: &str| {
            let body = format!(r#"{{"id":"{id}","product":"{product}","quantity":1,"price":1{more}}}"#);
            super::Order::decode(body.as_bytes()).unwrap().check().map_err(|error| error.code())
        };
        let long = |bytes| "x".repeat(bytes);
        assert!(code(&long(200), &long(1024), "").is_ok());
        assert_eq!(code(&long(201), "p", ""), Err("invalid_id"));
        assert_eq!(code("1", &long(1025), ""), Err("invalid_product"));
        assert_eq!(code("1", "p", &format!(r#","customer_id":"{}""#, long(201))), Err("invalid_customer_id"));
        assert_eq!(code("1", "p", &format!(r#","email":"{}""#, long(321))), Err("invalid_email"));
        let fields = |count| (0..count).map(|n| format!(r#","f{n}":0"#)).collect::<String>();
        assert!(code("1", "p", &fields(MAX_EXTRA_FIELDS)).is_ok());
        assert_eq!(code("1", "p", &fields(MAX_EXTRA_FIELDS + 1)), Err("too_many_fields"));
        let order = order(&format!(r#"{{"id":"{}","product":"p","quantity":1,"price":1}}"#, "ä".repeat(500))).unwrap();
        assert_eq!(order.id.as_str(), "ä".repeat(100));
    }

    #[test]
    fn an_order_without_a_currency_has_the_code_for_no_currency() {
        let order = order(r#"{"id":1,"product":"p","quantity":1,"price":1}"#).unwrap();
        assert_eq!(order.check().unwrap().currency, Currency::NONE);
    }

    #[test]
    fn an_invalid_notification_channel_falls_back_to_email() {
        let with = |notify: &str| {
            let body = format!(r#"{{"id":1,"product":"p","quantity":1,"price":1,"notify":{notify}}}"#);
            super::Order::decode(body.as_bytes()).unwrap().notification_channel().to_owned()
        };
        assert_eq!(with(r#""sms""#), "sms");
        assert_eq!(with(r#""a.b""#), "email");
        assert_eq!(with("null"), "email");
    }

    #[test]
    fn a_telephone_number_or_a_language_that_is_none_counts_as_missing() {
        let with = |fields: &str| {
            let order = order(&format!(r#"{{"id":1,"product":"p","quantity":1,"price":1,{fields}}}"#)).unwrap();
            (order.customer_phone().map(str::to_owned), order.customer_locale().map(str::to_owned))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(with(r#""phone":" +49 (30) 1/2-3. ","locale":"de-AT""#), (some("+49 (30) 1/2-3."), some("de-AT")));
        for (phone, locale) in
            [("call me", "german"), ("call me", "de AT"), ("1\\n2", "de\\r\\nBcc"), ("+", "../en"), ("", "")]
        {
            assert_eq!(with(&format!(r#""phone":"{phone}","locale":"{locale}""#)), (None, None), "{phone} {locale}");
        }
        for other in ["{}", "[1]", "true", "4.5"] {
            assert_eq!(with(&format!(r#""phone":{other},"locale":{other}"#)), (None, None), "{other}");
        }
        assert_eq!(with(r#""phone":4930123456,"locale":7"#), (some("4930123456"), None));
        let long = "1".repeat(40);
        assert_eq!(with(&format!(r#""phone":"{long}","locale":"{long}""#)), (None, None));
    }
}
