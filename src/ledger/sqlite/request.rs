//! What the writer's thread can be asked to do.

use jiff::Timestamp;
use tokio::sync::oneshot;

use crate::ledger::entry::{LedgerEntry, Recorded};
use crate::ledger::error::LedgerError;
use crate::ledger::retention::Pruned;

pub(super) type Outcome = Result<Recorded, LedgerError>;

pub(super) type Answer = oneshot::Sender<Outcome>;

/// A request to the writer.
#[derive(Debug)]
pub(super) enum Request {
    /// Record an entry.
    Record { entry: LedgerEntry, answer: Answer },
    /// Remove one batch of old rows.
    Prune { before: Timestamp, answer: oneshot::Sender<Result<Pruned, LedgerError>> },
    /// Check that the files are still those that were opened. Every commit does so too.
    CheckFiles,
    /// Refuse further requests and finish those that are queued.
    Close,
}
