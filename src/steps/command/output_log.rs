//! What the children of a command write to standard error: lines for orderd's log, limited in length and number, and the last
//! part for the reason of a failure.
//!
//! It only reads and logs. A child that writes far too much is reported to the caller, who ends it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::ChildStderr;
use tokio::time::Instant;
use tracing::{info, warn};

use super::CommandName;
use crate::recovery::MAX_REASON_BYTES;
use crate::token_bucket::TokenBucket;

/// The longest line that is logged, in bytes. The rest of a longer one is left out.
const MAX_LINE_BYTES: usize = 1024;
/// The most lines of one command that are logged at once.
const LINES_AT_ONCE: f64 = 50.0;
/// The lines of one command that are logged per second in the long run.
const LINES_PER_SECOND: f64 = 10.0;
/// How much a child may write to standard error at once.
const BYTES_AT_ONCE: f64 = (8 << 20) as f64;
/// How much a child may write per second in the long run.
const BYTES_PER_SECOND: f64 = (256 << 10) as f64;
/// How much is read at a time, in bytes.
const CHUNK_BYTES: usize = 8 * 1024;

/// The lines of all children of one command.
#[derive(Debug)]
pub(super) struct OutputLog {
    name: CommandName,
    state: Mutex<LogState>,
}

#[derive(Debug)]
struct LogState {
    lines: TokenBucket,
    /// Lines that were not logged since the last one that was.
    left_out: u64,
}

impl OutputLog {
    pub(super) fn new(name: CommandName) -> Self {
        let lines = TokenBucket::full(LINES_AT_ONCE, LINES_PER_SECOND, Instant::now());
        OutputLog { name, state: Mutex::new(LogState { lines, left_out: 0 }) }
    }

    fn line(&self, pid: u32, line: &[u8]) {
        if line.trim_ascii().is_empty() {
            return;
        }
        let left_out = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if !state.lines.take(Instant::now()) {
                state.left_out += 1;
                return;
            }
            std::mem::take(&mut state.left_out)
        };
        let CommandName { consumer, step } = &self.name;
        if left_out > 0 {
            warn!(%consumer, %step, left_out, "a command writes too many lines to standard error; some were left out");
        }
        let line = String::from_utf8_lossy(line);
        info!(%consumer, %step, pid, line = line.trim_end(), "output of a command");
    }
}

/// What a read found, and whether the child may continue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// It wrote something.
    Some,
    /// It will write nothing more.
    End,
    /// It writes too much.
    Flood,
}

/// Reads the standard error of one child.
#[derive(Debug)]
pub(super) struct StderrReader {
    stderr: ChildStderr,
    pid: u32,
    line: Vec<u8>,
    /// The end of what it wrote, at most [`MAX_REASON_BYTES`].
    tail: VecDeque<u8>,
    allowance: TokenBucket,
    chunk: Vec<u8>,
}

impl StderrReader {
    pub(super) fn new(stderr: ChildStderr, pid: u32) -> Self {
        let allowance = TokenBucket::full(BYTES_AT_ONCE, BYTES_PER_SECOND, Instant::now());
        let (line, tail, chunk) = (Vec::new(), VecDeque::new(), vec![0; CHUNK_BYTES]);
        StderrReader { stderr, pid, line, tail, allowance, chunk }
    }

    /// Waits for output and logs its lines. Cancel-safe.
    pub(super) async fn read(&mut self, log: &OutputLog) -> Output {
        // An error is the end: the pipe is gone.
        let count = self.stderr.read(&mut self.chunk).await.unwrap_or(0);
        if count == 0 {
            log.line(self.pid, &std::mem::take(&mut self.line));
            return Output::End;
        }
        for part in self.chunk[..count].split_inclusive(|byte| *byte == b'\n') {
            let room = MAX_LINE_BYTES - self.line.len();
            self.line.extend_from_slice(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                log.line(self.pid, &self.line);
                self.line.clear();
            }
        }
        let kept = &self.chunk[count.saturating_sub(MAX_REASON_BYTES)..count];
        self.tail.drain(..(self.tail.len() + kept.len()).saturating_sub(MAX_REASON_BYTES));
        self.tail.extend(kept);
        if self.allowance.take_many(count as f64, Instant::now()) { Output::Some } else { Output::Flood }
    }

    /// Reads what is left, for at most this long.
    pub(super) async fn finish(&mut self, log: &OutputLog, wait: Duration) {
        let rest = async { while self.read(log).await == Output::Some {} };
        // Cancel-safe: `read` is.
        let _ = tokio::time::timeout(wait, rest).await;
    }

    /// The end of what the child wrote, as text.
    pub(super) fn tail(self) -> String {
        let tail: Vec<u8> = self.tail.into();
        String::from_utf8_lossy(&tail).trim().to_owned()
    }
}
