//! Why a ledger cannot be opened, read or written. Classified by the remedy, never by implementation.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::state::OutageCause;
use crate::files::is_disk_full;

/// The store's error.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// The ledger did not record an entry. Nothing of the entry was kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LedgerError {
    /// This entry cannot be recorded, whereas others can: it breaks a constraint, or what is stored about its order cannot be
    /// read.
    #[error("ledger cannot {action}")]
    Refused {
        /// What was tried.
        action: &'static str,
        /// The store's error.
        #[source]
        source: Cause,
    },
    /// The store cannot record anything now: a full disk, a locked file, an I/O error.
    #[error("ledger cannot {action}")]
    Unavailable {
        /// What was tried.
        action: &'static str,
        /// The kind of trouble.
        cause: OutageCause,
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
    /// [`LedgerError::Refused`] with its cause.
    pub(super) fn refused(action: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        LedgerError::Refused { action, source: Arc::new(source) }
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
    /// The file has content but no tables: what it recorded was in a write-ahead log that is missing.
    #[error(
        "ledger {location:?} has no tables, as the copy of a ledger without its `-wal` file: restore it together with that \
         file, or restore a backup made by `orderd ledger backup`; to start with an empty ledger, move the file away"
    )]
    NoTables {
        /// Where it is.
        location: String,
    },
    /// There is a write-ahead log whose database is missing or empty. Opening the database would delete the log.
    #[error(
        "there is the log {log:?} of a ledger, but the ledger {database:?} is missing or empty: restore both files together, \
         or a backup made by `orderd ledger backup`; to start with an empty ledger, move the log away"
    )]
    LogWithoutDatabase {
        /// The database.
        database: PathBuf,
        /// Its write-ahead log.
        log: PathBuf,
    },
    /// The file cannot be opened or created at all.
    #[error(
        "cannot open ledger {location:?}: check that the directory exists, also the one that a link leads to, and the limit on \
         open files"
    )]
    CannotOpen {
        /// Where it is.
        location: String,
        /// The store's error.
        #[source]
        source: Cause,
    },
    /// A file or the directory may not be used by this user, or the file system is read-only.
    #[error(
        "cannot {action} {path:?}: run orderd as the user that owns the ledger, or change the owner, the permissions or the \
         mount"
    )]
    Permission {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The operating system's error.
        #[source]
        source: io::Error,
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
    /// The ledger lacks tables or columns of its version.
    #[error(
        "ledger {location:?} has version {version} but lacks {missing}: a development version of orderd has made it, or another program \
         has changed it; restore a backup, or move it away and begin a new one"
    )]
    OtherSchema {
        /// Where it is.
        location: String,
        /// Its version.
        version: i32,
        /// The first columns that it lacks.
        missing: String,
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
    /// The store refused: a full disk, an I/O error.
    #[error("cannot use ledger {location:?}: check the disk and its free space")]
    Store {
        /// Where it is.
        location: String,
        /// The kind of trouble.
        cause: OutageCause,
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
    /// The cause of an error that may end by itself, or once a person has made room: then opening is worth another attempt.
    /// `None` for errors that last until the configuration or the files are changed.
    pub fn temporary_cause(&self) -> Option<OutageCause> {
        match self.remedy() {
            Remedy::Wait(cause) => Some(cause),
            Remedy::Change | Remedy::None => None,
        }
    }

    /// Whether changing the configuration or the ledger's files helps; otherwise the system has failed.
    pub fn is_configuration(&self) -> bool {
        self.remedy() == Remedy::Change
    }

    fn remedy(&self) -> Remedy {
        match self {
            OpenError::Locked { .. } => Remedy::Wait(OutageCause::Locked),
            OpenError::Store { cause, .. } => Remedy::Wait(*cause),
            OpenError::Directory { source, .. } if is_disk_full(source) => Remedy::Wait(OutageCause::DiskFull),
            OpenError::Directory { .. } => Remedy::Change,
            OpenError::Thread { .. } => Remedy::None,
            OpenError::Missing { .. }
            | OpenError::ReadOnly { .. }
            | OpenError::Permission { .. }
            | OpenError::CannotOpen { .. }
            | OpenError::Damaged { .. }
            | OpenError::Foreign { .. }
            | OpenError::NoTables { .. }
            | OpenError::LogWithoutDatabase { .. }
            | OpenError::Newer { .. }
            | OpenError::OtherSchema { .. }
            | OpenError::Older { .. } => Remedy::Change,
        }
    }
}

/// What ends an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// It may end by itself, or once a person has made room.
    Wait(OutageCause),
    /// A change of the configuration or of the ledger's files.
    Change,
    /// Nothing that orderd knows of: the system has failed.
    None,
}
