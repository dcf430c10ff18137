//! What a backup of the ledger reports, and why one fails.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use serde::Serialize;

use super::error::{Cause, OpenError};

/// A backup that is complete, on disk, and was read back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BackupSummary {
    /// The ledger that was copied.
    pub ledger: PathBuf,
    /// The backup.
    pub file: PathBuf,
    /// Size of the backup in bytes.
    pub bytes: u64,
    /// Version of the ledger's tables.
    pub version: i32,
    /// Rows by table, counted in the backup.
    pub rows: BTreeMap<String, u64>,
}

/// What a backup in progress is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupProgress {
    /// Copying; both numbers in bytes.
    Copying {
        /// Copied so far.
        done: u64,
        /// Size of the ledger.
        total: u64,
    },
    /// Reading the whole backup back.
    Verifying,
}

/// Why there is no backup. An incomplete file has been removed, and an existing one was not changed.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The ledger cannot be opened or read.
    #[error(transparent)]
    Ledger(#[from] OpenError),
    /// The file exists.
    #[error("{file:?} exists: choose another file, or replace it with --force")]
    Exists {
        /// The file.
        file: PathBuf,
    },
    /// The file is the ledger, or is named like one of its files.
    #[error("{file:?} belongs to the ledger itself: choose another file")]
    IsLedger {
        /// The file.
        file: PathBuf,
    },
    /// `--force` replaces an earlier backup and nothing else.
    #[error("{file:?} exists and is not an earlier backup: choose another file")]
    NotABackup {
        /// The file.
        file: PathBuf,
    },
    /// There is a log of another database beside the file. SQLite would apply it to the backup and damage it.
    #[error(
        "{log:?} belongs to an SQLite database that was or is at the backup's place: choose another file, or remove it"
    )]
    ForeignLog {
        /// The log.
        log: PathBuf,
    },
    /// Another backup to the same file is running or was killed.
    #[error("{partial:?} exists: another backup to this file is running, or was killed; if none runs, remove it")]
    InProgress {
        /// The incomplete backup.
        partial: PathBuf,
    },
    /// There is no place for the backup, or it may not be written there.
    #[error("cannot create {partial:?}: the directory must exist and this user must be allowed to write there")]
    NoPlace {
        /// The file that would be written first.
        partial: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The operating system refused.
    #[error("cannot {action} {file:?}")]
    File {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        file: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// SQLite could not copy the ledger or read the copy: a full disk, an I/O error.
    #[error("cannot {action} {file:?}: check the disk and its free space")]
    Store {
        /// What was tried.
        action: &'static str,
        /// The file.
        file: PathBuf,
        /// The store's error.
        #[source]
        source: Cause,
    },
    /// The copy was read back and is not what was copied: the disk, or the ledger itself, is damaged.
    #[error("the backup of {ledger:?} is damaged ({problem}): check the disk and the ledger, and keep older backups")]
    Damaged {
        /// The ledger.
        ledger: PathBuf,
        /// What was found.
        problem: String,
    },
    /// The caller asked to stop.
    #[error("interrupted: no backup was written")]
    Interrupted,
}

impl BackupError {
    /// Whether the arguments are at fault, rather than the ledger or the system.
    pub fn is_usage(&self) -> bool {
        match self {
            BackupError::Exists { .. }
            | BackupError::IsLedger { .. }
            | BackupError::NotABackup { .. }
            | BackupError::ForeignLog { .. }
            | BackupError::NoPlace { .. }
            | BackupError::InProgress { .. } => true,
            BackupError::Ledger(_)
            | BackupError::File { .. }
            | BackupError::Store { .. }
            | BackupError::Damaged { .. }
            | BackupError::Interrupted => false,
        }
    }
}
