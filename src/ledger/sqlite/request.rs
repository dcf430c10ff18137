//! What the writer's thread can be asked to do.

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::ledger::alerts::{AlertAnswer, AlertBook};
use crate::ledger::dead_letters::{EndedParsing, NewStoredLetter, StoreAnswer};
use crate::ledger::entry::{CancelAnswer, LedgerEntry, NewCancellation, Recorded};
use crate::ledger::error::LedgerError;
use crate::ledger::journal::{JournalHead, NewJournalEntry};
use crate::ledger::replays::{LetterOperation, OperationAnswer};
use crate::ledger::retention::Pruned;
use crate::ledger::step_runs::{ClaimAnswer, RunClaim, RunRecord, RunRecorded};

pub(super) type Outcome = Result<WriterAnswer, LedgerError>;

pub(super) type Answer = oneshot::Sender<Outcome>;

/// What is recorded: one effect, a cancellation, a claim or a record of a run, alerts, a message from a dead letter queue, that the
/// reading of one begins or has ended, what somebody has done, or what a person does with stored messages.
#[derive(Debug)]
pub(super) enum WriterEntry {
    Effect(LedgerEntry),
    Cancel(Box<NewCancellation>),
    Claim(Box<RunClaim>),
    Run(Box<RunRecord>),
    Alerts(Option<Box<AlertBook>>),
    Letter(Box<NewStoredLetter>),
    BeginReading { fingerprint: [u8; 32], process: String },
    EndReading { fingerprint: [u8; 32] },
    BeginReadingAgain { version: String },
    EndReadingAgain(Box<EndedParsing>),
    Journal(Box<NewJournalEntry>),
    Operation(Box<LetterOperation>),
}

/// The answer to each kind of entry.
#[derive(Debug)]
pub(super) enum WriterAnswer {
    Effect(Recorded),
    Cancel(CancelAnswer),
    Claim(ClaimAnswer),
    Run(RunRecorded),
    Alerts(AlertAnswer),
    Letter(StoreAnswer),
    Reading(bool),
    ReadingEnded(()),
    Reparse(Option<i64>),
    Journal(JournalHead),
    Operation(OperationAnswer),
}

/// An entry to record, until it is answered.
#[derive(Debug)]
pub(super) struct PendingEntry {
    pub entry: WriterEntry,
    pub answer: Answer,
    /// Its share of [`super::Tuning::pending_bytes`].
    pub _room: OwnedSemaphorePermit,
}

/// A request to the writer.
#[derive(Debug)]
pub(super) enum Request {
    /// Record an entry.
    Record(PendingEntry),
    /// Remove one batch of old rows.
    Prune { before: Timestamp, answer: oneshot::Sender<Result<Pruned, LedgerError>> },
    /// Check that the files are still those that were opened. Every commit does so too.
    CheckFiles,
    /// Refuse further requests and finish those that are queued.
    Close,
    /// Panic, as a defect would.
    #[cfg(test)]
    Panic,
}
