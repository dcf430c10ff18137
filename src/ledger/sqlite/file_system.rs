//! Which file system the file is on: SQLite's write-ahead log needs memory shared by all its users, which no network
//! file system provides across hosts.

use std::path::Path;

use tracing::warn;

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

/// Logs a warning if the directory is on a network file system.
pub(super) fn warn_if_remote(directory: &Path) {
    if let Some(file_system) = remote_file_system(directory) {
        warn!(
            directory = %directory.display(),
            file_system,
            "the ledger is on a network file system, where locks and syncs may not be reliable: never use it from \
             instances on two hosts; a local disk is safer"
        );
    }
}

/// The network file system that a directory is on. `None` if it is local, if it is mounted through FUSE, which may be
/// either, or if `statfs` fails.
fn remote_file_system(directory: &Path) -> Option<&'static str> {
    let kind = rustix::fs::statfs(directory).ok()?.f_type;
    named(kind)
}

/// The type is signed on some architectures; its upper 32 bits are then the sign's extension.
fn named(kind: impl TryInto<i64>) -> Option<&'static str> {
    let kind = kind.try_into().ok()? & i64::from(u32::MAX);
    REMOTE.iter().find(|(number, _)| i64::from(*number) == kind).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_recognised_by_their_numbers_and_local_ones_are_not() {
        assert_eq!(named(0x6969_i64), Some("nfs"));
        assert_eq!(named(-11_317_950_i64), Some("cifs"), "as a signed 32-bit number");
        assert_eq!(named(0xef53_i64), None, "ext4");
        assert_eq!(remote_file_system(tempfile::tempdir().unwrap().path()), None);
        assert_eq!(remote_file_system(Path::new("/no/such/place")), None);
    }
}
