//! Publishing as one consumer experiences it: when the broker accepts again what it refused, and an outage that outlasts the
//! time for which deliveries may wait.
//!
//! Owns the state that workers, pool and status share. It publishes nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::message::Publication;

/// The outage of a consumer's publishing; one for each consumer context.
#[derive(Debug, Default)]
pub struct PublishOutage {
    /// Whether an outage has begun and has not ended.
    lasts: watch::Sender<bool>,
    /// What waits to be accepted. Once it is, the outage is over.
    waiting: Mutex<Option<Arc<[Publication]>>>,
    /// Notified when the broker has accepted what it refused before.
    accepted: Notify,
}

/// How many deliveries publish again when what another one published is accepted: more and more if the queue has room, while one
/// that is full again is not flooded.
const WOKEN_BY_EACH: usize = 2;

impl PublishOutage {
    /// Begins an outage because of these publications, unless there is one.
    pub(super) fn begin(&self, publications: Arc<[Publication]>) {
        self.waiting().get_or_insert(publications);
        self.lasts.send_replace(true);
    }

    /// Resolves while there is an outage. Cancel-safe.
    pub(super) async fn begun(&self) {
        // The sender is in `self`, so waiting does not fail.
        let _ = self.lasts.subscribe().wait_for(|lasts| *lasts).await;
    }

    /// What waits to be accepted; `None` without an outage.
    pub(super) fn publications(&self) -> Option<Arc<[Publication]>> {
        self.waiting().clone()
    }

    /// Ends the outage.
    pub(super) fn end(&self) {
        *self.waiting() = None;
        self.lasts.send_replace(false);
    }

    /// The broker has accepted what it refused before: some of those that wait publish again at once.
    pub(super) fn accepted_after_refusal(&self) {
        for _ in 0..WOKEN_BY_EACH {
            self.accepted.notify_one();
        }
    }

    /// Resolves when the broker has accepted what another delivery published, which it refused before. Cancel-safe.
    pub(super) async fn another_was_accepted(&self) {
        self.accepted.notified().await;
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Arc<[Publication]>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
