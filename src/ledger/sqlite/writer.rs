//! The writer's thread: takes what waits, runs it in one transaction, commits, then answers.
//!
//! It owns the only connection that writes. It must never answer from an open transaction, nor end because
//! the store refused: a full disk or a lock passes.

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

use super::open::{self, OpenError};
use super::prune::Pruned;
use super::statements::{Fault, Statements};
use super::{FILE_NAME, Tuning};
use crate::ledger::{LedgerEntry, LedgerError, Recorded};

/// What travels to the writer.
#[derive(Debug)]
pub(super) enum Request {
    /// Record this, and tell its caller.
    Record { entry: LedgerEntry, answer: Answer },
    /// Remove a little of what is older, and tell how much.
    Prune { before: Timestamp, answer: oneshot::Sender<Result<Pruned, LedgerError>> },
    /// Take nothing more; finish what waits.
    Close,
}

/// What the writer shows of itself.
#[derive(Debug)]
pub(super) struct Signs {
    /// Commits so far.
    pub commits: Arc<AtomicU64>,
    /// Whether the last commit failed; a lasting failure is logged once.
    pub failing: Arc<AtomicBool>,
    /// Cancelled when a later orderd has made the file new.
    pub outdated: CancellationToken,
}

type Outcome = Result<Recorded, LedgerError>;
type Answer = oneshot::Sender<Outcome>;

/// Opens the file on a new thread and returns once it is ready to record.
pub(super) fn spawn(
    directory: &Path,
    tuning: Tuning,
    requests: mpsc::Receiver<Request>,
    signs: Signs,
    finished: CancellationToken,
) -> Result<(), OpenError> {
    let path = directory.join(FILE_NAME);
    let (opened, ready) = std_mpsc::sync_channel(1);
    let (directory, thread_path) = (directory.to_owned(), path.clone());
    thread::Builder::new()
        .name("ledger".to_owned())
        .spawn(move || {
            // Declared first, so that it acts last: when the connection is gone.
            let _finished = finished.drop_guard();
            let connection = match open::for_writing(&directory, &tuning) {
                Ok(connection) => connection,
                Err(error) => return drop(opened.send(Err(error))),
            };
            match Statements::prepare(&connection) {
                Ok(statements) => {
                    let _ = opened.send(Ok(()));
                    Writer { connection: &connection, statements, requests, signs, tuning }.run();
                }
                Err(error) => return drop(opened.send(Err(OpenError::from_sqlite(&thread_path, error)))),
            }
            put_away(connection);
        })
        .map_err(|source| OpenError::Thread { path: path.clone(), source })?;
    ready.recv().unwrap_or_else(|_| {
        let source = std::io::Error::other("the ledger's thread panicked");
        Err(OpenError::Thread { path, source })
    })
}

/// Leaves one tidy file behind, where no other program uses it at the moment. What was answered is safe either way.
///
/// Most is moved without a lock, and nothing is waited for: another instance's writer would have to wait as well.
fn put_away(connection: Connection) {
    let move_log = |how| connection.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |_| Ok(()));
    let moved = connection.busy_timeout(Duration::ZERO).and_then(|()| move_log("PASSIVE"));
    if let Err(error) = moved.and_then(|()| move_log("TRUNCATE")) {
        tracing::warn!(%error, "cannot move the ledger's write-ahead log into its file; the next start will");
    }
    if let Err((_, error)) = connection.close() {
        tracing::warn!(%error, "cannot close the ledger");
    }
}

/// Entries from which a batch is not kept waiting: its commit's own cost is shared well enough.
const ENOUGH: usize = 1_024;
/// How long a batch waits for each entry that shared the last commit: about what committing an entry alone costs
/// over committing it with many (`benches/ledger.rs`). So a busy ledger gathers much, and a quiet one waits little.
const GATHER_PER_ENTRY: Duration = Duration::from_micros(20);

struct Writer<'c> {
    connection: &'c Connection,
    statements: Statements<'c>,
    requests: mpsc::Receiver<Request>,
    signs: Signs,
    tuning: Tuning,
}

impl Writer<'_> {
    /// Until the queue is closed and empty.
    fn run(mut self) {
        let mut waiting = Vec::with_capacity(self.tuning.batch);
        let mut batch = Vec::with_capacity(self.tuning.batch);
        let mut prunings = Vec::new();
        let mut last = 0;
        while self.requests.blocking_recv_many(&mut waiting, self.tuning.batch) > 0 {
            self.gather(&mut waiting, last);
            last = waiting.len();
            for request in waiting.drain(..) {
                match request {
                    Request::Record { entry, answer } => batch.push((entry, answer)),
                    Request::Prune { before, answer } => prunings.push((before, answer)),
                    Request::Close => self.requests.close(),
                }
            }
            // A panic is a defect, and its batch is told so by its dropped answers; the ledger goes on.
            let work = AssertUnwindSafe(|| {
                self.commit(&mut batch);
                for (before, answer) in prunings.drain(..) {
                    // Whoever asked may have given up.
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

    /// Removes a little, in a transaction of its own: no entry fails with it.
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

    /// Waits a moment for company, so that more share the cost of a commit. Not when enough have come, and not
    /// when the last batch was alone: then nobody would come, and the caller would only wait longer.
    fn gather(&mut self, waiting: &mut Vec<Request>, last: usize) {
        let enough = self.tuning.batch.min(ENOUGH);
        let company = last.max(waiting.len());
        if waiting.len() >= enough || company <= 1 || self.tuning.gather.is_zero() {
            return;
        }
        let wait = GATHER_PER_ENTRY * u32::try_from(company).unwrap_or(u32::MAX);
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
                self.signs.commits.fetch_add(1, Ordering::Relaxed);
                if self.signs.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("the ledger records again");
                }
                for ((_, answer), outcome) in batch.drain(..).zip(outcomes) {
                    // Whoever asked may have given up.
                    let _ = answer.send(outcome);
                }
            }
            Err(error) => {
                self.statements.roll_back(self.connection);
                if matches!(error, LedgerError::Outdated { .. }) {
                    self.signs.outdated.cancel();
                }
                if !self.signs.failing.swap(true, Ordering::Relaxed) {
                    let (entries, cause) = (batch.len(), error.source());
                    tracing::warn!(%error, cause, entries, "the ledger cannot record; its callers will try again");
                }
                for (_, answer) in batch.drain(..) {
                    let _ = answer.send(Err(error.clone()));
                }
            }
        }
    }

    /// Runs a batch in one transaction. An entry that fails alone leaves nothing behind and its neighbours
    /// in place; an error that dooms the transaction is returned.
    fn transact(&mut self, batch: &[(LedgerEntry, Answer)]) -> Result<Vec<Outcome>, LedgerError> {
        self.statements.begin()?;
        let mut outcomes = Vec::with_capacity(batch.len());
        for (entry, _) in batch {
            match self.statements.record(entry) {
                Ok(recorded) => outcomes.push(Ok(recorded)),
                // Should SQLite have left the transaction, what follows would be committed piece by piece.
                Err(Fault::LedgerEntry(error)) if self.connection.is_autocommit() => return Err(error),
                Err(Fault::LedgerEntry(error)) => outcomes.push(Err(error)),
                Err(Fault::Batch(error)) => return Err(LedgerError::store("record an entry", error)),
            }
        }
        self.statements.commit().map_err(|error| LedgerError::store("commit", error))?;
        Ok(outcomes)
    }
}
