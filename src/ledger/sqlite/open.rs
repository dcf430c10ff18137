//! Opening the file, and saying what to do when it cannot be opened.
//!
//! It owns the connection's settings. It must never replace, truncate or repair a file it does not understand.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::schema::{self, MigrateError};
use super::{FILE_NAME, Tuning};

/// A ledger that cannot be opened, or read.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory is missing and cannot be made.
    #[error("cannot create ledger directory {path:?}: create it, writable for orderd, or set `ledger.directory`")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no ledger to read.
    #[error("there is no ledger {path:?}: start orderd once, or set `ledger.directory` to where it runs")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is no SQLite database, or a damaged one.
    #[error("ledger {path:?} is not a database, or is damaged: restore it from a backup, or move it away")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The file is a database of another program.
    #[error("{path:?} is another program's database: move it away, or set `ledger.directory`")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file was written by a later orderd.
    #[error("ledger {path:?} has version {found}, this orderd knows versions up to {known}: install a newer orderd")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i32,
        /// The newest this program knows.
        known: i32,
    },
    /// The file was written by an earlier orderd and no daemon has migrated it yet.
    #[error("ledger {path:?} has version {found}, reading it needs version {known}: start this orderd once")]
    Older {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: i32,
        /// The version this program reads.
        known: i32,
    },
    /// Another program holds a lock for longer than the busy timeout.
    #[error("ledger {path:?} is locked by another program: end that program, then try again")]
    Locked {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The file or its directory may not be written. Reading needs that too while no daemon runs: the write-ahead log and
    /// its index lie beside the file, and have to be made first.
    #[error(
        "ledger {path:?} or its directory may not be written, which even reading needs while no daemon runs: \
             run this as orderd's user, or change the permissions"
    )]
    ReadOnly {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The file system refused: permissions, a full disk, an I/O error.
    #[error("cannot use ledger {path:?}: check its permissions and the space on its disk")]
    Store {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        #[source]
        source: rusqlite::Error,
    },
    /// The ledger's thread did not start.
    #[error("cannot start the thread of ledger {path:?}: check the limit on threads")]
    Thread {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// Whether a person can mend it by changing the configuration or the file; else the system has failed.
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

    /// Sorts what SQLite says by what a person can do about it.
    pub(super) fn from_sqlite(path: &Path, source: rusqlite::Error) -> Self {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => OpenError::Damaged { path, source },
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Locked { path, source },
            Some(ErrorCode::ReadOnly) => OpenError::ReadOnly { path, source },
            _ => OpenError::Store { path, source },
        }
    }
}

/// Opens the file for the writer, creating directory, file and tables where missing.
pub(super) fn for_writing(directory: &Path, tuning: &Tuning) -> Result<Connection, OpenError> {
    create(directory).map_err(|source| OpenError::Directory { path: directory.to_owned(), source })?;
    let path = directory.join(FILE_NAME);
    // NO_MUTEX: the connection never leaves the writer's thread.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(&path, flags).and_then(|mut connection| {
        configure(&mut connection, tuning)?;
        Ok(connection)
    });
    let mut connection = opened.map_err(|error| OpenError::from_sqlite(&path, error))?;
    match schema::migrate(&mut connection, schema::STEPS) {
        Ok(()) => Ok(connection),
        Err(MigrateError::Newer { found, known }) => Err(OpenError::Newer { path, found, known }),
        Err(MigrateError::Foreign) => Err(OpenError::Foreign { path }),
        Err(MigrateError::Sqlite(error)) => Err(OpenError::from_sqlite(&path, error)),
    }
}

/// Opens an existing file of this version for reading only.
pub(super) fn for_reading(directory: &Path, busy_timeout: Duration) -> Result<Connection, OpenError> {
    let path = directory.join(FILE_NAME);
    // A directory that may not be entered is not a missing file: SQLite says what is wrong with it.
    if matches!(path.try_exists(), Ok(false)) {
        return Err(OpenError::Missing { path });
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(&path, flags).and_then(|connection| {
        connection.busy_timeout(busy_timeout)?;
        let found = schema::version(&connection)?;
        Ok((connection, found))
    });
    let (connection, found) = opened.map_err(|error| OpenError::from_sqlite(&path, error))?;
    let known = schema::last_version(schema::STEPS);
    match found {
        _ if found > known => Err(OpenError::Newer { path, found, known }),
        _ if found < known => Err(OpenError::Older { path, found, known }),
        _ => Ok(connection),
    }
}

/// Creates the directory if missing, and makes its name durable: a power cut must not take a directory
/// whose files have been synced.
fn create(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(directory)?;
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fs::File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

fn configure(connection: &mut Connection, tuning: &Tuning) -> rusqlite::Result<()> {
    connection.busy_handler(Some(await_turn(tuning.busy_timeout)))?;
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "wal_autocheckpoint", tuning.checkpoint_pages)?;
    // Negative means KiB rather than pages.
    connection.pragma_update(None, "cache_size", -i64::from(tuning.cache_kib))?;
    // A reader that stayed long makes the log grow; this gives the space back afterwards.
    connection.pragma_update(None, "journal_size_limit", WAL_KEPT_BYTES)?;
    if let Some(pages) = tuning.max_pages {
        connection.pragma_update(None, "max_page_count", pages)?;
    }
    Ok(())
}

/// Waits for another writer's lock in short steps. SQLite's own waiting takes steps of up to 100 ms, in which another
/// instance's writer takes the lock again and again: of three busy ones, the one least lucky waited 1.5 s.
fn await_turn(patience: Duration) -> impl FnMut(i32) -> bool + Send + 'static {
    let mut begun = Instant::now();
    move |tried| {
        if tried == 0 {
            begun = Instant::now();
        }
        if begun.elapsed() >= patience {
            return false;
        }
        thread::sleep(LOCK_STEP.mul_f64(0.5 + fastrand::f64()));
        true
    }
}

/// Mean pause between two tries to take the lock: shorter than a commit, and than the pause in which a busy writer
/// gathers the next one.
const LOCK_STEP: Duration = Duration::from_millis(1);

/// Size that the write-ahead log is cut back to after it was larger: above what it has between two moves, since
/// cutting it each time would cost.
const WAL_KEPT_BYTES: i64 = 96 * 1024 * 1024;
