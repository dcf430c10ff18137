//! The default ledger: one SQLite file, written by a thread of its own.
//!
//! It owns the file, the writer's thread and the queue to it. It must never block an async task, and never answer before
//! the commit that contains the answer is on disk.

mod access;
mod alerts;
mod backup;
mod cancellation;
mod columns;
mod entry_queues;
mod erase;
mod erase_letters;
mod files;
mod journal;
mod letter_attempts;
mod letter_changes;
mod letter_history;
mod letter_queries;
mod letter_search;
mod letters;
mod monitor;
mod notifications;
mod open;
mod order_items;
mod order_sums;
mod overwrite;
mod prune;
mod prune_runs;
mod reader;
mod record_error;
mod replay_outcomes;
mod replay_queries;
mod replays;
mod report;
mod request;
mod sales;
mod schema;
mod schema_version_4;
mod statements;
mod step_runs;
mod step_texts;
mod stop_replay;
mod stopped_replays;
mod store_error;
mod totals;
mod trace;
mod trace_letters;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{BoxFuture, Either, FutureExt, ready};
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::alerts::{AlertAnswer, AlertBook};
use super::dead_letters::{EndedParsing, NewStoredLetter, StoreAnswer};
use super::entry::{CancelAnswer, LedgerEntry, NewCancellation, Recorded};
use super::error::{LedgerError, OpenError};
use super::journal::{JournalHead, NewJournalEntry};
use super::replays::{LetterOperation, LetterOperationWriter, OperationAnswer};
use super::retention::Pruned;
use super::state::LedgerState;
use super::step_runs::{ClaimAnswer, RunClaim, RunRecord, RunRecorded};
use super::traits::{JournalWriter, LedgerMaintenance, LedgerWriter, LetterWriter};
use entry_queues::Precedence;
use request::{Outcome, PendingEntry, Request, WriterAnswer, WriterEntry};

pub use reader::SqliteReader;

pub(super) use backup::run as back_up;
pub(super) use erase::{erase, targets as erasure_targets};
pub(super) use stop_replay::stop_replay;

/// The ledger's file within its directory. Other programs may read it.
pub const FILE_NAME: &str = "orderd.db";

/// How the ledger uses its file. [`Tuning::default`] is measured (`benches/ledger.rs`); tests shrink it.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Most bytes that the entries may take that wait for the writer or are not answered yet; further ones wait in their
    /// callers. Each counts as at least [`MIN_ENTRY_BYTES`].
    pub pending_bytes: usize,
    /// The same for messages from dead letter queues, so that those never take the room of orders. A larger one waits for all of
    /// it, so it is recorded alone.
    pub letter_bytes: usize,
    /// The same for what persons do with stored messages.
    pub desk_bytes: usize,
    /// Most entries in one commit.
    pub batch: usize,
    /// Longest time that the writer waits for more entries before it commits a small batch. It waits less the fewer
    /// entries the previous commit had.
    pub gather: Duration,
    /// How long to wait for another program's lock before that is an outage. Another instance holds the lock for as long
    /// as a commit takes.
    pub busy_timeout: Duration,
    /// How long a write may take before that is an outage.
    pub hung_after: Duration,
    /// SQLite's page cache, in KiB.
    pub cache_kib: u32,
    /// Pages (4 KiB) in the write-ahead log before a checkpoint moves them to the file. A page that was written many
    /// times is moved once.
    pub checkpoint_pages: u32,
    /// Most pages of the file; simulates a full disk.
    pub max_pages: Option<u32>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            pending_bytes: 8 << 20,
            letter_bytes: 1 << 20,
            desk_bytes: 1 << 20,
            batch: 1_024,
            gather: Duration::from_millis(10),
            busy_timeout: Duration::from_secs(2),
            hung_after: Duration::from_secs(4),
            cache_kib: 8_192,
            checkpoint_pages: 16_000,
            max_pages: None,
        }
    }
}

/// What an entry counts at least toward [`Tuning::pending_bytes`], which thereby limits their number too.
pub const MIN_ENTRY_BYTES: usize = 2_048;

/// The ledger in `orderd.db`. Dropping it lets the writer finish what is queued in the background;
/// [`LedgerMaintenance::close`] waits for that.
#[derive(Debug)]
pub struct SqliteLedger {
    directory: PathBuf,
    queue: mpsc::UnboundedSender<Request>,
    /// What further entries may take.
    room: Room,
    /// What further messages from dead letter queues may take.
    letter_room: Room,
    /// What further changes of persons may take.
    operation_room: Room,
    /// Cancelled when the writer has closed the file.
    finished: CancellationToken,
    shared: writer::SharedState,
}

impl SqliteLedger {
    /// Opens the ledger in a directory, creating both if missing, and starts the writer's thread. Blocks for some
    /// milliseconds of disk I/O, up to the busy timeout if another program locks the file, and minutes if the file has
    /// to be migrated.
    ///
    /// # Errors
    /// See [`OpenError`]: each says what to do.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Self::open_with(directory, Tuning::default())
    }

    /// [`SqliteLedger::open`] with other limits.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_with(directory: &Path, tuning: Tuning) -> Result<Self, OpenError> {
        let (queue, requests) = mpsc::unbounded_channel();
        let finished = CancellationToken::new();
        let shared = writer::SharedState::default();
        let hung_after = tuning.hung_after;
        let (room, letter_room) = (Room::new(tuning.pending_bytes), Room::new(tuning.letter_bytes));
        let operation_room = Room::new(tuning.desk_bytes);
        writer::spawn(directory, tuning, requests, shared.clone(), finished.clone())?;
        monitor::spawn(queue.downgrade(), shared.busy.clone(), shared.state.clone(), hung_after)
            .map_err(|source| OpenError::Thread { location: open::location(directory), source })?;
        warn_of_file_system(directory);
        Ok(Self { directory: directory.to_owned(), queue, room, letter_room, operation_room, finished, shared })
    }
}

/// Bytes that entries may take which are not answered yet.
#[derive(Debug, Clone)]
struct Room {
    free: Arc<Semaphore>,
    bytes: usize,
}

impl Room {
    fn new(bytes: usize) -> Self {
        Room { free: Arc::new(Semaphore::new(bytes)), bytes }
    }
}

/// Logs a warning if the directory is on a network file system or in memory.
fn warn_of_file_system(directory: &Path) {
    if let Some(problem) = storage_problem(directory) {
        warn!(directory = %directory.display(), problem, "the ledger's directory is not a local disk");
    }
}

/// Why a directory is no place for a ledger, though it works; `None` if nothing speaks against it.
pub(super) fn storage_problem(directory: &Path) -> Option<String> {
    if let Some(file_system) = crate::files::volatile_file_system(directory) {
        let remedy = "its files are lost when the machine restarts: use a directory on a disk";
        return Some(format!("is in memory ({file_system}); {remedy}"));
    }
    // SQLite's write-ahead log needs memory shared by all its users, which no network file system provides across hosts.
    let file_system = crate::files::remote_file_system(directory)?;
    Some(format!(
        "is on a network file system ({file_system}), where locks and syncs may not be reliable: never use it from instances on \
         two hosts; a local disk is safer"
    ))
}

impl LedgerMaintenance for SqliteLedger {
    fn prune(&self, before: Timestamp) -> BoxFuture<'_, Result<Pruned, LedgerError>> {
        async move {
            let (answer, answered) = oneshot::channel();
            self.queue.send(Request::Prune { before, answer }).map_err(|_| LedgerError::Closed)?;
            answered.await.unwrap_or(Err(LedgerError::Closed))
        }
        .boxed()
    }

    fn state(&self) -> watch::Receiver<LedgerState> {
        self.shared.state.subscribe()
    }

    fn outages(&self) -> u64 {
        self.shared.state.outages()
    }

    fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    /// Also moves the write-ahead log into the file and ends the thread.
    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            // An error means that the writer no longer receives: it is already finishing.
            let _ = self.queue.send(Request::Close);
            self.finished.cancelled().await;
        }
        .boxed()
    }
}

impl SqliteLedger {
    /// The call itself queues the entry while there is room, so entries are recorded in the order of the calls.
    fn enqueue(&self, entry: WriterEntry, bytes: usize) -> impl Future<Output = Outcome> + Send + use<> {
        let room = match entry.precedence() {
            Precedence::Orders => &self.room,
            Precedence::Letters => &self.letter_room,
            Precedence::Operation => &self.operation_room,
        };
        let bytes = bytes.max(MIN_ENTRY_BYTES).min(room.bytes);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let queue = self.queue.clone();
        let send = move |room| {
            let (answer, answered) = oneshot::channel();
            let sent = queue.send(Request::Record(PendingEntry { entry, answer, _room: room }));
            sent.map(|()| answered).map_err(|_| LedgerError::Closed)
        };
        let sent = match Arc::clone(&room.free).try_acquire_many_owned(bytes) {
            Ok(room) => Either::Left(ready(send(room))),
            Err(_) => {
                let room = Arc::clone(&room.free);
                // Boxed, because it contains the entry and is rarely needed.
                let sent = async move {
                    // The semaphore is never closed.
                    send(room.acquire_many_owned(bytes).await.map_err(|_| LedgerError::Closed)?)
                };
                Either::Right(sent.boxed())
            }
        };
        // The writer answers every entry that it takes from the queue, unless a defect makes it panic.
        async move { sent.await?.await.unwrap_or(Err(LedgerError::Closed)) }
    }
}

/// The answer to an entry of this kind: each kind has one of its own.
macro_rules! answer {
    ($answered:expr, $kind:ident) => {
        async move {
            let WriterAnswer::$kind(answer) = $answered.await? else {
                unreachable!("each kind of entry has an answer of its own kind")
            };
            Ok(answer)
        }
        .boxed()
    };
}

impl LedgerWriter for SqliteLedger {
    fn record(&self, entry: LedgerEntry) -> BoxFuture<'static, Result<Recorded, LedgerError>> {
        let bytes = entry.bytes();
        let answered = self.enqueue(WriterEntry::Effect(entry), bytes);
        answer!(answered, Effect)
    }

    fn cancel_order(&self, cancellation: NewCancellation) -> BoxFuture<'static, Result<CancelAnswer, LedgerError>> {
        let bytes = cancellation.bytes();
        let answered = self.enqueue(WriterEntry::Cancel(Box::new(cancellation)), bytes);
        answer!(answered, Cancel)
    }

    fn claim_run(&self, claim: RunClaim) -> BoxFuture<'static, Result<ClaimAnswer, LedgerError>> {
        let bytes = claim.bytes();
        let answered = self.enqueue(WriterEntry::Claim(Box::new(claim)), bytes);
        answer!(answered, Claim)
    }

    fn record_run(&self, record: RunRecord) -> BoxFuture<'static, Result<RunRecorded, LedgerError>> {
        let bytes = record.bytes();
        let answered = self.enqueue(WriterEntry::Run(Box::new(record)), bytes);
        answer!(answered, Run)
    }

    fn exchange_alerts(&self, replacement: Option<AlertBook>) -> BoxFuture<'static, Result<AlertAnswer, LedgerError>> {
        let bytes = replacement.as_ref().map_or(0, AlertBook::bytes);
        let answered = self.enqueue(WriterEntry::Alerts(replacement.map(Box::new)), bytes);
        answer!(answered, Alerts)
    }
}

impl LetterWriter for SqliteLedger {
    fn store_letter(&self, letter: NewStoredLetter) -> BoxFuture<'static, Result<StoreAnswer, LedgerError>> {
        let bytes = letter.bytes();
        let answered = self.enqueue(WriterEntry::Letter(Box::new(letter)), bytes);
        answer!(answered, Letter)
    }

    fn begin_parsing(&self, fingerprint: [u8; 32], process: String) -> BoxFuture<'static, Result<bool, LedgerError>> {
        let answered = self.enqueue(WriterEntry::BeginReading { fingerprint, process }, MIN_ENTRY_BYTES);
        answer!(answered, Reading)
    }

    fn end_parsing(&self, fingerprint: [u8; 32]) -> BoxFuture<'static, Result<(), LedgerError>> {
        let answered = self.enqueue(WriterEntry::EndReading { fingerprint }, MIN_ENTRY_BYTES);
        answer!(answered, ReadingEnded)
    }

    fn begin_reparsing(&self, version: String) -> BoxFuture<'static, Result<Option<i64>, LedgerError>> {
        let answered = self.enqueue(WriterEntry::BeginReadingAgain { version }, MIN_ENTRY_BYTES);
        answer!(answered, Reparse)
    }

    fn end_reparsing(&self, ended: EndedParsing) -> BoxFuture<'static, Result<(), LedgerError>> {
        let bytes = ended.bytes();
        let answered = self.enqueue(WriterEntry::EndReadingAgain(Box::new(ended)), bytes);
        answer!(answered, ReadingEnded)
    }
}

impl JournalWriter for SqliteLedger {
    fn record_action(&self, entry: NewJournalEntry) -> BoxFuture<'static, Result<JournalHead, LedgerError>> {
        let bytes = entry.bytes();
        let answered = self.enqueue(WriterEntry::Journal(Box::new(entry)), bytes);
        answer!(answered, Journal)
    }
}

impl LetterOperationWriter for SqliteLedger {
    fn carry_out(&self, change: LetterOperation) -> BoxFuture<'static, Result<OperationAnswer, LedgerError>> {
        let bytes = change.bytes();
        let answered = self.enqueue(WriterEntry::Operation(Box::new(change)), bytes);
        answer!(answered, Operation)
    }
}
