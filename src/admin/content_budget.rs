//! How many bytes of message bodies the answers that are being sent may hold together.
//!
//! It reads nothing. Who holds a part of the budget gives it back by dropping it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// All bodies together: one of the largest that are stored, or several smaller ones.
const MAX_BYTES: u64 = 64 << 20;
/// Smaller bodies do not count, so that slow clients that receive large ones keep no others out. Their number is limited by that of
/// the connections (128).
const SMALL_BYTES: u64 = 1 << 20;
/// In bytes.
const UNIT: u64 = 1 << 10;
/// How long a request waits for others to end.
const WAIT: Duration = Duration::from_secs(5);

/// The budget of all answers.
#[derive(Clone)]
pub(super) struct ContentBudget(Arc<Semaphore>);

/// A part of the budget; `None`: a small body.
#[derive(Debug)]
pub(super) struct HeldBudget(#[expect(dead_code, reason = "it is held")] Option<OwnedSemaphorePermit>);

impl Default for ContentBudget {
    fn default() -> Self {
        ContentBudget(Arc::new(Semaphore::new(units(MAX_BYTES) as usize)))
    }
}

impl ContentBudget {
    /// Waits until there is room for a body. `None`: there is none for now.
    pub async fn hold(&self, bytes: u64) -> Option<HeldBudget> {
        timeout(WAIT, self.wait(bytes)).await.ok()
    }

    /// The same, however long it takes: an answer that has begun cannot become another one. Its connection limits the time.
    pub async fn wait(&self, bytes: u64) -> HeldBudget {
        if bytes <= SMALL_BYTES {
            return HeldBudget(None);
        }
        let held = Arc::clone(&self.0).acquire_many_owned(units(bytes)).await;
        HeldBudget(Some(held.expect("this semaphore is never closed")))
    }
}

/// A larger body than the largest takes all of the budget.
fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.min(MAX_BYTES).div_ceil(UNIT)).expect("the budget has fewer units")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn large_bodies_wait_for_each_other_and_small_ones_for_none() {
        let budget = ContentBudget::default();
        let half = budget.hold(MAX_BYTES / 2).await.unwrap();
        let other_half = budget.hold(MAX_BYTES / 2).await.unwrap();
        assert!(budget.hold(SMALL_BYTES + 1).await.is_none(), "there is no room");
        assert!(budget.hold(SMALL_BYTES).await.is_some());
        drop(half);
        assert!(budget.hold(SMALL_BYTES + 1).await.is_some());
        let (waiting, ()) = tokio::join!(budget.hold(u64::MAX), async {
            tokio::task::yield_now().await;
            drop(other_half);
        });
        assert!(waiting.is_some());
        assert!(budget.hold(SMALL_BYTES + 1).await.is_none(), "the largest one takes all of it");
    }
}
