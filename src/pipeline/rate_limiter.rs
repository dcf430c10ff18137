//! How many deliveries a consumer may start per second: `consumers.<name>.rate_limit`.
//!
//! One limiter belongs to a consumer's name, so that its former pool, which drains, and its new one share it. Deliveries that wait
//! for it have not been started: they count neither as in flight nor toward a deadline.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use crate::config::Rate;
use crate::token_bucket::TokenBucket;

/// The fraction of a second's deliveries that may be started at the same moment, so that the limit also prevents bursts.
const AT_ONCE: f64 = 0.1;

/// Limits the deliveries of one consumer.
#[derive(Debug, Default)]
pub struct RateLimiter {
    limit: Mutex<Option<Limit>>,
    changed: Notify,
}

#[derive(Debug)]
struct Limit {
    rate: Rate,
    bucket: TokenBucket,
}

impl RateLimiter {
    /// Changes the limit; `None`: none. Deliveries that wait follow the new one.
    pub fn set(&self, rate: Option<Rate>) {
        {
            let now = Instant::now();
            let mut limit = self.limit();
            match (&mut *limit, rate) {
                (Some(limit), Some(rate)) if limit.rate == rate => return,
                (Some(limit), Some(rate)) => {
                    limit.bucket.set(rate.per_second() * AT_ONCE, rate.per_second(), now);
                    limit.rate = rate;
                }
                (limit, rate) => {
                    let bucket = |rate: Rate| TokenBucket::full(rate.per_second() * AT_ONCE, rate.per_second(), now);
                    *limit = rate.map(|rate| Limit { rate, bucket: bucket(rate) });
                }
            }
        }
        self.changed.notify_waiters();
    }

    /// The most deliveries that the consumer should hold: all of them can be started within a minute, well before the broker's
    /// acknowledgement timeout.
    pub(super) fn max_slots(&self) -> usize {
        self.limit().as_ref().map_or(usize::MAX, |limit| limit.rate.per_minute())
    }

    /// Resolves when a delivery may be started. Cancel-safe.
    pub(super) async fn ready(&self) {
        loop {
            // Before the limit is read, so that no change is missed.
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let wait = self.limit().as_mut().map(|limit| limit.bucket.wait(Instant::now()));
            let Some(wait) = wait.filter(|wait| !wait.is_zero()) else { return };
            // Cancel-safe: both only wait.
            tokio::select! {
                () = sleep(wait) => {}
                () = changed => {}
            }
        }
    }

    /// Whether a delivery may be started now. If so, it is counted.
    pub(super) fn take(&self) -> bool {
        self.limit().as_mut().is_none_or(|limit| limit.bucket.take(Instant::now()))
    }

    fn limit(&self) -> MutexGuard<'_, Option<Limit>> {
        self.limit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
