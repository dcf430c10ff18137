//! Checks the ledger's files before SQLite opens them, because SQLite's errors do not name the file or the reason.
//!
//! It never opens, creates or changes a file.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use super::files;
use crate::ledger::error::OpenError;

/// The directory, the database, its log and the log's index have to be readable and writable, and belong together.
pub(super) fn check_for_writing(directory: &Path) -> Result<(), OpenError> {
    check(directory.to_owned(), Access::WRITE_OK | Access::EXEC_OK, "create files in")?;
    let [database, log, index] = files::paths(directory);
    let database_size = size(&database).unwrap_or(0);
    if database_size == 0 && size(&log).is_some_and(|size| size > 0) {
        return Err(OpenError::LogWithoutDatabase { database, log });
    }
    for path in [database, log, index] {
        check_file(path, Access::READ_OK | Access::WRITE_OK, "read and write")?;
    }
    Ok(())
}

/// The database has to be readable.
pub(super) fn check_for_reading(directory: &Path) -> Result<(), OpenError> {
    let [database, ..] = files::paths(directory);
    check_file(database, Access::READ_OK, "read")
}

/// A file that is missing is not an error: SQLite creates it, or reports that.
fn check_file(path: PathBuf, wanted: Access, action: &'static str) -> Result<(), OpenError> {
    match fs::metadata(&path) {
        Ok(file) if !file.is_file() => {
            let source = io::Error::other("it is not a regular file");
            Err(OpenError::Permission { path, action, source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) | Err(_) => check(path, wanted, action),
    }
}

fn check(path: PathBuf, wanted: Access, action: &'static str) -> Result<(), OpenError> {
    let allowed = access(&path, wanted);
    allowed.map_err(|error| OpenError::Permission { path, action, source: error.into() })
}

fn size(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|file| file.len())
}
