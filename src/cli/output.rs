//! Standard output and standard error of all commands.
//!
//! A reader that closes the pipe early, such as `head`, is not an error: the command does its work and exits as usual, and
//! writes nothing more. Any other failure of standard output, such as a full disk, is an error. Standard error is written as
//! far as possible, since a failure could not be reported anyway. It never decides what is written, but escapes what a
//! terminal would interpret.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde::Serialize;

use crate::escape::{escaped, is_escaped, json_escaped};

/// Where a command writes its output.
pub(super) struct Output<W> {
    inner: W,
    /// Nothing is written any more: the reader has closed the pipe.
    closed: bool,
    /// Failures are ignored.
    best_effort: bool,
}

impl Output<io::Stdout> {
    pub(super) fn stdout() -> Self {
        Output { inner: io::stdout(), closed: false, best_effort: false }
    }
}

impl Output<io::Stderr> {
    pub(super) fn stderr() -> Self {
        Output { inner: io::stderr(), closed: false, best_effort: true }
    }
}

impl<W: Write> Output<W> {
    fn pass_on(&mut self, write: impl FnOnce(&mut W) -> io::Result<()>) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        match write(&mut self.inner) {
            Err(error) if self.best_effort || error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            written => written,
        }
    }

    /// Whether the reader has closed the pipe.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes bytes as they are, for control sequences of the program itself.
    pub(super) fn write_unchanged(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pass_on(|inner| inner.write_all(bytes))
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        self.pass_on(|inner| match text.contains(must_be_escaped) {
            true => inner.write_all(with_layout(&text).as_bytes()),
            false => inner.write_all(bytes),
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass_on(Write::flush)
    }
}

/// Line breaks and tabs are the layout of a command's own text. What others sent was put into one line before.
fn must_be_escaped(c: char) -> bool {
    is_escaped(c) && !matches!(c, '\n' | '\t')
}

fn with_layout(text: &str) -> String {
    text.split_inclusive(['\n', '\t']).fold(String::new(), |mut shown, part| {
        let own = part.trim_end_matches(['\n', '\t']);
        let written = write!(shown, "{}{}", escaped(own), &part[own.len()..]);
        written.expect("writing to a string does not fail");
        shown
    })
}

/// Writes one indented JSON object.
pub(super) fn write_json(value: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", json_escaped(&serde_json::to_string_pretty(value)?))
}

/// Writes one JSON object in one line.
pub(super) fn write_json_line(value: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", json_escaped(&serde_json::to_string(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn a_closed_pipe_is_silent_and_a_full_disk_is_an_error() {
        let output = |kind, best_effort| Output { inner: Failing(kind), closed: false, best_effort };
        assert!(writeln!(output(io::ErrorKind::BrokenPipe, false), "x").is_ok());
        assert!(output(io::ErrorKind::BrokenPipe, false).flush().is_ok());
        assert!(writeln!(output(io::ErrorKind::StorageFull, false), "x").is_err());
        assert!(output(io::ErrorKind::StorageFull, false).flush().is_err());
        assert!(writeln!(output(io::ErrorKind::StorageFull, true), "x").is_ok());
    }

    #[test]
    fn only_the_layout_of_a_text_reaches_the_terminal() {
        let mut out = Output { inner: Vec::new(), closed: false, best_effort: false };
        out.write_all("a\tb \u{1b}[2J\r\u{202e}\n\n".as_bytes()).unwrap();
        assert_eq!(String::from_utf8(out.inner).unwrap(), "a\tb \\u{1b}[2J\\r\\u{202e}\n\n");
    }
}
