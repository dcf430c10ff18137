//! The question a report answers, as people and URLs write it. Text in, values out; no clock.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::fmt::friendly::SpanParser;
use jiff::tz::TimeZone;
use jiff::{SpanRelativeTo, Timestamp};
use serde::{Deserialize, Deserializer, Serialize};

static SPANS: SpanParser = SpanParser::new();

/// What a report is asked for. All of it can be left out: by day, for the last seven days.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Query {
    /// The beginning.
    pub since: When,
    /// The end, which is not part of it.
    pub until: When,
    /// What its rows tell apart.
    pub by: By,
}

impl Default for Query {
    fn default() -> Self {
        Query { since: When::Ago(Duration::from_secs(7 * 86_400)), until: When::Ago(Duration::ZERO), by: By::Day }
    }
}

/// What a report's rows tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// What was ordered.
    Product,
    /// Hours, UTC.
    Hour,
    /// Days, UTC.
    #[default]
    Day,
    /// Accepted and processed, each counted when it happened.
    Status,
    /// Orders marked urgent by their producer, and others.
    Priority,
}

/// A moment, as people write it: `24h` or `7d` ago, `2026-11-22` (its first moment), `2026-11-22T08:00` (UTC), or
/// with an offset as in RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// So long before now.
    Ago(Duration),
    /// At a moment.
    At(Timestamp),
}

impl When {
    /// The moment meant.
    pub fn at(self, now: Timestamp) -> Timestamp {
        match self {
            When::Ago(age) => now.checked_sub(age).unwrap_or(Timestamp::MIN),
            When::At(moment) => moment,
        }
    }
}

/// A text that names no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be a time such as 24h, 7d, 2026-11-22 or 2026-11-22T08:00:00Z, is {0:?}")]
pub struct WrongTime(String);

impl FromStr for When {
    type Err = WrongTime;

    fn from_str(text: &str) -> Result<Self, WrongTime> {
        let text = text.trim();
        if text == "now" {
            return Ok(When::Ago(Duration::ZERO));
        }
        if let Ok(moment) = text.parse() {
            return Ok(When::At(moment));
        }
        // A time zone's name would be read over.
        if !text.contains('[')
            && let Ok(date) = text.parse::<DateTime>()
            && let Ok(zoned) = date.to_zoned(TimeZone::UTC)
        {
            return Ok(When::At(zoned.timestamp()));
        }
        let ago = SPANS.parse_span(text).ok();
        let ago = ago.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
        let ago = ago.map(|span| When::Ago(span.unsigned_abs()));
        ago.ok_or_else(|| WrongTime(text.chars().take(40).collect()))
    }
}

impl<'de> Deserialize<'de> for When {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            By::Product => "product",
            By::Hour => "hour",
            By::Day => "day",
            By::Status => "status",
            By::Priority => "priority",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn when(text: &str, now: &str) -> Option<String> {
        Some(text.parse::<When>().ok()?.at(now.parse().unwrap()).to_string())
    }

    #[test]
    fn a_moment_is_an_age_a_date_or_a_time() {
        let now = "2026-11-22T08:30:00Z";
        for (text, moment) in [
            ("24h", "2026-11-21T08:30:00Z"),
            ("7d", "2026-11-15T08:30:00Z"),
            ("1h 30m ago", "2026-11-22T07:00:00Z"),
            ("now", now),
            ("2026-11-22", "2026-11-22T00:00:00Z"),
            ("2026-11-22T08:00", "2026-11-22T08:00:00Z"),
            ("2026-11-22T08:00:00+02:00", "2026-11-22T06:00:00Z"),
        ] {
            assert_eq!(when(text, now).as_deref(), Some(moment), "{text}");
        }
        for text in
            ["", "7", "yesterday-ish", "2026-13-01", "22.11.2026", "2 months", "2026-11-22T08:00[Europe/Berlin]"]
        {
            assert_eq!(when(text, now), None, "{text}");
        }
    }

    #[test]
    fn a_query_can_leave_everything_out() {
        let query = |json: &str| serde_json::from_str::<Query>(json);
        assert_eq!(query("{}").unwrap(), Query::default());
        let asked = query(r#"{"since":"24h","by":"product"}"#).unwrap();
        assert_eq!((asked.since, asked.by), (When::Ago(Duration::from_secs(86_400)), By::Product));
        assert!(query(r#"{"from":"24h"}"#).is_err());
        assert!(query(r#"{"since":"soon"}"#).unwrap_err().to_string().contains("soon"));
    }
}
