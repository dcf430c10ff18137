//! Notices when a file of the ledger is deleted, moved or replaced while it is open.
//!
//! SQLite would go on writing to the files it has opened, which nobody could find any more. It only reads metadata: opening
//! the database a second time and closing it would release SQLite's locks.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::FILE_NAME;

/// The suffixes of the database, the write-ahead log and the log's index.
const SUFFIXES: [&str; 3] = ["", "-wal", "-shm"];

/// The files of the ledger in a directory.
pub(super) fn paths(directory: &Path) -> [PathBuf; 3] {
    // SQLite follows a symbolic link and keeps the log beside its target.
    let database = directory.join(FILE_NAME);
    let database = fs::canonicalize(&database).unwrap_or(database);
    SUFFIXES.map(|suffix| {
        let mut path = database.clone().into_os_string();
        path.push(suffix);
        path.into()
    })
}

/// The ledger's files as they were when it was opened.
#[derive(Debug)]
pub(super) struct OpenFiles {
    files: [OpenFile; 3],
}

#[derive(Debug)]
struct OpenFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// What a check of the files has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FilesVersion {
    /// The size of the database.
    pub size: u64,
    /// When the database was modified.
    pub modified: Option<SystemTime>,
    /// Whether the database contains everything, because the write-ahead log is empty.
    pub log_is_empty: bool,
}

/// A file of the ledger is not the one that was opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum FileReplaced {
    #[error("{path:?} is gone or cannot be examined")]
    Missing {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path:?} is another file: inode {inode} on device {device} was opened, inode {found} on device {found_on} is there now"
    )]
    Other { path: PathBuf, inode: u64, device: u64, found: u64, found_on: u64 },
    #[error("{path:?} was overwritten: it had {before} bytes and has {now}")]
    Shrunk { path: PathBuf, before: u64, now: u64 },
    #[error(
        "{path:?} was overwritten, such as by an older copy or by a restore while it is open: it lacks orders that it contained"
    )]
    Overwritten { path: PathBuf },
}

impl OpenFiles {
    /// The directory of the write-ahead log.
    pub fn directory(&self) -> &Path {
        let [_, log, _] = &self.files;
        log.path.parent().unwrap_or(Path::new("."))
    }

    /// The files as they are now. To be called after a write, which creates the log and its index if they are missing.
    pub fn examine(directory: &Path) -> Result<Self, FileReplaced> {
        let [_, log, index] = paths(directory);
        // Not the target of a link, so that a link that leads elsewhere is noticed too.
        let database = directory.join(FILE_NAME);
        let open = |path: PathBuf| {
            let (device, inode) = metadata(&path).map(|file| (file.dev(), file.ino()))?;
            Ok(OpenFile { path, device, inode })
        };
        Ok(OpenFiles { files: [open(database)?, open(log)?, open(index)?] })
    }

    /// The path of the database.
    pub fn database(&self) -> &Path {
        &self.files[0].path
    }

    /// Checks that each path still leads to the file that was opened. Costs three `stat`s.
    pub fn check(&self) -> Result<FilesVersion, FileReplaced> {
        // The database last, since a checkpoint changes it before it empties the log.
        let [database, log, index] = &self.files;
        index.check()?;
        let log = log.check()?;
        let database = database.check()?;
        Ok(FilesVersion { size: database.len(), modified: database.modified().ok(), log_is_empty: log.len() == 0 })
    }
}

impl OpenFile {
    fn check(&self) -> Result<fs::Metadata, FileReplaced> {
        let OpenFile { path, device, inode } = self;
        let file = metadata(path)?;
        let (found_on, found) = (file.dev(), file.ino());
        if (found_on, found) != (*device, *inode) {
            let (path, inode, device) = (path.clone(), *inode, *device);
            return Err(FileReplaced::Other { path, inode, device, found, found_on });
        }
        Ok(file)
    }
}

fn metadata(path: &Path) -> Result<fs::Metadata, FileReplaced> {
    fs::metadata(path).map_err(|source| FileReplaced::Missing { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deleted_replaced_or_moved_file_is_noticed_and_one_that_is_put_back_is_accepted() {
        let directory = tempfile::tempdir().unwrap();
        let files = paths(directory.path());
        for path in &files {
            fs::write(path, "content").unwrap();
        }
        let open = OpenFiles::examine(directory.path()).unwrap();
        assert_eq!(open.check().unwrap().size, 7);
        for path in &files {
            let aside = path.with_extension("aside");
            fs::rename(path, &aside).unwrap();
            assert!(matches!(open.check(), Err(FileReplaced::Missing { .. })));
            fs::write(path, "content").unwrap();
            assert!(matches!(open.check(), Err(FileReplaced::Other { .. })));
            fs::rename(&aside, path).unwrap();
            assert_eq!(open.check().unwrap().size, 7);
        }
        fs::remove_dir_all(directory.path()).unwrap();
        assert!(matches!(open.check(), Err(FileReplaced::Missing { .. })));
    }
}
