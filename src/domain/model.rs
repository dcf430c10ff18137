//! An order: decoding from JSON, and the rules it must follow.
//!
//! It never uses a float: a price is parsed from its digits, so `0.1` stays `0.1`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::de::{Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// Longest order id, in bytes. Message ids contain it, which AMQP limits to 255 bytes; this leaves room for suffixes
/// such as `/notification/processed`.
pub const MAX_ID_BYTES: usize = 200;

/// Longest product name, in bytes. Reports and their caches hold product names.
pub const MAX_PRODUCT_BYTES: usize = 1024;

/// Longest email address, in bytes: 64 for the local part, 255 for the domain (RFC 5321).
pub const MAX_EMAIL_BYTES: usize = 320;

/// Most fields of one order that orderd does not know. A field costs more memory than the bytes it has in the body.
pub const MAX_EXTRA_FIELDS: usize = 1_000;

/// Most items in one order. No real order has more, and a sum of quantities, which has 64 bits, has room for nine
/// million such orders.
pub const MAX_QUANTITY: i64 = 1_000_000_000_000;

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
        let IdText(text) = IdText::deserialize(deserializer)?;
        let length = text.len();
        OrderId::new(text).ok_or_else(|| D::Error::invalid_length(length, &IdText::EXPECTED))
    }
}

/// An id of any length but zero. A number is its decimal text.
struct IdText(String);

impl IdText {
    const EXPECTED: &str = "an id: a whole number or 1 to 200 bytes of text";
}

impl<'de> Deserialize<'de> for IdText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = IdText;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(IdText::EXPECTED)
            }
            fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<IdText, E> {
                Ok(IdText(v.to_string()))
            }
            fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<IdText, E> {
                Ok(IdText(v.to_string()))
            }
            fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<IdText, E> {
                if v.is_empty() { Err(E::invalid_length(0, &self)) } else { Ok(IdText(v.to_owned())) }
            }
        }
        deserializer.deserialize_any(IdVisitor)
    }
}

/// A currency code: three capital letters, as in ISO 4217.
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
        match text.as_bytes() {
            &[a, b, c] if [a, b, c].iter().all(u8::is_ascii_uppercase) => Ok(Currency([a, b, c])),
            _ => Err(RuleError::Currency(text.chars().take(16).collect())),
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

/// The body is not an order: invalid JSON, a missing field, or a field of the wrong type. Failure kind `malformed`.
#[derive(Debug, thiserror::Error)]
#[error("not an order")]
pub struct DecodeError(#[from] serde_json::Error);

/// The body is an order, but it breaks a rule of the shop. Failure kind `permanent`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The quantity is less than 1 or more than [`MAX_QUANTITY`].
    #[error("quantity must be 1 to {MAX_QUANTITY}, is {0}")]
    Quantity(i64),
    /// The price is below zero.
    #[error("price must not be negative, is {0}")]
    Price(Decimal),
    /// The currency is not three capital letters.
    #[error("currency must be three capital letters, is {0:?}")]
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
    /// The stable code for `x-failure-code`.
    pub fn code(&self) -> &'static str {
        match self {
            RuleError::Quantity(_) => "invalid_quantity",
            RuleError::Price(_) => "invalid_price",
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
    fn cut(self, mut text: String, dropped: &mut Option<RuleError>) -> String {
        if text.len() > self.max_bytes() {
            *dropped = Some(RuleError::TooLong { field: self, length: text.len() });
            text.truncate(text.floor_char_boundary(self.max_bytes()));
            text.shrink_to_fit();
        }
        text
    }
}

/// An order as the producer sent it, except that texts which are too long are cut and fields which are too many are left
/// out. [`Order::check`] rejects such an order.
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
    /// Fields that this version does not know, unchanged.
    pub extra: BTreeMap<String, Box<RawValue>>,
    /// The rule that a part of the order breaks which was not kept.
    dropped: Option<RuleError>,
}

/// The notification channel of an order that asks for none.
pub const DEFAULT_NOTIFY: &str = "email";

impl Order {
    /// Decodes a message body.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        // This checks UTF-8 once instead of for each string. If it is invalid, `from_slice` gives the better error.
        Ok(std::str::from_utf8(body).map_or_else(|_| serde_json::from_slice(body), serde_json::from_str)?)
    }

    /// Checks the shop's rules. Returns the total and its currency.
    pub fn check(&self) -> Result<(Decimal, Currency), RuleError> {
        if let Some(broken) = &self.dropped {
            return Err(broken.clone());
        }
        if self.product.is_empty() {
            return Err(RuleError::Product);
        }
        if !(1..=MAX_QUANTITY).contains(&self.quantity) {
            return Err(RuleError::Quantity(self.quantity));
        }
        if self.price.is_sign_negative() && !self.price.is_zero() {
            return Err(RuleError::Price(self.price));
        }
        let currency = self.checked_currency()?;
        let total = self.price.checked_mul(Decimal::from(self.quantity)).ok_or(RuleError::Total)?;
        // A product that needs more than 96 bits is rounded, if it has decimal places to drop.
        if total.scale() < self.price.scale() && !total.is_zero() {
            return Err(RuleError::Total);
        }
        Ok((total, currency))
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

const FIELDS: &[&str] =
    &["id", "product", "quantity", "price", "priority", "customer_id", "email", "currency", "placed_at", "notify"];

impl<'de> Deserialize<'de> for Order {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OrderVisitor)
    }
}

struct OrderVisitor;

impl<'de> Visitor<'de> for OrderVisitor {
    type Value = Order;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an order: a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Order, A::Error> {
        let (mut id, mut product, mut quantity, mut price) = (None, None, None, None);
        let (mut priority, mut customer_id, mut email) = (None, None, None);
        let (mut currency, mut placed_at, mut notify) = (None, None, None);
        let (mut extra, mut dropped) = (BTreeMap::new(), None);
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match key.as_ref() {
                "id" => set(&mut id, "id", TextField::Id.cut(map.next_value::<IdText>()?.0, &mut dropped))?,
                "product" => {
                    let text = TextField::Product.cut(map.next_value()?, &mut dropped);
                    set(&mut product, "product", text)?;
                }
                "quantity" => set(&mut quantity, "quantity", map.next_value::<i64>()?)?,
                "price" => set(&mut price, "price", map.next_value::<Money>()?.0)?,
                "priority" => set(&mut priority, "priority", map.next_value::<bool>()?)?,
                "customer_id" => {
                    let text = map.next_value::<Option<IdText>>()?;
                    let text = text.map(|text| TextField::CustomerId.cut(text.0, &mut dropped));
                    set(&mut customer_id, "customer_id", text)?;
                }
                "email" => {
                    let text = map.next_value::<Option<String>>()?.map(|text| TextField::Email.cut(text, &mut dropped));
                    set(&mut email, "email", text)?;
                }
                "currency" => set(&mut currency, "currency", map.next_value::<Option<String>>()?)?,
                "placed_at" => set(&mut placed_at, "placed_at", map.next_value::<Option<Timestamp>>()?)?,
                "notify" => set(&mut notify, "notify", map.next_value::<Option<String>>()?)?,
                _ if extra.len() >= MAX_EXTRA_FIELDS => {
                    map.next_value::<IgnoredAny>()?;
                    dropped = Some(RuleError::TooManyFields);
                }
                _ => {
                    extra.insert(key.into_owned(), map.next_value::<Box<RawValue>>()?);
                }
            }
        }
        let missing = |field| A::Error::missing_field(field);
        Ok(Order {
            id: OrderId(id.ok_or_else(|| missing(FIELDS[0]))?),
            product: product.ok_or_else(|| missing(FIELDS[1]))?,
            quantity: quantity.ok_or_else(|| missing(FIELDS[2]))?,
            price: price.ok_or_else(|| missing(FIELDS[3]))?,
            priority: priority.unwrap_or(false),
            customer_id: customer_id.flatten(),
            email: email.flatten(),
            currency: currency.flatten(),
            placed_at: placed_at.flatten(),
            notify: notify.flatten(),
            extra,
            dropped,
        })
    }
}

/// Sets a field. Setting it twice is an error: a JSON object that names a field twice is ambiguous.
fn set<T, E: serde::de::Error>(slot: &mut Option<T>, name: &'static str, value: T) -> Result<(), E> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(E::duplicate_field(name)),
    }
}

/// An amount as a JSON number or string, parsed from its digits and never through a float.
struct Money(Decimal);

impl<'de> Deserialize<'de> for Money {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        let digits = raw.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(raw);
        // The library accepts 1_000 as a thousand; JSON does not.
        if digits.contains('_') {
            return Err(D::Error::custom("price is not a decimal: it contains an underscore"));
        }
        Decimal::from_str_exact(digits)
            .or_else(|error| if digits.contains(['e', 'E']) { Decimal::from_scientific(digits) } else { Err(error) })
            .map(Money)
            .map_err(|error| D::Error::custom(format_args!("price is not a decimal: {error}")))
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(code(r#""quantity":1,"price":1,"currency":"eur""#), "invalid_currency");
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
