//! Single JSON values of an order, in the notations that producers use.
//!
//! Pure. It knows no field's name and no place in a document: the caller adds them to an error. What cannot be read at all
//! is a [`TypeMismatch`]; a number that can be read but not kept is a [`DecimalError`], a broken rule.

use jiff::civil::DateTime;
use jiff::{Timestamp, tz::TimeZone};
use rust_decimal::Decimal;

pub use super::decimal::DecimalError;
use super::decimal::parse_decimal;
use super::json::{describe, text};
use super::rule::{AmountField, RuleError};

/// A value has the wrong type, or cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be {expected}, is {found}")]
pub struct TypeMismatch {
    /// What it must be.
    pub expected: &'static str,
    /// What it is, without its value.
    pub found: String,
}

/// What a decimal number must be.
pub const DECIMAL: &str = "a decimal number such as 67.20";
const WHOLE_NUMBER: &str = "a whole number";

/// A value that is not of the expected type.
pub fn mismatch(raw: &str, expected: &'static str) -> TypeMismatch {
    TypeMismatch { expected, found: describe(raw) }
}

/// Whether an optional value counts as missing: it is null, or a text that is empty or blank.
pub fn is_missing(raw: &str) -> bool {
    raw == "null" || raw.starts_with('"') && raw.bytes().all(|byte| matches!(byte, b'"' | b' '))
}

/// A text.
pub fn as_text(raw: &str) -> Result<String, TypeMismatch> {
    text(raw).map(|text| text.into_owned()).ok_or_else(|| mismatch(raw, "a text"))
}

/// The text of an id: a text that is not empty, or a whole number.
pub fn as_id(raw: &str) -> Result<String, TypeMismatch> {
    let digits = raw.strip_prefix('-').unwrap_or(raw);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(raw.to_owned());
    }
    let text = text(raw).filter(|text| !text.is_empty());
    text.map(|text| text.into_owned()).ok_or_else(|| mismatch(raw, "a text of 1 to 200 bytes or a whole number"))
}

/// A telephone number, as a text or as a whole number. Any other value counts as missing: only notifications use it, and an order must
/// not fail because of it.
pub fn as_phone(raw: &str) -> Result<String, TypeMismatch> {
    Ok(as_id(raw).unwrap_or_default())
}

/// A language. Any value that is no text counts as missing, as with [`as_phone`].
pub fn as_locale(raw: &str) -> Result<String, TypeMismatch> {
    Ok(as_text(raw).unwrap_or_default())
}

/// A decimal number, as a number or as text.
pub fn as_decimal(raw: &str) -> Result<Result<Decimal, DecimalError>, TypeMismatch> {
    decimal(raw, DECIMAL)
}

fn decimal(raw: &str, expected: &'static str) -> Result<Result<Decimal, DecimalError>, TypeMismatch> {
    let number = match text(raw) {
        Some(text) => parse_decimal(text.trim_ascii()),
        None => parse_decimal(raw),
    };
    if number == Err(DecimalError::NotANumber) { Err(mismatch(raw, expected)) } else { Ok(number) }
}

/// An amount; zero for one that cannot be kept, which `broken` then says.
pub fn kept_amount(
    number: Result<Decimal, DecimalError>,
    field: AmountField,
    broken: &mut Option<RuleError>,
) -> Decimal {
    let rule = match number {
        Ok(amount) => return amount,
        Err(DecimalError::TooLarge) => RuleError::TooLarge(field),
        Err(DecimalError::TooPrecise | DecimalError::NotANumber) => RuleError::TooPrecise(field),
    };
    *broken = Some(rule);
    Decimal::ZERO
}

/// A whole number, as a number or as text. `None` if it is too large for any quantity.
pub fn as_quantity(raw: &str) -> Result<Option<i64>, TypeMismatch> {
    match decimal(raw, WHOLE_NUMBER)? {
        Ok(number) if number.is_integer() => {
            Ok(Some(i64::try_from(number).unwrap_or(if number.is_sign_negative() { i64::MIN } else { i64::MAX })))
        }
        Err(DecimalError::TooLarge) => Ok(None),
        Ok(_) | Err(DecimalError::TooPrecise | DecimalError::NotANumber) => Err(mismatch(raw, WHOLE_NUMBER)),
    }
}

/// True or false; also as a text, and as 1 or 0: PHP and SQL have no booleans in many of their outputs.
pub fn as_boolean(raw: &str) -> Result<bool, TypeMismatch> {
    let text = text(raw).map_or_else(|| raw.to_owned(), |text| text.trim_ascii().to_ascii_lowercase());
    match text.as_str() {
        "false" | "0" => Ok(false),
        "true" | "1" => Ok(true),
        _ => Err(mismatch(raw, "true or false")),
    }
}

/// A time.
pub fn as_time(raw: &str) -> Result<Timestamp, TypeMismatch> {
    let time = text(raw).and_then(|text| parse_time(text.trim_ascii()));
    time.ok_or_else(|| mismatch(raw, "a time such as 2026-11-22T08:00:00Z"))
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
