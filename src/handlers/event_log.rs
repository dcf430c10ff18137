//! Rolling files of JSON lines: analytics events, and notifications on the `log` channel.
//!
//! Each file has a thread that writes the lines in batches. A line counts as written once it is whole in the file and synced to
//! disk, like what the ledger records: it survives a crash of the process and of the machine. A line whose caller has stopped
//! waiting is not written, because nothing will be recorded for it; the message is delivered again.
//!
//! While the file cannot be written, lines wait, and the thread tries again until it can. No error reaches a caller.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::event_file_state::EventFileState;
use crate::backoff::Backoff;
use crate::files::{FileState, IncompleteLine, Rolling, RollingFile};

/// Maximum number of lines queued for the writer. When the queue is full, senders wait.
const MAX_QUEUED_LINES: usize = 4096;
/// Maximum number of lines written with one system call and one sync.
const MAX_BATCH_LINES: usize = 1024;
/// A batch of this many bytes takes no further lines.
const FULL_BATCH_BYTES: usize = 8 << 20;
/// How long the first line of a batch waits for others, per line of the previous batch. Waking the thread and syncing the file
/// for each line costs more than writing it, so a busy log gathers large batches, and a quiet one waits little.
const GATHER_PER_LINE: Duration = Duration::from_micros(50);
/// The limits of that wait.
const MIN_GATHER: Duration = Duration::from_millis(1);
const MAX_GATHER: Duration = Duration::from_millis(10);
/// Waits between two attempts to write to a file that cannot be written.
const RETRY_BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(2) };
/// The room that is proven to be there, to learn whether an outage is over when no line waits: at least one block of the file
/// system.
const PROOF_BYTES: usize = 4096;
/// How often the log looks whether the writer makes progress.
const PROGRESS_CHECK: Duration = Duration::from_secs(1);
/// How long the start waits for the file to be opened. A disk that hangs longer is an outage.
const OPEN_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
enum Request {
    Append(Line),
    Reopen,
}

#[derive(Debug)]
struct Line {
    text: Vec<u8>,
    /// Answered once the line is on disk.
    written: oneshot::Sender<()>,
}

/// The event log has ended; the line was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the event file is closed")]
pub struct EventLogClosed;

/// Appends lines to one file. Clones append to the same file.
#[derive(Debug, Clone)]
pub struct EventLog {
    requests: mpsc::Sender<Request>,
    state: Arc<EventFileState>,
}

/// The thread that writes the lines. It ends when all clones of its log are dropped.
#[derive(Debug)]
pub struct EventLogWriter {
    /// Never answered; closed when the thread ends.
    ended: oneshot::Receiver<()>,
    /// Looks whether the thread makes progress. One task for all lines: a timer for each line would cost more than the line.
    progress: AbortOnDropHandle<()>,
}

impl EventLogWriter {
    /// Waits until the thread has ended. To be called after all clones of the log were dropped. If its disk hangs, it does not
    /// end; nothing waits for what it writes.
    pub async fn finish(self) {
        let EventLogWriter { ended, progress } = self;
        let _ = ended.await;
        drop(progress);
    }
}

impl EventLog {
    /// Starts the writing thread and waits until it has opened the current file. Returns without waiting longer if the disk
    /// hangs: that is an outage, as a full disk is.
    ///
    /// # Errors
    /// The file or its directory cannot be created or written, or the thread cannot be started.
    pub async fn start(files: Rolling) -> io::Result<(Self, EventLogWriter)> {
        let (requests, waiting) = mpsc::channel(MAX_QUEUED_LINES);
        let state = Arc::new(EventFileState::new(files.path(Timestamp::now())));
        let writer = Writer { files, file: None, state: Arc::clone(&state), failures: 0, previous: 0 };
        let (opening, opened) = oneshot::channel();
        let (ending, ended) = oneshot::channel::<()>();
        let run = move || {
            let _ending = ending;
            let state = Arc::clone(&writer.state);
            if std::panic::catch_unwind(AssertUnwindSafe(|| writer.run(waiting, opening))).is_err() {
                state.writer_died();
            }
        };
        thread::Builder::new().name("event-writer".to_owned()).spawn(run)?;
        match timeout(OPEN_PATIENCE, opened).await {
            Ok(Ok(result)) => result?,
            Ok(Err(_)) => return Err(io::ErrorKind::BrokenPipe.into()),
            Err(_) => state.check_progress(),
        }
        let progress = AbortOnDropHandle::new(tokio::spawn(check_progress(Arc::clone(&state))));
        Ok((EventLog { requests, state }, EventLogWriter { ended, progress }))
    }

    /// Appends a line and waits until it is on disk, however long that takes. It must end with a line feed and contain no
    /// other. Dropping the future leaves open whether the line is written.
    ///
    /// # Errors
    /// [`EventLogClosed`].
    pub async fn append(&self, text: Vec<u8>) -> Result<(), EventLogClosed> {
        let (written, answer) = oneshot::channel();
        let request = Request::Append(Line { text, written });
        if let Err(TrySendError::Full(request)) = self.requests.try_send(request) {
            // Boxed, because this future is large and rarely needed.
            self.requests.send(request).boxed().await.map_err(|_| EventLogClosed)?;
        }
        // Closed also if the line could not be sent.
        answer.await.map_err(|_| EventLogClosed)
    }

    /// Watches whether the file can be written.
    pub fn state(&self) -> watch::Receiver<FileState> {
        self.state.subscribe()
    }

    /// Opens the file again if it was renamed or deleted, so that an idle daemon does not keep the old one open. A full queue
    /// needs no request: each batch checks it.
    pub fn reopen(&self) {
        let _ = self.requests.try_send(Request::Reopen);
    }
}

async fn check_progress(state: Arc<EventFileState>) {
    loop {
        tokio::time::sleep(PROGRESS_CHECK).await;
        state.check_progress();
    }
}

struct Writer {
    files: Rolling,
    /// `None` until it could be opened.
    file: Option<RollingFile>,
    state: Arc<EventFileState>,
    /// Failed attempts since the last success.
    failures: u32,
    /// Lines in the previous batch.
    previous: usize,
}

impl Writer {
    fn run(mut self, mut waiting: mpsc::Receiver<Request>, opening: oneshot::Sender<io::Result<()>>) {
        self.state.begin(self.files.path(Timestamp::now()));
        let opened = self.open().map(drop);
        match opening.send(opened) {
            // The start reports why.
            Ok(()) if self.file.is_none() => return,
            Ok(()) => self.state.end(&Ok(())),
            // The start has stopped waiting.
            Err(result) => self.state.end(&result),
        }
        // A disk can be full although its files can be opened.
        self.try_write(&[]);
        let mut lines = Vec::with_capacity(MAX_BATCH_LINES);
        while self.receive(&mut waiting, &mut lines) {
            lines.retain(|line| !line.written.is_closed());
            self.previous = lines.len();
            if (!lines.is_empty() || self.failures > 0) && self.try_write(&lines) {
                for Line { written, .. } in lines.drain(..) {
                    // The sender may have stopped waiting.
                    let _ = written.send(());
                }
            }
        }
    }

    /// Adds lines to those that wait already. Waits for the first; during an outage, until the next attempt is due. `false`
    /// once the log has ended.
    fn receive(&mut self, waiting: &mut mpsc::Receiver<Request>, lines: &mut Vec<Line>) -> bool {
        let mut received = Vec::new();
        if self.failures > 0 {
            thread::sleep(RETRY_BACKOFF.wait(self.failures - 1, 1.0));
        } else if waiting.blocking_recv_many(&mut received, 1) > 0 {
            thread::sleep(self.gather_time());
        }
        let mut bytes = lines.iter().map(|line| line.text.len()).sum::<usize>();
        while lines.len() < MAX_BATCH_LINES && bytes < FULL_BATCH_BYTES {
            match received.pop().map_or_else(|| waiting.try_recv(), Ok) {
                Ok(Request::Append(line)) => {
                    bytes += line.text.len();
                    lines.push(line);
                }
                // What the next attempt opens is the new file.
                Ok(Request::Reopen) if self.failures > 0 => {}
                Ok(Request::Reopen) => self.reopen(),
                Err(mpsc::error::TryRecvError::Empty) => return true,
                Err(mpsc::error::TryRecvError::Disconnected) => return !lines.is_empty(),
            }
        }
        true
    }

    fn gather_time(&self) -> Duration {
        let lines = u32::try_from(self.previous).unwrap_or(u32::MAX);
        GATHER_PER_LINE.saturating_mul(lines).clamp(MIN_GATHER, MAX_GATHER)
    }

    /// Writes the lines; without any, proves that lines can be written. Returns whether they are on disk.
    fn try_write(&mut self, lines: &[Line]) -> bool {
        let now = Timestamp::now();
        self.state.begin(self.files.path(now));
        let result = self.write(lines, now);
        self.failures = if result.is_ok() { 0 } else { self.failures.saturating_add(1) };
        self.state.end(&result);
        result.is_ok()
    }

    fn write(&mut self, lines: &[Line], now: Timestamp) -> io::Result<()> {
        let file = self.open()?;
        if lines.is_empty() {
            return file.prove_writable(PROOF_BYTES, now);
        }
        let texts: Vec<&[u8]> = lines.iter().map(|line| &*line.text).collect();
        file.append(&texts.concat(), now)
    }

    fn open(&mut self) -> io::Result<&mut RollingFile> {
        let file = match self.file.take() {
            Some(file) => file,
            None => RollingFile::open(self.files.clone(), IncompleteLine::Remove, Timestamp::now())?,
        };
        Ok(self.file.insert(file))
    }

    fn reopen(&mut self) {
        let now = Timestamp::now();
        self.state.begin(self.files.path(now));
        let reopened = self.open().and_then(|file| file.reopen_if_replaced(now));
        self.failures = u32::from(reopened.is_err());
        self.state.end(&reopened);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::*;
    use crate::files::{FILE_MODE, FileOutageCause, Rotation};

    /// The file `events.jsonl` in this directory.
    pub(in crate::handlers) fn files_in(directory: &Path) -> Rolling {
        let directory = directory.to_owned();
        let (name, suffix) = ("events", "jsonl");
        Rolling { directory, name, suffix, rotation: Rotation::Never, keep: 1, mode: FILE_MODE }
    }

    async fn log_to(directory: &Path) -> (EventLog, EventLogWriter) {
        EventLog::start(files_in(directory)).await.unwrap()
    }

    #[tokio::test]
    async fn an_appended_line_is_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let (log, writer) = log_to(directory.path()).await;
        log.append(b"one\n".to_vec()).await.unwrap();
        assert_eq!(fs::read(directory.path().join("events.jsonl")).unwrap(), b"one\n");
        drop(log);
        writer.finish().await;
    }

    #[tokio::test]
    async fn a_line_waits_while_the_file_cannot_be_written_and_is_written_once_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let (log, _writer) = log_to(directory.path()).await;
        let mut state = log.state();
        let make_fifo = || rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0);
        let replacements: [(&str, &dyn Fn()); 4] = [
            ("a FIFO", &|| make_fifo().unwrap()),
            ("a link to a device", &|| symlink("/dev/full", &path).unwrap()),
            ("a link to itself", &|| symlink(&path, &path).unwrap()),
            ("a directory", &|| fs::create_dir(&path).unwrap()),
        ];
        for (number, (name, replace)) in replacements.iter().enumerate() {
            let _ = fs::remove_file(&path);
            replace();
            let mut line = std::pin::pin!(log.append(format!("{name}\n").into_bytes()));
            // Cancel-safe: `line` is only borrowed.
            tokio::select! {
                result = &mut line => panic!("{name}: {result:?}"),
                outage = state.wait_for(|state| state.outage.is_some()) => {
                    let state = outage.unwrap();
                    let outage = state.outage.as_ref().unwrap();
                    assert_eq!((outage.cause, &state.path), (FileOutageCause::NotAFile, &path), "{name}");
                    assert_eq!(state.outages, number as u64 + 1);
                }
            }
            fs::remove_file(&path).or_else(|_| fs::remove_dir(&path)).unwrap();
            line.await.unwrap();
            assert_eq!(state.borrow().outage, None);
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{name}\n"));
        }
    }

    #[tokio::test]
    async fn an_outage_ends_by_itself_when_no_line_waits_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let (log, writer) = log_to(directory.path()).await;
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let mut state = log.state();
        // Cancel-safe: both can be dropped.
        tokio::select! {
            _ = log.append(b"released\n".to_vec()) => panic!("there is no file"),
            _ = state.wait_for(|state| state.outage.is_some()) => {}
        }
        fs::remove_dir(&path).unwrap();
        state.wait_for(|state| state.outage.is_none()).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        log.reopen();
        state.wait_for(|state| state.outage.is_some()).await.unwrap();
        drop(log);
        writer.finish().await;
    }

    #[tokio::test]
    async fn a_start_names_why_the_file_cannot_be_opened() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("events.jsonl")).unwrap();
        let error = EventLog::start(files_in(directory.path())).await.unwrap_err();
        assert_eq!(FileOutageCause::of(&error), FileOutageCause::NotAFile);
    }

    #[tokio::test]
    async fn a_line_that_nothing_waits_for_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let (log, writer) = log_to(directory.path()).await;
        // The line is queued; then the handler is dropped, as when its connection is lost.
        assert!(log.append(b"dropped\n".to_vec()).now_or_never().is_none());
        log.append(b"kept\n".to_vec()).await.unwrap();
        assert_eq!(fs::read(directory.path().join("events.jsonl")).unwrap(), b"kept\n");
        drop(log);
        writer.finish().await;
    }

    #[tokio::test]
    async fn the_new_file_is_there_after_a_request_to_reopen_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let (log, writer) = log_to(directory.path()).await;
        log.append(b"one\n".to_vec()).await.unwrap();
        fs::rename(&path, directory.path().join("events.jsonl.1")).unwrap();
        log.reopen();
        drop(log);
        writer.finish().await;
        assert_eq!(fs::read(&path).unwrap(), b"");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, FILE_MODE);
    }
}
