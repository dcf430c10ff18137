//! A file to which whole lines are appended, by this process and by others.
//!
//! - A line is whole or absent. Where the file system can reserve room, it is reserved before a line is written, so that on a full
//!   disk the file neither grows nor shrinks again, which its readers would take for a truncation (`tail -F` starts again from
//!   the beginning). What another failed write left is removed at once, and what a crash left is removed or terminated before the next line is appended, so
//!   that no line is ever glued to another.
//! - Instances that share the file take turns by a lock (`flock`), because removing an incomplete line must not remove the
//!   whole line of another instance.
//! - Lines that must be durable are written to regular files only: no other file keeps them.
//! - Before each append, the path is compared with the open file: if the file was renamed or deleted, such as by logrotate,
//!   a new one is created.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use tracing::warn;

use super::disk_room::is_disk_full;
use super::file_lock::Lock;
use super::last_line::{IncompleteLine, repair};
use super::mode::{create_directory, set_mode, sync_directory};

/// How often an append starts again because the file was replaced meanwhile.
const MAX_REPLACEMENTS: u32 = 10;

/// The path of a file for durable lines leads to something that is no regular file.
#[derive(Debug, thiserror::Error)]
#[error("it is not a regular file")]
pub(super) struct NotARegularFile;

/// A file of lines.
#[derive(Debug)]
pub struct LineFile {
    path: PathBuf,
    /// The mode of the file, also if it exists already.
    mode: u32,
    incomplete: IncompleteLine,
    /// Whether lines are synced to disk before an append returns.
    durable: bool,
    file: Option<File>,
}

impl LineFile {
    /// A file that is created if missing, together with its directory. An incomplete last line is repaired.
    /// [`IncompleteLine::Remove`] also means that appended lines are on disk when an append returns.
    ///
    /// A full disk is no error: each append opens the file again until there is space.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn open(path: PathBuf, mode: u32, incomplete: IncompleteLine) -> io::Result<Self> {
        let durable = incomplete == IncompleteLine::Remove;
        let mut this = LineFile { path, mode, incomplete, durable, file: None };
        match this.current() {
            Err(error) if !is_disk_full(&error) => return Err(error),
            Ok(_) | Err(_) => {}
        }
        if let Err(error) = this.append(&[]) {
            warn!(file = %this.path.display(), %error, "cannot write to a file; trying again with its next line");
        }
        Ok(this)
    }

    /// Appends one or more whole lines, each with its line feed. Blocks.
    ///
    /// # Errors
    /// The operating system's error. None of the lines counts as written; some may be in the file nevertheless, each whole.
    pub fn append(&mut self, lines: &[u8]) -> io::Result<()> {
        let (incomplete, durable, path) = (self.incomplete, self.durable, self.path.clone());
        for _ in 0..MAX_REPLACEMENTS {
            let file = self.current()?;
            let lock = Lock::take(file)?;
            // Another instance may have replaced the file while this one waited for the lock.
            if !leads_to(&path, file) {
                continue;
            }
            let appended = append_locked(file, lines, incomplete, lock.is_exclusive)?;
            drop(lock);
            // Without the lock, so that instances do not wait for each other's disk.
            if durable && let Err(error) = file.sync_data() {
                withdraw(file, appended);
                return Err(error);
            }
            if file.metadata()?.nlink() > 0 {
                return Ok(());
            }
            // Deleted since the path was compared, and the lines with it.
        }
        Err(io::Error::other("the file is replaced again and again"))
    }

    /// Proves that this number of bytes can be written and synced, without changing the file: they are written to another file
    /// beside it, which is removed again, and room for them is reserved after its end where the file system can. A file in a
    /// directory in which no other can be created is proven by the room alone.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn prove_writable(&mut self, bytes: usize) -> io::Result<()> {
        let (incomplete, path) = (self.incomplete, self.path.clone());
        let file = self.current()?;
        let lock = Lock::take(file)?;
        if !lock.is_exclusive {
            return Ok(());
        }
        let end = repair(file, file.metadata()?.len(), incomplete)?;
        // First, so that one block is enough for both.
        let beside = prove_beside(&path, bytes);
        match (reserve(file, end, bytes)?, beside) {
            (Reservation::Made, Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => file.sync_all(),
            (_, Err(error)) => Err(error),
            (Reservation::Made, Ok(())) => file.sync_all(),
            (Reservation::Unsupported, Ok(())) => Ok(()),
        }
    }

    /// Opens the file again if its path leads to another file, or to none. Otherwise the next append does it.
    ///
    /// # Errors
    /// The operating system's error.
    pub fn reopen_if_replaced(&mut self) -> io::Result<()> {
        self.current().map(drop)
    }

    /// The file that the path leads to.
    fn current(&mut self) -> io::Result<&File> {
        let file = match self.file.take().filter(|file| leads_to(&self.path, file)) {
            Some(file) => file,
            None => self.open_or_create()?,
        };
        Ok(self.file.insert(file))
    }

    fn open_or_create(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).mode(self.mode);
        if self.durable {
            // So that no device can hang the open; regular files ignore it.
            options.custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        }
        let mut opened = options.create_new(true).open(&self.path);
        if matches!(&opened, Err(error) if error.kind() == io::ErrorKind::NotFound) {
            create_directory(directory_of(&self.path), self.mode)?;
            opened = options.open(&self.path);
        }
        let is_new = opened.is_ok();
        let file = match opened {
            // `create`, for a symbolic link to a file that does not exist.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                options.create_new(false).create(true).open(&self.path)?
            }
            opened => opened?,
        };
        if self.durable && !file.metadata()?.is_file() {
            return Err(io::Error::other(NotARegularFile));
        }
        set_mode(&self.path, &file, self.mode)?;
        if is_new && self.durable {
            sync_directory(directory_of(&self.path))?;
        }
        Ok(file)
    }
}

/// Whether a path leads to an open file.
pub(super) fn leads_to(path: &Path, file: &File) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// Returns where the lines are.
fn append_locked(
    mut file: &File,
    lines: &[u8],
    incomplete: IncompleteLine,
    is_exclusive: bool,
) -> io::Result<Range<u64>> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return file.write_all(lines).map(|()| 0..0);
    }
    // Without a lock, an incomplete line may be one that another instance is writing.
    let incomplete = if is_exclusive { incomplete } else { IncompleteLine::Terminate };
    let start = repair(file, metadata.len(), incomplete)?;
    let written = reserve(file, start, lines.len()).and_then(|_| file.write_all(lines));
    if written.is_err() && is_exclusive {
        // Frees what was reserved as well. If this fails, the next append repairs the end of the file.
        let _ = file.set_len(start);
    }
    written.map(|()| start..start + lines.len() as u64)
}

/// Whether room for bytes was reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reservation {
    Made,
    /// The file system cannot.
    Unsupported,
}

/// Reserves room after the end of a file, which keeps its length. It costs 2 to 10 µs a batch on ext4, where the sync takes
/// 95 to 160 µs, so no more than a batch needs is reserved.
fn reserve(file: &File, end: u64, bytes: usize) -> io::Result<Reservation> {
    if bytes == 0 {
        return Ok(Reservation::Made);
    }
    loop {
        match fallocate(file, FallocateFlags::KEEP_SIZE, end, bytes as u64) {
            Ok(()) => return Ok(Reservation::Made),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(Reservation::Unsupported),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes bytes to a hidden file beside this one, syncs and removes it.
fn prove_beside(path: &Path, bytes: usize) -> io::Result<()> {
    // The same for all instances. One that was killed meanwhile leaves it, and the next proof removes it.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let proof = path.with_file_name(format!(".{name}.proof"));
    let written = File::create(&proof).and_then(|mut file| {
        file.write_all(&vec![b' '; bytes])?;
        file.sync_data()
    });
    let _ = std::fs::remove_file(&proof);
    written
}

/// Removes lines that could not be synced, since they are written again, unless another instance has appended to them.
fn withdraw(file: &File, lines: Range<u64>) {
    if let Ok(lock) = Lock::take(file)
        && lock.is_exclusive
        && file.metadata().is_ok_and(|metadata| metadata.len() == lines.end)
    {
        // If this fails, the lines are in the file twice, which their readers expect.
        let _ = file.set_len(lines.start);
    }
}

#[cfg(test)]
mod tests;
