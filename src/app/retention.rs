//! Keeps the ledger from growing forever: has it remove what is older than `ledger.retention`, a little at a time.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::chain::chain;
use crate::ledger::{LedgerError, Pruned, SqliteLedger};
use crate::shutdown::Shutdown;

/// After the start: what the broker hands out again first is still recognised, however long orderd was away.
const FIRST: Duration = Duration::from_secs(600);
/// Between two passes over what has become old.
const BETWEEN_PASSES: Duration = Duration::from_secs(600);
/// Pause between two removals, in times of what the last one took: a tenth of the writer's time at most.
const SHARE: u32 = 9;
/// The shortest such pause.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// The task that does it, if anything is ever to be removed.
pub(super) struct Retention {
    ledger: Arc<SqliteLedger>,
    shutdown: Shutdown,
    task: Option<AbortOnDropHandle<()>>,
}

impl Retention {
    /// Begins.
    pub fn start(ledger: Arc<SqliteLedger>, retention: Option<Duration>, shutdown: &Shutdown) -> Self {
        let mut kept = Retention { ledger, shutdown: shutdown.clone(), task: None };
        kept.keep(retention);
        kept
    }

    /// Keeps rows for so long from now on.
    pub fn keep(&mut self, retention: Option<Duration>) {
        let (ledger, shutdown) = (&self.ledger, &self.shutdown);
        // What the former task is just having removed is removed; nothing waits for its answer.
        self.task = retention.map(|retention| {
            let (ledger, shutdown) = (Arc::clone(ledger), shutdown.clone());
            AbortOnDropHandle::new(tokio::spawn(async move { keep(&ledger, retention, &shutdown).await }))
        });
    }

    /// Waits for its end. To be called once a shutdown has begun.
    pub async fn finish(self) {
        if let Some(task) = self.task {
            let _ = task.await;
        }
    }
}

/// Runs until a shutdown begins.
async fn keep(ledger: &SqliteLedger, retention: Duration, shutdown: &Shutdown) {
    let mut pause = FIRST;
    let mut removed = Pruned::default();
    while shutdown.sleep(pause).await {
        let Ok(before) = Timestamp::now().checked_sub(retention) else { return };
        let begun = tokio::time::Instant::now();
        pause = match ledger.prune(before).await {
            Ok(pruned) => {
                removed.add(pruned);
                if pruned.more { (begun.elapsed() * SHARE).max(SHORTEST_PAUSE) } else { BETWEEN_PASSES }
            }
            Err(LedgerError::Closed) => return,
            Err(error) => {
                warn!(error = %chain(&error), "cannot remove old rows from the ledger; trying again later");
                BETWEEN_PASSES
            }
        };
        if pause == BETWEEN_PASSES && !removed.is_empty() {
            let Pruned { orders, events, attempts, minutes, .. } = std::mem::take(&mut removed);
            info!(orders, events, attempts, minutes, "removed old rows from the ledger");
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;

    use super::*;
    use crate::ledger::{Ledger, LedgerEntry, NewNotification};

    const DAY: Duration = Duration::from_secs(86_400);

    async fn record(ledger: &SqliteLedger, id: &str, age: Duration) {
        let at = Timestamp::now().checked_sub(age).unwrap();
        let (id, channel) = (id.to_owned(), "email".to_owned());
        let entry = LedgerEntry::Notification(Box::new(NewNotification { id, order_id: None, channel, at }));
        ledger.record(entry).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_older_than_the_retention_goes_until_the_shutdown_begins() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Arc::new(SqliteLedger::open(directory.path()).unwrap());
        // More than go at once. Recorded together: each alone would wait for the disk.
        let names: Vec<String> = (0..600).map(|n| format!("old-{n}")).collect();
        join_all(names.iter().map(|name| record(&ledger, name, 4 * DAY))).await;
        record(&ledger, "young", 2 * DAY).await;
        let (shutdown, theirs) = (Shutdown::new(), Arc::clone(&ledger));
        let until = shutdown.clone();
        let notifications = || SqliteLedger::totals(directory.path()).unwrap().notifications;
        let keeping = tokio::spawn(async move { keep(&theirs, 3 * DAY, &until).await });
        tokio::time::sleep(FIRST - Duration::from_secs(1)).await;
        assert_eq!(notifications(), 601, "not before what comes back first has come back");
        let deadline = std::time::Instant::now() + Duration::from_secs(120);
        while notifications() > 1 {
            assert!(std::time::Instant::now() < deadline, "the old ones are still there");
            tokio::time::sleep(SHORTEST_PAUSE).await;
        }
        shutdown.begin();
        keeping.await.unwrap();
        assert_eq!(notifications(), 1);
        ledger.close().await;
    }
}
