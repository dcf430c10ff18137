//! orderd's own log file, as the log's writing thread sees it: collects the lines that are waiting and writes them at once.

use std::io::{self, Write};

use jiff::Timestamp;

use crate::files::RollingFile;

/// Bytes of log lines that are written even if more are waiting.
const FULL_BATCH_BYTES: usize = 64 * 1024;

/// Receives whole lines; writes them when it is flushed, which happens when no more are waiting.
pub(super) struct LogFile {
    file: RollingFile,
    batch: Vec<u8>,
}

impl LogFile {
    pub fn new(file: RollingFile) -> Self {
        LogFile { file, batch: Vec::new() }
    }
}

impl Write for LogFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        self.batch.extend_from_slice(lines);
        if self.batch.len() >= FULL_BATCH_BYTES {
            self.flush()?;
        }
        Ok(lines.len())
    }

    /// Lines that cannot be written are dropped: they are on standard error too.
    fn flush(&mut self) -> io::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let written = self.file.append(&self.batch, Timestamp::now());
        self.batch.clear();
        written
    }
}
