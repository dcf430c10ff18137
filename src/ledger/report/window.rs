//! The period a report covers, and the aggregates that cover it. Pure.

use std::ops::Range;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::{ReportError, ReportQuery};
use crate::ledger::buckets::{DAY, HOUR, MINUTE};

/// Periods begin and end at full minutes within this many milliseconds before now, and at full hours before that: the
/// aggregates of older minutes may have been removed (`ledger.retention`), and a report must not depend on it.
const MINUTE_PRECISION: i64 = 2 * DAY;

/// A period from one full minute to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Window {
    /// Its start.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// Its end, exclusive.
    #[schema(value_type = String, format = DateTime)]
    pub until: Timestamp,
}

/// The buckets that cover a window, the widest that fit: ranges of milliseconds since 1970, ends excluded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::ledger) struct Cover {
    pub minutes: Vec<Range<i64>>,
    pub hours: Vec<Range<i64>>,
    pub days: Vec<Range<i64>>,
}

impl Window {
    /// The query's period, rounded outwards so that nothing asked for is left out.
    ///
    /// # Errors
    /// [`ReportError::Backwards`].
    pub fn new(query: &ReportQuery, now: Timestamp) -> Result<Self, ReportError> {
        let (since, until) = (query.since.at(now), query.until.at(now));
        if since > until {
            return Err(ReportError::Backwards { since, until });
        }
        let unit = |moment: i64| if now.as_millisecond() - moment <= MINUTE_PRECISION { MINUTE } else { HOUR };
        let since = since.as_millisecond();
        let until = until.as_millisecond();
        Ok(Window {
            since: timestamp(since.div_euclid(unit(since)) * unit(since)),
            until: timestamp(-(-until).div_euclid(unit(until)) * unit(until)),
        })
    }

    /// Covers the window with minutes and hours, and with days too if `by_days`.
    pub(in crate::ledger) fn cover(self, by_days: bool) -> Cover {
        let mut cover = Cover::default();
        let all = self.since.as_millisecond()..self.until.as_millisecond();
        let hours = split(all, HOUR, &mut cover.minutes);
        let days = if by_days { split(hours, DAY, &mut cover.hours) } else { push(&mut cover.hours, hours) };
        push(&mut cover.days, days);
        cover
    }
}

/// The part of a range that whole buckets of this width cover; the rest, at its edges, is added to `narrower`.
fn split(range: Range<i64>, width: i64, narrower: &mut Vec<Range<i64>>) -> Range<i64> {
    let (start, end) = (-(-range.start).div_euclid(width) * width, range.end.div_euclid(width) * width);
    if start >= end {
        return push(narrower, range);
    }
    push(narrower, range.start..start);
    push(narrower, end..range.end);
    start..end
}

/// Adds a range unless it is empty. Returns an empty range: nothing is left to cover.
fn push(ranges: &mut Vec<Range<i64>>, range: Range<i64>) -> Range<i64> {
    if !range.is_empty() {
        ranges.push(range);
    }
    0..0
}

fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis.clamp(Timestamp::MIN.as_millisecond(), Timestamp::MAX.as_millisecond()))
        .expect("it was clamped to the range of timestamps")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::report::{GroupBy, PointInTime};

    const NOW: &str = "2026-11-22T08:30:30Z";

    fn window(since: &str, until: &str) -> Window {
        let query = ReportQuery { since: since.parse().unwrap(), until: until.parse().unwrap(), by: GroupBy::Day };
        Window::new(&query, NOW.parse().unwrap()).unwrap()
    }

    fn rounded(since: &str, until: &str) -> String {
        let window = window(since, until);
        format!("{} {}", window.since, window.until)
    }

    #[test]
    fn a_window_is_rounded_outwards_to_minutes_or_to_hours_if_long_ago() {
        assert_eq!(rounded("15m", "now"), "2026-11-22T08:15:00Z 2026-11-22T08:31:00Z");
        assert_eq!(rounded("7d", "now"), "2026-11-15T08:00:00Z 2026-11-22T08:31:00Z");
        assert_eq!(rounded("2026-11-01T00:10", "2026-11-02T00:10"), "2026-11-01T00:00:00Z 2026-11-02T01:00:00Z");
        assert_eq!(rounded("2026-11-01", "2026-11-02"), "2026-11-01T00:00:00Z 2026-11-02T00:00:00Z");
        assert_eq!(rounded("0001-01-01", "0001-01-02"), "0001-01-01T00:00:00Z 0001-01-02T00:00:00Z");
    }

    #[test]
    fn a_window_never_runs_backwards() {
        let query = ReportQuery {
            since: PointInTime::Ago(std::time::Duration::ZERO),
            until: "1h".parse().unwrap(),
            by: GroupBy::Day,
        };
        let refused = Window::new(&query, NOW.parse().unwrap());
        assert!(matches!(refused, Err(ReportError::Backwards { .. })), "{refused:?}");
    }

    #[test]
    fn every_minute_of_a_window_is_covered_once_by_the_widest_buckets() {
        for (since, until) in [
            ("2026-11-20T09:59", "2026-11-22T08:17"),
            ("2026-11-22T08:01", "2026-11-22T08:17"),
            ("2026-11-22T07:59", "2026-11-22T08:17"),
            ("2026-11-21T23:59", "2026-11-22T00:01"),
            ("2026-11-21", "2026-11-22"),
            ("2026-11-22T08:10", "2026-11-22T08:10"),
        ] {
            let window = window(since, until);
            for by_days in [false, true] {
                let cover = window.cover(by_days);
                let mut minutes: Vec<i64> = Vec::new();
                for (ranges, width) in [(&cover.minutes, MINUTE), (&cover.hours, HOUR), (&cover.days, DAY)] {
                    for range in ranges {
                        assert_eq!((range.start % width, range.end % width), (0, 0), "{cover:?}");
                        minutes.extend(range.clone().step_by(MINUTE as usize));
                    }
                }
                minutes.sort_unstable();
                let all = window.since.as_millisecond()..window.until.as_millisecond();
                assert_eq!(minutes, all.step_by(MINUTE as usize).collect::<Vec<_>>(), "{since} {until} {cover:?}");
                let edges = cover.minutes.iter().map(|range| (range.end - range.start) / MINUTE).max().unwrap_or(0);
                assert!(edges < 60, "{cover:?}");
                assert!(by_days || cover.days.is_empty(), "{cover:?}");
            }
        }
    }
}
