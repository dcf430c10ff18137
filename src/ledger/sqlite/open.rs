//! Opens the file, for writing or reading, and classifies SQLite's errors.
//!
//! It owns the connection's settings. It must never replace, truncate or repair a file that is not a ledger.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use tracing::{info, warn};

use super::files::OpenFiles;
use super::letter_search;
use super::schema::{self, MigrateError};
use super::store_error::outage_cause;
use super::{FILE_NAME, Tuning, access};
use crate::files;
use crate::ledger::error::{Cause, OpenError};
use crate::ledger::state::OutageCause;

/// How long a reader waits for a lock. It has to wait only while a daemon starts or ends.
pub(super) const READ_BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// Classifies SQLite's errors for the ledger in a directory by the remedy.
pub(super) fn error(directory: &Path, error: rusqlite::Error) -> OpenError {
    let (location, cause) = (location(directory), outage_cause(&error).unwrap_or(OutageCause::Other));
    let (code, is_sql) = (error.sqlite_error_code(), is_sql_error(&error));
    let source: Cause = Arc::new(error);
    match code {
        // SQLite says the same of a file that cannot be created or written for want of room.
        Some(ErrorCode::CannotOpen | ErrorCode::SystemIoFailure) if files::has_no_room(directory) => {
            return OpenError::Store { location, cause: OutageCause::DiskFull, source };
        }
        Some(ErrorCode::CannotOpen) => return OpenError::CannotOpen { location, source },
        // orderd's statements are right for the tables of this version.
        _ if is_sql => return OpenError::Damaged { location, source },
        _ => {}
    }
    match cause {
        OutageCause::Damaged => OpenError::Damaged { location, source },
        OutageCause::Locked => OpenError::Locked { location, source },
        OutageCause::ReadOnly => OpenError::ReadOnly { location, source },
        OutageCause::DiskFull
        | OutageCause::IoError
        | OutageCause::Hung
        | OutageCause::FileReplaced
        | OutageCause::Outdated
        | OutageCause::WriterDied
        | OutageCause::Other => OpenError::Store { location, cause, source },
    }
}

/// Whether a statement does not fit the tables: one of them, or a column, is missing.
fn is_sql_error(error: &rusqlite::Error) -> bool {
    match error {
        rusqlite::Error::SqliteFailure(error, _) | rusqlite::Error::SqlInputError { error, .. } => {
            error.extended_code == rusqlite::ffi::SQLITE_ERROR
        }
        _ => false,
    }
}

/// The file's path, for errors.
pub(super) fn location(directory: &Path) -> String {
    directory.join(FILE_NAME).display().to_string()
}

/// Opens the files for the writer. Creates what is missing: directory, database and tables. Proves that it can write.
pub(super) fn for_writing(directory: &Path, tuning: &Tuning) -> Result<(Connection, OpenFiles), OpenError> {
    create(directory).map_err(|source| OpenError::Directory { path: directory.to_owned(), source })?;
    access::check_for_writing(directory)?;
    let path = directory.join(FILE_NAME);
    // NO_MUTEX: the connection never leaves the writer's thread.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let is_new = !path.exists();
    let is_empty = is_empty_file(&path);
    let opened = Connection::open_with_flags(&path, flags).and_then(|mut connection| {
        if is_new {
            // SQLite gives its other files the mode of this one. An error concerns a file that another instance has created.
            let _ = files::set_file_mode(&path);
        }
        connection.busy_handler(Some(wait_for_lock(tuning.busy_timeout)))?;
        connection.pragma_update(None, "synchronous", "full")?;
        Ok(connection)
    });
    let mut connection = opened.map_err(|cause| error(directory, cause))?;
    let location = location(directory);
    // Before the write-ahead log exists: a new file is either empty or has all its tables, whenever the process is killed.
    match schema::migrate(&mut connection, schema::MIGRATIONS, || is_empty_file(&path)) {
        Ok(()) => {}
        Err(MigrateError::Newer { found, known }) => return Err(OpenError::Newer { location, found, known }),
        Err(MigrateError::Foreign) => return Err(OpenError::Foreign { location }),
        Err(MigrateError::NoTables) => return Err(OpenError::NoTables { location }),
        Err(MigrateError::OtherSchema { version, missing }) => {
            return Err(OpenError::OtherSchema { location, version, missing });
        }
        Err(MigrateError::Sqlite(cause)) => return Err(error(directory, cause)),
    }
    // Only now, because the file of another program is left as it is.
    for suffix in ["", "-wal", "-shm"] {
        files::remove_others_access(&directory.join(format!("{FILE_NAME}{suffix}")));
    }
    if is_empty {
        warn!(
            location,
            "the ledger's file was empty, so orderd has begun a new ledger; if there was one, restore a backup"
        );
    } else if is_new {
        info!(location, "created a new ledger");
    }
    let written = configure(&mut connection, tuning).and_then(|()| first_write(&mut connection));
    written.map_err(|cause| error(directory, cause))?;
    let files = OpenFiles::examine(directory);
    let files = files.map_err(|cause| OpenError::Store {
        location,
        cause: OutageCause::FileReplaced,
        source: Arc::new(cause),
    })?;
    Ok((connection, files))
}

fn is_empty_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.len() == 0)
}

/// Writes the version that the file has, in a transaction of its own: a ledger that can only be read must not look ready. Removes
/// the claims of instances that were killed, which end by themselves and mean nothing after that; they are few.
fn first_write(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    schema::write_version(&transaction)?;
    let now = Timestamp::now().as_millisecond();
    transaction.execute("DELETE FROM notification_claims WHERE claimed_until < ?1", [now])?;
    transaction.commit()
}

/// Opens an existing file of this version for reading only.
pub(super) fn for_reading(directory: &Path, busy_timeout: Duration) -> Result<Connection, OpenError> {
    let (connection, found) = read_only(directory, busy_timeout)?;
    let (location, known) = (location(directory), schema::last_version(schema::MIGRATIONS));
    match found {
        _ if found > known => Err(OpenError::Newer { location, found, known }),
        _ if found < known => Err(OpenError::Older { location, found, known }),
        _ => Ok(connection),
    }
}

/// Opens an existing ledger of any version for reading only: a ledger is best backed up before another version migrates it.
pub(super) fn for_backup(directory: &Path) -> Result<Connection, OpenError> {
    let (connection, _) = read_only(directory, READ_BUSY_TIMEOUT)?;
    match schema::is_ledger(&connection) {
        Ok(true) => Ok(connection),
        Ok(false) => Err(OpenError::Foreign { location: location(directory) }),
        Err(cause) => Err(error(directory, cause)),
    }
}

/// Opens an existing file for reading only. Returns its version as well.
fn read_only(directory: &Path, busy_timeout: Duration) -> Result<(Connection, i32), OpenError> {
    let path = directory.join(FILE_NAME);
    // An error means that the directory cannot be searched: then opening the file reports what is wrong.
    if matches!(path.try_exists(), Ok(false)) {
        return Err(OpenError::Missing { location: location(directory) });
    }
    access::check_for_reading(directory)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let opened = Connection::open_with_flags(&path, flags).and_then(|connection| {
        connection.busy_timeout(busy_timeout)?;
        keep_plans(&connection)?;
        letter_search::register(&connection)?;
        let found = schema::version(&connection)?;
        Ok((connection, found))
    });
    opened.map_err(|cause| error(directory, cause))
}

/// Creates the directory if missing, and syncs its parent: otherwise a power cut could remove the directory although
/// its files have been synced.
fn create(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    files::create_directory(directory, files::FILE_MODE)?;
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => fs::File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

/// Keeps the plan of a statement that is used again. Without this, SQLite prepares each cached statement anew for each use, in case another
/// plan were better for the new values: that takes longer than reading a row.
fn keep_plans(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

fn configure(connection: &mut Connection, tuning: &Tuning) -> rusqlite::Result<()> {
    // When several processes create a new file's log at once, SQLite refuses some without calling the busy handler.
    let (mut wait, mut tried) = (wait_for_lock(tuning.busy_timeout), 0);
    while let Err(error) = connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())) {
        if error.sqlite_error_code() != Some(ErrorCode::DatabaseBusy) || !wait(tried) {
            return Err(error);
        }
        tried += 1;
    }
    connection.pragma_update(None, "wal_autocheckpoint", tuning.checkpoint_pages)?;
    keep_plans(connection)?;
    // Negative means KiB rather than pages.
    connection.pragma_update(None, "cache_size", -i64::from(tuning.cache_kib))?;
    // A long read makes the log grow; this returns the space afterwards.
    connection.pragma_update(None, "journal_size_limit", WAL_KEPT_BYTES)?;
    // Overwrites what is deleted or moved within a page that is written anyway: `orderd erase` cannot find former copies of a row.
    connection.pragma_update_and_check(None, "secure_delete", "fast", |_| Ok(()))?;
    if let Some(pages) = tuning.max_pages {
        connection.pragma_update(None, "max_page_count", pages)?;
    }
    Ok(())
}

/// A busy handler that waits for another writer's lock in short steps, and gives up after `timeout`. SQLite's own
/// handler sleeps up to 100 ms at a time, in which another instance's writer takes the lock again and again: with three
/// busy instances, one waited 1.5 s.
fn wait_for_lock(timeout: Duration) -> impl FnMut(i32) -> bool + Send + 'static {
    let mut started = Instant::now();
    move |tried| {
        if tried == 0 {
            started = Instant::now();
        }
        if started.elapsed() >= timeout {
            return false;
        }
        thread::sleep(LOCK_STEP.mul_f64(0.5 + fastrand::f64()));
        true
    }
}

/// Mean pause between two attempts to take the lock. Shorter than a commit, and than a busy writer's pause between two
/// commits, in which it gathers the next batch.
const LOCK_STEP: Duration = Duration::from_millis(1);

/// Bytes that the write-ahead log is truncated to after it has grown larger. More than it reaches between two
/// checkpoints, because truncating it at each checkpoint would be slow.
const WAL_KEPT_BYTES: i64 = 96 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::super::SqliteLedger;
    use super::*;
    use crate::ledger::LedgerMaintenance;

    /// How often SQLite has prepared cached statements again.
    fn prepared_again(connection: &Connection) -> i32 {
        let statements = [
            "SELECT product FROM stored_products WHERE letter_id = ?1",
            "SELECT revision FROM stored_contents WHERE letter_id = ?1 AND revision > 0 ORDER BY revision",
            "SELECT step FROM steps WHERE scope = '' AND identity = ?1",
        ];
        let use_again = |sql| {
            let mut select = connection.prepare_cached(sql).unwrap();
            assert!(!select.exists([7]).unwrap());
            select.reset_status(StatementStatus::RePrepare)
        };
        (0..10).flat_map(|_| statements).map(use_again).sum()
    }

    #[tokio::test]
    async fn a_cached_statement_is_not_prepared_again_for_each_dead_letter() {
        let directory = tempfile::tempdir().unwrap();
        SqliteLedger::open(directory.path()).unwrap().close().await;
        let by_default = Connection::open(directory.path().join(FILE_NAME)).unwrap();
        assert!(prepared_again(&by_default) > 0, "otherwise `keep_plans` is not needed any more");
        assert_eq!(prepared_again(&for_reading(directory.path(), READ_BUSY_TIMEOUT).unwrap()), 0);
    }
}
