//! Which file system a directory is on, as far as it matters for what must last: a network file system, or memory.

use std::path::Path;

/// Network file systems by the type that `statfs(2)` returns; the numbers are those of Linux's `magic.h`.
const REMOTE: [(u32, &str); 8] = [
    (0x6969, "nfs"),
    (0x517b, "smb"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x00c3_6400, "ceph"),
    (0x0102_1997, "9p"),
    (0x5346_414f, "afs"),
    (0x0116_1970, "gfs2"),
];
/// File systems in memory, whose files are lost when the machine restarts.
const VOLATILE: [(u32, &str); 2] = [(0x0102_1994, "tmpfs"), (0x8584_58f6, "ramfs")];

/// The network file system that a directory is on, where locks and syncs may not be reliable. `None` if it is local, if it is
/// mounted through FUSE, which may be either, or if `statfs` fails.
pub fn remote_file_system(directory: &Path) -> Option<&'static str> {
    named(&REMOTE, rustix::fs::statfs(directory).ok()?.f_type)
}

/// The file system in memory that a directory is on, or would be created on; `None` if it is another one, or if `statfs` fails.
pub fn volatile_file_system(directory: &Path) -> Option<&'static str> {
    let directory = std::path::absolute(directory).ok()?;
    let existing = directory.ancestors().find(|ancestor| ancestor.exists())?;
    named(&VOLATILE, rustix::fs::statfs(existing).ok()?.f_type)
}

/// The type is signed on some architectures; its upper 32 bits are then the sign's extension.
fn named(known: &[(u32, &'static str)], kind: impl TryInto<i64>) -> Option<&'static str> {
    let kind = kind.try_into().ok()? & i64::from(u32::MAX);
    known.iter().find(|(number, _)| i64::from(*number) == kind).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_recognised_by_their_numbers_and_local_ones_are_not() {
        assert_eq!(named(&REMOTE, 0x6969_i64), Some("nfs"));
        assert_eq!(named(&REMOTE, -11_317_950_i64), Some("cifs"), "as a signed 32-bit number");
        assert_eq!(named(&REMOTE, 0xef53_i64), None, "ext4");
        assert_eq!(remote_file_system(tempfile::tempdir().unwrap().path()), None);
        assert_eq!(remote_file_system(Path::new("/no/such/place")), None);
    }

    #[test]
    fn memory_is_recognised_also_where_the_directory_does_not_exist_yet() {
        // Linux mounts /dev/shm as a tmpfs; /proc is in memory too, but nothing can be stored there.
        assert_eq!(volatile_file_system(Path::new("/dev/shm/no/such/place")), Some("tmpfs"));
        assert_eq!(volatile_file_system(Path::new("/proc")), None);
    }
}
