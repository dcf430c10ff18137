//! A report's query, as written on the command line and in URLs. Text in, values out; no clock.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::civil::DateTime;
use jiff::fmt::friendly::SpanParser;
use jiff::tz::TimeZone;
use jiff::{SpanRelativeTo, Timestamp};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::{IntoParams, ToSchema};

static SPANS: SpanParser = SpanParser::new();

/// A report's period and grouping. Every field is optional; the default is the last seven days, by day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ReportQuery {
    /// The start: an age such as 24h or 7d, a date, or a time; 7d by default
    #[param(value_type = String, required = false)]
    pub since: PointInTime,
    /// The end, exclusive; now by default
    #[param(value_type = String, required = false)]
    pub until: PointInTime,
    /// What the rows are grouped by; days by default
    #[param(required = false)]
    pub by: GroupBy,
}

impl Default for ReportQuery {
    fn default() -> Self {
        ReportQuery {
            since: PointInTime::Ago(Duration::from_secs(7 * 86_400)),
            until: PointInTime::Ago(Duration::ZERO),
            by: GroupBy::Day,
        }
    }
}

/// What a report's rows are grouped by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GroupBy {
    /// Product.
    Product,
    /// Hours, UTC.
    Hour,
    /// Days, UTC.
    #[default]
    Day,
    /// Orders accepted and orders processed, each counted at the time it happened.
    Status,
    /// Orders that the producer marked as priority, and others.
    Priority,
}

/// A point in time: an age (`24h`, `7d`), a date (`2026-11-22`, its first moment in UTC), a date and time in UTC
/// (`2026-11-22T08:00`), or RFC 3339 with an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointInTime {
    /// This long before now.
    Ago(Duration),
    /// At this time.
    At(Timestamp),
}

impl PointInTime {
    /// Resolves an age against `now`.
    pub fn at(self, now: Timestamp) -> Timestamp {
        match self {
            PointInTime::Ago(age) => now.checked_sub(age).unwrap_or(Timestamp::MIN),
            PointInTime::At(moment) => moment,
        }
    }
}

/// The text is not a point in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be a time such as 24h, 7d, 2026-11-22 or 2026-11-22T08:00:00Z, is {0:?}")]
pub struct InvalidTime(String);

impl FromStr for PointInTime {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        let text = text.trim();
        if text == "now" {
            return Ok(PointInTime::Ago(Duration::ZERO));
        }
        if let Ok(moment) = text.parse() {
            return Ok(PointInTime::At(moment));
        }
        // The parser would ignore a time zone's name.
        if !text.contains('[')
            && let Ok(date) = text.parse::<DateTime>()
            && let Ok(zoned) = date.to_zoned_datetime(TimeZone::UTC)
        {
            return Ok(PointInTime::At(zoned.timestamp()));
        }
        let ago = SPANS.parse_span(text).ok();
        let ago = ago.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
        let ago = ago.map(|span| PointInTime::Ago(span.unsigned_abs()));
        ago.ok_or_else(|| InvalidTime(text.chars().take(40).collect()))
    }
}

impl<'de> Deserialize<'de> for PointInTime {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for GroupBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GroupBy::Product => "product",
            GroupBy::Hour => "hour",
            GroupBy::Day => "day",
            GroupBy::Status => "status",
            GroupBy::Priority => "priority",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn when(text: &str, now: &str) -> Option<String> {
        Some(text.parse::<PointInTime>().ok()?.at(now.parse().unwrap()).to_string())
    }

    #[test]
    fn a_point_in_time_is_an_age_a_date_or_a_time() {
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
    fn every_field_of_a_query_is_optional() {
        let query = |json: &str| serde_json::from_str::<ReportQuery>(json);
        assert_eq!(query("{}").unwrap(), ReportQuery::default());
        let asked = query(r#"{"since":"24h","by":"product"}"#).unwrap();
        assert_eq!((asked.since, asked.by), (PointInTime::Ago(Duration::from_secs(86_400)), GroupBy::Product));
        assert!(query(r#"{"from":"24h"}"#).is_err());
        assert!(query(r#"{"since":"soon"}"#).unwrap_err().to_string().contains("soon"));
    }
}
