//! Where a ledger is, and opening it there: the only place that chooses an implementation.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::OpenError;
use super::sqlite::{SqliteLedger, SqliteReader};
use super::traits::{Ledger, LedgerReader};

/// Where a ledger is. Each variant is one implementation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerLocation {
    /// An SQLite file in this directory.
    Directory(PathBuf),
}

impl LedgerLocation {
    /// Opens the ledger for recording, creating or migrating it first where needed; a migration may take minutes.
    ///
    /// # Errors
    /// See [`OpenError`]: each says what to do.
    pub async fn open(&self) -> Result<Arc<dyn Ledger>, OpenError> {
        match self {
            LedgerLocation::Directory(directory) => {
                let directory = directory.clone();
                let opening = tokio::task::spawn_blocking(move || SqliteLedger::open(&directory));
                let ledger = opening.await.expect("opening a ledger does not panic and is never cancelled")?;
                Ok(Arc::new(ledger))
            }
        }
    }

    /// A reader of the ledger. It opens the ledger for each read, so this cannot fail, and the ledger may be
    /// created later.
    pub fn reader(&self) -> Arc<dyn LedgerReader> {
        match self {
            LedgerLocation::Directory(directory) => Arc::new(SqliteReader::new(directory.clone())),
        }
    }
}
