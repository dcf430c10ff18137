//! Identifies the version of the file that a path leads to, and the directories to watch for a change of it; the same
//! for directories of templates. It never reads a file's content.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Maximum number of symbolic links followed in one path: the kernel's own limit.
const MAX_LINKS: usize = 40;

/// A version of a file. A write gives the file another version, and so does a replacement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileVersion {
    device: u64,
    inode: u64,
    size: u64,
    /// Last change of the content, in seconds and nanoseconds.
    modified: (i64, i64),
    /// Last change of content or metadata, in seconds and nanoseconds.
    changed: (i64, i64),
}

impl From<&Metadata> for FileVersion {
    fn from(metadata: &Metadata) -> Self {
        FileVersion {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The file that a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ResolvedFile {
    /// Its path without symbolic links.
    pub target: PathBuf,
    pub version: FileVersion,
}

impl ResolvedFile {
    /// Resolves a path.
    ///
    /// # Errors
    /// When there is no such file, or it cannot be accessed.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(ResolvedFile { target: fs::canonicalize(path)?, version: FileVersion::from(&fs::metadata(path)?) })
    }
}

/// Most files of a directory whose versions are compared.
const MAX_FILES: usize = 1_024;

/// The versions of the templates in a directory and in the folders in it, by path, sorted. Hidden files and backups of editors are left
/// out.
pub(super) fn content_of(directory: &Path) -> Vec<(PathBuf, FileVersion)> {
    let mut files = Vec::new();
    for (path, metadata) in visible_entries(directory) {
        if metadata.is_dir() {
            files.extend(visible_entries(&path).into_iter().filter(|(_, metadata)| metadata.is_file()));
        } else {
            files.push((path, metadata));
        }
    }
    let is_template = |path: &Path| path.extension().is_some_and(|extension| extension == "txt" || extension == "html");
    files.retain(|(path, _)| is_template(path));
    files.sort_by(|(first, _), (second, _)| first.cmp(second));
    files.truncate(MAX_FILES);
    files.iter().map(|(path, metadata)| (path.clone(), FileVersion::from(metadata))).collect()
}

/// The folders in a directory that are looked into, and the directory itself.
pub(super) fn directories_in(directory: &Path) -> BTreeSet<Directory> {
    let folders =
        visible_entries(directory).into_iter().filter(|(_, metadata)| metadata.is_dir()).map(|(path, _)| path);
    folders.take(MAX_FILES).chain([directory.to_owned()]).filter_map(|path| Directory::at(&path)).collect()
}

/// What can be read of a directory.
fn visible_entries(directory: &Path) -> Vec<(PathBuf, Metadata)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let visible = entries.filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    visible.filter_map(|entry| Some((entry.path(), fs::metadata(entry.path()).ok()?))).collect()
}

/// A directory: its path without symbolic links, and its device and inode. A directory that replaces another at the same
/// path is a different one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Directory {
    pub path: PathBuf,
    device: u64,
    inode: u64,
}

impl Directory {
    fn at(path: &Path) -> Option<Self> {
        let (path, metadata) = (fs::canonicalize(path).ok()?, fs::metadata(path).ok()?);
        Some(Directory { path, device: metadata.dev(), inode: metadata.ino() })
    }
}

/// The directories in which an entry must change for the path to lead to another file: the parent of each symbolic link
/// in the path, and the parent of the file. Missing directories are left out.
pub(super) fn directories_on_path(path: &Path) -> BTreeSet<Directory> {
    let mut directories = BTreeSet::new();
    let Ok(mut path) = std::path::absolute(path) else { return directories };
    for _ in 0..MAX_LINKS {
        let link = first_link(&path);
        let entry = link.as_ref().map_or(&path, |(link, _)| link);
        let parent = entry.parent().unwrap_or(entry).to_owned();
        directories.extend(Directory::at(&parent));
        let Some((link, rest)) = link else { break };
        let Ok(target) = fs::read_link(&link) else { break };
        path = parent.join(target).join(rest);
    }
    directories
}

/// The first symbolic link in a path, and the part of the path after it.
fn first_link(path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut components = path.components();
    let mut prefix = PathBuf::new();
    while let Some(component) = components.next() {
        prefix.push(component);
        if prefix.is_symlink() {
            return Some((prefix, components.as_path().to_owned()));
        }
    }
    None
}
