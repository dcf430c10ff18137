//! When refusals (`basic.nack`) are a reason to publish over another connection.
//!
//! A connection can keep refusing a queue whose leader was lost although the queue has a new leader, and another connection
//! is accepted at once. Pure: times are arguments.

use std::time::Duration;

use tokio::time::Instant;

/// Refusals that last this long are a reason to reconnect.
const PATIENCE: Duration = Duration::from_secs(3);
/// The first wait between two reconnections. A queue that is full refuses on every connection, so it doubles each time.
const FIRST_INTERVAL: Duration = Duration::from_secs(30);
const MAX_INTERVAL: Duration = Duration::from_secs(600);
/// Refusals are over after this long without one: longer than the longest wait before a refused message is published again.
const OVER_AFTER: Duration = Duration::from_secs(300);

/// The refusals of one publisher, over all its connections.
#[derive(Debug, Default)]
pub struct Refusals {
    first: Option<Instant>,
    last: Option<Instant>,
    reconnected: Option<(Instant, Duration)>,
}

impl Refusals {
    /// The broker refused a publication. Returns whether to reconnect.
    pub fn refused(&mut self, now: Instant) -> bool {
        if self.last.is_some_and(|last| now.duration_since(last) >= OVER_AFTER) {
            *self = Refusals::default();
        }
        self.last = Some(now);
        let first = *self.first.get_or_insert(now);
        let wait = match self.reconnected {
            Some((at, interval)) if now.duration_since(at) < interval => return false,
            Some((_, interval)) => (interval * 2).min(MAX_INTERVAL),
            None => FIRST_INTERVAL,
        };
        if now.duration_since(first) < PATIENCE {
            return false;
        }
        (self.first, self.reconnected) = (None, Some((now, wait)));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_that_last_are_a_reason_to_reconnect_ever_more_rarely() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let reconnected: Vec<_> =
            (0..300).filter(|second| refusals.refused(start + Duration::from_secs(*second))).collect();
        assert_eq!(reconnected, [3, 33, 93, 213]);
        let later = start + Duration::from_secs(299) + OVER_AFTER;
        assert!(!refusals.refused(later), "other refusals, long after");
        assert!(refusals.refused(later + PATIENCE));
    }
}
