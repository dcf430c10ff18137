//! Rolling files of JSON lines: analytics events, and notifications on the `log` channel.
//!
//! Each file has a thread that writes the lines in batches. A line counts as written once the operating system has it: it survives
//! a crash of the process, not of the machine.

use std::io::{self, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing_appender::rolling::RollingFileAppender;

/// Maximum number of lines queued for the writer. When the queue is full, senders wait.
const MAX_QUEUED_LINES: usize = 4096;
/// Maximum number of lines written with one system call.
const MAX_BATCH_LINES: usize = 1024;
/// How long a line waits for others that are written with it. Waking the thread for each line costs more than writing it.
const BATCH_DELAY: Duration = Duration::from_millis(2);

struct Line {
    text: Vec<u8>,
    written: oneshot::Sender<Result<(), EventLogError>>,
}

/// A line cannot be written.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot write to the event log")]
pub struct EventLogError(#[source] Arc<io::Error>);

/// Appends lines to one file. Clones append to the same file.
#[derive(Debug, Clone)]
pub struct EventLog {
    lines: mpsc::Sender<Line>,
}

impl EventLog {
    /// Starts the writing thread; it ends when all clones of the log are dropped.
    pub fn start(file: RollingFileAppender) -> (Self, JoinHandle<()>) {
        let (lines, waiting) = mpsc::channel(MAX_QUEUED_LINES);
        (EventLog { lines }, tokio::task::spawn_blocking(move || write(waiting, file)))
    }

    /// Appends a line and waits until it is written. It must end with a line feed and contain no other.
    ///
    /// # Errors
    /// [`EventLogError`] if it cannot be written, such as to a full disk.
    pub async fn append(&self, text: Vec<u8>) -> Result<(), EventLogError> {
        let (written, answer) = oneshot::channel();
        let writer_ended = |_| EventLogError(Arc::new(io::ErrorKind::BrokenPipe.into()));
        self.lines.send(Line { text, written }).await.map_err(|_| writer_ended(()))?;
        answer.await.unwrap_or_else(|_| Err(writer_ended(())))
    }
}

fn write(mut waiting: mpsc::Receiver<Line>, mut file: RollingFileAppender) {
    let (mut lines, mut batch) = (Vec::with_capacity(MAX_BATCH_LINES), Vec::new());
    while waiting.blocking_recv_many(&mut lines, 1) > 0 {
        thread::sleep(BATCH_DELAY);
        while lines.len() < MAX_BATCH_LINES
            && let Ok(line) = waiting.try_recv()
        {
            lines.push(line);
        }
        batch.clear();
        lines.iter().for_each(|line: &Line| batch.extend_from_slice(&line.text));
        let result = file.write_all(&batch).and_then(|()| file.flush()).map_err(|error| EventLogError(Arc::new(error)));
        for line in lines.drain(..) {
            // The sender may have stopped waiting.
            let _ = line.written.send(result.clone());
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
    line.extend(body.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
    line.extend_from_slice(b"}\n");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_of_json() {
        let at = "2026-11-22T08:00:01Z".parse().unwrap();
        let line = String::from_utf8(event_line("a\"b", "email", at, b"{\n \"order_id\":\r\n 2}")).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((read["id"].as_str(), read["body"]["order_id"].as_i64()), (Some("a\"b"), Some(2)));
    }

    fn log_to(path: &std::path::Path) -> (EventLog, JoinHandle<()>) {
        let builder = RollingFileAppender::builder().filename_prefix(path.file_name().unwrap().to_str().unwrap());
        EventLog::start(builder.build(path.parent().unwrap()).unwrap())
    }

    #[tokio::test]
    async fn an_appended_line_is_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let (log, writer) = log_to(&directory.path().join("events"));
        log.append(b"one\n".to_vec()).await.unwrap();
        let file = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
        assert_eq!(std::fs::read(file).unwrap(), b"one\n");
        drop(log);
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", directory.path().join("full")).unwrap();
        let (log, _writer) = log_to(&directory.path().join("full"));
        assert!(log.append(b"one\n".to_vec()).await.is_err());
    }
}
