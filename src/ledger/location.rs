//! Where a ledger is, and opening it there: the only place that chooses an implementation.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::backup::{BackupError, BackupProgress, BackupSummary};
use super::erase::{ErasedRows, ErasureOptions, ErasureSubject, ErasureTargets};
use super::error::OpenError;
use super::replays::{HalfPublished, RecordedStop, ReplayReader};
use super::sqlite::{self, SqliteLedger, SqliteReader};
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

    /// Copies the ledger to one file, whether a daemon records or not, and verifies the copy. Blocks for as long as both take.
    /// Replaces an existing file only with `force`. `report` is called every few MiB; setting `interrupted` stops it.
    ///
    /// # Errors
    /// See [`BackupError`]: there is no backup then, and an existing file was not changed.
    pub fn back_up(
        &self,
        file: &Path,
        force: bool,
        report: &dyn Fn(BackupProgress),
        interrupted: &AtomicBool,
    ) -> Result<BackupSummary, BackupError> {
        match self {
            LedgerLocation::Directory(directory) => sqlite::back_up(directory, file, force, report, interrupted),
        }
    }

    /// The orders of a customer, the order or the messages that the ledger knows.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub async fn erasure_targets(&self, subject: &ErasureSubject) -> Result<ErasureTargets, OpenError> {
        match self {
            LedgerLocation::Directory(directory) => {
                let (directory, subject) = (directory.clone(), subject.clone());
                blocking(move || sqlite::erasure_targets(&directory, &subject)).await
            }
        }
    }

    /// Erases the customers of orders, the texts of failures, and what steps have said, also while daemons use the ledger. Rows and
    /// aggregates stay. What `actor` has erased is in the journal. Results of steps that are still needed are erased as soon as they are not.
    ///
    /// # Errors
    /// The ledger cannot be written. Some orders may have been erased; repeating it is safe.
    pub async fn erase(
        &self,
        targets: ErasureTargets,
        options: ErasureOptions,
        actor: &str,
    ) -> Result<ErasedRows, OpenError> {
        match self {
            LedgerLocation::Directory(directory) => {
                let (directory, actor) = (directory.clone(), actor.to_owned());
                blocking(move || sqlite::erase(&directory, &targets, options, &actor)).await
            }
        }
    }

    /// Stops a replay, also while daemons use the ledger: what is not published is open again. `None` if there is none with this number.
    ///
    /// # Errors
    /// The ledger cannot be written. Repeating it is safe.
    pub async fn stop_replay(
        &self,
        id: i64,
        actor: &str,
        half_published: HalfPublished,
    ) -> Result<Option<RecordedStop>, OpenError> {
        match self {
            LedgerLocation::Directory(directory) => {
                let (directory, actor) = (directory.clone(), actor.to_owned());
                blocking(move || sqlite::stop_replay(&directory, id, &actor, half_published)).await
            }
        }
    }

    /// Why this is no place for a ledger, though it works: in memory, or on another host. `None` if nothing speaks against it.
    pub fn storage_problem(&self) -> Option<String> {
        match self {
            LedgerLocation::Directory(directory) => sqlite::storage_problem(directory),
        }
    }

    /// A reader of the replays in the ledger, like [`LedgerLocation::reader`].
    pub fn replay_reader(&self) -> Arc<dyn ReplayReader> {
        match self {
            LedgerLocation::Directory(directory) => Arc::new(SqliteReader::new(directory.clone())),
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

/// Runs blocking work on a thread of its own.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("using a ledger does not panic and is never cancelled")
}
