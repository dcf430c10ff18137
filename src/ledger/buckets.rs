//! Widths of the time buckets that aggregates are kept in. Buckets begin at full minutes, hours and days, UTC.

/// Milliseconds.
pub(super) const MINUTE: i64 = 60_000;
/// Milliseconds.
pub(super) const HOUR: i64 = 60 * MINUTE;
/// Milliseconds.
pub(super) const DAY: i64 = 24 * HOUR;

/// The beginning of the bucket that a moment is in; both in milliseconds since 1970.
pub(super) fn bucket_start(moment: i64, width: i64) -> i64 {
    moment - moment.rem_euclid(width)
}
