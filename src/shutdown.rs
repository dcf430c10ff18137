//! The two stages of stopping: drain, then abort.
//!
//! It only tells; what draining means is up to those who listen.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Tells every part of the daemon how far a shutdown has come. Clones share the state.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    drain: CancellationToken,
    abort: CancellationToken,
}

impl Shutdown {
    /// Not stopping yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins to drain: no intake, work in progress goes on.
    pub fn begin(&self) {
        self.drain.cancel();
    }

    /// Ends the draining: work in progress is given back.
    pub fn abort(&self) {
        self.drain.cancel();
        self.abort.cancel();
    }

    /// Whether draining has begun.
    pub fn has_begun(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Whether it is over with draining too.
    pub fn is_aborted(&self) -> bool {
        self.abort.is_cancelled()
    }

    /// Resolves when draining begins. Cancel-safe.
    pub async fn begun(&self) {
        self.drain.cancelled().await;
    }

    /// Resolves when draining is over. Cancel-safe.
    pub async fn aborted(&self) {
        self.abort.cancelled().await;
    }

    /// Waits, unless draining begins before.
    ///
    /// Returns whether the whole time passed.
    pub async fn sleep(&self, duration: Duration) -> bool {
        // Cancel-safe: both futures only wait.
        tokio::select! {
            () = tokio::time::sleep(duration) => true,
            () = self.begun() => false,
        }
    }
}
