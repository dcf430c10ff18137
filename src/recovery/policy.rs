//! The retry policy of one consumer, as configured in `consumers.<name>.retry`. Pure.

use std::time::Duration;

use crate::delay::Delay;

/// How failures of one consumer are retried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Immediate retries in the worker, of transient failures only.
    pub immediate: u32,
    /// The delay before each delayed retry, in order. If empty, the message is dead-lettered without a delayed retry.
    pub delays: Vec<Delay>,
    /// Messages whose first failure is older than this are dead-lettered.
    pub max_age: Duration,
}

impl RetryPolicy {
    /// Time from the first failure to the last retry when every retry waits its full delay.
    pub fn total_delay(&self) -> Duration {
        self.delays.iter().map(|delay| delay.as_duration()).sum()
    }
}
