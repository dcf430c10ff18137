//! Records in the journal the commands that the daemon has carried out.
//!
//! A command must not wait for a ledger that cannot record: an operator may pause a consumer because of just that. It never carries
//! out a command.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::error;

use crate::chain::chain;
use crate::ledger::{JournalHead, Ledger, LedgerError, NewJournalEntry};

/// How long a command waits for its entry. Afterwards it is recorded as soon as the ledger can.
const WAIT: Duration = Duration::from_secs(1);
/// Entries that wait for the ledger. Further ones are only logged.
const MAX_WAITING: usize = 256;

/// Records actions.
pub(super) struct Journal {
    ledger: Arc<dyn Ledger>,
    waiting: JoinSet<()>,
}

impl Journal {
    pub fn new(ledger: Arc<dyn Ledger>) -> Self {
        Journal { ledger, waiting: JoinSet::new() }
    }

    /// Records an action that was carried out.
    pub async fn record(&mut self, entry: NewJournalEntry) {
        while self.waiting.try_join_next().is_some() {}
        if self.waiting.len() >= MAX_WAITING {
            error!(?entry, "cannot record an action in the journal: too many others wait for the ledger");
            return;
        }
        let mut recording = recorded(self.ledger.record_action(entry.clone()), entry);
        if timeout(WAIT, &mut recording).await.is_err() {
            self.waiting.spawn(recording);
        }
    }

    /// Waits for the entries that still wait. The ledger answers all of them when it is closed.
    pub async fn finish(mut self) {
        while self.waiting.join_next().await.is_some() {}
    }
}

/// The ledger logs the hash.
fn recorded(
    recording: BoxFuture<'static, Result<JournalHead, LedgerError>>,
    entry: NewJournalEntry,
) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        match recording.await {
            Ok(_) => {}
            Err(error) => error!(?entry, error = %chain(&error), "cannot record an action in the journal"),
        }
    })
}
