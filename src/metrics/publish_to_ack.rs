//! How long messages take from their publishing to their ack, as far as their timestamps say.
//!
//! Pure: times are arguments. A timestamp that cannot be a time of publishing is never counted.

use std::time::{Duration, SystemTime};

/// A timestamp further in the future is not a time of publishing in seconds: some producers write milliseconds.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(60);
/// A timestamp further in the past is not a time of publishing either: no message waits that many days.
const MAX_AGE: Duration = Duration::from_secs(30 * 86_400);

/// Time from publishing to the ack; `None` if the timestamp cannot be a time of publishing.
pub fn publish_to_ack(published: u64, acked_at: SystemTime) -> Option<Duration> {
    let published = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(published))?;
    match acked_at.duration_since(published) {
        Ok(duration) => Some(duration).filter(|duration| *duration <= MAX_AGE),
        Err(early) if early.duration() <= MAX_CLOCK_SKEW => Some(Duration::ZERO),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn one_timestamp_that_cannot_be_a_time_of_publishing_does_not_distort_the_latency() {
        assert_eq!(publish_to_ack(1, at(1_700_000_000)), None, "not a time");
        assert_eq!(publish_to_ack(1000, at(1007)), Some(Duration::from_secs(7)));
        assert_eq!(publish_to_ack(1030, at(1000)), Some(Duration::ZERO), "a small clock skew");
        assert_eq!(publish_to_ack(1_700_000_000_000, at(1_700_000_000)), None, "milliseconds");
        assert_eq!(publish_to_ack(u64::MAX, at(0)), None);
    }
}
