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
    /// Between the day and the time, and after the time.
    before_time: &'static str,
    after_time: &'static str,
}

/// The time of day, in every language.
const TIME: &str = "%H:%M";

/// Of a language that is not known.
const ISO: Style =
    Style { group: "", point: ".", symbol_first: false, date: "%Y-%m-%d", before_time: " ", after_time: "" };

const STYLES: [(&str, Style); 6] = [
    ("en", Style { group: ",", symbol_first: true, date: "%-d %B %Y", before_time: ", ", ..ISO }),
    ("de", Style { group: ".", point: ",", date: "%d.%m.%Y", before_time: ", ", after_time: " Uhr", ..ISO }),
    ("fr", Style { group: "\u{202f}", point: ",", date: "%d/%m/%Y", ..ISO }),
    ("es", Style { group: ".", point: ",", date: "%d/%m/%Y", ..ISO }),
    ("it", Style { group: ".", point: ",", date: "%d/%m/%Y", ..ISO }),
    ("nl", Style { group: ".", point: ",", date: "%d-%m-%Y", ..ISO }),
];

/// The abbreviations of time zones that German has names of its own for. In the other languages, the international ones are usual.
const GERMAN_ZONES: [(&str, &str); 6] =
    [("CET", "MEZ"), ("CEST", "MESZ"), ("WET", "WEZ"), ("WEST", "WESZ"), ("EET", "OEZ"), ("EEST", "OESZ")];

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

    /// The time of day.
    pub fn time(self, at: Timestamp, zone: &TimeZone) -> String {
        at.to_zoned_datetime(zone.clone()).strftime(TIME).to_string()
    }

    /// A day with the time and the abbreviation of the time zone.
    pub fn datetime(self, at: Timestamp, zone: &TimeZone) -> String {
        let (date, time) = (self.date(at, zone), self.time(at, zone));
        let zone = at.to_zoned_datetime(zone.clone()).strftime("%Z").to_string();
        let german = GERMAN_ZONES.iter().find(|(known, _)| *known == zone && self == Style::of("de"));
        let zone = match german {
            Some((_, german)) => (*german).to_owned(),
            // Zones without an abbreviation, such as America/Sao_Paulo.
            None if zone.starts_with(['+', '-']) => format!("UTC{zone}"),
            None => zone,
        };
        format!("{date}{}{time}{} {zone}", self.before_time, self.after_time)
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
        assert_eq!(Style::of("xx").date(at, &TimeZone::UTC), "2026-11-22");
        assert_eq!(Style::of("de").datetime(at, &TimeZone::UTC), "22.11.2026, 23:30 Uhr UTC");
        assert_eq!(Style::of("xx").datetime(at, &berlin), "2026-11-23 00:30 UTC+01");
    }

    #[test]
    fn a_time_has_no_date_and_a_time_zone_has_the_name_of_the_language() {
        let winter: Timestamp = "2026-11-27T20:00:00Z".parse().unwrap();
        let summer: Timestamp = "2026-07-27T20:00:00Z".parse().unwrap();
        // As in the databases of systems, without needing one.
        let berlin = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        assert_eq!(Style::of("de").time(winter, &berlin), "21:00");
        assert_eq!(Style::of("en").time(summer, &berlin), "22:00");
        assert_eq!(Style::of("de-AT").datetime(winter, &berlin), "27.11.2026, 21:00 Uhr MEZ");
        assert_eq!(Style::of("de").datetime(summer, &berlin), "27.07.2026, 22:00 Uhr MESZ");
        assert_eq!(Style::of("en").datetime(winter, &berlin), "27 November 2026, 21:00 CET");
        assert_eq!(Style::of("fr").datetime(winter, &berlin), "27/11/2026 21:00 CET");
    }
}
