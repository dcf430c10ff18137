//! Back-off: how long to wait before the next retry. Exponential, with jitter.
//!
//! Pure: the caller supplies the random number. The jitter keeps many clients of one broker from reconnecting at the same
//! moment.

use std::time::Duration;

/// The bounds of a back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Upper bound of the first wait.
    pub first: Duration,
    /// Upper bound of all waits.
    pub max: Duration,
}

impl Backoff {
    /// The wait before retry number `attempt`, counted from 0, with a random `jitter` from `[0, 1)`.
    ///
    /// At least a tenth of the bound, so that no series of small random numbers becomes a busy loop.
    pub fn wait(&self, attempt: u32, jitter: f64) -> Duration {
        let bound = self.first.saturating_mul(1u32.checked_shl(attempt).unwrap_or(u32::MAX)).min(self.max);
        bound.mul_f64(0.1 + 0.9 * jitter.clamp(0.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(30) };

    #[test]
    fn the_bound_doubles_up_to_the_maximum() {
        let bound = |attempt| BACKOFF.wait(attempt, 1.0);
        assert_eq!(bound(0), Duration::from_millis(100));
        assert_eq!(bound(3), Duration::from_millis(800));
        assert_eq!(bound(9), Duration::from_secs(30));
        assert_eq!(bound(u32::MAX), Duration::from_secs(30));
    }

    #[test]
    fn a_wait_is_never_zero() {
        assert_eq!(BACKOFF.wait(0, 0.0), Duration::from_millis(10));
    }
}
