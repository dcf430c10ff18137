//! An error with its causes, in one line for a log field or for stderr.

use std::fmt::Write;

use crate::escape::Escaping;

/// The error's text and the texts of its sources, joined by colons, with what others sent escaped.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut line = Escaping(&mut text);
    let mut written = write!(line, "{error}");
    let mut source = error.source();
    while let Some(cause) = source {
        written = written.and_then(|()| write!(line, ": {cause}"));
        source = cause.source();
    }
    written.expect("writing to a string does not fail");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot connect")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn a_cause_with_line_breaks_and_escape_sequences_stays_one_harmless_line() {
        let error = Outer(std::io::Error::other("closed\n2026 ERROR forged\u{1b}[2J"));
        assert_eq!(chain(&error), "cannot connect: closed\\n2026 ERROR forged\\u{1b}[2J");
    }
}
