//! Decodes an order: its fields from JSON, in the notations that producers use.
//!
//! Pure. What cannot be read at all is a [`DecodeError`]; a value that can be read and breaks a rule is left to
//! [`Order::check`].

use jiff::civil::DateTime;
use jiff::{Timestamp, tz::TimeZone};
use rust_decimal::Decimal;
use serde_json::value::RawValue;

use super::body::{BodyError, body_text};
use super::decimal::{DecimalError, parse_decimal};
use super::json::{JsonError, OtherFields, describe, object_fields, text};
use super::model::{MAX_EXTRA_BYTES, MAX_EXTRA_FIELDS, Order, OrderId, RuleError, TextField};

const FIELDS: &[&str; 10] =
    &["id", "product", "quantity", "price", "priority", "customer_id", "email", "currency", "placed_at", "notify"];

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
    #[error("{field} must be {expected}, is {found}")]
    Field {
        /// Its name.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is, without its value.
        found: String,
    },
}

impl DecodeError {
    /// The stable code for `x-failure-code`.
    pub fn code(&self) -> &'static str {
        match self {
            DecodeError::Body(error) => error.code(),
            DecodeError::Json(_) | DecodeError::Missing(_) | DecodeError::Field { .. } => "invalid_order",
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
    fn wrong(self, expected: &'static str) -> DecodeError {
        let found = self.raw.map_or_else(|| "missing".to_owned(), |raw| describe(raw.get()));
        DecodeError::Field { field: self.name, expected, found }
    }

    fn required(self) -> Result<&'a str, DecodeError> {
        self.raw.map(RawValue::get).ok_or(DecodeError::Missing(self.name))
    }

    /// `None` also if it is null or a text that is empty or blank.
    fn optional(self) -> Option<&'a str> {
        let is_blank = |raw: &str| raw.starts_with('"') && raw.bytes().all(|byte| matches!(byte, b'"' | b' '));
        self.raw.map(RawValue::get).filter(|raw| *raw != "null" && !is_blank(raw))
    }

    fn optional_text(self) -> Result<Option<String>, DecodeError> {
        let text = |raw| text(raw).ok_or_else(|| self.wrong("a text")).map(|text| text.into_owned());
        self.optional().map(text).transpose()
    }

    /// The text of an id: a text that is not empty, or a whole number.
    fn id(self, raw: &str) -> Result<String, DecodeError> {
        let digits = raw.strip_prefix('-').unwrap_or(raw);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(raw.to_owned());
        }
        let text = text(raw).filter(|text| !text.is_empty());
        text.map(|text| text.into_owned()).ok_or_else(|| self.wrong("a text of 1 to 200 bytes or a whole number"))
    }

    fn decimal(self, expected: &'static str) -> Result<Result<Decimal, DecimalError>, DecodeError> {
        let raw = self.required()?;
        let number = match text(raw) {
            Some(text) => parse_decimal(text.trim_ascii()),
            None => parse_decimal(raw),
        };
        if number == Err(DecimalError::NotANumber) { Err(self.wrong(expected)) } else { Ok(number) }
    }

    fn quantity(self, broken: &mut Option<RuleError>) -> Result<i64, DecodeError> {
        const EXPECTED: &str = "a whole number";
        match self.decimal(EXPECTED)? {
            Ok(number) if number.is_integer() => {
                Ok(i64::try_from(number).unwrap_or(if number.is_sign_negative() { i64::MIN } else { i64::MAX }))
            }
            Err(DecimalError::TooLarge) => {
                *broken = Some(RuleError::quantity(i64::MAX));
                Ok(i64::MAX)
            }
            Ok(_) | Err(DecimalError::TooPrecise | DecimalError::NotANumber) => Err(self.wrong(EXPECTED)),
        }
    }

    fn price(self, broken: &mut Option<RuleError>) -> Result<Decimal, DecodeError> {
        let rule = match self.decimal("a decimal number such as 67.20")? {
            Ok(price) => return Ok(price),
            Err(DecimalError::TooLarge) => RuleError::PriceTooLarge,
            Err(DecimalError::TooPrecise | DecimalError::NotANumber) => RuleError::PriceTooPrecise,
        };
        *broken = Some(rule);
        Ok(Decimal::ZERO)
    }

    /// Also as a text, and as 1 or 0: PHP and SQL have no booleans in many of their outputs.
    fn boolean(self) -> Result<bool, DecodeError> {
        let Some(raw) = self.optional() else { return Ok(false) };
        let text = text(raw).map_or_else(|| raw.to_owned(), |text| text.trim_ascii().to_ascii_lowercase());
        match text.as_str() {
            "false" | "0" => Ok(false),
            "true" | "1" => Ok(true),
            _ => Err(self.wrong("true or false")),
        }
    }

    fn time(self) -> Result<Option<Timestamp>, DecodeError> {
        let Some(raw) = self.optional() else { return Ok(None) };
        let time = text(raw).and_then(|text| parse_time(text.trim_ascii()));
        time.map(Some).ok_or_else(|| self.wrong("a time such as 2026-11-22T08:00:00Z"))
    }
}

/// Longest notation of a time that is read, in bytes.
const MAX_TIME_BYTES: usize = 100;
/// Digits of a second's fraction that are kept: nanoseconds.
const FRACTION_DIGITS: usize = 9;

/// A time as in RFC 3339, with what programs write instead: a space for the `T` and before the offset, `UTC` for `Z`, and more
/// digits of the second than nanoseconds. Without an offset it is UTC.
fn parse_time(text: &str) -> Option<Timestamp> {
    if text.len() > MAX_TIME_BYTES {
        return None;
    }
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    let text = usual_notation(text);
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    // A time zone in brackets would be ignored here.
    let local: DateTime = text.parse().ok().filter(|_| !text.contains('['))?;
    TimeZone::UTC.to_timestamp(local).ok()
}

fn usual_notation(text: &str) -> String {
    let text = match text.strip_suffix("UTC").or_else(|| text.strip_suffix("GMT")) {
        Some(time) => format!("{}Z", time.trim_ascii_end()),
        None => text.replacen(" +", "+", 1).replacen(" -", "-", 1).replacen(" Z", "Z", 1),
    };
    let Some((seconds, rest)) = text.split_once(['.', ',']) else { return text };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    format!("{seconds}.{}{}", &rest[..digits.min(FRACTION_DIGITS)], &rest[digits..])
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
        let [customer_id, email, currency, placed_at, notify] = [5, 6, 7, 8, 9].map(field);
        let mut dropped = (fields.others_count > MAX_EXTRA_FIELDS).then_some(RuleError::TooManyFields);
        let id_text = id.id(id.required()?)?;
        let product_text = text(product.required()?).ok_or_else(|| product.wrong("a text"))?.into_owned();
        let customer_text = customer_id.optional().map(|raw| customer_id.id(raw)).transpose()?;
        let email = email.optional_text()?;
        Ok(Order {
            id: OrderId::cut(id_text, &mut dropped),
            product: TextField::Product.cut(product_text, &mut dropped),
            quantity: quantity.quantity(&mut dropped)?,
            price: price.price(&mut dropped)?,
            priority: priority.boolean()?,
            customer_id: customer_text.map(|text| TextField::CustomerId.cut(text, &mut dropped)),
            email: email.map(|text| TextField::Email.cut(text, &mut dropped)),
            currency: currency.optional_text()?,
            placed_at: placed_at.time()?,
            notify: notify.optional_text()?,
            extra: fields.others,
            extra_dropped: fields.others_dropped,
            dropped,
        })
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
            assert_eq!(with("quantity", json).unwrap().quantity, 3, "{json}");
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
            assert_eq!(with("price", json).unwrap().price, expected.parse().unwrap(), "{json}");
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
    fn a_currency_may_be_in_lower_case() {
        assert_eq!(with("currency", "\"eur\"").unwrap().check().unwrap().1.as_str(), "EUR");
        assert_eq!(with("currency", "\" Usd \"").unwrap().check().unwrap().1.as_str(), "USD");
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
                Ok(order) => order.check().map(|(total, _)| total.to_string()).map_err(|error| error.to_string()),
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
