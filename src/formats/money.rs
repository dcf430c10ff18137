//! Amounts in a document: a number, a text, or an object with an amount and its currency, in major or minor units.
//!
//! Pure. No amount is ever a float, and none is rounded.

use rust_decimal::Decimal;

use super::fault::ValueProblem;
use super::spec::Unit;
use crate::domain::value::{as_decimal, as_text, is_missing, kept_amount};
use crate::domain::{AmountField, Currency, RuleError, object_values};

/// Reads one amount. `currency` is the order's, if it is known; an amount with a currency of its own determines it.
pub(super) fn read(
    raw: &str,
    field: AmountField,
    unit: Unit,
    currency: &mut Option<Currency>,
) -> Result<Decimal, ValueProblem> {
    let number = if raw.starts_with('{') { of_money(raw, currency)? } else { raw };
    let mut broken = None;
    let mut amount = kept_amount(as_decimal(number)?, field, &mut broken);
    if let Some(rule) = broken {
        return Err(rule.into());
    }
    if unit == Unit::Minor && !amount.is_zero() {
        let places = currency.ok_or(ValueProblem::NoCurrency)?.decimal_places();
        amount.set_scale(amount.scale() + places).map_err(|_| RuleError::TooPrecise(field))?;
    }
    // Fees may be deductions.
    if amount.is_sign_negative() && !amount.is_zero() && field != AmountField::Fees {
        return Err(RuleError::Negative(field).into());
    }
    Ok(amount)
}

/// The amount of `{"amount": …, "currency": …}`.
fn of_money<'a>(object: &'a str, currency: &mut Option<Currency>) -> Result<&'a str, ValueProblem> {
    let values = object_values(object, &["amount", "currency", "currency_code", "currencyCode"])?;
    let present = |index: usize| values[index].map(|raw| raw.get()).filter(|raw| !is_missing(raw));
    if let Some(raw) = (1..4).find_map(present) {
        let own: Currency = as_text(raw)?.parse().map_err(ValueProblem::Rule)?;
        if *currency.get_or_insert(own) != own {
            return Err(RuleError::Currencies.into());
        }
    }
    present(0).ok_or(ValueProblem::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amount(raw: &str, unit: Unit, currency: Option<&str>) -> Result<String, String> {
        let mut currency = currency.map(|code| code.parse().unwrap());
        let amount = read(raw, AmountField::Price, unit, &mut currency);
        amount.map(|amount| amount.to_string()).map_err(|problem| problem.code().to_owned())
    }

    #[test]
    fn minor_units_have_the_decimal_places_of_their_currency() {
        for (raw, currency, expected) in [
            ("1999", "EUR", "19.99"),
            ("\"1999\"", "usd", "19.99"),
            ("1999", "JPY", "1999"),
            ("1999", "KWD", "1.999"),
            ("5", "EUR", "0.05"),
            ("0.5", "EUR", "0.005"),
            ("9007199254740993", "EUR", "90071992547409.93"),
        ] {
            assert_eq!(amount(raw, Unit::Minor, Some(currency)), Ok(expected.to_owned()), "{raw} {currency}");
        }
        assert_eq!(amount("1999", Unit::Minor, None), Err("invalid_order".to_owned()));
        assert_eq!(amount("0", Unit::Minor, None), Ok("0".to_owned()));
    }

    #[test]
    fn an_amount_may_have_a_currency_of_its_own() {
        let money = r#"{"amount": "19.90", "currency": "EUR"}"#;
        assert_eq!(amount(money, Unit::Major, None), Ok("19.90".to_owned()));
        assert_eq!(amount(money, Unit::Major, Some("EUR")), Ok("19.90".to_owned()));
        assert_eq!(amount(money, Unit::Major, Some("USD")), Err("invalid_currency".to_owned()));
        assert_eq!(amount(r#"{"amount": 1990, "currency_code": "EUR"}"#, Unit::Minor, None), Ok("19.90".to_owned()));
        let mut currency = None;
        read(money, AmountField::Price, Unit::Major, &mut currency).unwrap();
        assert_eq!(currency, Some("EUR".parse().unwrap()));
        for wrong in
            [r#"{"currency": "EUR"}"#, r#"{"amount": null}"#, r#"{"amount": 1, "amount": 2}"#, r#"{"amount": "x"}"#]
        {
            assert_eq!(amount(wrong, Unit::Major, None), Err("invalid_order".to_owned()), "{wrong}");
        }
    }

    #[test]
    fn an_amount_that_cannot_be_kept_breaks_a_rule() {
        assert_eq!(amount("-1", Unit::Major, None), Err("invalid_price".to_owned()));
        assert_eq!(amount("1e40", Unit::Major, None), Err("invalid_price".to_owned()));
        assert_eq!(amount("0.0000000000000000000000000001", Unit::Minor, Some("EUR")), Err("invalid_price".to_owned()));
        assert_eq!(read("-1", AmountField::Fees, Unit::Major, &mut None), Ok(Decimal::NEGATIVE_ONE));
    }
}
