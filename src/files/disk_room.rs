//! Whether a directory has room for more, found out by reserving some: SQLite reports an exceeded quota as an I/O error, and a
//! file system without room for another file as a file that cannot be opened.
//!
//! Leaves nothing behind: the file it writes never has a name.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, fallocate, statvfs};
use rustix::io::Errno;

/// How much is reserved for a moment, in bytes: more than a commit of the ledger usually needs.
const PROBE: usize = 4 << 20;

/// Whether the disk of a directory, or a quota on it, is full. `false` if that cannot be found out.
pub fn has_no_room(directory: &Path) -> bool {
    reserve(directory).is_err_and(|error| is_disk_full(&error))
}

fn reserve(directory: &Path) -> io::Result<()> {
    let flags = OFlags::TMPFILE.bits().cast_signed();
    let mut file = OpenOptions::new().write(true).custom_flags(flags).open(directory)?;
    match fallocate(&file, FallocateFlags::empty(), 0, PROBE as u64) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => file.write_all(&vec![0; PROBE]),
        reserved => Ok(reserved?),
    }
}

/// What a file system has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// What orderd's user may still use.
    pub free: u64,
    /// All of it.
    pub total: u64,
}

/// What the file system of a directory has; `None` if that cannot be found out. A quota is not considered.
pub fn disk_space(directory: &Path) -> Option<DiskSpace> {
    let found = statvfs(directory).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some(DiskSpace { free: bytes(found.f_bavail), total: bytes(found.f_blocks) })
}

/// Whether an error means that the disk or a quota is full.
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_room_is_not_full_and_nothing_is_left_in_it() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!has_no_room(directory.path()));
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
        assert!(!has_no_room(&directory.path().join("missing")), "that cannot be found out");
        let space = disk_space(directory.path()).unwrap();
        assert!(space.free > 0 && space.free <= space.total, "{space:?}");
        assert_eq!(disk_space(&directory.path().join("missing")), None);
    }

    #[test]
    fn a_full_disk_and_an_exceeded_quota_are_the_same_and_a_failed_disk_is_another_thing() {
        assert!(is_disk_full(&Errno::NOSPC.into()) && is_disk_full(&Errno::DQUOT.into()));
        assert!(!is_disk_full(&Errno::IO.into()) && !is_disk_full(&Errno::FBIG.into()));
    }
}
