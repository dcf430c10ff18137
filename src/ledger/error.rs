//! Why a ledger cannot be opened, read or written. Classified by the remedy, never by implementation.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The store's error.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// The ledger could not record an entry. Nothing of the entry was kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// The store refused: a full disk, a locked file, an I/O error.
    #[error("ledger cannot {action}")]
    Store {
        /// What was tried.
        action: &'static str,
        /// The store's error, shared by all entries of the failed commit.
        #[source]
        source: Cause,
    },
    /// A newer orderd has migrated the ledger. Writing to it would leave out what the newer version records.
    #[error(
        "the ledger was migrated to version {found} by a newer orderd, this orderd writes version {known}; \
         upgrade this instance"
    )]
    Outdated {
        /// The ledger's version.
        found: i32,
        /// The version this program writes.
        known: i32,
    },
    /// The ledger has been closed.
    #[error("the ledger is closed")]
    Closed,
}

impl LedgerError {
    /// [`LedgerError::Store`] with its cause.
    pub(super) fn store(action: &'static str, cause: impl std::error::Error + Send + Sync + 'static) -> Self {
        LedgerError::Store { action, source: Arc::new(cause) }
    }
}

/// The ledger cannot be opened or read. `location` is the ledger's file.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory is missing and cannot be created.
    #[error("cannot create ledger directory {path:?}: create it, writable for orderd, or set `ledger.directory`")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// There is no ledger to read.
    #[error("there is no ledger {location:?}: start orderd once, or set `ledger.directory` to where it runs")]
    Missing {
        /// Where it should be.
        location: String,
    },
    /// The file is not a database, or it is damaged.
    #[error("ledger {location:?} is not a database, or is damaged: restore it from a backup, or move it away")]
    Damaged {
        /// Where it is.
        location: String,
        /// The store's error.
        #[source]
        source: Cause,
    },
    /// The file is another program's database.
    #[error("{location:?} is another program's database: move it away, or set `ledger.directory`")]
    Foreign {
        /// Where it is.
        location: String,
    },
    /// The ledger was written by a newer orderd.
    #[error(
        "ledger {location:?} has version {found}, this orderd supports versions up to {known}: install a newer orderd"
    )]
    Newer {
        /// Where it is.
        location: String,
        /// Its version.
        found: i32,
        /// The newest version this program supports.
        known: i32,
    },
    /// The ledger was written by an older orderd, and no daemon has migrated it yet.
    #[error("ledger {location:?} has version {found}, reading it needs version {known}: start this orderd once")]
    Older {
        /// Where it is.
        location: String,
        /// Its version.
        found: i32,
        /// The version this program reads.
        known: i32,
    },
    /// Another program has held a lock for longer than orderd waits.
    #[error("ledger {location:?} is locked by another program: end that program, then try again")]
    Locked {
        /// Where it is.
        location: String,
        /// The store's error.
        #[source]
        source: Cause,
    },
    /// The file or its directory is not writable. Reading needs that too while no daemon runs: SQLite first creates the
    /// write-ahead log and its index beside the file.
    #[error(
        "ledger {location:?} or its directory is not writable, which even reading needs while no daemon runs: \
         run this as orderd's user, or change the permissions"
    )]
    ReadOnly {
        /// Where it is.
        location: String,
        /// The store's error.
        #[source]
        source: Cause,
    },
    /// The store refused: permissions, a full disk, an I/O error.
    #[error("cannot use ledger {location:?}: check its permissions and the free space on its disk")]
    Store {
        /// Where it is.
        location: String,
        /// The store's error.
        #[source]
        source: Cause,
    },
    /// The ledger's thread did not start.
    #[error("cannot start the thread of ledger {location:?}: check the limit on threads")]
    Thread {
        /// Where it is.
        location: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// Whether changing the configuration or the ledger's file helps; otherwise the system has failed.
    pub fn is_configuration(&self) -> bool {
        match self {
            OpenError::Locked { .. } | OpenError::Store { .. } | OpenError::Thread { .. } => false,
            OpenError::Directory { .. }
            | OpenError::Missing { .. }
            | OpenError::ReadOnly { .. }
            | OpenError::Damaged { .. }
            | OpenError::Foreign { .. }
            | OpenError::Newer { .. }
            | OpenError::Older { .. } => true,
        }
    }
}
