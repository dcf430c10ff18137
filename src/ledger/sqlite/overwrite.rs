//! Notices that the database was overwritten in place while it is open, such as by `cp` of a backup onto it.
//!
//! SQLite would go on with the pages that it has cached and those in its log, and what was recorded since the backup would be
//! lost. A file that other programs change as they may, by a checkpoint or a `VACUUM`, is never taken for overwritten.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::files::{FileReplaced, FilesVersion, OpenFiles};
use crate::ledger::error::LedgerError;

/// The shortest pause between two reads of the file. While a reader keeps the log from being emptied, each commit changes the
/// file.
const READ_INTERVAL: Duration = if cfg!(test) { Duration::ZERO } else { Duration::from_secs(1) };
/// How long to wait before a suspicious file is read again: it may have been read during another instance's checkpoint.
const SECOND_LOOK: Duration = Duration::from_millis(50);

/// What is known about the file that was opened.
#[derive(Debug)]
pub(super) struct OverwriteDetector {
    path: PathBuf,
    /// The smallest size that the file can have, as long as no other program commits.
    least_size: u64,
    /// When the file had been modified when it was read last.
    modified: Option<SystemTime>,
    log_was_empty: bool,
    read_at: Option<Instant>,
    /// How many orders the file counted then.
    in_file: i64,
    /// How many orders file and log counted together, with those of this connection's commits since, and when they were counted.
    recorded: i64,
    counted_at: Option<Instant>,
    /// The time since which orders are counted, in milliseconds since 1970.
    since: i64,
}

/// Counts the orders accepted and processed in the hours since `?1`. Nothing ever decreases it: neither retention nor an
/// erasure.
pub(super) const COUNT_ORDERS: &str = "
    SELECT coalesce(sum(accepted + processed), 0) FROM order_sums WHERE granularity = 'hour' AND starts_at >= ?1";
/// How far back orders are counted, at least. Counting all would take long.
const COUNTED: SignedDuration = SignedDuration::from_hours(31 * 24);
/// How much further back they are counted at most. Then the beginning moves.
const MOVED_AFTER_MILLIS: i64 = 24 * 3_600_000;

impl OverwriteDetector {
    pub fn new(files: &OpenFiles, now: Timestamp) -> Self {
        OverwriteDetector {
            path: files.database().to_owned(),
            least_size: 0,
            modified: None,
            log_was_empty: true,
            read_at: None,
            in_file: 0,
            recorded: 0,
            counted_at: None,
            since: counted_since(now),
        }
    }

    /// The time since which orders are counted.
    pub fn since(&self) -> i64 {
        self.since
    }

    /// This connection has committed so many orders that are counted: an older state without them is then noticed even if more
    /// orders were recorded since the last count than it lacks.
    pub fn committed(&mut self, orders: i64) {
        self.recorded = self.recorded.saturating_add(orders);
    }

    /// Counts the orders that are recorded since a time, from time to time. `Ok(false)`: some are no longer there. A program has put
    /// an older state into the database by a transaction, as `.restore` of `sqlite3` does.
    pub fn count(
        &mut self,
        now: Timestamp,
        mut count: impl FnMut(i64) -> Result<i64, LedgerError>,
    ) -> Result<bool, LedgerError> {
        if !is_due(self.counted_at) {
            return Ok(true);
        }
        let counted = count(self.since)?;
        if counted < self.recorded {
            // Counted again at the next check.
            self.counted_at = None;
            return Ok(false);
        }
        self.recorded = counted;
        let since = counted_since(now);
        // Earlier: the clock was corrected. What is recorded now might otherwise not be counted.
        if since < self.since || since.saturating_sub(self.since) > MOVED_AFTER_MILLIS {
            // The orders in between are no longer counted, and the file contains no more of them than file and log together.
            let recorded = count(since)?;
            let no_longer = self.recorded.saturating_sub(recorded).max(0);
            self.in_file = self.in_file.saturating_sub(no_longer).max(0);
            (self.recorded, self.since) = (recorded, since);
        }
        self.counted_at = Some(Instant::now());
        Ok(true)
    }

    pub fn overwritten(&self) -> FileReplaced {
        FileReplaced::Overwritten { path: self.path.clone() }
    }

    /// Whether the file is smaller than it can be, unless another program has committed.
    pub fn has_shrunk(&self, size: u64) -> bool {
        size < self.least_size
    }

    pub fn shrunk(&self, size: u64) -> FileReplaced {
        FileReplaced::Shrunk { path: self.path.clone(), before: self.least_size, now: size }
    }

    /// Another program has committed, perhaps a `VACUUM`. That shrinks the database at its commit, and the file at a later
    /// checkpoint, which may wait for readers.
    pub fn others_have_committed(&mut self) {
        self.least_size = 0;
    }

    /// `size` is that of the file, `database_size` that of the database, to which the file may always shrink.
    pub fn set_size(&mut self, size: u64, database_size: u64) {
        self.least_size = size.min(database_size);
    }

    /// If the file was modified since it was read last, or the log was emptied, compares the number of orders in it with that
    /// number then, which checkpoints only increase. If the log is empty, the file must contain everything that is recorded.
    pub fn check_content(&mut self, files: FilesVersion) -> Result<(), FileReplaced> {
        let FilesVersion { modified, log_is_empty, .. } = files;
        let unchanged = modified == self.modified && (self.log_was_empty || !log_is_empty);
        if unchanged || !is_due(self.read_at) {
            self.log_was_empty &= log_is_empty;
            return Ok(());
        }
        let expected = if log_is_empty { self.in_file.max(self.recorded) } else { self.in_file };
        for last in [false, true] {
            match counted_orders(&self.path, Log::Ignored, self.since) {
                Ok(orders) if orders >= expected => {
                    (self.in_file, self.modified, self.read_at) = (orders, modified, Some(Instant::now()));
                    self.log_was_empty = log_is_empty;
                    return Ok(());
                }
                Ok(_) => {}
                Err(error) if is_content(&error) => {}
                // Such as too many open files. It is read again later.
                Err(_) => {
                    self.read_at = Some(Instant::now());
                    return Ok(());
                }
            }
            if !last {
                thread::sleep(SECOND_LOOK);
            }
        }
        let modified_since = std::fs::metadata(&self.path).and_then(|file| file.modified()).ok() != modified;
        if modified_since {
            self.read_at = Some(Instant::now());
            return Ok(());
        }
        // A checkpoint that a full disk ended early leaves a file that is complete only together with its log.
        let is_complete =
            || counted_orders(&self.path, Log::Read, self.since).is_ok_and(|orders| orders >= self.recorded);
        if !log_is_empty && is_complete() {
            self.read_at = Some(Instant::now());
            return Ok(());
        }
        // Read again at the next check.
        self.read_at = None;
        Err(self.overwritten())
    }
}

/// The beginning of the hours that are counted at a time.
fn counted_since(now: Timestamp) -> i64 {
    now.checked_sub(COUNTED).map_or(0, Timestamp::as_millisecond)
}

/// Whether the write-ahead log is read with the file.
#[derive(Debug, Clone, Copy)]
enum Log {
    Read,
    Ignored,
}

/// The orders that the file counts.
fn counted_orders(path: &Path, log: Log, since: i64) -> rusqlite::Result<i64> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(uri(path, log), flags)?;
    connection.query_row(COUNT_ORDERS, [since], |row| row.get(0))
}

fn is_due(last: Option<Instant>) -> bool {
    last.is_none_or(|last| last.elapsed() >= READ_INTERVAL)
}

/// Without its log, the file is opened as immutable: SQLite reads it alone and takes no lock.
fn uri(path: &Path, log: Log) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => uri.push(char::from(*byte)),
            _ => write!(uri, "%{byte:02X}").expect("writing to a string does not fail"),
        }
    }
    match log {
        Log::Read => {}
        Log::Ignored => uri.push_str("?immutable=1"),
    }
    uri
}

/// Whether the file's content is wrong, not the reading of it.
fn is_content(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_with_any_characters_can_be_opened_as_a_uri() {
        assert_eq!(uri(Path::new("/a b/100%?#/ü.db"), Log::Ignored), "file:/a%20b/100%25%3F%23/%C3%BC.db?immutable=1");
    }

    fn detector(directory: &Path, now: Timestamp) -> OverwriteDetector {
        let create = |path: &PathBuf| drop(std::fs::File::create(path).unwrap());
        super::super::files::paths(directory).iter().for_each(create);
        OverwriteDetector::new(&OpenFiles::examine(directory).unwrap(), now)
    }

    #[test]
    fn an_older_state_is_noticed_even_if_it_lacks_fewer_orders_than_were_recorded_since_the_last_count() {
        let directory = tempfile::tempdir().unwrap();
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let mut detector = detector(directory.path(), now);
        assert!(detector.count(now, |_| Ok(100)).unwrap());
        detector.committed(10);
        assert!(detector.count(now, |_| Ok(113)).unwrap(), "another instance has recorded three");
        detector.committed(10);
        assert!(!detector.count(now, |_| Ok(118)).unwrap(), "it lacks five");
        assert!(detector.count(now, |_| Ok(123)).unwrap(), "they are back");
    }

    #[test]
    fn an_older_state_is_noticed_after_a_clock_that_was_years_ahead_was_corrected() {
        let directory = tempfile::tempdir().unwrap();
        let [ahead, now]: [Timestamp; 2] =
            ["2036-01-01T00:00:00Z", "2026-01-01T00:00:00Z"].map(|at| at.parse().unwrap());
        let mut detector = detector(directory.path(), ahead);
        let count = |orders: i64| move |since: i64| Ok(if since < now.as_millisecond() { orders } else { 0 });
        assert!(detector.count(ahead, count(0)).unwrap());
        assert!(detector.count(now, count(7)).unwrap());
        assert!(!detector.count(now, count(6)).unwrap());
    }

    #[test]
    fn the_hours_that_are_counted_do_not_grow_with_the_uptime_and_an_older_copy_is_still_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let file = Connection::open(directory.path().join(super::super::FILE_NAME)).unwrap();
        file.execute_batch(
            "CREATE TABLE order_sums (granularity TEXT, starts_at INTEGER, accepted INTEGER, processed INTEGER)",
        )
        .unwrap();
        let began: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        super::super::files::paths(directory.path())
            .iter()
            .skip(1)
            .for_each(|path| drop(std::fs::File::create(path).unwrap()));
        let files = OpenFiles::examine(directory.path()).unwrap();
        let mut detector = OverwriteDetector::new(&files, began);
        let count = |since: i64| Ok(file.query_row(COUNT_ORDERS, [since], |row| row.get(0)).unwrap());
        for day in 0..200 {
            let now = began + SignedDuration::from_hours(24 * day);
            file.execute("INSERT INTO order_sums VALUES ('hour', ?1, 5, 5)", [now.as_millisecond()]).unwrap();
            detector.count(now, count).unwrap();
            detector.check_content(files.check().unwrap()).unwrap();
            let counted = now.as_millisecond() - detector.since;
            assert!(
                counted <= i64::try_from(COUNTED.as_millis()).unwrap() + MOVED_AFTER_MILLIS,
                "day {day}: {counted}"
            );
            assert!(detector.in_file > 0 && detector.in_file <= detector.recorded, "day {day}: {detector:?}");
        }
        // As an older copy has it.
        file.execute("DELETE FROM order_sums WHERE rowid = (SELECT max(rowid) FROM order_sums)", []).unwrap();
        assert!(matches!(detector.check_content(files.check().unwrap()), Err(FileReplaced::Overwritten { .. })));
    }
}
