//! Rolling files of JSON lines: analytics events, and notifications on the `log` channel.
//!
//! Each file has a thread that writes the lines in batches. A line counts as written once it is whole in the file and synced to
//! disk, like what the ledger records: it survives a crash of the process and of the machine. A line whose caller has stopped
//! waiting is not written, because nothing will be recorded for it; the message is delivered again.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::chain::chain;
use crate::escape::json_escaped;
use crate::files::{IncompleteLine, Rolling, RollingFile};

/// Maximum number of lines queued for the writer. When the queue is full, senders wait.
const MAX_QUEUED_LINES: usize = 4096;
/// Maximum number of lines written with one system call and one sync.
const MAX_BATCH_LINES: usize = 1024;
/// A batch of this many bytes takes no further lines.
const FULL_BATCH_BYTES: usize = 8 << 20;
/// How long a line waits for others that are written with it. Waking the thread for each line costs more than writing it.
const BATCH_DELAY: Duration = Duration::from_millis(2);

#[derive(Debug)]
enum Request {
    Append { line: Vec<u8>, written: oneshot::Sender<Result<(), EventLogError>> },
    Reopen,
}

/// A line cannot be written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot write to the event file")]
pub struct EventLogError(#[source] Arc<io::Error>);

/// Appends lines to one file. Clones append to the same file.
#[derive(Debug, Clone)]
pub struct EventLog {
    requests: mpsc::Sender<Request>,
}

impl EventLog {
    /// Opens the current file and starts the writing thread, which ends when all clones of the log are dropped.
    ///
    /// # Errors
    /// The file or its directory cannot be created or written.
    pub fn start(files: Rolling) -> io::Result<(Self, JoinHandle<()>)> {
        let file = RollingFile::open(files, IncompleteLine::Remove, Timestamp::now())?;
        let (requests, waiting) = mpsc::channel(MAX_QUEUED_LINES);
        let writer = Writer { file, batch: Vec::new(), failed: 0 };
        Ok((EventLog { requests }, tokio::task::spawn_blocking(move || writer.run(waiting))))
    }

    /// Appends a line and waits until it is on disk. It must end with a line feed and contain no other. Dropping the future
    /// leaves open whether the line is written.
    ///
    /// # Errors
    /// [`EventLogError`] if it cannot be written, such as to a full disk.
    pub async fn append(&self, line: Vec<u8>) -> Result<(), EventLogError> {
        let (written, answer) = oneshot::channel();
        let writer_ended = |_| EventLogError(Arc::new(io::ErrorKind::BrokenPipe.into()));
        self.requests.send(Request::Append { line, written }).await.map_err(|_| writer_ended(()))?;
        answer.await.unwrap_or_else(|_| Err(writer_ended(())))
    }

    /// Opens the file again if it was renamed or deleted, so that an idle daemon does not keep the old one open. A full queue
    /// needs no request: each batch checks it.
    pub fn reopen(&self) {
        let _ = self.requests.try_send(Request::Reopen);
    }
}

struct Writer {
    file: RollingFile,
    /// The lines of a batch, joined.
    batch: Vec<u8>,
    /// Lines that could not be written since the last success. What fails for the same cause is logged once.
    failed: usize,
}

impl Writer {
    fn run(mut self, mut waiting: mpsc::Receiver<Request>) {
        let mut requests = Vec::with_capacity(MAX_BATCH_LINES);
        let mut written = Vec::with_capacity(MAX_BATCH_LINES);
        while waiting.blocking_recv_many(&mut requests, 1) > 0 {
            thread::sleep(BATCH_DELAY);
            self.batch.clear();
            while let Some(request) = requests.pop().or_else(|| waiting.try_recv().ok()) {
                match request {
                    Request::Append { written: answer, .. } if answer.is_closed() => {}
                    Request::Append { line, written: answer } => {
                        self.batch.extend_from_slice(&line);
                        written.push(answer);
                    }
                    Request::Reopen => self.reopen(),
                }
                if written.len() >= MAX_BATCH_LINES || self.batch.len() >= FULL_BATCH_BYTES {
                    break;
                }
            }
            if !written.is_empty() {
                let result = self.write(written.len());
                for answer in written.drain(..) {
                    // The sender may have stopped waiting.
                    let _ = answer.send(result.clone());
                }
            }
        }
    }

    fn write(&mut self, lines: usize) -> Result<(), EventLogError> {
        let result = self.file.append(&self.batch, Timestamp::now());
        let file = self.file.path().display();
        match &result {
            Ok(()) if self.failed > 0 => {
                info!(%file, failed = self.failed, "events are written to the file again");
                self.failed = 0;
            }
            Ok(()) => {}
            Err(cause) => {
                if self.failed == 0 {
                    error!(%file, error = %chain(cause), "cannot write events to the file; trying again");
                }
                self.failed += lines;
            }
        }
        result.map_err(|error| EventLogError(Arc::new(error)))
    }

    fn reopen(&mut self) {
        if let Err(error) = self.file.reopen_if_replaced(Timestamp::now()) {
            warn!(file = %self.file.path().display(), %error, "cannot open the file of events again");
        }
    }
}

/// Length of a line without id, event and body, in bytes.
const LINE_OVERHEAD_BYTES: usize = 96;

/// One line: `{"id":…,"event":…,"received_at":…,"body":…}`. The body must be JSON. It is inserted unchanged, except that
/// line breaks become spaces; JSON allows line breaks only between tokens.
pub(super) fn event_line(id: &str, event: &str, received_at: Timestamp, body: &[u8]) -> Vec<u8> {
    const INFALLIBLE: &str = "writing to a buffer does not fail, and text can be written as JSON";
    let mut line = Vec::with_capacity(id.len() + event.len() + body.len() + LINE_OVERHEAD_BYTES);
    line.extend_from_slice(b"{\"id\":");
    serde_json::to_writer(&mut line, id).expect(INFALLIBLE);
    line.extend_from_slice(b",\"event\":");
    serde_json::to_writer(&mut line, event).expect(INFALLIBLE);
    write!(line, ",\"received_at\":\"{received_at}\",\"body\":").expect(INFALLIBLE);
    // Outside of texts, control characters can only be white space.
    line.extend(body.iter().map(|byte| if matches!(byte, b'\n' | b'\r' | b'\t') { b' ' } else { *byte }));
    line.extend_from_slice(b"}\n");
    // What JSON allows in a text, other programs take for the end of a line or a command to a terminal.
    match std::str::from_utf8(&line) {
        Ok(text) if !line.is_ascii() || line.contains(&0x7f) => json_escaped(text).into_bytes(),
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures_util::FutureExt;

    use super::*;
    use crate::files::{FILE_MODE, Rotation};

    #[test]
    fn an_event_is_one_line_of_json() {
        let at = "2026-11-22T08:00:01Z".parse().unwrap();
        let line = String::from_utf8(event_line("a\"b", "email", at, b"{\n \"order_id\":\r\n 2}")).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((read["id"].as_str(), read["body"]["order_id"].as_i64()), (Some("a\"b"), Some(2)));
        let hostile = "\u{7f}\u{9b}31m\u{85}\u{2028}\u{202e}\u{200b}é";
        let line = event_line(hostile, hostile, at, format!("{{\t\"a\":\"{hostile}\"}}").as_bytes());
        let line = String::from_utf8(line).unwrap();
        assert!(!line.trim_end().contains(crate::escape::is_escaped), "{line:?}");
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((read["id"].as_str(), read["body"]["a"].as_str()), (Some(hostile), Some(hostile)));
    }

    fn log_to(directory: &Path) -> (EventLog, JoinHandle<()>) {
        let directory = directory.to_owned();
        let (name, suffix) = ("events", "jsonl");
        EventLog::start(Rolling { directory, name, suffix, rotation: Rotation::Never, keep: 1, mode: FILE_MODE })
            .unwrap()
    }

    #[tokio::test]
    async fn an_appended_line_is_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let (log, writer) = log_to(directory.path());
        log.append(b"one\n".to_vec()).await.unwrap();
        assert_eq!(std::fs::read(directory.path().join("events.jsonl")).unwrap(), b"one\n");
        drop(log);
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", directory.path().join("events.jsonl")).unwrap();
        let (log, _writer) = log_to(directory.path());
        assert!(log.append(b"one\n".to_vec()).await.is_err());
    }

    #[tokio::test]
    async fn a_line_that_nothing_waits_for_is_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let (log, writer) = log_to(directory.path());
        // The line is queued; then the handler is dropped, as when its connection is lost.
        assert!(log.append(b"dropped\n".to_vec()).now_or_never().is_none());
        log.append(b"kept\n".to_vec()).await.unwrap();
        assert_eq!(std::fs::read(directory.path().join("events.jsonl")).unwrap(), b"kept\n");
        drop(log);
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn the_new_file_is_there_after_a_request_to_reopen_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events.jsonl");
        let (log, writer) = log_to(directory.path());
        log.append(b"one\n".to_vec()).await.unwrap();
        std::fs::rename(&path, directory.path().join("events.jsonl.1")).unwrap();
        log.reopen();
        drop(log);
        writer.await.unwrap();
        assert_eq!(std::fs::read(path).unwrap(), b"");
    }
}
