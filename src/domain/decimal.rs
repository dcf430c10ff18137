//! Decimals from the digits of a JSON number or of a text. Pure. It never uses a float, and never rounds.

use rust_decimal::Decimal;

/// A `Decimal` has 96 bits.
const MAX_MANTISSA: u128 = (1 << 96) - 1;
/// Every number of this many digits fits 64 bits.
const FAST_DIGITS: usize = 18;
/// Exponents beyond this are all too large or too small.
const MAX_EXPONENT: i64 = 1_000_000_000;

/// The text is not a decimal that can be kept exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecimalError {
    /// It is not a number.
    NotANumber,
    /// It has more digits than a `Decimal` keeps, some of them after the decimal point.
    TooPrecise,
    /// It is too large.
    TooLarge,
}

/// Parses `[+-]digits[.digits][e[+-]digits]`. Zeros at the end that do not fit are dropped.
pub(super) fn parse_decimal(text: &str) -> Result<Decimal, DecimalError> {
    let (negative, text) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let (number, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(number, exp)| (number, Some(exp)));
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || !is_digits(whole) || !is_digits(fraction) {
        return Err(DecimalError::NotANumber);
    }
    let exponent = exponent.map_or(Ok(0), parse_exponent)?;
    let fits = exponent == 0 && whole.len() + fraction.len() <= FAST_DIGITS;
    let mut decimal = if fits {
        let mantissa = whole.bytes().chain(fraction.bytes()).fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0'));
        Decimal::new(mantissa, fraction.len() as u32)
    } else {
        exact([whole, fraction].concat().trim_start_matches('0'), fraction.len() as i64 - exponent)?
    };
    decimal.set_sign_negative(negative && !decimal.is_zero());
    Ok(decimal)
}

fn is_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_exponent(text: &str) -> Result<i64, DecimalError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !is_digits(digits) {
        return Err(DecimalError::NotANumber);
    }
    let size = digits.trim_start_matches('0');
    let size = if size.is_empty() { 0 } else { size.parse().unwrap_or(MAX_EXPONENT).min(MAX_EXPONENT) };
    Ok(if text.starts_with('-') { -size } else { size })
}

/// `digits` × 10^-`scale`.
fn exact(mut digits: &str, mut scale: i64) -> Result<Decimal, DecimalError> {
    if digits.is_empty() {
        return Ok(Decimal::new(0, scale.clamp(0, i64::from(Decimal::MAX_SCALE)) as u32));
    }
    loop {
        let zeros = usize::try_from(-scale).unwrap_or(0);
        let mantissa = if digits.len().saturating_add(zeros) > 29 {
            None
        } else {
            let power = 10_u128.pow(u32::try_from(zeros).unwrap_or(0));
            digits.parse::<u128>().ok().and_then(|mantissa| mantissa.checked_mul(power))
        };
        let fits = mantissa.filter(|mantissa| *mantissa <= MAX_MANTISSA && scale <= i64::from(Decimal::MAX_SCALE));
        if let Some(mantissa) = fits {
            let decimal = Decimal::try_from_i128_with_scale(mantissa.cast_signed(), scale.max(0) as u32);
            return decimal.map_err(|_| DecimalError::TooPrecise);
        }
        match digits.strip_suffix('0') {
            Some(shorter) if scale > 0 => (digits, scale) = (shorter, scale - 1),
            _ if scale > 0 && (digits.len() as i64) - scale <= 29 => return Err(DecimalError::TooPrecise),
            _ => return Err(DecimalError::TooLarge),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decimal_is_exact_whatever_its_notation() {
        for (text, expected) in [
            ("400", "400"),
            ("400.00", "400.00"),
            ("+3", "3"),
            ("-0.01", "-0.01"),
            ("007.5", "7.5"),
            ("4e2", "400"),
            ("1.5E+3", "1500"),
            ("25e-2", "0.25"),
            ("0e400", "0"),
            ("9007199254740993.01", "9007199254740993.01"),
            ("79228162514264337593543950335", "79228162514264337593543950335"),
            ("0.0000000000000000000000000001", "0.0000000000000000000000000001"),
        ] {
            assert_eq!(parse_decimal(text).map(|d| d.to_string()), Ok(expected.to_owned()), "{text}");
        }
        let zeros = format!("67.2{}", "0".repeat(60));
        assert_eq!(parse_decimal(&zeros).unwrap(), "67.2".parse().unwrap());
    }

    #[test]
    fn a_number_that_does_not_fit_is_not_rounded() {
        for text in ["0.00000000000000000000000000001", "1e-400", "67.20000000000000000000000000000001"] {
            assert_eq!(parse_decimal(text), Err(DecimalError::TooPrecise), "{text}");
        }
        for text in
            ["1e400", "79228162514264337593543950336", "1e99999999999999999999", "9999999999999999999999999999999.5"]
        {
            assert_eq!(parse_decimal(text), Err(DecimalError::TooLarge), "{text}");
        }
    }

    #[test]
    fn other_text_is_not_a_number() {
        for text in ["", "-", ".", "e3", "1e", "1_0", "1,5", "0x1", "NaN", "Infinity", " 1", "++1", "1.2.3", "٣"] {
            assert_eq!(parse_decimal(text), Err(DecimalError::NotANumber), "{text}");
        }
    }
}
