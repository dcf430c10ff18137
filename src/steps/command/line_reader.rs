//! Reads lines, or a whole output, of a limited length. What is longer is an error, and is never held in memory.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Why there is no line.
#[derive(Debug)]
pub(super) enum ChildLineError {
    /// The output ended, or cannot be read. `partial`: in the middle of a line.
    Ended { partial: bool },
    /// The line has more bytes than allowed.
    TooLong,
}

/// Reads a line without its line break.
///
/// Not cancel-safe: what it has read of the line is lost.
pub(super) async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), max: usize) -> Result<Vec<u8>, ChildLineError> {
    let mut line = Vec::new();
    loop {
        let available = reader.fill_buf().await.unwrap_or_default();
        if available.is_empty() {
            return Err(ChildLineError::Ended { partial: !line.is_empty() });
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let part = &available[..end.unwrap_or(available.len())];
        if line.len() + part.len() > max {
            return Err(ChildLineError::TooLong);
        }
        line.extend_from_slice(part);
        let read = part.len() + usize::from(end.is_some());
        reader.consume(read);
        if end.is_some() {
            return Ok(line);
        }
    }
}

/// Appends everything up to the end to `output`, which then has at most `max` bytes. Returns whether that was all.
///
/// Cancel-safe: what was read is in `output`.
pub(super) async fn read_to_end(
    reader: &mut (impl AsyncBufRead + Unpin),
    output: &mut Vec<u8>,
    max: usize,
) -> io::Result<bool> {
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(true);
        }
        let count = available.len().min(max - output.len());
        if count == 0 {
            return Ok(false);
        }
        output.extend_from_slice(&available[..count]);
        reader.consume(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_read_up_to_its_limit_and_not_beyond() {
        let mut input = "ab\n\ncdefg\nrest".as_bytes();
        assert_eq!(read_line(&mut input, 2).await.unwrap(), b"ab");
        assert_eq!(read_line(&mut input, 2).await.unwrap(), b"");
        assert!(matches!(read_line(&mut input, 4).await, Err(ChildLineError::TooLong)));
        let mut input = "rest".as_bytes();
        assert!(matches!(read_line(&mut input, 9).await, Err(ChildLineError::Ended { partial: true })));
        assert!(matches!(read_line(&mut input, 9).await, Err(ChildLineError::Ended { partial: false })));
    }

    #[tokio::test]
    async fn output_is_read_up_to_its_limit() {
        let mut output = Vec::new();
        assert!(read_to_end(&mut "abcd".as_bytes(), &mut output, 4).await.unwrap());
        assert_eq!(output, b"abcd");
        assert!(!read_to_end(&mut "e".as_bytes(), &mut output, 4).await.unwrap());
        assert_eq!(output, b"abcd");
    }
}
