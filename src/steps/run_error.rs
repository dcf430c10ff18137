//! Why a run did not end: the message has failed, or something interrupted it.

use crate::ledger::LedgerError;
use crate::recovery::Failure;

/// Why a run did not end.
#[derive(Debug)]
pub enum RunError {
    /// The message has failed.
    Failed(Failure),
    /// The ledger.
    Ledger(LedgerError),
    /// Another instance works on the message, or other calls of the step take too long. Never an attempt.
    WaitedTooLong,
    /// Another instance has claimed the message. Never an attempt.
    Lost,
    /// The publisher was closed. Never an attempt.
    PublisherClosed,
}

impl From<LedgerError> for RunError {
    fn from(error: LedgerError) -> Self {
        RunError::Ledger(error)
    }
}
