//! Whether workers may start deliveries: not while the ledger cannot record. All pools watch the same state, so all of them
//! stop, and all continue by themselves.

use std::future::pending;
use std::time::Duration;

use tokio::sync::watch;

use crate::ledger::LedgerState;

/// The state that decides. Clones watch the same ledger.
#[derive(Debug, Clone)]
pub struct Intake {
    ledger: watch::Receiver<LedgerState>,
}

impl Intake {
    /// Open while this ledger can record.
    pub fn new(ledger: watch::Receiver<LedgerState>) -> Self {
        Intake { ledger }
    }

    /// Resolves while deliveries may be started. Cancel-safe.
    pub(super) async fn opened(&self) {
        self.wait_until(false).await;
    }

    /// Resolves while no delivery may be started. Cancel-safe.
    pub(super) async fn closed(&self) {
        self.wait_until(true).await;
    }

    /// Resolves once no delivery could be started for this long without a break. Not cancel-safe: it begins anew.
    pub(super) async fn closed_for(&self, duration: Duration) {
        loop {
            self.closed().await;
            if tokio::time::timeout(duration, self.opened()).await.is_err() {
                return;
            }
        }
    }

    async fn wait_until(&self, unavailable: bool) {
        let is_wanted = |state: &LedgerState| matches!(state, LedgerState::Unavailable(_)) == unavailable;
        if self.ledger.clone().wait_for(is_wanted).await.is_err() {
            // The ledger was dropped, so the state cannot change any more.
            pending().await
        }
    }
}
