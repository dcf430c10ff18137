//! Escapes what a terminal, a pager or a log viewer would interpret or hide in text that others sent: control characters,
//! line breaks, characters that change the direction of the text, and characters without a width.
//!
//! It only adds escapes. It never shortens text, and never decides where text is shown.

use std::fmt::{self, Write as _};
use std::io;

/// Whether a character is escaped: it is a control character (C0, DEL, C1), breaks a line, changes the direction of the
/// text, or is invisible.
pub fn is_escaped(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
        )
}

/// The text in one line, with escapes such as `\n` and `\u{1b}`.
pub fn escaped(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    let written = Escaping(&mut line).write_str(text);
    written.expect("writing to a string does not fail");
    line
}

/// Passes on text with escapes, as [`escaped`] returns it.
pub struct Escaping<W>(pub W);

impl<W: fmt::Write> fmt::Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        pass_on(text, is_escaped, |part| self.0.write_str(part), |c| c.escape_default().to_string())
    }
}

/// JSON with the escapes of JSON, which do not change its meaning: all characters that are escaped occur in strings only.
/// Line breaks of indented JSON are kept.
pub fn json_escaped(json: &str) -> String {
    // Most text has nothing to escape, and bytes are looked at faster than characters.
    if json.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')) {
        return json.to_owned();
    }
    let mut text = String::with_capacity(json.len());
    let is_escaped = |c| is_escaped(c) && c != '\n';
    let written = pass_on(json, is_escaped, |part| text.write_str(part), json_escape);
    written.expect("writing to a string does not fail");
    text
}

/// Passes on lines of JSON as [`json_escaped`] returns them. Each write must consist of whole characters.
pub struct JsonEscaping<W>(pub W);

impl<W: io::Write> io::Write for JsonEscaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write_all(json_escaped(&String::from_utf8_lossy(bytes)).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// `\u` with four hexadecimal digits, for each half of the character in UTF-16.
fn json_escape(c: char) -> String {
    let mut halves = [0; 2];
    c.encode_utf16(&mut halves).iter().map(|half| format!("\\u{half:04x}")).collect()
}

/// Passes on a text in parts: unchanged ones, and the escapes between them.
fn pass_on<E>(
    mut text: &str,
    is_escaped: impl Fn(char) -> bool,
    mut write: impl FnMut(&str) -> Result<(), E>,
    escape: impl Fn(char) -> String,
) -> Result<(), E> {
    while let Some((at, c)) = text.char_indices().find(|(_, c)| is_escaped(*c)) {
        write(&text[..at])?;
        write(&escape(c))?;
        text = &text[at + c.len_utf8()..];
    }
    write(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// One of each kind: C0, line breaks, DEL, C1, direction, separators, without width, tags.
    const HOSTILE: &str =
        "a\u{1b}[2J\r\n\t\0\u{7f}\u{9b}31m\u{85}\u{202e}\u{2066}\u{61c}\u{2028}\u{200b}\u{feff}\u{e0041}z";

    #[test]
    fn text_is_one_line_without_characters_that_are_interpreted_or_hidden() {
        let shown = escaped(HOSTILE);
        assert!(shown.starts_with("a\\u{1b}[2J\\r\\n\\t\\u{0}\\u{7f}\\u{9b}31m\\u{85}\\u{202e}"), "{shown}");
        assert!(shown.ends_with('z') && !shown.contains(is_escaped), "{shown:?}");
        for harmless in ["Café 产品", "a b\\n", "\"quoted\"", "مرحبا", "❤️"] {
            assert_eq!(escaped(harmless), harmless);
        }
    }

    #[test]
    fn json_keeps_its_meaning() {
        let value = serde_json::json!({ HOSTILE: [HOSTILE] });
        let mut line = Vec::new();
        JsonEscaping(&mut line).write_all(format!("{value}\n").as_bytes()).unwrap();
        let line = String::from_utf8(line).unwrap();
        assert!(!line.trim_end().contains(is_escaped), "{line:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), value);
        let indented = json_escaped(&format!("{value:#}"));
        assert_eq!((indented.lines().count(), serde_json::from_str(&indented).ok()), (5, Some(value)));
    }
}
