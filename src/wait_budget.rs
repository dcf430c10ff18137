//! How long one delivery may wait for others, all its waits together: the broker ends the connection of a delivery that is held for too
//! long.
//!
//! The time of calls does not count.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, timeout};

/// What is left of the time that a delivery may wait.
#[derive(Debug)]
pub struct WaitBudget {
    limit: Duration,
    /// In milliseconds.
    used: AtomicU64,
}

impl WaitBudget {
    /// A delivery that has not waited yet.
    pub fn new(limit: Duration) -> Self {
        WaitBudget { limit, used: AtomicU64::new(0) }
    }

    /// Waits for this within what is left; `None` if that is too short. What is ready need not wait, whatever is left.
    pub async fn wait_for<T>(&self, wait: impl Future<Output = T>) -> Option<T> {
        let left = self.limit.saturating_sub(Duration::from_millis(self.used.load(Ordering::Relaxed)));
        let begun = Instant::now();
        let result = timeout(left, wait).await.ok();
        let waited = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.used.fetch_add(waited, Ordering::Relaxed);
        result
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_waits_of_a_delivery_are_limited_together_and_what_is_ready_is_never_refused() {
        let budget = WaitBudget::new(Duration::from_millis(300));
        let sleeps = |millis| budget.wait_for(sleep(Duration::from_millis(millis)));
        assert!(sleeps(200).await.is_some());
        // What is no wait does not count.
        sleep(Duration::from_secs(900)).await;
        assert!(sleeps(99).await.is_some());
        assert!(sleeps(99).await.is_none());
        assert_eq!(budget.wait_for(std::future::ready(7)).await, Some(7));
    }
}
