//! Times in which a file cannot be written: the cause, classified by what a person can do about it.
//!
//! It never logs, and never decides what happens meanwhile.

use std::io;
use std::path::PathBuf;

use jiff::Timestamp;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::disk_room::is_disk_full;
use super::line_file::NotARegularFile;

/// The state of a file that lines are appended to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileState {
    /// The file to which the last line was written, or the next one is.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Outages since the start, the present one included.
    pub outages: u64,
    /// Why it cannot be written; `None` if it can, judged by the last attempt.
    pub outage: Option<FileOutage>,
}

/// A time in which a file cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileOutage {
    /// The cause that was seen last.
    pub cause: FileOutageCause,
    /// The cause in words, with what to do about it and the operating system's error.
    pub detail: String,
    /// When the outage began.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// Why a file cannot be written. The names are stable: they are shown in the status and counted by programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileOutageCause {
    /// The disk or its quota is full.
    DiskFull,
    /// The file system is read-only.
    ReadOnly,
    /// The file or its directory may not be used by this user.
    PermissionDenied,
    /// The path leads to a directory, a FIFO, a device or a socket.
    NotAFile,
    /// The file has reached the limit on the size of files.
    TooLarge,
    /// The process or the system has too many open files.
    TooManyOpenFiles,
    /// Another program holds the lock.
    Locked,
    /// The operating system reported an I/O error.
    IoError,
    /// A write has not finished for seconds: the disk hangs or is overloaded.
    Hung,
    /// Another error.
    Other,
}

impl FileOutageCause {
    /// Every cause.
    pub const ALL: [FileOutageCause; 10] = [
        FileOutageCause::DiskFull,
        FileOutageCause::ReadOnly,
        FileOutageCause::PermissionDenied,
        FileOutageCause::NotAFile,
        FileOutageCause::TooLarge,
        FileOutageCause::TooManyOpenFiles,
        FileOutageCause::Locked,
        FileOutageCause::IoError,
        FileOutageCause::Hung,
        FileOutageCause::Other,
    ];

    /// The cause of an error of [`super::LineFile`].
    pub fn of(error: &io::Error) -> Self {
        if error.get_ref().is_some_and(|inner| inner.is::<NotARegularFile>()) {
            return FileOutageCause::NotAFile;
        }
        match error.kind() {
            _ if is_disk_full(error) => FileOutageCause::DiskFull,
            io::ErrorKind::ReadOnlyFilesystem => FileOutageCause::ReadOnly,
            io::ErrorKind::PermissionDenied => FileOutageCause::PermissionDenied,
            io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => FileOutageCause::NotAFile,
            io::ErrorKind::FileTooLarge => FileOutageCause::TooLarge,
            io::ErrorKind::TimedOut if error.raw_os_error().is_none() => FileOutageCause::Locked,
            _ => match Errno::from_io_error(error) {
                Some(Errno::MFILE | Errno::NFILE) => FileOutageCause::TooManyOpenFiles,
                Some(Errno::LOOP | Errno::NXIO) => FileOutageCause::NotAFile,
                Some(Errno::IO | Errno::STALE | Errno::TIMEDOUT | Errno::NODEV) => FileOutageCause::IoError,
                Some(_) | None => FileOutageCause::Other,
            },
        }
    }

    /// Its stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            FileOutageCause::DiskFull => "disk_full",
            FileOutageCause::ReadOnly => "read_only",
            FileOutageCause::PermissionDenied => "permission_denied",
            FileOutageCause::NotAFile => "not_a_file",
            FileOutageCause::TooLarge => "too_large",
            FileOutageCause::TooManyOpenFiles => "too_many_open_files",
            FileOutageCause::Locked => "locked",
            FileOutageCause::IoError => "io_error",
            FileOutageCause::Hung => "hung",
            FileOutageCause::Other => "other",
        }
    }

    /// What it means and what to do.
    pub fn advice(self) -> &'static str {
        match self {
            FileOutageCause::DiskFull => "the disk or a quota on it is full; make room, or raise the quota",
            FileOutageCause::ReadOnly => "the file system is read-only; make it writable",
            FileOutageCause::PermissionDenied => "orderd's user may not write it; change the owner or the permissions",
            FileOutageCause::NotAFile => "the path does not lead to a regular file; remove what is there",
            FileOutageCause::TooLarge => "it has reached the limit on the size of files; rename it, or raise the limit",
            FileOutageCause::TooManyOpenFiles => "there are too many open files; raise the limit",
            FileOutageCause::Locked => "another program holds the lock; end that program",
            FileOutageCause::IoError => "the operating system reports an I/O error; check the disk",
            FileOutageCause::Hung => "a write does not finish; the disk hangs or is overloaded",
            FileOutageCause::Other => "it cannot be written",
        }
    }

    /// Whether the outage ends only if a person acts.
    pub fn needs_a_person(self) -> bool {
        match self {
            FileOutageCause::Locked | FileOutageCause::Hung | FileOutageCause::IoError | FileOutageCause::Other => {
                false
            }
            FileOutageCause::DiskFull
            | FileOutageCause::ReadOnly
            | FileOutageCause::PermissionDenied
            | FileOutageCause::NotAFile
            | FileOutageCause::TooLarge
            | FileOutageCause::TooManyOpenFiles => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_classified_by_what_a_person_can_do_about_it() {
        for (errno, cause) in [
            (Errno::NOSPC, FileOutageCause::DiskFull),
            (Errno::DQUOT, FileOutageCause::DiskFull),
            (Errno::ROFS, FileOutageCause::ReadOnly),
            (Errno::ACCESS, FileOutageCause::PermissionDenied),
            (Errno::PERM, FileOutageCause::PermissionDenied),
            (Errno::ISDIR, FileOutageCause::NotAFile),
            (Errno::LOOP, FileOutageCause::NotAFile),
            (Errno::FBIG, FileOutageCause::TooLarge),
            (Errno::MFILE, FileOutageCause::TooManyOpenFiles),
            (Errno::IO, FileOutageCause::IoError),
            (Errno::TIMEDOUT, FileOutageCause::IoError),
            (Errno::NOENT, FileOutageCause::Other),
        ] {
            assert_eq!(FileOutageCause::of(&errno.into()), cause, "{errno:?}");
        }
    }
}
