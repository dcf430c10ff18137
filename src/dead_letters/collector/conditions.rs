//! What a collector waits for, of the ledger and of those that have precedence.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::ledger::LedgerState;
use crate::metrics::CollectionPause;

pub(super) fn can_record(state: &LedgerState) -> bool {
    matches!(state, LedgerState::Recording)
}

pub(super) fn cannot_record_now(state: &LedgerState) -> bool {
    matches!(state, LedgerState::Unavailable(_))
}

pub(super) fn ends_subscription(pause: &Option<CollectionPause>) -> bool {
    pause.is_some_and(CollectionPause::ends_subscription)
}

/// Resolves while the state is as wanted. Cancel-safe.
pub(super) async fn until<S>(state: &watch::Receiver<S>, is_wanted: fn(&S) -> bool) {
    if state.clone().wait_for(is_wanted).await.is_err() {
        // The sender was dropped, so the state cannot change any more.
        std::future::pending().await
    }
}

/// Resolves once the ledger could not record for this long without a break. Not cancel-safe: it starts again.
pub(super) async fn outage_for(state: &watch::Receiver<LedgerState>, duration: Duration) {
    loop {
        until(state, cannot_record_now).await;
        if timeout(duration, until(state, can_record)).await.is_err() {
            return;
        }
    }
}
