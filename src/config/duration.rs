//! Parses and formats durations: `30s`, `1m 30s`, `500ms`. Pure.

use std::time::Duration;

use jiff::fmt::friendly::SpanParser;
use jiff::{SignedDuration, SpanRelativeTo};

static PARSER: SpanParser = SpanParser::new();

/// Parses a duration with units; a day is 24 hours.
///
/// # Errors
/// What is wrong with the text, without the text.
pub fn parse(text: &str) -> Result<Duration, &'static str> {
    const NEEDS_UNIT: &str = "must be a duration with a unit, such as \"30s\" or \"1m 30s\"";
    let span = PARSER.parse_span(text.trim()).map_err(|_| NEEDS_UNIT)?;
    let signed = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| "must be a duration in weeks or smaller units: months and years differ in length")?;
    Duration::try_from(signed).map_err(|_| "must not be negative")
}

/// Formats a duration: `1m 11s`, `25h`, `500ms`; whole days and more than two days in days: `1d`, `3d`, `2d 1h`.
pub fn format(duration: Duration) -> String {
    const DAY: u64 = 86_400;
    let show = |duration: Duration| {
        SignedDuration::try_from(duration).map_or_else(|_| format!("{duration:?}"), |signed| format!("{signed:#}"))
    };
    let days = duration.as_secs() / DAY;
    let rest = duration - Duration::from_secs(days * DAY);
    match (days, rest.is_zero()) {
        (0, _) | (1, false) => show(duration),
        (days, true) => format!("{days}d"),
        (days, false) => format!("{days}d {}", show(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_a_unit_of_fixed_length() {
        for (text, millis) in [
            ("30s", 30_000),
            ("1m 30s", 90_000),
            ("1m30s", 90_000),
            ("500ms", 500),
            ("24h", 86_400_000),
            ("7d", 7 * 86_400_000),
            ("1.5h", 5_400_000),
            ("2 minutes", 120_000),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "30", "s", "1y", "2mo", "-1s", "1s ago", "PT30S", "30 parsecs"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_formatted_duration_parses_to_the_same_value() {
        for (millis, text) in [
            (500, "500ms"),
            (71_000, "1m 11s"),
            (86_400_000, "1d"),
            (90_000_000, "25h"),
            (0, "0s"),
            (259_200_000, "3d"),
            (176_400_500, "2d 1h 500ms"),
        ] {
            assert_eq!(format(Duration::from_millis(millis)), text);
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)));
        }
    }
}
