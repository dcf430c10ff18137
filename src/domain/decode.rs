//! Decodes an order in orderd's own format: its fields from JSON, in the notations that producers use.
//!
//! Pure. What cannot be read at all is a [`DecodeError`]; a value that can be read and breaks a rule is left to
//! [`Order::check`].

use std::sync::Arc;

use rust_decimal::Decimal;
use serde_json::value::RawValue;

use super::body::{BodyError, body_text};
use super::item::{Charges, Item, StatedTotal};
use super::json::{JsonError, ListItems, OtherFields, describe, list_items, object_fields};
use super::limits::{MAX_EXTRA_BYTES, MAX_EXTRA_FIELDS, MAX_ITEM_EXTRA_FIELDS, MAX_ITEMS};
use super::model::{Order, OrderId, UnknownFields};
use super::rule::{AmountField, RuleError, TextField};
use super::value::{self, Mismatch};

const FIELDS: &[&str; 13] = &[
    "id",
    "product",
    "quantity",
    "price",
    "priority",
    "customer_id",
    "email",
    "currency",
    "placed_at",
    "notify",
    "items",
    "total",
    "event",
];
const ITEM_FIELDS: &[&str; 3] = &["product", "quantity", "price"];

/// The body is not an order. Failure kind `malformed`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The body is not text.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The body is not a JSON object.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A required field is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A field has the wrong type, or a value that cannot be read.
    #[error("{field} {mismatch}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it must be, and what it is.
        mismatch: Mismatch,
    },
    /// The order has one product of its own and a list of items.
    #[error("{0} and items are both given: an order has either product, quantity and price, or items")]
    Ambiguous(&'static str),
    /// The order was not placed, but cancelled, or something else happened to it.
    #[error("event must be \"placed\": cancellations and other events are not processed")]
    Event,
    /// One of the items is no line of an order.
    #[error("items[{index}]: {error}")]
    Item {
        /// From 0.
        index: usize,
        /// What is wrong with it.
        error: Box<DecodeError>,
    },
}

impl DecodeError {
    /// The stable code for `x-failure-code`.
    pub fn code(&self) -> &'static str {
        match self {
            DecodeError::Body(error) => error.code(),
            DecodeError::Ambiguous(_) => "ambiguous_items",
            DecodeError::Event => "unsupported_event",
            DecodeError::Json(_) | DecodeError::Missing(_) | DecodeError::Field { .. } | DecodeError::Item { .. } => {
                "invalid_order"
            }
        }
    }
}

/// A field of the object, with its name for errors.
#[derive(Clone, Copy)]
struct Field<'a> {
    name: &'static str,
    raw: Option<&'a RawValue>,
}

impl<'a> Field<'a> {
    fn required(self) -> Result<&'a str, DecodeError> {
        self.raw.map(RawValue::get).ok_or(DecodeError::Missing(self.name))
    }

    /// `None` also if it is null or a text that is empty or blank.
    fn optional(self) -> Option<&'a str> {
        self.raw.map(RawValue::get).filter(|raw| !value::is_missing(raw))
    }

    fn read<T>(self, raw: &str, read: fn(&str) -> Result<T, Mismatch>) -> Result<T, DecodeError> {
        read(raw).map_err(|mismatch| DecodeError::Field { field: self.name, mismatch })
    }

    fn optional_value<T>(self, read: fn(&str) -> Result<T, Mismatch>) -> Result<Option<T>, DecodeError> {
        self.optional().map(|raw| self.read(raw, read)).transpose()
    }

    fn quantity(self, broken: &mut Option<RuleError>) -> Result<i64, DecodeError> {
        let quantity = self.read(self.required()?, value::as_quantity)?;
        Ok(quantity.unwrap_or_else(|| {
            *broken = Some(RuleError::quantity(i64::MAX));
            i64::MAX
        }))
    }

    fn amount(self, raw: &str, amount: AmountField, broken: &mut Option<RuleError>) -> Result<Decimal, DecodeError> {
        Ok(value::kept_amount(self.read(raw, value::as_decimal)?, amount, broken))
    }
}

impl Order {
    /// Decodes a message body that is not compressed.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        Self::from_json(&body_text(body, None, body.len())?)
    }

    /// Decodes the text of a message body.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn from_json(json: &str) -> Result<Self, DecodeError> {
        let others = OtherFields { max_count: MAX_EXTRA_FIELDS, max_bytes: MAX_EXTRA_BYTES };
        let fields = object_fields(json, FIELDS, others)?;
        let field = |index: usize| Field { name: FIELDS[index], raw: fields.named[index] };
        let [id, product, quantity, price, priority] = [0, 1, 2, 3, 4].map(field);
        let [customer_id, email, currency, placed_at, notify, items, total] = [5, 6, 7, 8, 9, 10, 11].map(field);
        is_placed(field(12))?;
        let mut broken = (fields.others_count > MAX_EXTRA_FIELDS).then_some(RuleError::TooManyFields);
        let id_text = id.read(id.required()?, value::as_id)?;
        let id = OrderId::cut(id_text, &mut broken);
        let mut unknown = Unknown {
            item_count: 0,
            bytes: fields.others_bytes,
            fields: fields.others,
            of_items: Vec::new(),
            dropped: fields.others_dropped,
        };
        let items: Arc<[Item]> = match items.optional() {
            None => Arc::new([line(product, quantity, price, &mut broken)?]),
            Some(raw) => {
                if let Some(given) = [product, quantity, price].into_iter().find(|field| field.optional().is_some()) {
                    return Err(DecodeError::Ambiguous(given.name));
                }
                lines(raw, &mut unknown, &mut broken)?.into()
            }
        };
        let customer_text = customer_id.optional_value(value::as_id)?;
        let email = email.optional_value(value::as_text)?;
        let stated_total =
            total.optional().map(|raw| total.amount(raw, AmountField::Total, &mut broken)).transpose()?;
        Ok(Order {
            id,
            items,
            charges: Charges::default(),
            stated_total: StatedTotal { amount: stated_total, ..StatedTotal::default() },
            priority: priority.optional_value(value::as_boolean)?.unwrap_or(false),
            customer_id: customer_text.map(|text| TextField::CustomerId.cut(text, &mut broken)),
            email: email.map(|text| TextField::Email.cut(text, &mut broken)),
            currency: currency.optional_value(value::as_text)?,
            placed_at: placed_at.optional_value(value::as_time)?,
            notify: notify.optional_value(value::as_text)?,
            extra: unknown.fields,
            item_extra: unknown.of_items,
            extra_dropped: unknown.dropped,
            broken,
        })
    }
}

/// Refuses everything but an order that was placed. A cancellation must never be taken for an order.
fn is_placed(event: Field<'_>) -> Result<(), DecodeError> {
    match event.optional_value(value::as_text)?.as_deref() {
        None | Some("placed") => Ok(()),
        Some(_) => Err(DecodeError::Event),
    }
}

/// The unknown fields of an order and its lines, which share one limit.
struct Unknown {
    /// Fields of lines.
    item_count: usize,
    bytes: usize,
    fields: UnknownFields,
    of_items: Vec<UnknownFields>,
    dropped: bool,
}

fn line(
    product: Field<'_>,
    quantity: Field<'_>,
    price: Field<'_>,
    broken: &mut Option<RuleError>,
) -> Result<Item, DecodeError> {
    let name = product.read(product.required()?, value::as_text)?;
    let name = TextField::Product.cut(name, broken);
    let quantity = quantity.quantity(broken)?;
    let price = price.amount(price.required()?, AmountField::Price, broken)?;
    Ok(Item::new(name, quantity, price))
}

/// The lines of a JSON list. Of more than [`MAX_ITEMS`], none is read.
fn lines(raw: &str, unknown: &mut Unknown, broken: &mut Option<RuleError>) -> Result<Vec<Item>, DecodeError> {
    let ListItems { items, count } = list_items(raw, MAX_ITEMS).ok_or_else(|| DecodeError::Field {
        field: "items",
        mismatch: Mismatch { expected: "a list", found: describe(raw) },
    })?;
    if count > MAX_ITEMS {
        *broken = Some(RuleError::Items(count));
        return Ok(Vec::new());
    }
    let mut lines = Vec::with_capacity(count);
    for (index, raw) in items.into_iter().enumerate() {
        let of_item = |error: DecodeError| DecodeError::Item { index, error: Box::new(error) };
        let others = OtherFields {
            max_count: if unknown.dropped { 0 } else { MAX_ITEM_EXTRA_FIELDS.saturating_sub(unknown.item_count) },
            max_bytes: MAX_EXTRA_BYTES.saturating_sub(unknown.bytes),
        };
        let fields = object_fields(raw.get(), ITEM_FIELDS, others).map_err(|error| of_item(error.into()))?;
        let field = |index: usize| Field { name: ITEM_FIELDS[index], raw: fields.named[index] };
        let mut broken_here = None;
        let item = line(field(0), field(1), field(2), &mut broken_here).map_err(of_item)?;
        if let Some(rule) = broken_here {
            broken.get_or_insert(rule.of_item(index));
        }
        lines.push(item);
        unknown.add(index, fields.others, (fields.others_count, fields.others_bytes), fields.others_dropped);
    }
    unknown.of_items.resize(if unknown.of_items.is_empty() { 0 } else { lines.len() }, UnknownFields::new());
    Ok(lines)
}

impl Unknown {
    fn add(&mut self, index: usize, fields: UnknownFields, (count, bytes): (usize, usize), dropped: bool) {
        self.item_count += count;
        self.bytes += bytes;
        if dropped {
            // All or none: a part of them would look like all.
            (self.fields, self.of_items, self.dropped) = (UnknownFields::new(), Vec::new(), true);
        } else if !fields.is_empty() {
            self.of_items.resize(index, UnknownFields::new());
            self.of_items.push(fields);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An order in which one field has this JSON.
    fn with(field: &str, json: &str) -> Result<Order, DecodeError> {
        let mut fields = vec![("id", "1"), ("product", "\"p\""), ("quantity", "3"), ("price", "400")];
        match fields.iter_mut().find(|(name, _)| *name == field) {
            Some(known) => known.1 = json,
            None => fields.push((field, json)),
        }
        let fields: Vec<String> = fields.iter().map(|(name, json)| format!("\"{name}\":{json}")).collect();
        Order::decode(format!("{{{}}}", fields.join(",")).as_bytes())
    }

    #[test]
    fn every_optional_field_may_be_null_or_empty() {
        for field in ["priority", "customer_id", "email", "currency", "placed_at", "notify"] {
            for json in ["null", "\"\""] {
                with(field, json).unwrap().check().unwrap();
            }
        }
    }

    #[test]
    fn a_quantity_is_read_as_a_number_or_as_text() {
        for json in ["3", "\"3\"", "\" 3 \"", "\"+3\"", "\"3.0\"", "3.0", "3e0", "0.3e1", "\"\\u0033\""] {
            assert_eq!(with("quantity", json).unwrap().items[0].quantity, 3, "{json}");
        }
        for json in ["\"3.5\"", "3.5", "\"three\"", "\"\"", "null", "true", "[3]", "{}", "\"0x3\"", "\"1_000\"", "3e-1"]
        {
            let error = with("quantity", json).unwrap_err();
            assert!(matches!(error, DecodeError::Field { field: "quantity", .. }), "{json}: {error}");
            assert_eq!(error.code(), "invalid_order");
        }
        for json in ["0", "\"-4\"", "1000000000001", "99999999999999999999", "-99999999999999999999", "1e400"] {
            assert_eq!(with("quantity", json).unwrap().check().unwrap_err().code(), "invalid_quantity", "{json}");
        }
    }

    #[test]
    fn a_price_is_read_in_every_notation_that_json_allows() {
        let zeros = format!("\"67.2{}\"", "0".repeat(40));
        for (json, expected) in [
            ("4e2", "400"),
            ("\"4E+2\"", "400"),
            ("\" 400.00 \"", "400"),
            ("400.000", "400"),
            ("0e400", "0"),
            (zeros.as_str(), "67.2"),
            (zeros.trim_matches('"'), "67.2"),
        ] {
            assert_eq!(with("price", json).unwrap().items[0].price, expected.parse().unwrap(), "{json}");
        }
        for json in ["1e400", "1e-400", "0.00000000000000000000000000001", "\"79228162514264337593543950336\"", "-0.01"]
        {
            assert_eq!(with("price", json).unwrap().check().unwrap_err().code(), "invalid_price", "{json}");
        }
        for json in
            ["\"cheap\"", "\"NaN\"", "\"Infinity\"", "\"1,5\"", "\"1_0\"", "\"$5\"", "null", "true", "{\"a\":[1]}"]
        {
            let error = with("price", json).unwrap_err();
            assert!(matches!(error, DecodeError::Field { field: "price", .. }), "{json}: {error}");
        }
    }

    #[test]
    fn a_cancellation_is_never_taken_for_an_order() {
        for json in ["\"placed\"", "null", "\"\""] {
            with("event", json).unwrap().check().unwrap();
        }
        for body in [
            r#"{"id": 1, "event": "cancelled"}"#,
            r#"{"id": 1, "product": "p", "quantity": 1, "price": 1, "event": "updated"}"#,
        ] {
            assert_eq!(Order::decode(body.as_bytes()).unwrap_err().code(), "unsupported_event");
        }
    }

    #[test]
    fn a_currency_may_be_in_lower_case() {
        assert_eq!(with("currency", "\"eur\"").unwrap().check().unwrap().currency.as_str(), "EUR");
        assert_eq!(with("currency", "\" Usd \"").unwrap().check().unwrap().currency.as_str(), "USD");
        for json in ["\"euro\"", "\"€\"", "\"e1r\""] {
            assert_eq!(with("currency", json).unwrap().check().unwrap_err().code(), "invalid_currency", "{json}");
        }
    }

    #[test]
    fn a_time_without_an_offset_is_utc() {
        for (text, expected) in [
            ("2026-11-22T08:00:00Z", "2026-11-22T08:00:00Z"),
            ("2026-11-22T08:00:00", "2026-11-22T08:00:00Z"),
            ("2026-11-22 08:00:00", "2026-11-22T08:00:00Z"),
            ("2026-11-22t08:00:00z", "2026-11-22T08:00:00Z"),
            ("2026-11-22 08:00:00.5", "2026-11-22T08:00:00.5Z"),
            ("2026-11-22 10:00:00+02:00", "2026-11-22T08:00:00Z"),
            ("2026-11-22T08:00:00.123456789Z", "2026-11-22T08:00:00.123456789Z"),
        ] {
            let order = with("placed_at", &format!("\"{text}\"")).unwrap();
            assert_eq!(order.placed_at, Some(expected.parse().unwrap()), "{text}");
        }
        for json in
            ["\"yesterday\"", "1763798400", "\"22.11.2026\"", "\"2026-13-01T00:00:00\"", "\"2026-11-22T08:00[Mars]\""]
        {
            let error = with("placed_at", json).unwrap_err();
            assert!(matches!(error, DecodeError::Field { field: "placed_at", .. }), "{json}: {error}");
        }
    }

    #[test]
    fn a_body_that_is_not_an_order_is_refused_in_plain_words() {
        let decode = |body: &str| Order::decode(body.as_bytes()).unwrap_err().to_string();
        for (body, expected) in [
            ("", "the text is empty, it must be a JSON object"),
            (" \n", "the text is empty, it must be a JSON object"),
            ("null", "must be a JSON object, is null"),
            ("[]", "must be a JSON object, is a list"),
            ("{\"id\":1", "not JSON: the text ends too early at column 7"),
            ("{\"id\":1}\n{\"id\":2}", "not JSON: more text after the object at line 2, column 1"),
            ("{\"id\":1}]", "not JSON: more text after the object at column 9"),
            ("{}", "id is missing"),
            ("{\"id\":1,\"id\":1}", "id is given twice"),
        ] {
            assert_eq!(decode(body), expected);
        }
        assert!(decode("{\"price\": NaN}").contains("NaN is not a number"));
        assert!(decode("{\"price\": -Infinity}").contains("Infinity is not a number"));
    }

    #[test]
    fn a_rejected_value_is_described_and_not_shown() {
        let card = "4111111111111111";
        for field in ["quantity", "price", "priority", "email", "currency", "placed_at", "product"] {
            for json in [
                card.to_owned(),
                format!("\"{card}\""),
                format!("\"x{card}\""),
                format!("[{card}]"),
                format!("-{card}"),
            ] {
                let error = match with(field, &json) {
                    Err(error) => error.to_string(),
                    Ok(order) => order.check().err().map(|error| error.to_string()).unwrap_or_default(),
                };
                assert!(!error.contains("4111"), "{field}: {error}");
            }
        }
    }

    /// What producers really send, and what becomes of it: the total, or what the reason must say.
    #[test]
    fn orders_as_real_shops_write_them_are_read_or_refused_with_the_cause() {
        use Expected::{Refused, Total};
        enum Expected {
            Total(&'static str),
            Refused(&'static str),
        }
        let zeros = format!("\"67.20{}\"", "0".repeat(40));
        let decimals = format!("\"67.{}1\"", "0".repeat(40));
        let nines = "\"2026-11-22T08:00:00.123456789012Z\"";
        for (field, json, expected) in [
            ("priority", "null", Total("1200")),
            ("priority", "\"true\"", Total("1200")),
            ("priority", "\"False\"", Total("1200")),
            ("priority", "1", Total("1200")),
            ("priority", "\"0\"", Total("1200")),
            ("priority", "\"high\"", Refused("priority must be true or false")),
            ("priority", "2", Refused("priority must be true or false")),
            ("customer_id", "null", Total("1200")),
            ("customer_id", "4711", Total("1200")),
            ("customer_id", "\"  \"", Total("1200")),
            ("customer_id", "1.5", Refused("customer_id must be a text")),
            ("email", "null", Total("1200")),
            ("email", "\"\"", Total("1200")),
            ("email", "7", Refused("email must be a text")),
            ("notify", "null", Total("1200")),
            ("currency", "null", Total("1200")),
            ("currency", "\"eur\"", Total("1200")),
            ("currency", "\" EUR \"", Total("1200")),
            ("currency", "\"€\"", Refused("currency must be three letters")),
            ("currency", "978", Refused("currency must be a text")),
            ("quantity", "\"3\"", Total("1200")),
            ("quantity", "\"3.000\"", Total("1200")),
            ("quantity", "0.3e1", Total("1200")),
            ("quantity", "1e2", Total("40000")),
            ("quantity", "\"3 pcs\"", Refused("quantity must be a whole number")),
            ("quantity", "\"1,000\"", Refused("quantity must be a whole number")),
            ("quantity", "null", Refused("quantity must be a whole number, is null")),
            ("quantity", "-1", Refused("quantity must be 1 to")),
            ("price", "\"400.00\"", Total("1200.00")),
            ("price", "\"+400\"", Total("1200")),
            ("price", "4e2", Total("1200")),
            ("price", "\"4E+2\"", Total("1200")),
            ("price", "-0.00", Total("0.00")),
            ("price", "\"-0\"", Total("0")),
            ("price", zeros.as_str(), Total("201.60")),
            ("price", zeros.trim_matches('"'), Total("201.60")),
            ("price", decimals.as_str(), Refused("price has too many digits")),
            ("price", "\"67,20\"", Refused("price must be a decimal number such as 67.20")),
            ("price", "\"1.067,20\"", Refused("price must be a decimal number such as 67.20")),
            ("price", "\"67.20 EUR\"", Refused("price must be a decimal number such as 67.20")),
            ("price", "\"€67.20\"", Refused("price must be a decimal number such as 67.20")),
            ("price", "\"\"", Refused("price must be a decimal number such as 67.20, is an empty text")),
            ("price", "[67.20]", Refused("is a list")),
            ("placed_at", "null", Total("1200")),
            ("placed_at", "\"2026-11-22T08:00:00Z\"", Total("1200")),
            ("placed_at", "\"2026-11-22t08:00:00z\"", Total("1200")),
            ("placed_at", "\"2026-11-22T08:00:00+0000\"", Total("1200")),
            ("placed_at", "\"2026-11-22T09:00:00+01:00\"", Total("1200")),
            ("placed_at", "\"2026-11-22T09:00:00+01\"", Total("1200")),
            ("placed_at", "\"2026-11-22 09:00:00 +0100\"", Total("1200")),
            ("placed_at", "\"2026-11-22 04:00:00 -0400\"", Total("1200")),
            ("placed_at", "\"2026-11-22 08:00:00 UTC\"", Total("1200")),
            ("placed_at", "\"2026-11-22T08:00:00\"", Total("1200")),
            ("placed_at", "\" 2026-11-22 08:00:00 \"", Total("1200")),
            ("placed_at", "\"2026-11-22T08:00Z\"", Total("1200")),
            ("placed_at", "\"2026-11-22T09:00:00+01:00[Europe/Berlin]\"", Total("1200")),
            ("placed_at", "\"2026-11-22\"", Total("1200")),
            ("placed_at", "\"2026-11-22T08:00:00.1Z\"", Total("1200")),
            ("placed_at", "\"2026-11-22T08:00:00,123\"", Total("1200")),
            ("placed_at", "\"2026-11-22T08:00:00.1234567Z\"", Total("1200")),
            ("placed_at", nines, Total("1200")),
            ("placed_at", "\"2026-12-31T23:59:60Z\"", Total("1200")),
            ("placed_at", "\"2026-11-22T25:00:00Z\"", Refused("placed_at must be a time such as")),
            ("placed_at", "\"22/11/2026 08:00\"", Refused("placed_at must be a time such as")),
            ("placed_at", "1795334400", Refused("placed_at must be a time such as")),
            ("shipping", "{\"a\":[1,null]}", Total("1200")),
            ("id", "null", Refused("id must be a text of 1 to 200 bytes or a whole number, is null")),
            ("id", "1.5", Refused("id must be a text of 1 to 200 bytes or a whole number")),
            ("product", "null", Refused("product must be a text, is null")),
            ("product", "\"\"", Refused("product must not be empty")),
        ] {
            let result = match with(field, json) {
                Ok(order) => order.check().map(|amounts| amounts.total.to_string()).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match (&result, expected) {
                (Ok(total), Total(expected)) => assert_eq!(total.parse(), expected.parse::<Decimal>(), "{json}"),
                (Err(reason), Refused(expected)) => assert!(reason.contains(expected), "{field} {json}: {reason}"),
                _ => panic!("{field} {json}: {result:?}"),
            }
            assert!(!result.is_ok_and(|total| total.starts_with('-')), "{field} {json}: minus zero");
        }
    }

    #[test]
    fn no_reason_names_the_internals_of_a_library() {
        const INTERNALS: [&str; 13] = [
            "serde",
            "i64",
            "u64",
            "f64",
            "expected `",
            "expected value",
            "invalid type",
            "component",
            "jiff",
            "Decimal",
            "EOF",
            "utf-8",
            "RawValue",
        ];
        for field in ["id", "product", "quantity", "price", "priority", "customer_id", "email", "currency", "placed_at"]
        {
            for json in
                ["\"x\"", "[]", "{}", "true", "-1.5", "1e999", "\"\\ud800\"", "\"2026-99-99\"", "nul", "'x'", "\"x"]
            {
                let reason = match with(field, json) {
                    Ok(order) => order.check().err().map(|error| error.to_string()).unwrap_or_default(),
                    Err(error) => error.to_string(),
                };
                assert!(!INTERNALS.iter().any(|internal| reason.contains(internal)), "{field} {json}: {reason}");
            }
        }
    }
}
