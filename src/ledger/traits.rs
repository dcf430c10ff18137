//! What every ledger offers: recording, reading, and maintenance.
//!
//! Callers use these traits and never name an implementation. `conformance` tests each promise made here against
//! every implementation.

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::sync::watch;

use super::alerts::{AlertAnswer, AlertBook};
use super::dead_letters::{
    DeadLetterDetail, DeadLetterFilter, DeadLetterGroups, DeadLetterPage, DeadLetterQuery, EndedParsing,
    NewStoredLetter, StoreAnswer, UnresolvedDeadLetters, WholeDeadLetters,
};
use super::entry::{CancelAnswer, LedgerEntry, NewCancellation, Recorded};
use super::error::{LedgerError, OpenError};
use super::journal::{JournalHash, JournalHead, JournalPage, JournalQuery, JournalVerification, NewJournalEntry};
use super::replays::{LetterOperationWriter, ReplayReader};
use super::report::{Report, ReportError, ReportQuery};
use super::retention::Pruned;
use super::state::LedgerState;
use super::step_runs::{ClaimAnswer, RunClaim, RunRecord, RunRecorded};
use super::totals::Totals;
use super::trace::Trace;

/// Records effects, each exactly once.
pub trait LedgerWriter: Send + Sync + 'static {
    /// Records one entry and resolves once it is durable. Entries that arrive together share one commit. The returned
    /// future does not borrow the ledger. Dropping it leaves open whether the entry is recorded.
    ///
    /// During an outage (a full disk, a locked file) it waits, and the entry is recorded when the outage ends; see
    /// [`LedgerMaintenance::state`].
    ///
    /// # Errors
    /// The entry was not recorded; recording it again is safe. [`LedgerError::Refused`] is the entry's own fault. The others
    /// mean that this ledger records nothing any more.
    fn record(&self, entry: LedgerEntry) -> BoxFuture<'static, Result<Recorded, LedgerError>>;

    /// Cancels an order: from then on no step of it is called, and it is not processed. If it was, it and its sale are subtracted in
    /// the period of the cancellation. Durable, in the order of the calls and
    /// during an outage like [`LedgerWriter::record`].
    ///
    /// # Errors
    /// As for [`LedgerWriter::record`].
    fn cancel_order(&self, cancellation: NewCancellation) -> BoxFuture<'static, Result<CancelAnswer, LedgerError>>;

    /// Claims the steps of a message, so that no other instance calls them, and reads what is recorded about them. Durable, in
    /// the order of the calls and during an outage like [`LedgerWriter::record`].
    ///
    /// # Errors
    /// As for [`LedgerWriter::record`].
    fn claim_run(&self, claim: RunClaim) -> BoxFuture<'static, Result<ClaimAnswer, LedgerError>>;

    /// Records something about a claimed run, unless another instance has claimed it since.
    ///
    /// # Errors
    /// As for [`LedgerWriter::record`].
    fn record_run(&self, record: RunRecord) -> BoxFuture<'static, Result<RunRecorded, LedgerError>>;

    /// Reads operators' alerts, and replaces them if a replacement is given whose version is that of what is recorded. The version
    /// then grows by one. Durable and during an outage like [`LedgerWriter::record`].
    ///
    /// # Errors
    /// As for [`LedgerWriter::record`].
    fn exchange_alerts(&self, replacement: Option<AlertBook>) -> BoxFuture<'static, Result<AlertAnswer, LedgerError>>;
}

/// Stores messages from the dead letter queues.
pub trait LetterWriter: Send + Sync + 'static {
    /// Stores a message from `dead_letter_queue` or `unrouted_queue`, unless it is stored already. Its ack must wait for the answer.
    /// If the broker itself dead-lettered the message, what is recorded about this dead-lettering replaces the broker's reason.
    /// Messages wait for each other, and never take the room of what the consumers record.
    ///
    /// # Errors
    /// As for [`LedgerWriter::record`]. Also [`LedgerError::Unavailable`] if there is no room for the message alone: then there is no
    /// outage.
    fn store_letter(&self, letter: NewStoredLetter) -> BoxFuture<'static, Result<StoreAnswer, LedgerError>>;

    /// Records that `process` is about to read the body of a message that may have ended a process before. Answers whether another
    /// process has begun to read it, and neither ended that nor stored the message: then this one must not read it.
    ///
    /// # Errors
    /// As for [`LedgerWriter::record`].
    fn begin_parsing(&self, fingerprint: [u8; 32], process: String) -> BoxFuture<'static, Result<bool, LedgerError>>;

    /// Records that the body has been read.
    ///
    /// # Errors
    /// As for [`LedgerWriter::record`].
    fn end_parsing(&self, fingerprint: [u8; 32]) -> BoxFuture<'static, Result<(), LedgerError>>;

    /// Chooses a stored message that was not read, because that has ended another version of orderd, and records that this version is
    /// about to read it. Answers `None` if there is none, or if this version has begun to read one and not ended that: it may have been
    /// ended by it.
    ///
    /// # Errors
    /// As for [`LedgerWriter::record`].
    fn begin_reparsing(&self, version: String) -> BoxFuture<'static, Result<Option<i64>, LedgerError>>;

    /// Records what such a message says.
    ///
    /// # Errors
    /// As for [`LedgerWriter::record`].
    fn end_reparsing(&self, ended: EndedParsing) -> BoxFuture<'static, Result<(), LedgerError>>;
}

/// Records what people and programs do with orderd.
pub trait JournalWriter: Send + Sync + 'static {
    /// Appends an entry to the journal. What else an action records is recorded in the same transaction, by the function that records it.
    ///
    /// # Errors
    /// As for [`LedgerWriter::record`].
    fn record_action(&self, entry: NewJournalEntry) -> BoxFuture<'static, Result<JournalHead, LedgerError>>;
}

/// Reads what is recorded, each answer from one snapshot. Reading works in any process, while a daemon writes and while
/// none runs, and never blocks the writer. The returned futures do not borrow the reader.
pub trait LedgerReader: Send + Sync + 'static {
    /// Revenue and order counts over time. `now` is what relative times in the query refer to.
    ///
    /// # Errors
    /// See [`ReportError`].
    fn report(&self, query: ReportQuery, now: Timestamp) -> BoxFuture<'static, Result<Report, ReportError>>;

    /// Everything recorded about one order. An unknown id gives an empty trace. Found by primary keys alone, so its cost
    /// does not grow with the ledger.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn trace(&self, id: &str) -> BoxFuture<'static, Result<Trace, OpenError>>;

    /// Counts everything in the ledger. Reads all orders.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn totals(&self) -> BoxFuture<'static, Result<Totals, OpenError>>;

    /// One page of the stored dead letters, without their contents.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn dead_letters(&self, query: DeadLetterQuery) -> BoxFuture<'static, Result<DeadLetterPage, OpenError>>;

    /// One page of the stored dead letters with everything that is recorded about them. It ends before a body with which all of them
    /// would have more than this many bytes; the first one may have more.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn whole_dead_letters(
        &self,
        query: DeadLetterQuery,
        budget: usize,
    ) -> BoxFuture<'static, Result<WholeDeadLetters, OpenError>>;

    /// The stored dead letters by cause. Reads all that the filter finds.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn dead_letter_groups(&self, filter: DeadLetterFilter) -> BoxFuture<'static, Result<DeadLetterGroups, OpenError>>;

    /// One stored dead letter with its content as it is now; `None` if there is none with this number.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn dead_letter(&self, id: i64) -> BoxFuture<'static, Result<Option<DeadLetterDetail>, OpenError>> {
        self.dead_letter_revision(id, None)
    }

    /// The same with its content in this revision; 0: as it came. `None` also if there is no such revision.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn dead_letter_revision(
        &self,
        id: i64,
        revision: Option<i64>,
    ) -> BoxFuture<'static, Result<Option<DeadLetterDetail>, OpenError>>;

    /// How many bytes the body of a stored dead letter has in this revision, or the last one; `None` as
    /// [`dead_letter_revision`](Self::dead_letter_revision). It does not read the body.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn dead_letter_bytes(&self, id: i64, revision: Option<i64>) -> BoxFuture<'static, Result<Option<u64>, OpenError>>;

    /// The stored dead letters that are neither replayed nor discarded.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn unresolved_dead_letters(&self) -> BoxFuture<'static, Result<UnresolvedDeadLetters, OpenError>>;

    /// One page of the journal, the last entries first.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn journal(&self, query: JournalQuery) -> BoxFuture<'static, Result<JournalPage, OpenError>>;

    /// Reads the whole journal, and finds entries that were changed or are missing. `expected` is the hash of an entry that must be there.
    ///
    /// # Errors
    /// The ledger cannot be read.
    fn verify_journal(
        &self,
        expected: Option<JournalHash>,
    ) -> BoxFuture<'static, Result<JournalVerification, OpenError>>;
}

/// What the daemon needs to run an open ledger: retention, health, closing.
pub trait LedgerMaintenance: Send + Sync + 'static {
    /// Removes one batch of what is older than `before`: rows of orders that are processed or whose cancellation is complete, events
    /// and attempts, runs, and aggregates that no report needs any more. Never removes another order, a dead letter or its run, and
    /// never changes a report. A stored dead letter is removed once it was replayed or discarded before that time. What the steps of
    /// an old dead letter have said is erased, unless an undo has failed. Call it again
    /// while [`Pruned::more`] is set.
    ///
    /// # Errors
    /// The store refused; this call removed nothing.
    fn prune(&self, before: Timestamp) -> BoxFuture<'_, Result<Pruned, LedgerError>>;

    /// Whether the ledger can record, and why not. Changes within seconds of an outage's beginning and end.
    fn state(&self) -> watch::Receiver<LedgerState>;

    /// Outages since the ledger was opened, the present one included.
    fn outages(&self) -> u64;

    /// Commits since the ledger was opened: far fewer than entries when many entries arrive together.
    fn commits(&self) -> u64;

    /// Refuses further entries, answers those that are queued, and releases the store. During an outage, those that are
    /// queued are answered with an error. May be called repeatedly and
    /// concurrently; each call resolves when the store is released, which takes as long as a disk that hangs.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// An open ledger.
pub trait Ledger:
    LedgerWriter + LetterWriter + LetterOperationWriter + JournalWriter + LedgerReader + ReplayReader + LedgerMaintenance
{
}

impl<T> Ledger for T where
    T: LedgerWriter
        + LetterWriter
        + LetterOperationWriter
        + JournalWriter
        + LedgerReader
        + ReplayReader
        + LedgerMaintenance
{
}
