//! The writer's thread: takes queued entries, records them in one transaction, commits, then answers.
//!
//! It owns the only connection that writes. It must never answer before the commit, and never end because the store
//! refused: a full disk and a lock are temporary.

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::Tuning;
use super::open;
use super::statements::{RecordError, Statements};
use crate::ledger::entry::{LedgerEntry, Recorded};
use crate::ledger::error::{LedgerError, OpenError};
use crate::ledger::retention::Pruned;

/// A request to the writer.
#[derive(Debug)]
pub(super) enum Request {
    /// Record an entry.
    Record { entry: LedgerEntry, answer: Answer },
    /// Remove one batch of old rows.
    Prune { before: Timestamp, answer: oneshot::Sender<Result<Pruned, LedgerError>> },
    /// Refuse further requests and finish those that are queued.
    Close,
}

/// The writer's state, shared with the ledger's handle.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedState {
    /// Commits so far.
    pub commits: Arc<AtomicU64>,
    /// Whether the last commit failed. A failure that lasts is logged once.
    pub failing: Arc<AtomicBool>,
    /// Cancelled when a newer orderd has migrated the file.
    pub outdated: CancellationToken,
}

type Outcome = Result<Recorded, LedgerError>;
type Answer = oneshot::Sender<Outcome>;

/// Opens the file on a new thread and returns once it is ready to record.
pub(super) fn spawn(
    directory: &Path,
    tuning: Tuning,
    requests: mpsc::Receiver<Request>,
    state: SharedState,
    finished: CancellationToken,
) -> Result<(), OpenError> {
    let location = open::location(directory);
    let (opened, ready) = std_mpsc::sync_channel(1);
    let directory = directory.to_owned();
    thread::Builder::new()
        .name("ledger".to_owned())
        .spawn(move || {
            // Declared first, so dropped last: after the connection.
            let _finished = finished.drop_guard();
            let connection = match open::for_writing(&directory, &tuning) {
                Ok(connection) => connection,
                Err(error) => return drop(opened.send(Err(error))),
            };
            match Statements::prepare(&connection) {
                Ok(statements) => {
                    let _ = opened.send(Ok(()));
                    Writer { connection: &connection, statements, requests, state, tuning }.run();
                }
                Err(error) => return drop(opened.send(Err(open::error(&directory, error)))),
            }
            close(connection);
        })
        .map_err(|source| OpenError::Thread { location: location.clone(), source })?;
    ready.recv().unwrap_or_else(|_| {
        let source = std::io::Error::other("the ledger's thread panicked");
        Err(OpenError::Thread { location, source })
    })
}

/// Moves the write-ahead log into the file, unless another program is using it, and closes the file. Answered
/// entries are durable either way.
///
/// The passive checkpoint moves most of the log without a lock. Neither checkpoint waits for a lock: another instance's
/// writer would have to wait as well.
fn close(connection: Connection) {
    let checkpoint = |how| connection.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |_| Ok(()));
    let moved = connection.busy_timeout(Duration::ZERO).and_then(|()| checkpoint("PASSIVE"));
    if let Err(error) = moved.and_then(|()| checkpoint("TRUNCATE")) {
        tracing::warn!(%error, "cannot move the ledger's write-ahead log into its file; the next start does it");
    }
    if let Err((_, error)) = connection.close() {
        tracing::warn!(%error, "cannot close the ledger");
    }
}

/// A batch of this many entries is committed at once: waiting for more would not make an entry noticeably cheaper.
const FULL_BATCH: usize = 1_024;
/// How long a batch waits, per entry of the previous commit: about what committing an entry alone costs more than
/// committing it among many (`benches/ledger.rs`). So a busy ledger gathers large batches, and a quiet one waits little.
const GATHER_PER_ENTRY: Duration = Duration::from_micros(20);

struct Writer<'c> {
    connection: &'c Connection,
    statements: Statements<'c>,
    requests: mpsc::Receiver<Request>,
    state: SharedState,
    tuning: Tuning,
}

impl Writer<'_> {
    /// Runs until the queue is closed and empty.
    fn run(mut self) {
        let mut waiting = Vec::with_capacity(self.tuning.batch);
        let mut batch = Vec::with_capacity(self.tuning.batch);
        let mut prunings = Vec::new();
        let mut previous = 0;
        while self.requests.blocking_recv_many(&mut waiting, self.tuning.batch) > 0 {
            self.gather(&mut waiting, previous);
            previous = waiting.len();
            for request in waiting.drain(..) {
                match request {
                    Request::Record { entry, answer } => batch.push((entry, answer)),
                    Request::Prune { before, answer } => prunings.push((before, answer)),
                    Request::Close => self.requests.close(),
                }
            }
            // A panic is a defect. Its batch's callers get an error, because their answers are dropped; the writer
            // continues with the next batch.
            let work = AssertUnwindSafe(|| {
                self.commit(&mut batch);
                for (before, answer) in prunings.drain(..) {
                    // The caller may have stopped waiting.
                    let _ = answer.send(self.prune(before));
                }
            });
            if catch_unwind(work).is_err() {
                tracing::error!("the ledger's writer panicked; its batch was rolled back");
                batch.clear();
                prunings.clear();
                self.statements.roll_back(self.connection);
            }
        }
    }

    /// Removes one batch of old rows in a transaction of its own, so that no entry fails with it.
    fn prune(&mut self, before: Timestamp) -> Result<Pruned, LedgerError> {
        let pruned = self.statements.begin().and_then(|()| {
            let pruned = self.statements.prune(self.connection, before).and_then(|pruned| {
                self.statements.commit()?;
                Ok(pruned)
            });
            pruned.map_err(|error| LedgerError::store("remove old rows", error))
        });
        pruned.inspect_err(|_| self.statements.roll_back(self.connection))
    }

    /// Waits a moment for more requests, so that they share the cost of a commit. Not if there are enough, and not if
    /// this and the previous batch are single entries: then no more are likely to come, and waiting only adds latency.
    fn gather(&mut self, waiting: &mut Vec<Request>, previous: usize) {
        let enough = self.tuning.batch.min(FULL_BATCH);
        let expected = previous.max(waiting.len());
        if waiting.len() >= enough || expected <= 1 || self.tuning.gather.is_zero() {
            return;
        }
        let wait = GATHER_PER_ENTRY * u32::try_from(expected).unwrap_or(u32::MAX);
        thread::sleep(wait.min(self.tuning.gather));
        while waiting.len() < self.tuning.batch
            && let Ok(request) = self.requests.try_recv()
        {
            waiting.push(request);
        }
    }

    /// Records a batch and answers each of its entries.
    fn commit(&mut self, batch: &mut Vec<(LedgerEntry, Answer)>) {
        if batch.is_empty() {
            return;
        }
        match self.transact(batch) {
            Ok(outcomes) => {
                self.state.commits.fetch_add(1, Ordering::Relaxed);
                if self.state.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("the ledger records again");
                }
                for ((_, answer), outcome) in batch.drain(..).zip(outcomes) {
                    // The caller may have stopped waiting.
                    let _ = answer.send(outcome);
                }
            }
            Err(error) => {
                self.statements.roll_back(self.connection);
                if matches!(error, LedgerError::Outdated { .. }) {
                    self.state.outdated.cancel();
                }
                if !self.state.failing.swap(true, Ordering::Relaxed) {
                    let (entries, cause) = (batch.len(), error.source());
                    tracing::warn!(%error, cause, entries, "the ledger cannot record; callers will retry");
                }
                for (_, answer) in batch.drain(..) {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Records a batch in one transaction. An entry that fails alone leaves nothing behind and does not affect the others;
    /// an error that ends the transaction is returned.
    fn transact(&mut self, batch: &[(LedgerEntry, Answer)]) -> Result<Vec<Outcome>, LedgerError> {
        self.statements.begin()?;
        let mut outcomes = Vec::with_capacity(batch.len());
        for (entry, _) in batch {
            match self.statements.record(entry) {
                Ok(recorded) => outcomes.push(Ok(recorded)),
                // If SQLite has ended the transaction, each further entry would be committed on its own.
                Err(RecordError::Entry(error)) if self.connection.is_autocommit() => return Err(error),
                Err(RecordError::Entry(error)) => outcomes.push(Err(error)),
                Err(RecordError::Batch(error)) => return Err(LedgerError::store("record an entry", error)),
            }
        }
        self.statements.commit().map_err(|error| LedgerError::store("commit", error))?;
        Ok(outcomes)
    }
}
