//! Why an entry was not recorded, and the answer when it was.

use super::store_error::outage_cause;
use crate::ledger::entry::Recorded;
use crate::ledger::error::LedgerError;

/// What failed: one entry, or all that share its transaction.
#[derive(Debug)]
pub(super) enum RecordError {
    /// Only this entry; nothing of it was kept.
    Entry(LedgerError),
    /// The whole transaction.
    Batch(rusqlite::Error),
}

impl From<rusqlite::Error> for RecordError {
    fn from(error: rusqlite::Error) -> Self {
        // SQLite has undone this one statement and the transaction continues, unless the store has failed.
        match outage_cause(&error) {
            None => RecordError::Entry(LedgerError::refused("record an entry", error)),
            Some(_) => RecordError::Batch(error),
        }
    }
}

/// The answer to an entry that adds at most one row.
pub(super) fn recorded(rows: usize) -> Recorded {
    if rows == 1 { Recorded::New } else { Recorded::Duplicate }
}
