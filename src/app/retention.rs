//! Removes rows older than `ledger.retention` from the ledger, one small batch at a time, and older events from their files.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::chain::chain;
use crate::files::Rolling;
use crate::handlers;
use crate::ledger::{Ledger, LedgerError, Pruned};
use crate::shutdown::Shutdown;

/// Delay of the first pass after the start, so that what the broker redelivers at once is still recognised as a
/// duplicate, however long orderd was stopped.
const FIRST_PASS_AFTER: Duration = Duration::from_secs(600);
/// Pause between two passes.
const PASS_INTERVAL: Duration = Duration::from_secs(600);
/// Pause between two batches, in multiples of the time that the last batch took. So removing uses at most a tenth of
/// the writer's time.
const PAUSE_FACTOR: u32 = 9;
/// The shortest pause between two batches.
const MIN_PAUSE: Duration = Duration::from_millis(20);

/// The task that removes old rows, if a retention is configured.
pub(super) struct Retention {
    ledger: Arc<dyn Ledger>,
    event_files: [Rolling; 2],
    shutdown: Shutdown,
    task: Option<AbortOnDropHandle<()>>,
}

impl Retention {
    /// Starts the task. Without a retention, rows are kept forever, and event files as `log.keep` says.
    pub fn start(
        ledger: Arc<dyn Ledger>,
        event_files: [Rolling; 2],
        retention: Option<Duration>,
        shutdown: &Shutdown,
    ) -> Self {
        let mut this = Retention { ledger, event_files, shutdown: shutdown.clone(), task: None };
        this.set(retention);
        this
    }

    /// Replaces the retention from now on.
    pub fn set(&mut self, retention: Option<Duration>) {
        let (ledger, shutdown) = (&self.ledger, &self.shutdown);
        // Dropping the previous task aborts it. A batch that it has already requested is still removed.
        self.task = retention.map(|retention| {
            let (ledger, files, shutdown) = (Arc::clone(ledger), self.event_files.clone(), shutdown.clone());
            AbortOnDropHandle::new(tokio::spawn(
                async move { remove_old(&*ledger, &files, retention, &shutdown).await },
            ))
        });
    }

    /// Waits for the task to end. Call it only once a shutdown has begun.
    pub async fn finish(self) {
        if let Some(task) = self.task {
            let _ = task.await;
        }
    }
}

/// Runs until a shutdown begins or the ledger is closed.
async fn remove_old(ledger: &dyn Ledger, event_files: &[Rolling; 2], retention: Duration, shutdown: &Shutdown) {
    let mut pause = FIRST_PASS_AFTER;
    let mut removed = Pruned::default();
    while shutdown.sleep(pause).await {
        let Ok(before) = Timestamp::now().checked_sub(retention) else { return };
        let started = tokio::time::Instant::now();
        pause = match ledger.prune(before).await {
            Ok(pruned) => {
                removed.add(pruned);
                if pruned.more { (started.elapsed() * PAUSE_FACTOR).max(MIN_PAUSE) } else { PASS_INTERVAL }
            }
            Err(LedgerError::Closed) => return,
            Err(error) => {
                warn!(error = %chain(&error), "cannot remove old rows from the ledger; trying again later");
                PASS_INTERVAL
            }
        };
        if pause == PASS_INTERVAL {
            remove_old_event_files(event_files, before).await;
        }
        if pause == PASS_INTERVAL && !removed.is_empty() {
            let Pruned { orders, events, attempts, step_runs, erased_runs, minutes, letters, more: _ } =
                std::mem::take(&mut removed);
            info!(
                orders,
                events, attempts, step_runs, erased_runs, minutes, letters, "removed old rows from the ledger"
            );
        }
    }
}

async fn remove_old_event_files(event_files: &[Rolling; 2], before: Timestamp) {
    for files in event_files.clone() {
        let (directory, name) = (files.directory.clone(), files.name);
        let removing = tokio::task::spawn_blocking(move || handlers::remove_old_events(&files, before));
        match removing.await.map_err(std::io::Error::other).and_then(|removed| removed) {
            Ok(0) => {}
            Ok(removed) => info!(name, removed, "removed old event files or lines"),
            Err(error) => {
                let directory = directory.display();
                warn!(%directory, name, %error, "cannot remove old events from their files; trying again later");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{FILE_MODE, Rotation};
    use crate::ledger::memory::MemoryLedger;
    use crate::ledger::{
        LedgerEntry, LedgerMaintenance, LedgerReader, LedgerWriter, NewNotification, NotificationDelivery,
    };

    const DAY: Duration = Duration::from_secs(86_400);

    async fn record(ledger: &MemoryLedger, id: &str, age: Duration) {
        let at = Timestamp::now().checked_sub(age).unwrap();
        let (id, channel, delivery) = (id.to_owned(), "email".to_owned(), NotificationDelivery::default());
        let entry = LedgerEntry::Notification(Box::new(NewNotification { id, order_id: None, channel, at, delivery }));
        ledger.record(entry).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn rows_older_than_the_retention_are_removed_until_a_shutdown_begins() {
        let ledger = Arc::new(MemoryLedger::default());
        // More than one batch.
        for n in 0..600 {
            record(&ledger, &format!("old-{n}"), 4 * DAY).await;
        }
        record(&ledger, "young", 2 * DAY).await;
        let shutdown = Shutdown::new();
        let notifications = async || ledger.totals().await.unwrap().notifications;
        let directory = tempfile::tempdir().unwrap();
        let files = ["analytics", "notifications"].map(|name| {
            let (directory, suffix, rotation) = (directory.path().to_owned(), "jsonl", Rotation::Daily);
            Rolling { directory, name, suffix, rotation, keep: 1000, mode: FILE_MODE }
        });
        let old = directory.path().join("notifications.2020-01-01.jsonl");
        std::fs::write(&old, "").unwrap();
        let retention = Retention::start(ledger.clone(), files, Some(3 * DAY), &shutdown);
        tokio::time::sleep(FIRST_PASS_AFTER - Duration::from_secs(1)).await;
        assert_eq!(notifications().await, 601, "nothing is removed before the first redeliveries have arrived");
        tokio::time::sleep(Duration::from_secs(1) + 4 * MIN_PAUSE).await;
        assert_eq!(notifications().await, 1);
        // The files are next, on a thread of its own.
        tokio::time::sleep(MIN_PAUSE).await;
        assert!(!old.exists());
        shutdown.begin();
        retention.finish().await;
        ledger.close().await;
    }
}
