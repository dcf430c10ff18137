//! The permissions of orderd's files and directories. They contain personal data, so others have no access, whatever the
//! umask is.
//!
//! It never changes the permissions of a directory that exists already: it may belong to other programs too.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::Mode;
use tracing::{info, warn};

/// Files: orderd's user writes, its group reads.
pub const FILE_MODE: u32 = 0o640;
/// Files with a secret: orderd's user only.
pub const SECRET_MODE: u32 = 0o600;
/// The permission bits of a mode.
const PERMISSION_BITS: u32 = 0o777;
/// The permissions of users who are neither the owner nor in the group.
const OTHERS: u32 = 0o007;
/// The permission of others to write, which lets them replace files in a directory.
const OTHERS_WRITE: u32 = 0o002;
/// Limits deletions in a directory to the owners of its files, as in `/tmp`.
const STICKY: u32 = 0o1000;

/// Removes the access of others, and the group's permission to write, from every file that this process creates from now
/// on. It covers files that libraries create.
pub fn limit_umask() {
    let umask = rustix::process::umask(Mode::WGRP | Mode::RWXO);
    rustix::process::umask(umask | Mode::WGRP | Mode::RWXO);
}

/// The mode of a directory for files with this mode: who may read the files may search it.
pub fn directory_mode(file_mode: u32) -> u32 {
    file_mode | (file_mode & 0o444) >> 2
}

/// Creates a directory and its missing parents with the mode for files of `file_mode`. Leaves existing ones as they are, but
/// logs a warning if others may replace the files in it.
///
/// # Errors
/// The operating system's error.
pub fn create_directory(directory: &Path, file_mode: u32) -> io::Result<()> {
    if let Ok(metadata) = fs::metadata(directory)
        && metadata.is_dir()
    {
        let mode = metadata.permissions().mode();
        if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
            warn!(directory = %directory.display(), "every user may replace the files in this directory; run chmod o-w on it");
        }
        return Ok(());
    }
    match directory.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => create_directory(parent, file_mode)?,
        Some(_) | None => {}
    }
    let mode = directory_mode(file_mode);
    match DirBuilder::new().mode(mode).create(directory) {
        Ok(()) => fs::set_permissions(directory, Permissions::from_mode(mode)),
        // Another instance has created it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        Err(error) => Err(error),
    }
}

/// Creates a file that must not exist yet, with exactly this mode, for writing.
///
/// # Errors
/// The operating system's error.
pub fn create_new_file(path: &Path, mode: u32) -> io::Result<File> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    Ok(file)
}

/// Gives an open file exactly this mode. If that is refused, because the file belongs to another user, a warning says so
/// where others have more access than the mode allows. Devices and pipes are left as they are.
pub(super) fn set_mode(path: &Path, file: &File, mode: u32) -> io::Result<()> {
    let metadata = file.metadata()?;
    let found = metadata.permissions().mode() & PERMISSION_BITS;
    if !metadata.is_file() || found == mode {
        return Ok(());
    }
    if let Err(error) = file.set_permissions(Permissions::from_mode(mode))
        && found & !mode != 0
    {
        warn!(file = %path.display(), mode = format_args!("{found:04o}"), %error, "a file is readable for more users than it should be");
    }
    Ok(())
}

/// Gives a file that this process has just created the mode [`FILE_MODE`]. For files that a library creates.
///
/// # Errors
/// The operating system's error.
pub fn set_file_mode(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(FILE_MODE))
}

/// Removes the access of others from a file or directory if it exists. If that is refused, a warning says so.
pub fn remove_others_access(path: &Path) {
    let Ok(metadata) = fs::metadata(path) else { return };
    let mode = metadata.permissions().mode() & PERMISSION_BITS;
    if mode & OTHERS == 0 {
        return;
    }
    let (file, was) = (path.display(), format_args!("{mode:04o}").to_string());
    match fs::set_permissions(path, Permissions::from_mode(mode & !OTHERS)) {
        Ok(()) => info!(%file, was, "removed the access of other users to a file"),
        Err(error) => warn!(%file, mode = was, %error, "every user has access to a file; change its permissions"),
    }
}

/// Makes the names in a directory durable. File systems that cannot sync a directory need not.
///
/// # Errors
/// The operating system's error.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    match File::open(directory)?.sync_all() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & PERMISSION_BITS
    }

    #[test]
    fn a_directory_can_be_searched_by_those_who_may_read_its_files() {
        assert_eq!([0o640, 0o600, 0o644, 0o660].map(directory_mode), [0o750, 0o700, 0o755, 0o770]);
    }

    #[test]
    fn created_directories_are_closed_to_others_and_existing_ones_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let shared = directory.path().join("shared");
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, Permissions::from_mode(0o755)).unwrap();
        create_directory(&shared.join("a/b"), FILE_MODE).unwrap();
        assert_eq!([mode(&shared), mode(&shared.join("a")), mode(&shared.join("a/b"))], [0o755, 0o750, 0o750]);
        create_directory(&shared, FILE_MODE).unwrap();
        assert_eq!(mode(&shared), 0o755);
        fs::write(directory.path().join("file"), "").unwrap();
        assert!(create_directory(&directory.path().join("file"), FILE_MODE).is_err());
    }

    #[test]
    fn an_existing_file_is_closed_to_others_and_keeps_its_other_permissions() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (before, after) in [(0o644, 0o640), (0o666, 0o660), (0o600, 0o600)] {
            fs::set_permissions(file.path(), Permissions::from_mode(before)).unwrap();
            remove_others_access(file.path());
            assert_eq!(mode(file.path()), after, "{before:o}");
        }
        remove_others_access(Path::new("/no/such/file"));
    }
}
