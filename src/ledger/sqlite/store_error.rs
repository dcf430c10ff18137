//! Classifies SQLite's errors: whose fault they are, and what ends the trouble.

use std::sync::Arc;

use rusqlite::{Error, ErrorCode};

use crate::ledger::error::LedgerError;
use crate::ledger::state::OutageCause;

/// The outage that an error means. `None` if the error is about one entry only: it breaks a constraint, or a stored value
/// could not be converted, so the error is not SQLite's.
pub(super) fn outage_cause(error: &Error) -> Option<OutageCause> {
    let is_without_room =
        error.sqlite_error().is_some_and(|error| error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE);
    match error.sqlite_error_code()? {
        // The log's index cannot grow.
        ErrorCode::SystemIoFailure if is_without_room => Some(OutageCause::DiskFull),
        ErrorCode::ConstraintViolation
        | ErrorCode::TypeMismatch
        | ErrorCode::TooBig
        | ErrorCode::ParameterOutOfRange => None,
        ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Some(OutageCause::Locked),
        ErrorCode::DiskFull => Some(OutageCause::DiskFull),
        ErrorCode::ReadOnly => Some(OutageCause::ReadOnly),
        ErrorCode::SystemIoFailure => Some(OutageCause::IoError),
        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase => Some(OutageCause::Damaged),
        _ => Some(OutageCause::Other),
    }
}

/// The ledger's error for one of SQLite's.
pub(super) fn ledger_error(action: &'static str, error: Error) -> LedgerError {
    match outage_cause(&error) {
        Some(cause) => LedgerError::Unavailable { action, cause, source: Arc::new(error) },
        None => LedgerError::refused(action, error),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[test]
    fn a_log_index_that_cannot_grow_means_a_full_disk() {
        let cause = |code| outage_cause(&Error::SqliteFailure(ffi::Error::new(code), None));
        assert_eq!(cause(ffi::SQLITE_IOERR_SHMSIZE), Some(OutageCause::DiskFull));
        assert_eq!(cause(ffi::SQLITE_IOERR_FSYNC), Some(OutageCause::IoError));
        assert_eq!(cause(ffi::SQLITE_CONSTRAINT), None);
    }
}
