//! Copies the ledger into one file, with SQLite's online backup, while a daemon records.
//!
//! The copy is one snapshot: a read transaction is held from the first page to the last, so writers are not blocked and
//! the copy never starts again. The copy is written under another name and renamed once it is on disk and was read back.
//! It must never leave an incomplete file under the backup's name, or change the ledger.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::open;
use super::{FILE_NAME, schema};
use crate::files::{FILE_MODE, create_new_file};
use crate::ledger::backup::{BackupError, BackupProgress, BackupSummary};

/// Pages copied between two reports of progress, and between two checks for an interruption: 4 MiB.
const PAGES_PER_STEP: i32 = 1_024;
/// Attempts at a step that finds a lock, 10 ms apart. The backup's file has no other user, and the ledger's write-ahead log
/// does not lock readers out except while it is created or removed.
const LOCK_ATTEMPTS: u32 = 500;
/// The first bytes of every SQLite database that is not empty.
const SQLITE_HEADER: &[u8] = b"SQLite format 3\0";
/// Where the header has the application id, in four bytes. Source: SQLite's file format.
const APPLICATION_ID_AT: usize = 68;

/// Copies the ledger in `directory` to `file`, and verifies the copy. Blocks for as long as both take.
pub(in crate::ledger) fn run(
    directory: &Path,
    file: &Path,
    force: bool,
    report: &dyn Fn(BackupProgress),
    interrupted: &AtomicBool,
) -> Result<BackupSummary, BackupError> {
    let ledger = directory.join(FILE_NAME);
    let source = open::for_backup(directory)?;
    check_target(&ledger, file, force)?;
    let partial = Partial::create(file)?;
    let copied = copy(directory, &source, &partial, report, interrupted)?;
    report(BackupProgress::Verifying);
    let (version, rows) = verify(&ledger, &partial.path)?;
    if (version, &rows) != (copied.0, &copied.1) {
        let problem =
            format!("version {version}, rows {rows:?}; the ledger has version {}, rows {:?}", copied.0, copied.1);
        return Err(BackupError::Damaged { ledger, problem });
    }
    if interrupted.load(Ordering::Relaxed) {
        return Err(BackupError::Interrupted);
    }
    let bytes = partial.publish(file, force)?;
    Ok(BackupSummary { ledger, file: file.to_owned(), bytes, version, rows })
}

fn check_target(ledger: &Path, file: &Path, force: bool) -> Result<(), BackupError> {
    if is_of_ledger(ledger, file) {
        return Err(BackupError::IsLedger { file: file.to_owned() });
    }
    for suffix in ["-wal", "-journal"] {
        let log = with_suffix(file, suffix);
        if log.symlink_metadata().is_ok() {
            return Err(BackupError::ForeignLog { log });
        }
    }
    match file.symlink_metadata() {
        Ok(found) if found.is_dir() => Err(BackupError::NotABackup { file: file.to_owned() }),
        Ok(_) if !force => Err(BackupError::Exists { file: file.to_owned() }),
        Ok(found) if !found.is_file() || !is_ledger(file) => Err(BackupError::NotABackup { file: file.to_owned() }),
        _ => Ok(()),
    }
}

/// Whether the file is the ledger under any name, or one of the files that SQLite has beside it.
fn is_of_ledger(ledger: &Path, file: &Path) -> bool {
    let identity = |path: &Path| path.metadata().ok().map(|found| (found.dev(), found.ino()));
    let parent = |path: &Path| path.parent().map(|parent| identity(if parent == "" { Path::new(".") } else { parent }));
    let is_beside = parent(ledger) == parent(file)
        && file.file_name().is_some_and(|name| name.as_bytes().starts_with(FILE_NAME.as_bytes()));
    is_beside || identity(ledger) == identity(file)
}

/// Whether a file is a ledger, judged by its header: only an earlier backup is replaced.
fn is_ledger(file: &Path) -> bool {
    let mut header = [0; 72];
    let read = File::open(file).and_then(|mut file| file.read_exact(&mut header));
    read.is_ok()
        && header.starts_with(SQLITE_HEADER)
        && header[APPLICATION_ID_AT..] == schema::APPLICATION_ID.to_be_bytes()
}

fn with_suffix(file: &Path, suffix: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The incomplete backup, removed when dropped.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn create(file: &Path) -> Result<Self, BackupError> {
        let path = with_suffix(file, ".partial");
        match create_new_file(&path, FILE_MODE) {
            Ok(_) => Ok(Partial { path }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Err(BackupError::InProgress { partial: path }),
            Err(source) => Err(match source.kind() {
                ErrorKind::NotFound
                | ErrorKind::NotADirectory
                | ErrorKind::PermissionDenied
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::InvalidFilename => BackupError::NoPlace { partial: path, source },
                _ => BackupError::File { action: "create", file: path, source },
            }),
        }
    }

    /// Gives the complete copy the backup's name, durably. Returns its size in bytes.
    fn publish(&self, file: &Path, force: bool) -> Result<u64, BackupError> {
        let failed = |action| move |source| BackupError::File { action, file: file.to_owned(), source };
        let copy = File::open(&self.path).map_err(failed("open the copy for"))?;
        copy.sync_all().map_err(failed("sync the copy for"))?;
        let bytes = copy.metadata().map_err(failed("read the size of the copy for"))?.len();
        let flags = if force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        match renameat_with(CWD, &self.path, CWD, file, flags) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => return Err(BackupError::Exists { file: file.to_owned() }),
            // Some network file systems cannot rename without replacing; the target did not exist a moment ago.
            Err(rustix::io::Errno::INVAL) => fs::rename(&self.path, file).map_err(failed("create"))?,
            Err(error) => return Err(failed("create")(error.into())),
        }
        let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed("sync the directory of"))?;
        Ok(bytes)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        let _ = fs::remove_file(&self.path);
        for suffix in ["-journal", "-wal", "-shm"] {
            let _ = fs::remove_file(with_suffix(&self.path, suffix));
        }
    }
}

/// Version and rows by table.
type Content = (i32, BTreeMap<String, u64>);

/// Copies one snapshot, and counts its rows.
fn copy(
    directory: &Path,
    source: &Connection,
    partial: &Partial,
    report: &dyn Fn(BackupProgress),
    interrupted: &AtomicBool,
) -> Result<Content, BackupError> {
    let unreadable = |error| BackupError::Ledger(open::error(directory, error));
    let snapshot = source.unchecked_transaction().map_err(unreadable)?;
    // The first read begins the snapshot.
    let content = content(&snapshot).map_err(unreadable)?;
    let page: u64 = pragma(&snapshot, "page_size").map_err(unreadable)?;
    let unwritable = |error: rusqlite::Error| BackupError::Store {
        action: "copy the ledger to",
        file: partial.path.clone(),
        source: Arc::new(error),
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut target = Connection::open_with_flags(&partial.path, flags).map_err(unwritable)?;
    let backup = Backup::new(&snapshot, &mut target).map_err(unwritable)?;
    let mut attempts = 0;
    loop {
        if interrupted.load(Ordering::Relaxed) {
            return Err(BackupError::Interrupted);
        }
        match backup.step(PAGES_PER_STEP).map_err(unwritable)? {
            StepResult::Done => break,
            StepResult::Busy | StepResult::Locked if attempts == LOCK_ATTEMPTS => {
                let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
                return Err(unreadable(rusqlite::Error::SqliteFailure(busy, None)));
            }
            StepResult::Busy | StepResult::Locked => {
                attempts += 1;
                std::thread::sleep(Duration::from_millis(10));
            }
            _ => attempts = 0,
        }
        let progress = backup.progress();
        let pages = |count: i32| u64::try_from(count).unwrap_or(0) * page;
        report(BackupProgress::Copying {
            done: pages(progress.pagecount - progress.remaining),
            total: pages(progress.pagecount),
        });
    }
    drop(backup);
    // Without a write-ahead log the backup is one file, and reading it needs no write access to its directory.
    target.pragma_update_and_check(None, "journal_mode", "delete", |_| Ok(())).map_err(unwritable)?;
    target.close().map_err(|(_, error)| unwritable(error))?;
    Ok(content)
}

/// Reads the whole copy: its structure and its indexes, its version and its rows.
fn verify(ledger: &Path, copy: &Path) -> Result<Content, BackupError> {
    let read = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(copy, flags)?;
        let problem: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        Ok((problem, content(&connection)?))
    };
    match read() {
        Ok((problem, content)) if problem == "ok" => Ok(content),
        Ok((problem, _)) => Err(BackupError::Damaged { ledger: ledger.to_owned(), problem }),
        Err(error) => Err(BackupError::Store {
            action: "read back",
            file: copy.to_owned(),
            source: Arc::<rusqlite::Error>::new(error),
        }),
    }
}

fn content(connection: &Connection) -> rusqlite::Result<Content> {
    let mut names = connection.prepare("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")?;
    let names = names.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()?;
    let mut rows = BTreeMap::new();
    for name in names {
        let sql = format!("SELECT count(*) FROM \"{}\"", name.replace('"', "\"\""));
        let count: i64 = connection.query_row(&sql, [], |row| row.get(0))?;
        rows.insert(name, count.cast_unsigned());
    }
    Ok((schema::version(connection)?, rows))
}

fn pragma(connection: &Connection, name: &str) -> rusqlite::Result<u64> {
    connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
}
