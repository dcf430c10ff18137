//! Exact sums of amounts. Pure.
//!
//! `Decimal` has 96 bits for all its digits. Producers may send any decimal as a price, and the sum of a large amount
//! and one with many decimal places needs more digits than that: `checked_add` would round it or fail, and one extreme
//! order would falsify a product's revenue or keep it from being counted. This type keeps every digit.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// Most decimal places of a `Decimal`.
const SCALE: u32 = 28;
const ONE: u128 = POWERS[SCALE as usize];
/// Powers of ten, by exponent.
const POWERS: [u128; SCALE as usize + 1] = {
    let mut powers = [1; SCALE as usize + 1];
    let mut exponent = 1;
    while exponent < powers.len() {
        powers[exponent] = powers[exponent - 1] * 10;
        exponent += 1;
    }
    powers
};

/// An exact sum of decimals. It has as many decimal places as the summand with most of them.
///
/// The whole part has 128 bits and saturates, at two thousand million times the largest decimal.
#[derive(Debug, Clone, Copy, Default)]
pub struct ExactSum {
    /// The sum, rounded down.
    whole: i128,
    /// The difference between the sum and `whole`, in units of 10⁻²⁸: from 0 to less than `ONE`, also in negative sums.
    fraction: u128,
    /// Decimal places in the text.
    scale: u32,
}

impl ExactSum {
    /// Adds another sum.
    pub fn add(&mut self, other: ExactSum) {
        let fraction = self.fraction + other.fraction;
        let carries = fraction >= ONE;
        self.whole = self.whole.saturating_add(other.whole).saturating_add(carries.into());
        self.fraction = if carries { fraction - ONE } else { fraction };
        self.scale = self.scale.max(other.scale);
    }

    /// The sum as a float, which is not exact. For charts only.
    pub fn approximate(self) -> f64 {
        self.whole as f64 + self.fraction as f64 / ONE as f64
    }

    /// The sum as a `Decimal`; `None` if that cannot keep every digit. Zeros at the end that do not fit are dropped.
    pub fn to_decimal(self) -> Option<Decimal> {
        let text = self.to_string();
        let exact = |text: &str| Decimal::from_str_exact(text).ok();
        exact(&text).or_else(|| exact(text.trim_end_matches('0').trim_end_matches('.')).filter(|_| text.contains('.')))
    }

    /// Decimal places in its text.
    pub fn places(&self) -> usize {
        self.scale as usize
    }

    /// Its text, with zeros at the end so that it has at least this many decimal places.
    pub fn with_places(self, places: usize) -> String {
        let mut text = self.to_string();
        if self.scale == 0 && places > 0 {
            text.push('.');
        }
        text.extend(std::iter::repeat_n('0', places.saturating_sub(self.places())));
        text
    }

    fn from_parts(negative: bool, whole: u128, fraction: u128, scale: u32) -> Self {
        let whole = i128::try_from(whole).unwrap_or(i128::MAX);
        match (negative, fraction) {
            (false, fraction) => ExactSum { whole, fraction, scale },
            (true, 0) => ExactSum { whole: -whole, fraction: 0, scale },
            (true, fraction) => ExactSum { whole: -whole - 1, fraction: ONE - fraction, scale },
        }
    }
}

impl std::ops::Neg for ExactSum {
    type Output = ExactSum;

    fn neg(self) -> ExactSum {
        let whole = self.whole.saturating_neg();
        match self.fraction {
            0 => ExactSum { whole, ..self },
            fraction => ExactSum { whole: whole.saturating_sub(1), fraction: ONE - fraction, ..self },
        }
    }
}

impl From<Decimal> for ExactSum {
    fn from(amount: Decimal) -> Self {
        let (mantissa, scale) = (amount.mantissa().unsigned_abs(), amount.scale());
        let unit = POWERS[scale as usize];
        // Most amounts fit 64 bits, and dividing those is much faster.
        let (whole, rest) = match (u64::try_from(mantissa), u64::try_from(unit)) {
            (Ok(mantissa), Ok(unit)) => (u128::from(mantissa / unit), u128::from(mantissa % unit)),
            (Err(_), _) | (_, Err(_)) => (mantissa / unit, mantissa % unit),
        };
        Self::from_parts(amount.is_sign_negative(), whole, rest * POWERS[(SCALE - scale) as usize], scale)
    }
}

impl PartialEq for ExactSum {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for ExactSum {}

impl PartialOrd for ExactSum {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Compares the numbers, not the decimal places: 1.0 equals 1.00.
impl Ord for ExactSum {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.whole, self.fraction).cmp(&(other.whole, other.fraction))
    }
}

impl fmt::Display for ExactSum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, whole, fraction) = match (self.whole < 0, self.fraction) {
            (false, fraction) => ("", self.whole.unsigned_abs(), fraction),
            (true, 0) => ("-", self.whole.unsigned_abs(), 0),
            (true, fraction) => ("-", self.whole.unsigned_abs() - 1, ONE - fraction),
        };
        if self.scale == 0 {
            return write!(f, "{sign}{whole}");
        }
        let digits = fraction / POWERS[(SCALE - self.scale) as usize];
        write!(f, "{sign}{whole}.{digits:0width$}", width = self.scale as usize)
    }
}

/// The text is not a sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a decimal number with at most {SCALE} decimal places")]
pub struct InvalidSum;

/// Parses the text that `Display` writes, and that of a `Decimal`.
impl FromStr for ExactSum {
    type Err = InvalidSum;

    fn from_str(text: &str) -> Result<Self, InvalidSum> {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let scale = u32::try_from(fraction.len()).ok().filter(|scale| *scale <= SCALE).ok_or(InvalidSum)?;
        if whole.is_empty() || !digits(whole) || !digits(fraction) || text.ends_with('.') {
            return Err(InvalidSum);
        }
        let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| InvalidSum)? };
        let whole = whole.parse().map_err(|_| InvalidSum)?;
        Ok(Self::from_parts(negative, whole, fraction * POWERS[(SCALE - scale) as usize], scale))
    }
}

/// A JSON string, because most JSON parsers read numbers as floats.
impl Serialize for ExactSum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ExactSum {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl PartialSchema for ExactSum {
    fn schema() -> RefOr<Schema> {
        String::schema()
    }
}

impl ToSchema for ExactSum {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(amounts: &[&str]) -> String {
        let mut sum = ExactSum::default();
        amounts.iter().for_each(|amount| sum.add(amount.parse().unwrap()));
        sum.to_string()
    }

    #[test]
    fn a_sum_keeps_every_digit_even_where_a_decimal_would_round_or_overflow() {
        assert_eq!(sum(&[]), "0");
        assert_eq!(sum(&["1200.00", "0.5"]), "1200.50");
        assert_eq!(sum(&["0.1", "0.2"]), "0.3");
        let largest = Decimal::MAX.to_string();
        assert_eq!(sum(&[&largest, &largest, "0.0000000000000000000000000001"]).len(), 29 + 1 + 29);
        assert_eq!(sum(&[&largest, "1"]), "79228162514264337593543950336");
    }

    #[test]
    fn negative_amounts_are_added_exactly() {
        assert_eq!(sum(&["-0.75", "0.50"]), "-0.25");
        assert_eq!(sum(&["-2", "1.5"]), "-0.5");
        assert_eq!(sum(&["-1.25", "1.25"]), "0.00");
        assert!("-0.5".parse::<ExactSum>().unwrap() < ExactSum::default());
    }

    #[test]
    fn text_that_is_not_a_decimal_is_rejected() {
        for text in ["", "-", ".5", "5.", "1e3", "+1", " 1", "1.00000000000000000000000000001", "0x1"] {
            assert_eq!(text.parse::<ExactSum>(), Err(InvalidSum), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn small_sums_equal_those_of_decimals(amounts in prop::collection::vec((any::<i64>(), 0..6u32), 0..50)) {
            let (mut sum, mut expected) = (ExactSum::default(), Decimal::ZERO);
            for (mantissa, scale) in amounts {
                let amount = Decimal::new(mantissa, scale);
                sum.add(amount.into());
                expected += amount;
            }
            prop_assert_eq!(sum.to_string().parse::<Decimal>().unwrap(), expected);
            prop_assert_eq!(sum.to_string().parse::<ExactSum>().unwrap(), sum);
        }
    }
}
