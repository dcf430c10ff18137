//! Widths of the time buckets that aggregates are kept in. Buckets begin at full minutes, hours and days, UTC.

/// A minute in milliseconds.
pub(super) const MINUTE: i64 = 60_000;
/// An hour in milliseconds.
pub(super) const HOUR: i64 = 60 * MINUTE;
/// A day in milliseconds.
pub(super) const DAY: i64 = 24 * HOUR;

/// The start of the bucket that contains a moment. Both are milliseconds since 1970.
pub(super) fn bucket_start(moment: i64, width: i64) -> i64 {
    moment - moment.rem_euclid(width)
}
