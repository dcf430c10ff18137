//! Amounts and times in the form of a language. Pure.
//!
//! A small table instead of a library for all languages: a language that is not in it gets the form of ISO 4217 and ISO 8601.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rust_decimal::Decimal;

use crate::domain::Currency;

/// How a language writes amounts and times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    /// Between the digits of thousands; empty for nothing.
    group: &'static str,
    /// Before the decimal places.
    point: &'static str,
    /// Whether the symbol of the currency precedes the amount.
    symbol_first: bool,
    /// As in `strftime`.
    date: &'static str,
    time: &'static str,
}

/// Of a language that is not known.
const ISO: Style = Style { group: "", point: ".", symbol_first: false, date: "%Y-%m-%d", time: "%Y-%m-%d %H:%M %Z" };

const STYLES: [(&str, Style); 6] = [
    ("en", Style { group: ",", point: ".", symbol_first: true, date: "%-d %B %Y", time: "%-d %B %Y, %H:%M %Z" }),
    ("de", Style { group: ".", point: ",", symbol_first: false, date: "%d.%m.%Y", time: "%d.%m.%Y, %H:%M Uhr %Z" }),
    ("fr", Style { group: "\u{202f}", point: ",", symbol_first: false, date: "%d/%m/%Y", time: "%d/%m/%Y %H:%M %Z" }),
    ("es", Style { group: ".", point: ",", symbol_first: false, date: "%d/%m/%Y", time: "%d/%m/%Y %H:%M %Z" }),
    ("it", Style { group: ".", point: ",", symbol_first: false, date: "%d/%m/%Y", time: "%d/%m/%Y %H:%M %Z" }),
    ("nl", Style { group: ".", point: ",", symbol_first: false, date: "%d-%m-%Y", time: "%d-%m-%Y %H:%M %Z" }),
];

const SYMBOLS: [(&str, &str); 4] = [("EUR", "€"), ("USD", "$"), ("GBP", "£"), ("JPY", "¥")];

impl Style {
    /// That of a language, such as `de` or `de-at`.
    pub fn of(language: &str) -> Self {
        let first = language.split(['-', '_']).next().unwrap_or_default();
        STYLES.iter().find(|(known, _)| known.eq_ignore_ascii_case(first)).map_or(ISO, |(_, style)| *style)
    }

    /// An amount with its currency, if it has one, with at least as many decimal places as the currency has. Never rounded.
    pub fn money(self, amount: Decimal, currency: Option<Currency>) -> String {
        let currency = currency.filter(|currency| *currency != Currency::NONE);
        let places = currency.map_or(2, Currency::decimal_places).max(amount.normalize().scale());
        let mut amount = amount;
        amount.rescale(places);
        let sign = if amount.is_sign_negative() && !amount.is_zero() { "-" } else { "" };
        let digits = amount.abs().to_string();
        let (whole, fraction) = digits.split_once('.').unwrap_or((&digits, ""));
        let mut number = grouped(whole, self.group);
        if !fraction.is_empty() {
            number = [&number, self.point, fraction].concat();
        }
        let Some(currency) = currency else { return [sign, &number].concat() };
        let symbol = SYMBOLS.iter().find(|(code, _)| *code == currency.as_str()).map(|(_, symbol)| *symbol);
        match symbol {
            Some(symbol) if self.symbol_first => [sign, symbol, &number].concat(),
            Some(symbol) if self != ISO => [sign, &number, "\u{a0}", symbol].concat(),
            Some(_) | None if self.symbol_first => [currency.as_str(), "\u{a0}", sign, &number].concat(),
            Some(_) | None => [sign, &number, "\u{a0}", currency.as_str()].concat(),
        }
    }

    /// A day.
    pub fn date(self, at: Timestamp, zone: &TimeZone) -> String {
        at.to_zoned_datetime(zone.clone()).strftime(self.date).to_string()
    }

    /// A day with the time.
    pub fn time(self, at: Timestamp, zone: &TimeZone) -> String {
        at.to_zoned_datetime(zone.clone()).strftime(self.time).to_string()
    }
}

fn grouped(digits: &str, group: &str) -> String {
    let mut text = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.char_indices() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push_str(group);
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_has_the_form_of_the_language_and_the_decimal_places_of_its_currency() {
        let money = |language: &str, amount: &str, currency: &str| {
            Style::of(language).money(amount.parse().unwrap(), Some(currency.parse().unwrap()))
        };
        assert_eq!(money("en", "1234567.5", "EUR"), "€1,234,567.50");
        assert_eq!(money("en-GB", "-3", "GBP"), "-£3.00");
        assert_eq!(money("en", "1299", "CHF"), "CHF\u{a0}1,299.00");
        assert_eq!(money("de", "1234.5", "EUR"), "1.234,50\u{a0}€");
        assert_eq!(money("de_AT", "999", "CHF"), "999,00\u{a0}CHF");
        assert_eq!(money("de", "1200", "JPY"), "1.200\u{a0}¥");
        assert_eq!(money("en", "0.1234", "USD"), "$0.1234", "never rounded");
        assert_eq!(money("pl", "1234.5", "EUR"), "1234.50\u{a0}EUR");
        assert_eq!(money("de", "1234.5", "XXX"), "1.234,50", "no currency");
        assert_eq!(money("en", "1.500", "EUR"), "€1.50");
    }

    #[test]
    fn a_date_has_the_form_of_the_language_and_the_time_zone() {
        let at = "2026-11-22T23:30:00Z".parse().unwrap();
        let berlin = TimeZone::fixed(jiff::tz::offset(1));
        assert_eq!(Style::of("en").date(at, &TimeZone::UTC), "22 November 2026");
        assert_eq!(Style::of("de").date(at, &berlin), "23.11.2026");
        assert_eq!(Style::of("de").time(at, &TimeZone::UTC), "22.11.2026, 23:30 Uhr UTC");
        assert_eq!(Style::of("xx").date(at, &TimeZone::UTC), "2026-11-22");
    }
}
