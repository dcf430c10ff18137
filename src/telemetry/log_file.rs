//! orderd's own log file, as the log's writing thread sees it: collects the lines that are waiting and writes them at once.
//!
//! It never delays anything but that thread; only the start waits, for a limited time.

use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use jiff::Timestamp;

use crate::files::{IncompleteLine, Rolling, RollingFile};

/// Bytes of log lines that are written even if more are waiting.
const FULL_BATCH_BYTES: usize = 64 * 1024;

/// Receives whole lines; writes them when it is flushed, which happens when no more are waiting.
pub(super) struct LogFile {
    files: Rolling,
    /// `None` if the disk hung at the start: the file is then opened for the first lines.
    file: Option<RollingFile>,
    batch: Vec<u8>,
}

impl LogFile {
    /// Opens the current file, but waits no longer than `patience` for a disk that hangs.
    ///
    /// # Errors
    /// The file or its directory cannot be created or written.
    pub fn open(files: Rolling, patience: Duration) -> io::Result<Self> {
        let (opened, opening) = mpsc::channel();
        let opener = files.clone();
        thread::Builder::new().name("log-opener".to_owned()).spawn(move || {
            // Nothing receives it if the disk took too long.
            let _ = opened.send(open(opener));
        })?;
        let file = match opening.recv_timeout(patience) {
            Ok(opened) => Some(opened?),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        Ok(LogFile { files, file, batch: Vec::new() })
    }

    /// Whether the file could be opened in time.
    pub fn is_open(&self) -> bool {
        self.file.is_some()
    }
}

fn open(files: Rolling) -> io::Result<RollingFile> {
    RollingFile::open(files, IncompleteLine::Terminate, Timestamp::now())
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
        let batch = std::mem::take(&mut self.batch);
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(open(self.files.clone())?),
        };
        file.append(&batch, Timestamp::now())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::files::{FILE_MODE, Rotation};

    fn files(directory: &std::path::Path) -> Rolling {
        let (name, suffix) = ("orderd", "log");
        Rolling { directory: directory.to_owned(), name, suffix, rotation: Rotation::Never, keep: 1, mode: FILE_MODE }
    }

    #[test]
    fn a_file_that_is_not_open_in_time_is_opened_for_the_first_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("orderd.log");
        let mut file = LogFile::open(files(directory.path()), Duration::ZERO).unwrap();
        file.write_all(b"one\n").unwrap();
        file.flush().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\n");
        file.write_all(b"two\n").unwrap();
        file.flush().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(LogFile::open(files(file.path()), Duration::from_secs(60)).is_err(), "its directory is a file");
    }
}
