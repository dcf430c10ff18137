//! Repairs the end of a file of lines: an incomplete last line is removed or terminated.
//!
//! It must be called under the file's lock, or the incomplete line may be one that another instance is writing.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;

use serde::de::IgnoredAny;
use tracing::warn;

/// Bytes read at a time in search of the start of the last line.
const CHUNK_BYTES: u64 = 64 * 1024;

/// What becomes of a last line without a line feed, which a crash or a full disk left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IncompleteLine {
    /// It is removed, unless it is a whole JSON object that lacks only its line feed. For lines that are written again.
    Remove,
    /// It gets a line feed. For text that is worth reading even if it is cut off.
    Terminate,
}

/// Makes the file end with a whole line. Returns its length afterwards.
pub(super) fn repair(mut file: &File, length: u64, incomplete: IncompleteLine) -> io::Result<u64> {
    let mut last = [0];
    if length == 0 || file.read_at(&mut last, length - 1)? == 0 || last == *b"\n" {
        return Ok(length);
    }
    let start = start_of_last_line(file, length)?;
    if incomplete == IncompleteLine::Remove && !is_json_object(file, start, length) {
        file.set_len(start)?;
        warn!(
            bytes = length - start,
            "removed an incomplete line from the end of a file of events; it is written again"
        );
        return Ok(start);
    }
    file.write_all(b"\n")?;
    Ok(length + 1)
}

/// The position after the last line feed.
fn start_of_last_line(file: &File, length: u64) -> io::Result<u64> {
    let mut chunk = Vec::new();
    let mut end = length;
    while end > 0 {
        let begin = end.saturating_sub(CHUNK_BYTES);
        chunk.resize(usize::try_from(end - begin).expect("at most a chunk"), 0);
        file.read_exact_at(&mut chunk, begin)?;
        if let Some(feed) = chunk.iter().rposition(|byte| *byte == b'\n') {
            return Ok(begin + feed as u64 + 1);
        }
        end = begin;
    }
    Ok(0)
}

/// Whether this part of the file is a whole JSON object.
fn is_json_object(file: &File, start: u64, end: u64) -> bool {
    let mut first = [0];
    let begins = file.read_at(&mut first, start).is_ok_and(|read| read == 1) && first == *b"{";
    begins && serde_json::from_reader::<_, IgnoredAny>(BufReader::new(Part { file, at: start, end })).is_ok()
}

/// Reads a part of a file without moving its position.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}
