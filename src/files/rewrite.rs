//! Removes or replaces lines of a file while running daemons append to it.
//!
//! The result is written to a hidden file beside it, which then takes its place: a crash leaves the one or the other. Writers
//! notice that their file was replaced, see [`super::LineFile`]. They wait only while the last lines are copied.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::file_lock::Lock;
use super::last_line::{IncompleteLine, repair};
use super::line_file::leads_to;
use super::mode::{SECRET_MODE, sync_directory};

/// What becomes of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LineEdit {
    /// It stays.
    Keep,
    /// It is removed.
    Remove,
    /// This takes its place; without a line feed.
    Replace(Vec<u8>),
}

/// The lines that were changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rewritten {
    /// Lines removed.
    pub removed: usize,
    /// Lines replaced.
    pub replaced: usize,
}

impl Rewritten {
    /// Whether no line was changed.
    pub fn is_empty(self) -> bool {
        self.removed + self.replaced == 0
    }
}

/// Passes each line, without its line feed, to `edit`. If that changes any, the file is replaced. `dry_run` only counts. A
/// missing file has no lines. Blocks.
///
/// # Errors
/// The operating system's error, also if the file was renamed meanwhile. The file is unchanged then.
pub fn rewrite_lines(path: &Path, dry_run: bool, mut edit: impl FnMut(&[u8]) -> LineEdit) -> io::Result<Rewritten> {
    let source = match OpenOptions::new().read(true).append(!dry_run).open(path) {
        Ok(source) => source,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Rewritten::default()),
        Err(error) => return Err(error),
    };
    let mut lines = BufReader::new(&source);
    let mut counts = Rewritten::default();
    if dry_run {
        copy_lines(&mut lines, &mut io::sink(), &mut edit, &mut counts)?;
        return Ok(counts);
    }
    let unfinished = Unfinished::create(path, &source)?;
    let mut target = BufWriter::new(&unfinished.file);
    let copied = copy_lines(&mut lines, &mut target, &mut edit, &mut counts)?;
    if counts.is_empty() {
        return Ok(counts);
    }
    target.flush()?;
    // Most of the data reaches the disk before the writers have to wait.
    unfinished.file.sync_data()?;
    let lock = Lock::take(&source)?;
    if !leads_to(path, &source) {
        return Err(io::Error::other("the file was replaced meanwhile; try again"));
    }
    if lock.is_exclusive {
        repair(&source, source.metadata()?.len(), IncompleteLine::Remove)?;
    }
    let mut rest = BufReader::new(&source);
    rest.seek(SeekFrom::Start(copied))?;
    copy_lines(&mut rest, &mut target, &mut edit, &mut counts)?;
    target.flush()?;
    unfinished.file.sync_all()?;
    fs::rename(&unfinished.path, path)?;
    sync_directory(path.parent().unwrap_or(Path::new(".")))?;
    Ok(counts)
}

/// Copies whole lines up to the end of the file. Returns the number of bytes read.
fn copy_lines(
    from: &mut impl BufRead,
    to: &mut impl Write,
    edit: &mut impl FnMut(&[u8]) -> LineEdit,
    counts: &mut Rewritten,
) -> io::Result<u64> {
    let mut line = Vec::new();
    let mut read = 0;
    loop {
        line.clear();
        from.read_until(b'\n', &mut line)?;
        let Some(text) = line.strip_suffix(b"\n") else { return Ok(read) };
        read += line.len() as u64;
        match edit(text) {
            LineEdit::Keep => to.write_all(&line)?,
            LineEdit::Remove => counts.removed += 1,
            LineEdit::Replace(text) => {
                counts.replaced += 1;
                to.write_all(&text)?;
                to.write_all(b"\n")?;
            }
        }
    }
}

/// The hidden file that takes the place of another one. Removed when dropped, unless it was renamed.
struct Unfinished {
    path: PathBuf,
    file: File,
}

impl Unfinished {
    /// Creates it with the mode and the owner of `source`. What a crash left of an earlier one is overwritten.
    fn create(path: &Path, source: &File) -> io::Result<Self> {
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".rewrite");
        let path = path.with_file_name(name);
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(SECRET_MODE).open(&path)?;
        // Held until the file is closed, so that two processes do not write it at once.
        if file.try_lock().is_err() {
            return Err(io::Error::other(format!("another program is rewriting it, by {path:?}")));
        }
        let this = Unfinished { path, file };
        // The process that held the lock before has renamed or removed the file, under its lock.
        if !leads_to(&this.path, &this.file) {
            return Err(io::Error::other("another program has just rewritten it; try again"));
        }
        this.file.set_len(0)?;
        let metadata = source.metadata()?;
        let own = this.file.metadata()?;
        if (own.uid(), own.gid()) != (metadata.uid(), metadata.gid()) {
            fchown(&this.file, Some(metadata.uid()), Some(metadata.gid()))?;
        }
        this.file.set_permissions(fs::Permissions::from_mode(metadata.permissions().mode() & 0o777))?;
        Ok(this)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if leads_to(&self.path, &self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;
    use crate::files::{FILE_MODE, LineFile};

    fn without_a(line: &[u8]) -> LineEdit {
        match line {
            b"a" => LineEdit::Remove,
            b"b" => LineEdit::Replace(b"B".to_vec()),
            _ => LineEdit::Keep,
        }
    }

    #[test]
    fn lines_are_removed_and_replaced_and_a_dry_run_only_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        fs::write(&path, "a\nb\nc\na\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        let expected = Rewritten { removed: 2, replaced: 1 };
        assert_eq!(rewrite_lines(&path, true, without_a).unwrap(), expected);
        assert_eq!(fs::read_to_string(&path).unwrap(), "a\nb\nc\na\n");
        assert_eq!(rewrite_lines(&path, false, without_a).unwrap(), expected);
        assert_eq!(fs::read_to_string(&path).unwrap(), "B\nc\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o604);
        assert!(rewrite_lines(&path, false, without_a).unwrap().is_empty());
        assert!(rewrite_lines(&directory.path().join("none"), false, without_a).unwrap().is_empty());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside the file");
    }

    #[test]
    fn no_line_is_lost_that_is_appended_while_the_file_is_rewritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let stop = AtomicBool::new(false);
        let appended = thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut file = LineFile::open(path.clone(), FILE_MODE, IncompleteLine::Remove).unwrap();
                let mut appended = 0;
                while !stop.load(Ordering::Relaxed) || appended < 20 {
                    file.append(format!("a\n{{\"n\":{appended}}}\n").as_bytes()).unwrap();
                    appended += 1;
                }
                appended
            });
            for _ in 0..20 {
                rewrite_lines(&path, false, without_a).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            writer.join().unwrap()
        });
        rewrite_lines(&path, false, without_a).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let expected: String = (0..appended).map(|n| format!("{{\"n\":{n}}}\n")).collect();
        assert_eq!(text, expected);
    }
}
