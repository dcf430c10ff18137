//! Files of JSON lines for people and log shippers: analytics events, and notifications on the `log` channel.
//!
//! Rolling, and written behind the workers' backs in chunks. A convenience: a crash may lose a file's last
//! lines. The ledger is the record.

use std::io::Write;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tracing::warn;
use tracing_appender::non_blocking::NonBlocking;

/// Lines that may wait for the writer; senders wait beyond that.
const MAX_WAITING: usize = 4096;
/// Lines written at once.
const MAX_CHUNK: usize = 512;

/// Takes lines for the file. Clones write to the same file; it is complete when all are gone and the
/// appender's guard is dropped.
#[derive(Debug, Clone)]
pub struct EventLog {
    lines: mpsc::Sender<Vec<u8>>,
}

impl EventLog {
    /// Starts the task that feeds `file`; it ends when all clones of the log are gone.
    pub fn start(file: NonBlocking) -> (Self, tokio::task::JoinHandle<()>) {
        let (lines, waiting) = mpsc::channel(MAX_WAITING);
        (EventLog { lines }, tokio::spawn(write(waiting, file)))
    }

    /// Adds a line, which must end with a line feed and contain no other.
    pub async fn append(&self, line: Vec<u8>) {
        // An error means that the writer is gone, which only a shutdown brings about.
        let _ = self.lines.send(line).await;
    }
}

/// One line: `{"id":…,"event":…,"received_at":…,"body":…}`. The body must be JSON; it is put in as it came, but for
/// line breaks, which JSON allows only between tokens.
pub(super) fn line(id: &str, event: &str, received_at: Timestamp, body: &[u8]) -> Vec<u8> {
    let text = |value: &str| serde_json::to_string(value).expect("text is JSON");
    let start = format!("{{\"id\":{},\"event\":{},\"received_at\":\"{received_at}\",\"body\":", text(id), text(event));
    let mut line = Vec::with_capacity(start.len() + body.len() + 2);
    line.extend_from_slice(start.as_bytes());
    line.extend(body.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
    line.extend_from_slice(b"}\n");
    line
}

async fn write(mut waiting: mpsc::Receiver<Vec<u8>>, mut file: NonBlocking) {
    let mut lines = Vec::with_capacity(MAX_CHUNK);
    while waiting.recv_many(&mut lines, MAX_CHUNK).await > 0 {
        let chunk = lines.concat();
        lines.clear();
        if let Err(error) = file.write_all(&chunk) {
            warn!(%error, "cannot write events to their file; the ledger has them");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_of_json() {
        let at = "2026-11-22T08:00:01Z".parse().unwrap();
        let line = String::from_utf8(line("a\"b", "email", at, b"{\n \"order_id\":\r\n 2}")).unwrap();
        assert_eq!(line.matches('\n').count(), 1);
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((read["id"].as_str(), read["body"]["order_id"].as_i64()), (Some("a\"b"), Some(2)));
    }
}
