//! Splits an input into lines and keeps at most [`MAX_LINE_BYTES`] of each in memory. It does not parse them.

use std::io::{self, BufRead};

/// Maximum length of a line, in bytes, without the newline. An order has a few hundred.
pub(super) const MAX_LINE_BYTES: usize = 1024 * 1024;

/// One line that is not blank.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InputLine {
    /// Line number; the first is 1.
    pub number: u64,
    /// Without surrounding whitespace; `None` if it is longer than [`MAX_LINE_BYTES`].
    pub text: Option<Vec<u8>>,
}

/// Reads lines from an input.
pub(super) struct InputLines<R> {
    input: R,
    number: u64,
    /// Bytes consumed so far.
    pub bytes: u64,
}

impl<R: BufRead> InputLines<R> {
    pub fn new(input: R) -> Self {
        InputLines { input, number: 0, bytes: 0 }
    }

    /// The next line that is not blank; `None` at the end of the input.
    ///
    /// # Errors
    /// When the input cannot be read.
    pub fn next(&mut self) -> io::Result<Option<InputLine>> {
        loop {
            let mut text = Vec::new();
            let Some(fits) = self.read_line(&mut text)? else { return Ok(None) };
            self.number += 1;
            if self.number == 1 && text.starts_with(b"\xEF\xBB\xBF") {
                text.drain(..3);
            }
            let trimmed = text.trim_ascii();
            if !fits || !trimmed.is_empty() {
                let text = fits.then(|| trimmed.to_vec());
                return Ok(Some(InputLine { number: self.number, text }));
            }
        }
    }

    /// Appends one line to `text`: `Some(true)` if it fits, `Some(false)` if only its beginning was kept, `None` at the end
    /// of the input.
    fn read_line(&mut self, text: &mut Vec<u8>) -> io::Result<Option<bool>> {
        let (mut fits, mut has_bytes) = (true, false);
        loop {
            let chunk = match self.input.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if chunk.is_empty() {
                return Ok(has_bytes.then_some(fits));
            }
            has_bytes = true;
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            if text.len() + part.len() > MAX_LINE_BYTES {
                fits = false;
            } else if fits {
                text.extend_from_slice(part);
            }
            let consumed = end.map_or(chunk.len(), |at| at + 1);
            self.input.consume(consumed);
            self.bytes += consumed as u64;
            if end.is_some() {
                return Ok(Some(fits));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: &[u8]) -> Vec<(u64, Option<Vec<u8>>)> {
        // A buffer of seven bytes, so that lines cross its boundaries.
        let mut lines = InputLines::new(io::BufReader::with_capacity(7, input));
        let mut all = Vec::new();
        while let Some(InputLine { number, text }) = lines.next().unwrap() {
            all.push((number, text));
        }
        assert_eq!(lines.bytes, input.len() as u64);
        all
    }

    #[test]
    fn blank_lines_are_skipped_but_counted() {
        let lines = read(b"\xEF\xBB\xBF{\"id\": 1}\r\n\n  \t\r\n {\"id\": 2} \nlast");
        let texts: Vec<_> = lines.iter().map(|(n, text)| (*n, text.as_deref().unwrap())).collect();
        assert_eq!(texts, [(1, &b"{\"id\": 1}"[..]), (4, b"{\"id\": 2}"), (5, b"last")]);
        assert_eq!(read(b""), []);
        assert_eq!(read(b"\n\n"), []);
    }

    #[test]
    fn a_line_that_is_too_long_does_not_hide_the_next_one() {
        let mut input = vec![b'x'; MAX_LINE_BYTES];
        input.extend_from_slice(b"\n");
        input.extend(vec![b'y'; MAX_LINE_BYTES + 1]);
        input.extend_from_slice(b"\nz");
        let lines = read(&input);
        assert_eq!(
            lines.iter().map(|(n, text)| (*n, text.as_ref().map(Vec::len))).collect::<Vec<_>>(),
            [(1, Some(MAX_LINE_BYTES)), (2, None), (3, Some(1))]
        );
    }
}
