//! Deliveries of notifications that have begun. Each is a task of its own, which does not end with the future that waits for it: a
//! server may accept what it has got already, and that has to be recorded.
//!
//! It decides nothing about a delivery.

use std::future::{Future, pending};
use std::panic::resume_unwind;

use tokio_util::task::TaskTracker;

/// The deliveries of a process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Deliveries(TaskTracker);

impl Deliveries {
    /// Runs a delivery, which must end within limits of its own. Panics if it does. Dropping the future does not end the delivery.
    pub async fn run<T: Send + 'static>(&self, delivery: impl Future<Output = T> + Send + 'static) -> T {
        match self.0.spawn(delivery).await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(result) => result,
            Err(Ok(panic)) => resume_unwind(panic),
            // The runtime ends.
            Err(Err(_)) => pending().await,
        }
    }

    /// Waits for all deliveries. Cancel-safe.
    pub async fn finish(&self) {
        self.0.close();
        self.0.wait().await;
    }

    /// How many have not ended.
    pub fn in_flight(&self) -> usize {
        self.0.len()
    }
}
