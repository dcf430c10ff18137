//! The writer's thread: takes queued entries, records them in one transaction, commits, then answers.
//!
//! It owns the only connection that writes. It must never answer before the commit, and never end because the store
//! refused: during an outage (a full disk, a lock, files that are gone) it keeps what is to be recorded and tries again, and
//! it still carries out all other requests.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;
use tokio_util::sync::CancellationToken;

use super::entry_queues::{EntryQueues, Precedence, refuse};
use super::files::{FileReplaced, OpenFiles};
use super::journal;
use super::monitor::Busy;
use super::overwrite::OverwriteDetector;
use super::record_error::RecordError;
use super::request::{Outcome, PendingEntry, Request};
use super::statements::Statements;
use super::store_error::ledger_error;
use super::{Tuning, open, schema};
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::files::has_no_room;
use crate::ledger::error::{LedgerError, OpenError};
use crate::ledger::retention::Pruned;
use crate::ledger::state::{OutageCause, StateSender};

/// The writer's state, shared with the ledger's handle.
#[derive(Debug, Clone, Default)]
pub(super) struct SharedState {
    /// Commits so far.
    pub commits: Arc<AtomicU64>,
    /// Whether it can record.
    pub state: StateSender,
    /// Since when it has been using the file.
    pub busy: Busy,
}

/// Opens the file on a new thread and returns once it is ready to record.
pub(super) fn spawn(
    directory: &Path,
    tuning: Tuning,
    requests: mpsc::UnboundedReceiver<Request>,
    shared: SharedState,
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
            let (connection, files) = match open::for_writing(&directory, &tuning) {
                Ok(opened) => opened,
                Err(error) => return drop(opened.send(Err(error))),
            };
            let statements = match Statements::prepare(&connection) {
                Ok(statements) => statements,
                Err(error) => return drop(opened.send(Err(open::error(&directory, error)))),
            };
            let _ = opened.send(Ok(()));
            let state = shared.state.clone();
            // A panic is a defect. Without the thread nothing can be recorded, so the daemon has to end.
            let intact = catch_unwind(AssertUnwindSafe(|| {
                Writer::new(&connection, statements, files, requests, shared, tuning).run()
            }));
            match intact {
                Ok(intact) => {
                    close(connection, intact);
                    state.closed();
                }
                Err(_) => state.unavailable(OutageCause::WriterDied, None),
            }
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
///
/// `intact`: the files are those that were opened. If not, closing must not touch them: SQLite deletes the log by its path,
/// which may be the log of a restored ledger.
fn close(connection: Connection, intact: bool) {
    if intact {
        let checkpoint = |how| connection.query_row(&format!("PRAGMA wal_checkpoint({how})"), [], |_| Ok(()));
        let moved = connection.busy_timeout(Duration::ZERO).and_then(|()| checkpoint("PASSIVE"));
        if let Err(error) = moved.and_then(|()| checkpoint("TRUNCATE")) {
            tracing::warn!(%error, "cannot move the ledger's write-ahead log into its file; the next start does it");
        }
    } else if let Err(error) = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true) {
        // Left open, until the process ends.
        tracing::warn!(%error, "cannot close the ledger without touching its files");
        return std::mem::forget(connection);
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

/// Waits between attempts to commit during an outage.
const RETRY_BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(2) };
/// How often a waiting writer looks for requests that must not wait for the outage to end: removing old rows may end it.
const REQUEST_CHECK: Duration = Duration::from_millis(20);

struct Writer<'c> {
    connection: &'c Connection,
    statements: Statements<'c>,
    files: OpenFiles,
    content: OverwriteDetector,
    requests: mpsc::UnboundedReceiver<Request>,
    shared: SharedState,
    tuning: Tuning,
    /// What is to be recorded.
    pending: EntryQueues,
    /// Why the last commit failed, and how many have failed since one succeeded.
    outage: Option<(LedgerError, u32)>,
}

impl<'c> Writer<'c> {
    fn new(
        connection: &'c Connection,
        statements: Statements<'c>,
        files: OpenFiles,
        requests: mpsc::UnboundedReceiver<Request>,
        shared: SharedState,
        tuning: Tuning,
    ) -> Self {
        Writer {
            connection,
            statements,
            content: OverwriteDetector::new(&files, Timestamp::now()),
            files,
            requests,
            shared,
            tuning,
            pending: EntryQueues::default(),
            outage: None,
        }
    }

    /// Runs until the queue is closed and empty. Returns whether the files are still those that were opened.
    fn run(mut self) -> bool {
        let mut received = Vec::with_capacity(self.tuning.batch);
        let mut prunings = Vec::new();
        let mut previous = 0;
        while self.receive(&mut received, previous) {
            previous = received.len();
            for request in received.drain(..) {
                match request {
                    Request::Record(entry) => self.pending.push(entry),
                    Request::Prune { before, answer } => prunings.push((before, answer)),
                    Request::CheckFiles => {}
                    Request::Close => self.requests.close(),
                    #[cfg(test)]
                    Request::Panic => panic!("requested"),
                }
            }
            self.shared.busy.begin();
            // Before the entries: on a full disk, it makes room for them.
            for (before, answer) in prunings.drain(..) {
                // The caller may have stopped waiting.
                let _ = answer.send(self.prune(before));
            }
            match self.check_files().and_then(|()| self.commit_pending()).and_then(|()| self.prove_end_of_outage()) {
                Ok(()) => {
                    self.outage = None;
                    self.shared.state.recording();
                }
                Err(error) => self.failed(error),
            }
            self.shared.busy.end();
        }
        !matches!(self.check_files(), Err(LedgerError::Unavailable { cause: OutageCause::FileReplaced, .. }))
    }

    /// Waits for requests, unless there is something to record. During an outage it waits no longer than until the next attempt.
    /// `false` if the queue is closed and there is nothing left to do.
    fn receive(&mut self, received: &mut Vec<Request>, previous: usize) -> bool {
        let has_pending = !self.pending.is_empty();
        let Some((error, failures)) = self.outage.clone().filter(|_| has_pending) else {
            if has_pending {
                // Entries that give way to orders.
                while received.len() < self.tuning.batch
                    && let Ok(request) = self.requests.try_recv()
                {
                    received.push(request);
                }
                return true;
            }
            let any = self.requests.blocking_recv_many(received, self.tuning.batch) > 0;
            if any {
                self.gather(received, previous);
            }
            return any;
        };
        let until = Instant::now() + RETRY_BACKOFF.wait(failures, fastrand::f64());
        loop {
            // All requests, whatever is pending: only `Tuning::pending_bytes` limits the entries.
            loop {
                match self.requests.try_recv() {
                    Ok(request) => {
                        let can_wait = matches!(request, Request::Record(_) | Request::CheckFiles);
                        received.push(request);
                        if !can_wait {
                            return true;
                        }
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        // The last attempt has just failed.
                        self.pending.refuse_all(&error);
                        return !received.is_empty();
                    }
                }
            }
            self.pending.retain_awaited();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            thread::sleep(left.min(REQUEST_CHECK));
        }
    }

    /// A commit failed, or the files are gone. What is pending stays, unless nothing can ever be recorded again.
    fn failed(&mut self, error: LedgerError) {
        let failures = self.outage.take().map_or(0, |(_, failures)| failures + 1);
        let cause = match &error {
            error if self.is_disk_full(error) => OutageCause::DiskFull,
            LedgerError::Unavailable { cause, .. } => *cause,
            LedgerError::Outdated { .. } => {
                self.pending.refuse_all(&error);
                OutageCause::Outdated
            }
            LedgerError::Refused { .. } | LedgerError::Closed => OutageCause::Other,
        };
        self.shared.state.unavailable(cause, Some(&chain(&error)));
        self.outage = Some((error, failures));
    }

    fn is_disk_full(&self, error: &LedgerError) -> bool {
        match error {
            LedgerError::Unavailable { cause: OutageCause::DiskFull, .. } => true,
            // SQLite reports an exceeded quota so.
            LedgerError::Unavailable { cause: OutageCause::IoError, .. } => has_no_room(self.files.directory()),
            LedgerError::Unavailable { .. }
            | LedgerError::Outdated { .. }
            | LedgerError::Refused { .. }
            | LedgerError::Closed => false,
        }
    }

    /// Checks that the files are those that were opened, and that the database was not overwritten in place.
    fn check_files(&mut self) -> Result<(), LedgerError> {
        let files = self.files.check().map_err(replaced)?;
        let size = files.size;
        if self.content.has_shrunk(size) && !self.statements.others_have_committed()? {
            return Err(replaced(self.content.shrunk(size)));
        }
        self.content.set_size(size, self.statements.database_size()?);
        self.content.check_content(files).map_err(replaced)?;
        match self.content.count(Timestamp::now(), |since| self.statements.count_orders(since))? {
            true => Ok(()),
            false => Err(replaced(self.content.overwritten())),
        }
    }

    /// Begins a transaction.
    fn begin(&mut self) -> Result<(), LedgerError> {
        if self.statements.begin()? {
            self.content.others_have_committed();
        }
        Ok(())
    }

    /// If nothing was pending after an outage, proves by a write of its own that it is over.
    fn prove_end_of_outage(&mut self) -> Result<(), LedgerError> {
        if self.outage.is_none() {
            return Ok(());
        }
        let proven = self.begin().and_then(|()| {
            let written = schema::write_version(self.connection).and_then(|()| self.statements.commit());
            written.map_err(|error| ledger_error("commit", error))
        });
        proven.inspect_err(|_| self.statements.roll_back(self.connection))
    }

    /// Removes one batch of old rows in a transaction of its own, so that no entry fails with it.
    fn prune(&mut self, before: Timestamp) -> Result<Pruned, LedgerError> {
        self.check_files()?;
        let pruned = self.begin().and_then(|()| {
            let pruned = self.statements.prune(self.connection, before).and_then(|pruned| {
                self.statements.commit()?;
                Ok(pruned)
            });
            pruned.map_err(|error| ledger_error("remove old rows", error))
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

    /// Commits the orders that are pending, and then a few of the entries that give way to them.
    ///
    /// # Errors
    /// The store could not record a batch, which stays pending with all that follow. If only those that give way have no room, that is
    /// no outage: they are answered with the error.
    fn commit_pending(&mut self) -> Result<(), LedgerError> {
        self.commit_turn(Precedence::Orders)?;
        for precedence in Precedence::AFTER_ORDERS {
            match self.commit_turn(precedence) {
                Err(error) if self.is_disk_full(&error) => refuse(self.pending.of(precedence), &error),
                committed => committed?,
            }
        }
        Ok(())
    }

    fn commit_turn(&mut self, precedence: Precedence) -> Result<(), LedgerError> {
        let turn = self.pending.turn(precedence);
        let mut entries = mem::take(self.pending.of(precedence));
        let committed = self.commit(&mut entries, turn);
        *self.pending.of(precedence) = entries;
        committed
    }

    /// Commits the first `count` entries in batches, and answers each entry of a batch after its commit. If one entry makes its batch
    /// fail, the entries of the batch are committed one by one, so that only that one is refused.
    ///
    /// # Errors
    /// The store could not record a batch, which stays among the entries with all that follow.
    fn commit(&mut self, entries: &mut VecDeque<PendingEntry>, count: usize) -> Result<(), LedgerError> {
        let mut left = count;
        let mut singly = 0;
        while left > 0 {
            let size = if singly > 0 { 1 } else { self.tuning.batch.min(left) };
            // A panic is a defect. Its entry is refused, and the writer continues with the next.
            let result = catch_unwind(AssertUnwindSafe(|| self.transact(entries, size))).unwrap_or_else(|_| {
                tracing::error!("the ledger's writer panicked; its batch was rolled back");
                Err(LedgerError::refused("record an entry", std::io::Error::other("the ledger's writer panicked")))
            });
            let outcomes = match result {
                Ok(outcomes) => {
                    self.shared.commits.fetch_add(1, Ordering::Relaxed);
                    journal::log_committed();
                    self.outage = None;
                    outcomes
                }
                Err(error) => {
                    self.statements.roll_back(self.connection);
                    journal::forget_uncommitted();
                    match (error, size) {
                        (error @ LedgerError::Refused { .. }, 1) => vec![Err(error)],
                        (LedgerError::Refused { .. }, _) => {
                            singly = size;
                            continue;
                        }
                        (error, _) => return Err(error),
                    }
                }
            };
            (singly, left) = (singly.saturating_sub(size), left - size);
            for (entry, outcome) in entries.drain(..size).zip(outcomes) {
                // The caller may have stopped waiting.
                let _ = entry.answer.send(outcome);
            }
        }
        Ok(())
    }

    /// Records the first `size` entries in one transaction. An entry that fails alone leaves nothing behind and does
    /// not affect the others; an error that ends the transaction is returned.
    ///
    /// The files are checked after the commit, so no entry is answered that was committed to a file that was gone.
    fn transact(&mut self, entries: &VecDeque<PendingEntry>, size: usize) -> Result<Vec<Outcome>, LedgerError> {
        self.begin()?;
        let mut outcomes = Vec::with_capacity(size);
        for PendingEntry { entry, .. } in entries.iter().take(size) {
            match self.statements.record(entry) {
                Ok(recorded) => outcomes.push(Ok(recorded)),
                // If SQLite has ended the transaction, each further entry would be committed on its own.
                Err(RecordError::Entry(error)) if self.connection.is_autocommit() => return Err(error),
                Err(RecordError::Entry(error)) => outcomes.push(Err(error)),
                Err(RecordError::Batch(error)) => return Err(ledger_error("record an entry", error)),
            }
        }
        let new_orders = self.statements.new_orders(self.content.since());
        self.statements.commit().map_err(|error| ledger_error("commit", error))?;
        self.content.committed(new_orders);
        self.check_files()?;
        Ok(outcomes)
    }
}

fn replaced(error: FileReplaced) -> LedgerError {
    let cause = OutageCause::FileReplaced;
    LedgerError::Unavailable { action: "record into its files", cause, source: Arc::new(error) }
}
