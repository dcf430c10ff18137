//! Notices when a file of the ledger is deleted, moved or replaced while it is open.
//!
//! SQLite would go on writing to the files it has opened, which nobody could find any more. It only reads metadata: opening
//! the database a second time and closing it would release SQLite's locks.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

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
    Overwritten { path: PathBuf, before: u64, now: u64 },
}

impl OpenFiles {
    /// The files as they are now. To be called after a write, which creates the log and its index if they are missing.
    pub fn examine(directory: &Path) -> Result<Self, FileReplaced> {
        let [database, log, index] = paths(directory);
        let open = |path: PathBuf| {
            let (device, inode) = metadata(&path).map(|file| (file.dev(), file.ino()))?;
            Ok(OpenFile { path, device, inode })
        };
        Ok(OpenFiles { files: [open(database)?, open(log)?, open(index)?] })
    }

    /// Checks that each path still leads to the file that was opened. Returns the size of the database. Costs three `stat`s.
    pub fn check(&self) -> Result<u64, FileReplaced> {
        let mut size = 0;
        for OpenFile { path, device, inode } in self.files.iter().rev() {
            let file = metadata(path)?;
            let (found_on, found) = (file.dev(), file.ino());
            if (found_on, found) != (*device, *inode) {
                return Err(FileReplaced::Other {
                    path: path.clone(),
                    inode: *inode,
                    device: *device,
                    found,
                    found_on,
                });
            }
            size = file.len();
        }
        Ok(size)
    }

    /// The error for a database that has shrunk although nobody has committed: it was overwritten in place.
    pub fn overwritten(&self, before: u64, now: u64) -> FileReplaced {
        FileReplaced::Overwritten { path: self.files[0].path.clone(), before, now }
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
        assert_eq!(open.check().unwrap(), 7);
        for path in &files {
            let aside = path.with_extension("aside");
            fs::rename(path, &aside).unwrap();
            assert!(matches!(open.check(), Err(FileReplaced::Missing { .. })));
            fs::write(path, "content").unwrap();
            assert!(matches!(open.check(), Err(FileReplaced::Other { .. })));
            fs::rename(&aside, path).unwrap();
            assert_eq!(open.check().unwrap(), 7);
        }
        fs::remove_dir_all(directory.path()).unwrap();
        assert!(matches!(open.check(), Err(FileReplaced::Missing { .. })));
    }
}
