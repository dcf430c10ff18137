//! One field of an order's document, with its name for errors.

use rust_decimal::Decimal;
use serde_json::value::RawValue;

use super::DecodeError;
use crate::domain::rule::{AmountField, RuleError};
use crate::domain::value::{self, TypeMismatch};

/// A field of the object, with its name for errors.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    pub name: &'static str,
    pub raw: Option<&'a RawValue>,
}

impl<'a> Field<'a> {
    pub fn required(self) -> Result<&'a str, DecodeError> {
        self.raw.map(RawValue::get).ok_or(DecodeError::Missing(self.name))
    }

    /// `None` also if it is null or a text that is empty or blank.
    pub fn optional(self) -> Option<&'a str> {
        self.raw.map(RawValue::get).filter(|raw| !value::is_missing(raw))
    }

    pub fn read<T>(self, raw: &str, read: fn(&str) -> Result<T, TypeMismatch>) -> Result<T, DecodeError> {
        read(raw).map_err(|mismatch| DecodeError::Field { field: self.name, mismatch })
    }

    pub fn optional_value<T>(self, read: fn(&str) -> Result<T, TypeMismatch>) -> Result<Option<T>, DecodeError> {
        self.optional().map(|raw| self.read(raw, read)).transpose()
    }

    pub fn quantity(self, broken: &mut Option<RuleError>) -> Result<i64, DecodeError> {
        let quantity = self.read(self.required()?, value::as_quantity)?;
        Ok(quantity.unwrap_or_else(|| {
            *broken = Some(RuleError::quantity(i64::MAX));
            i64::MAX
        }))
    }

    pub fn amount(
        self,
        raw: &str,
        amount: AmountField,
        broken: &mut Option<RuleError>,
    ) -> Result<Decimal, DecodeError> {
        Ok(value::kept_amount(self.read(raw, value::as_decimal)?, amount, broken))
    }
}
