//! Where the file lies: SQLite's write-ahead log needs memory that all its users share, which no network file system
//! gives to two hosts.

use std::path::Path;

/// Types of network file systems, as `statfs(2)` tells them; the numbers are Linux's `magic.h`.
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

/// The network file system that a directory is on. `None` for local ones, for those mounted by programs (FUSE), which
/// may be either, and if it cannot be told.
pub fn remote_file_system(directory: &Path) -> Option<&'static str> {
    let kind = rustix::fs::statfs(directory).ok()?.f_type;
    named(kind)
}

/// The type is signed on some architectures, and its upper half then means nothing.
fn named(kind: impl TryInto<i64>) -> Option<&'static str> {
    let kind = kind.try_into().ok()? & i64::from(u32::MAX);
    REMOTE.iter().find(|(number, _)| i64::from(*number) == kind).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_by_their_numbers_and_local_ones_are_none() {
        assert_eq!(named(0x6969_i64), Some("nfs"));
        assert_eq!(named(-11_317_950_i64), Some("cifs"), "as a 32-bit number with a sign");
        assert_eq!(named(0xef53_i64), None, "ext4");
        assert_eq!(remote_file_system(tempfile::tempdir().unwrap().path()), None);
        assert_eq!(remote_file_system(Path::new("/no/such/place")), None);
    }
}
