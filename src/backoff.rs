//! How long to wait before trying again: exponential growth with full jitter.
//!
//! Pure: the caller brings the random number. Full jitter (a wait anywhere between nothing and the bound)
//! keeps many clients of one broker from coming back in step.

use std::time::Duration;

/// Bounds of a back-off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Upper bound of the first wait.
    pub first: Duration,
    /// Upper bound of all waits.
    pub max: Duration,
}

impl Backoff {
    /// The wait before try number `attempt` (0 is the first retry), with `jitter` from `[0, 1)`.
    ///
    /// At least a tenth of the bound, so that no sequence of unlucky draws becomes a busy loop.
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
    fn a_wait_is_never_nothing() {
        assert_eq!(BACKOFF.wait(0, 0.0), Duration::from_millis(10));
    }
}
