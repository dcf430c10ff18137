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

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags, fallocate};
use rustix::io::Errno;
use serde::de::IgnoredAny;
use tracing::warn;

use super::mode::{create_directory, set_mode, sync_directory};

/// How long to wait for another program's lock. Instances hold it only while they write.
const LOCK_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause between two attempts to take the lock.
const LOCK_STEP: Duration = Duration::from_millis(1);
/// How often an append starts again because the file was replaced meanwhile.
const MAX_REPLACEMENTS: u32 = 10;
/// Bytes read at a time in search of the start of the last line.
const CHUNK_BYTES: u64 = 64 * 1024;

/// What becomes of a last line without a line feed, which a crash or a full disk left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncompleteLine {
    /// It is removed, unless it is a whole JSON object that lacks only its line feed. For lines that are written again.
    Remove,
    /// It gets a line feed. For text that is worth reading even if it is cut off.
    Terminate,
}

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

fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// An exclusive lock on a file, released when dropped.
pub(super) struct Lock<'a> {
    pub file: &'a File,
    /// `false` if the file system has no locks: other instances may write at the same time.
    pub is_exclusive: bool,
}

impl<'a> Lock<'a> {
    pub fn take(file: &'a File) -> io::Result<Self> {
        let deadline = Instant::now() + LOCK_TIMEOUT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { file, is_exclusive: true }),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(LOCK_STEP),
                Err(TryLockError::WouldBlock) => {
                    let problem = format!("another program has locked it for {LOCK_TIMEOUT:?}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, problem));
                }
                Err(TryLockError::Error(error)) if has_no_locks(&error) => {
                    return Ok(Lock { file, is_exclusive: false });
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if self.is_exclusive {
            // It fails only for a descriptor that is not open.
            let _ = self.file.unlock();
        }
    }
}

fn has_no_locks(error: &io::Error) -> bool {
    [Errno::NOSYS, Errno::NOTSUP, Errno::NOLCK, Errno::INVAL]
        .contains(&Errno::from_io_error(error).unwrap_or(Errno::IO))
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

/// Makes the file end with a whole line. Returns its length afterwards.
pub(super) fn repair(mut file: &File, length: u64, incomplete: IncompleteLine) -> io::Result<u64> {
    let mut last = [0];
    if length == 0 || file.read_at(&mut last, length - 1)? == 0 || last == *b"\n" {
        return Ok(length);
    }
    let start = start_of_last_line(file, length)?;
    if incomplete == IncompleteLine::Remove && !is_json_object(file, start, length) {
        file.set_len(start)?;
        warn!(
            bytes = length - start,
            "removed an incomplete line from the end of a file of events; it is written again"
        );
        return Ok(start);
    }
    file.write_all(b"\n")?;
    Ok(length + 1)
}

/// The position after the last line feed.
fn start_of_last_line(file: &File, length: u64) -> io::Result<u64> {
    let mut chunk = Vec::new();
    let mut end = length;
    while end > 0 {
        let begin = end.saturating_sub(CHUNK_BYTES);
        chunk.resize(usize::try_from(end - begin).expect("at most a chunk"), 0);
        file.read_exact_at(&mut chunk, begin)?;
        if let Some(feed) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(begin + feed as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

/// Whether this part of the file is a whole JSON object.
fn is_json_object(file: &File, start: u64, end: u64) -> bool {
    let mut first = [0];
    let begins = file.read_at(&mut first, start).is_ok_and(|read| read == 1) && first == *b"{";
    begins && serde_json::from_reader::<_, IgnoredAny>(BufReader::new(Part { file, at: start, end })).is_ok()
}

/// Reads a part of a file without moving its position.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::files::FILE_MODE;

    /// Ends a watching thread, also when an assertion fails: `thread::scope` waits for it.
    struct EndOnDrop<'a>(&'a AtomicBool);

    impl Drop for EndOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn open(path: &Path) -> LineFile {
        LineFile::open(path.to_owned(), FILE_MODE, IncompleteLine::Remove).unwrap()
    }

    #[test]
    fn an_incomplete_line_is_never_glued_to_the_next_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let long = "x".repeat(200_000);
        for (found, expected) in [
            ("{\"id\":1}\n{\"id\":2", "{\"id\":1}\n{\"id\":3}\n".to_owned()),
            ("{\"id\":2", "{\"id\":3}\n".to_owned()),
            ("{\"id\":1}\n\0\0\0\0", "{\"id\":1}\n{\"id\":3}\n".to_owned()),
            ("{\"id\":1}\n12", "{\"id\":1}\n{\"id\":3}\n".to_owned()),
            ("{\"id\":1}", "{\"id\":1}\n{\"id\":3}\n".to_owned()),
            (&format!("{{\"id\":1}}\n{{\"id\":\"{long}"), "{\"id\":1}\n{\"id\":3}\n".to_owned()),
            (&format!("{{\"id\":\"{long}\"}}"), format!("{{\"id\":\"{long}\"}}\n{{\"id\":3}}\n")),
        ] {
            fs::write(&path, found).unwrap();
            open(&path).append(b"{\"id\":3}\n").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
        }
    }

    #[test]
    fn text_that_was_cut_off_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        fs::write(&path, "one\ntw").unwrap();
        let mut log = LineFile::open(path.clone(), FILE_MODE, IncompleteLine::Terminate).unwrap();
        log.append(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntw\nthree\n");
    }

    #[test]
    fn a_line_is_written_to_the_path_after_the_file_or_its_directory_was_moved_or_deleted() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("log");
        let path = folder.join("events");
        let mut events = open(&path);
        let mut append = |line: &[u8]| {
            events.append(line).unwrap();
            fs::read(&path).unwrap()
        };
        assert_eq!(append(b"1\n"), b"1\n");
        fs::rename(&path, folder.join("events.1")).unwrap();
        assert_eq!(append(b"2\n"), b"2\n");
        fs::remove_file(&path).unwrap();
        assert_eq!(append(b"3\n"), b"3\n");
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(append(b"4\n"), b"4\n");
        // As with logrotate's `copytruncate`.
        fs::File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        assert_eq!(append(b"5\n"), b"5\n");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&folder)), (0o640, 0o750));
    }

    #[test]
    fn an_existing_file_gets_the_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        fs::write(&path, "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        open(&path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn writers_that_share_a_file_leave_each_others_lines_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let writers = [1, 2, 3, 4].map(|writer| {
            let path = path.clone();
            thread::spawn(move || {
                let mut file = open(&path);
                for n in 0..50 {
                    // A crash in the middle of a line, without the lock that a real one would have held.
                    if n % 10 == 0 {
                        let lock = Lock::take(file.current().unwrap()).unwrap();
                        (&mut &*lock.file).write_all(b"{\"id\":\"cut").unwrap();
                    }
                    file.append(format!("{{\"id\":\"{writer}-{n}\"}}\n").as_bytes()).unwrap();
                }
            })
        });
        writers.into_iter().for_each(|writer| writer.join().unwrap());
        let text = fs::read_to_string(&path).unwrap();
        let ids: std::collections::BTreeSet<String> = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!((ids.len(), text.lines().count()), (200, 200));
    }

    /// The file of the child process in the next test.
    const CHILD_FILE: &str = "ORDERD_TEST_LIMITED_FILE";

    /// Run by the next test in a process with a limit on the size of files, which cuts a write off as a full disk does.
    #[test]
    #[ignore = "needs a limit on the size of files"]
    fn append_until_the_disk_is_full() {
        let mut file = open(Path::new(&std::env::var_os(CHILD_FILE).unwrap()));
        let line = format!("{{\"id\":\"{}\"}}\n", "x".repeat(400));
        while file.append(line.as_bytes()).is_ok() {}
        file.append(b"{\"id\":1}\n").unwrap();
    }

    #[test]
    fn a_full_disk_leaves_no_part_of_a_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let program = std::env::current_exe().unwrap();
        let child = "files::line_file::tests::append_until_the_disk_is_full";
        // 8 blocks of 512 or 1024 bytes; without the signal, a write that is cut off is an error.
        let script = format!("trap '' XFSZ; ulimit -f 8; exec \"$0\" --exact {child} --ignored");
        let run = std::process::Command::new("sh").args(["-c", &script]).arg(program).env(CHILD_FILE, &path).output();
        let run = run.unwrap();
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout));
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().count() > 5 && text.ends_with("{\"id\":1}\n"), "{text}");
        assert!(text.lines().all(|line| serde_json::from_str::<IgnoredAny>(line).is_ok()), "{text}");
    }

    mod as_root {
        use std::process::Command;

        use super::*;

        /// Unmounted when dropped.
        struct Mount<'a>(&'a Path);

        impl Drop for Mount<'_> {
            fn drop(&mut self) {
                let _ = Command::new("umount").arg("-l").arg(self.0).status();
            }
        }

        /// `tail -F` takes a file that shrinks for another one, and shows all of it again.
        #[test]
        #[ignore = "needs root, who can mount a file system"]
        fn a_file_never_grows_and_shrinks_again_while_its_disk_is_full() {
            let directory = tempfile::tempdir().unwrap();
            for options in ["-ttmpfs", "-tramfs"] {
                let mounted =
                    Command::new("mount").args([options, "-osize=64k", "tmpfs"]).arg(directory.path()).status();
                assert!(mounted.unwrap().success());
                let _mount = Mount(directory.path());
                let path = directory.path().join("events");
                let mut events = open(&path);
                let is_limited = options == "-ttmpfs";
                let mut lines = 0_u64;
                while lines < 1_000 && events.append(format!("{}\n", "x".repeat(99)).as_bytes()).is_ok() {
                    lines += 1;
                }
                assert_eq!(lines < 1_000, is_limited, "{options}");
                let changed = AtomicBool::new(false);
                let ended = AtomicBool::new(false);
                thread::scope(|scope| {
                    scope.spawn(|| {
                        while !ended.load(Ordering::Relaxed) {
                            let length = fs::metadata(&path).unwrap().len();
                            changed.fetch_or(length != lines * 100, Ordering::Relaxed);
                        }
                    });
                    let _ending = EndOnDrop(&ended);
                    for _ in 0..2_000 {
                        if is_limited {
                            assert!(events.append(&[b'x'; 9_999]).is_err());
                        }
                        assert_eq!(events.prove_writable(9_999).is_err(), is_limited);
                    }
                });
                assert!(!changed.load(Ordering::Relaxed), "{options}");
            }
        }
    }

    #[test]
    fn a_log_may_be_a_device_and_what_must_be_durable_is_written_to_regular_files_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lines");
        for device in ["/dev/null", "/dev/full"] {
            std::os::unix::fs::symlink(device, &path).unwrap();
            let mut log = LineFile::open(path.clone(), FILE_MODE, IncompleteLine::Terminate).unwrap();
            assert_eq!(log.append(b"1\n").is_ok(), device == "/dev/null");
            assert!(LineFile::open(path.clone(), FILE_MODE, IncompleteLine::Remove).is_err(), "{device}");
            fs::remove_file(&path).unwrap();
        }
        let mut events = open(&path);
        events.append(b"1\n").unwrap();
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        let cause = |error: &io::Error| super::super::FileOutageCause::of(error);
        let not_a_file = super::super::FileOutageCause::NotAFile;
        assert_eq!(events.append(b"2\n").map_err(|error| cause(&error)), Err(not_a_file));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(events.append(b"2\n").map_err(|error| cause(&error)), Err(not_a_file));
        fs::remove_dir(&path).unwrap();
        events.append(b"2\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2\n");
    }

    #[test]
    fn proving_that_a_file_can_be_written_never_changes_its_length() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let mut events = open(&path);
        events.append(b"{}\n").unwrap();
        let ended = AtomicBool::new(false);
        let has_ended = || ended.load(Ordering::Relaxed);
        let changed = thread::scope(|scope| {
            let (path, has_ended) = (&path, &has_ended);
            let length = move || fs::metadata(path).unwrap().len();
            let watching =
                scope.spawn(move || std::iter::from_fn(|| (!has_ended()).then(length)).any(|length| length != 3));
            let ending = EndOnDrop(&ended);
            for _ in 0..100 {
                events.prove_writable(100_000).unwrap();
            }
            drop(ending);
            watching.join().unwrap()
        });
        assert!(!changed);
        assert_eq!(fs::read(&path).unwrap(), b"{}\n");
        let names = || fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names().collect::<Vec<_>>(), ["events"]);
        events.append(b"{}\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"{}\n{}\n");
    }
}
