//! A shutdown, which has two stages: drain, then abort.
//!
//! It only signals. Each part of the daemon decides what to do in each stage.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Signals the stages of a shutdown to every part of the daemon. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    abort: CancellationToken,
}

impl Shutdown {
    /// No shutdown yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the drain: no new deliveries are started, those in flight are finished.
    pub fn begin(&self) {
        self.drain.cancel();
    }

    /// Aborts the drain: deliveries in flight are released.
    pub fn abort(&self) {
        self.drain.cancel();
        self.abort.cancel();
    }

    /// Whether the drain has begun.
    pub fn has_begun(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Whether the drain was aborted.
    pub fn is_aborted(&self) -> bool {
        self.abort.is_cancelled()
    }

    /// Resolves when the drain begins. Cancel-safe.
    pub async fn begun(&self) {
        self.drain.cancelled().await;
    }

    /// Resolves when the drain is aborted. Cancel-safe.
    pub async fn aborted(&self) {
        self.abort.cancelled().await;
    }

    /// Sleeps until the duration has passed or the drain begins. Returns whether the whole duration passed. Cancel-safe.
    pub async fn sleep(&self, duration: Duration) -> bool {
        // Cancel-safe: both futures only wait.
        tokio::select! {
            () = tokio::time::sleep(duration) => true,
            () = self.begun() => false,
        }
    }
}
