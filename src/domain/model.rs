//! An order, and the rules it must follow. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

use super::json::{describe, describe_text};

/// Longest order id, in bytes. Message ids contain it, which AMQP limits to 255 bytes; this leaves room for suffixes
/// such as `/notification/processed`.
pub const MAX_ID_BYTES: usize = 200;

/// Longest product name, in bytes. Reports and their caches hold product names.
pub const MAX_PRODUCT_BYTES: usize = 1024;

/// Longest email address, in bytes: 64 for the local part, 255 for the domain (RFC 5321).
pub const MAX_EMAIL_BYTES: usize = 320;

/// Most fields of one order that orderd does not know. A field costs more memory than the bytes it has in the body.
pub const MAX_EXTRA_FIELDS: usize = 1_000;

/// Most bytes of an order's unknown fields, as JSON. Beyond it none is kept: events contain them, and so every event is smaller
/// than 1 MiB.
pub const MAX_EXTRA_BYTES: usize = 256 * 1024;

/// Most items in one order. No real order has more, and a sum of quantities, which has 64 bits, has room for nine
/// million such orders.
pub const MAX_QUANTITY: i64 = 1_000_000_000_000;

/// Longest quantity or price that is shown in a log line, in characters: [`MAX_QUANTITY`] has 13.
const SHOWN_DIGITS: usize = 13;

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

    /// An id from text that is not empty. Text that is too long is cut, which `dropped` then says.
    pub(super) fn cut(text: String, dropped: &mut Option<RuleError>) -> Self {
        Self(TextField::Id.cut(text, dropped))
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

/// A currency code: three letters, as in ISO 4217. Lower-case letters are read as capital ones.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Currency([u8; 3]);

impl Currency {
    /// ISO 4217's code for "no currency", used for orders that name none. Sums keep it apart from other currencies.
    pub const NONE: Currency = Currency(*b"XXX");

    /// The code as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("a currency consists of ASCII letters")
    }
}

impl FromStr for Currency {
    type Err = RuleError;
    fn from_str(text: &str) -> Result<Self, RuleError> {
        match text.trim_ascii().as_bytes() {
            &[a, b, c] if [a, b, c].iter().all(u8::is_ascii_alphabetic) => {
                Ok(Currency([a, b, c].map(|letter| letter.to_ascii_uppercase())))
            }
            _ => Err(RuleError::Currency(describe_text(text))),
        }
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Currency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// The body is an order, but it breaks a rule of the shop. Failure kind `permanent`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The quantity is less than 1 or more than [`MAX_QUANTITY`].
    #[error("quantity must be 1 to {MAX_QUANTITY}, is {0}")]
    Quantity(String),
    /// The price is below zero.
    #[error("price must not be negative")]
    NegativePrice,
    /// The price has more digits after the decimal point than a `Decimal` keeps.
    #[error("price has too many digits after the decimal point: at most 28 digits can be kept")]
    PriceTooPrecise,
    /// The price is larger than a `Decimal` can be.
    #[error("price is too large: at most 28 digits can be kept")]
    PriceTooLarge,
    /// The currency is not three letters; what it is, without the text.
    #[error("currency must be three letters, is {0}")]
    Currency(String),
    /// The product is empty.
    #[error("product must not be empty")]
    Product,
    /// A text is longer than its field allows. The text itself is not kept.
    #[error("{} must have at most {} bytes, has {length}", .field.name(), .field.max_bytes())]
    TooLong {
        /// The field.
        field: TextField,
        /// The text's length in bytes.
        length: usize,
    },
    /// The order has more than [`MAX_EXTRA_FIELDS`] unknown fields.
    #[error("an order may have at most {MAX_EXTRA_FIELDS} fields that orderd does not know")]
    TooManyFields,
    /// Price times quantity does not fit the 96 bits of a `Decimal` exactly.
    #[error("price times quantity is too large")]
    Total,
}

impl RuleError {
    /// [`RuleError::Quantity`] for this quantity, of which only a short one is shown.
    pub fn quantity(quantity: i64) -> Self {
        RuleError::Quantity(describe(&quantity.to_string()))
    }

    /// The stable code for `x-failure-code`.
    pub fn code(&self) -> &'static str {
        match self {
            RuleError::Quantity(_) => "invalid_quantity",
            RuleError::NegativePrice | RuleError::PriceTooPrecise | RuleError::PriceTooLarge => "invalid_price",
            RuleError::Currency(_) => "invalid_currency",
            RuleError::Product => "invalid_product",
            RuleError::TooLong { field, .. } => field.code(),
            RuleError::TooManyFields => "too_many_fields",
            RuleError::Total => "total_too_large",
        }
    }
}

/// A text in an order whose length is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextField {
    /// `id`
    Id,
    /// `product`
    Product,
    /// `customer_id`
    CustomerId,
    /// `email`
    Email,
}

impl TextField {
    fn name(self) -> &'static str {
        match self {
            TextField::Id => "id",
            TextField::Product => "product",
            TextField::CustomerId => "customer_id",
            TextField::Email => "email",
        }
    }

    /// The longest text that the field may have, in bytes.
    pub fn max_bytes(self) -> usize {
        match self {
            TextField::Id | TextField::CustomerId => MAX_ID_BYTES,
            TextField::Product => MAX_PRODUCT_BYTES,
            TextField::Email => MAX_EMAIL_BYTES,
        }
    }

    fn code(self) -> &'static str {
        match self {
            TextField::Id => "invalid_id",
            TextField::Product => "invalid_product",
            TextField::CustomerId => "invalid_customer_id",
            TextField::Email => "invalid_email",
        }
    }

    /// Cuts a text that is too long, which `dropped` then says.
    pub(super) fn cut(self, mut text: String, dropped: &mut Option<RuleError>) -> String {
        if text.len() > self.max_bytes() {
            *dropped = Some(RuleError::TooLong { field: self, length: text.len() });
            text.truncate(text.floor_char_boundary(self.max_bytes()));
            text.shrink_to_fit();
        }
        text
    }
}

/// An order as the producer sent it, except that texts which are too long are cut, fields which are too many are left out,
/// and a number that is too large or too precise is replaced. [`Order::check`] rejects such an order.
#[derive(Debug, Clone)]
pub struct Order {
    /// The id. Two orders with the same id are the same order.
    pub id: OrderId,
    /// What was ordered.
    pub product: String,
    /// Number of items; 1 to [`MAX_QUANTITY`] in a valid order.
    pub quantity: i64,
    /// Price of one item, in `currency`.
    pub price: Decimal,
    /// Whether the producer marked it as priority. It does not decide what is processed first; the queue does.
    pub priority: bool,
    /// Id of the customer.
    pub customer_id: Option<String>,
    /// The customer's email address, for notifications.
    pub email: Option<String>,
    /// The currency code as sent; [`Order::checked_currency`] checks it.
    pub currency: Option<String>,
    /// When the customer placed the order.
    pub placed_at: Option<Timestamp>,
    /// The channel to notify the customer by: one word of a routing key, such as `email` or `sms`.
    pub notify: Option<String>,
    /// Fields that this version does not know, unchanged. Empty if they have more than [`MAX_EXTRA_BYTES`].
    pub extra: BTreeMap<String, Box<RawValue>>,
    /// The order has unknown fields that are not in `extra`.
    pub extra_dropped: bool,
    /// The rule that a part of the order breaks which was not kept.
    pub(super) dropped: Option<RuleError>,
}

/// The notification channel of an order that asks for none.
pub const DEFAULT_NOTIFY: &str = "email";

impl Order {
    /// Checks the shop's rules. Returns the total and its currency.
    pub fn check(&self) -> Result<(Decimal, Currency), RuleError> {
        if let Some(broken) = &self.dropped {
            return Err(broken.clone());
        }
        if self.product.is_empty() {
            return Err(RuleError::Product);
        }
        if !(1..=MAX_QUANTITY).contains(&self.quantity) {
            return Err(RuleError::quantity(self.quantity));
        }
        if self.price.is_sign_negative() && !self.price.is_zero() {
            return Err(RuleError::NegativePrice);
        }
        let currency = self.checked_currency()?;
        // Zeros at the end of the price may take up the digits that the total needs.
        let total = self.total(self.price).or_else(|| self.total(self.price.normalize()));
        Ok((total.ok_or(RuleError::Total)?, currency))
    }

    /// Price times quantity, if it is exact: a product that needs more than 96 bits is rounded if it has decimal places to drop.
    fn total(&self, price: Decimal) -> Option<Decimal> {
        let total = price.checked_mul(Decimal::from(self.quantity))?;
        (total.scale() >= price.scale() || total.is_zero()).then_some(total)
    }

    /// The quantity and the price for a log line. A number that is too long for either is described only: it may be the number of
    /// a card in the wrong field.
    pub fn shown_amounts(&self) -> (String, String) {
        let shown = |number: String| match number.len() {
            0..=SHOWN_DIGITS => number,
            length => format!("[{length} characters]"),
        };
        (shown(self.quantity.to_string()), shown(self.price.to_string()))
    }

    /// The order's currency; [`Currency::NONE`] if it names none.
    pub fn checked_currency(&self) -> Result<Currency, RuleError> {
        self.currency.as_deref().map_or(Ok(Currency::NONE), str::parse)
    }

    /// The channel to notify the customer by: the one the order asks for if it is at most 32 ASCII letters, digits, `_`
    /// or `-`, else [`DEFAULT_NOTIFY`].
    pub fn notification_channel(&self) -> &str {
        self.notify
            .as_deref()
            .filter(|word| {
                (1..=32).contains(&word.len())
                    && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
            })
            .unwrap_or(DEFAULT_NOTIFY)
    }
}

#[cfg(test)]
mod tests {
    use super::super::DecodeError;
    use super::*;

    fn order(json: &str) -> Result<Order, DecodeError> {
        Order::decode(json.as_bytes())
    }

    #[test]
    fn a_number_and_its_text_are_the_same_id() {
        let number = order(r#"{"id": 2, "product": "Laptop", "quantity": 3, "price": 400}"#).unwrap();
        let text = order(r#"{"id": "2", "product": "Laptop", "quantity": 3, "price": "400.00"}"#).unwrap();
        assert_eq!(number.id, text.id);
        assert_eq!(number.price, text.price);
    }

    #[test]
    fn a_price_never_passes_through_a_float() {
        let order = order(r#"{"id":1,"product":"p","quantity":3,"price":0.1}"#).unwrap();
        assert_eq!(order.check().unwrap().0.to_string(), "0.3");
        let long = r#"{"id":1,"product":"p","quantity":1,"price":9007199254740993.01}"#;
        assert_eq!(super::Order::decode(long.as_bytes()).unwrap().price.to_string(), "9007199254740993.01");
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
        assert_eq!(order.check().unwrap().1, Currency::NONE);
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
}
