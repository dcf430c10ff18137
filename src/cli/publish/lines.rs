//! Cuts a stream of bytes into lines, none of which can take more memory than [`MAX_LINE_BYTES`].

use std::io::{self, BufRead};

/// Longest line accepted, in bytes, without its end. Orders are a few hundred.
pub(super) const MAX_LINE_BYTES: usize = 1024 * 1024;

/// One line that is not blank.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The first is 1.
    pub number: u64,
    /// Without blanks around it; `None` if it is longer than [`MAX_LINE_BYTES`].
    pub text: Option<Vec<u8>>,
}

/// Reads lines.
pub(super) struct Lines<R> {
    input: R,
    number: u64,
    /// Bytes consumed so far.
    pub bytes: u64,
}

impl<R: BufRead> Lines<R> {
    pub fn new(input: R) -> Self {
        Lines { input, number: 0, bytes: 0 }
    }

    /// The next line that is not blank; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<Line>> {
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
                return Ok(Some(Line { number: self.number, text }));
            }
        }
    }

    /// Whether the line fits; `None` at the end of the input. Of one that does not fit, only what fits is kept.
    fn read_line(&mut self, text: &mut Vec<u8>) -> io::Result<Option<bool>> {
        let (mut fits, mut seen) = (true, false);
        loop {
            let chunk = match self.input.fill_buf() {
                Ok(chunk) => chunk,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if chunk.is_empty() {
                return Ok(seen.then_some(fits));
            }
            seen = true;
            let end = chunk.iter().position(|byte| *byte == b'\n');
            let part = &chunk[..end.unwrap_or(chunk.len())];
            if text.len() + part.len() > MAX_LINE_BYTES {
                fits = false;
            } else if fits {
                text.extend_from_slice(part);
            }
            let used = end.map_or(chunk.len(), |at| at + 1);
            self.input.consume(used);
            self.bytes += used as u64;
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
        // A buffer of seven bytes, so that lines straddle its edges.
        let mut lines = Lines::new(io::BufReader::with_capacity(7, input));
        let mut all = Vec::new();
        while let Some(Line { number, text }) = lines.next().unwrap() {
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
    fn a_line_that_is_too_long_does_not_hide_the_next() {
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
