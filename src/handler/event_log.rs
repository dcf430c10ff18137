//! The analytics events' file: JSON lines, rolling, written behind the workers' backs in chunks.
//!
//! A convenience for people and log shippers: a crash may lose its last lines. The ledger is the record.

use std::io::Write;

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

async fn write(mut waiting: mpsc::Receiver<Vec<u8>>, mut file: NonBlocking) {
    let mut lines = Vec::with_capacity(MAX_CHUNK);
    while waiting.recv_many(&mut lines, MAX_CHUNK).await > 0 {
        let chunk = lines.concat();
        lines.clear();
        if let Err(error) = file.write_all(&chunk) {
            warn!(%error, "cannot write analytics events to their file; the ledger has them");
        }
    }
}
