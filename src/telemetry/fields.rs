//! The fields of a line of the text log: the message, then `name=value`, with what others sent escaped.
//!
//! It formats only fields; time, level and target are the library's.

use std::fmt::{self, Debug, Write};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

use crate::escape::Escaping;

/// The field that holds the text of an event.
const MESSAGE: &str = "message";

/// Formats fields in one line that no text can break.
pub(super) struct EscapedFields;

impl<'w> FormatFields<'w> for EscapedFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = FieldWriter { writer, is_first: true, written: Ok(()) };
        fields.record(&mut visitor);
        visitor.written
    }
}

struct FieldWriter<'w> {
    writer: Writer<'w>,
    is_first: bool,
    written: fmt::Result,
}

impl FieldWriter<'_> {
    fn field(&mut self, field: &Field, value: &dyn Debug) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        let name = field.name().trim_start_matches("r#");
        match (name, self.writer.has_ansi_escapes()) {
            (MESSAGE, _) => {}
            // The name in italics and the sign dimmed, as tracing-subscriber does.
            (_, true) => write!(self.writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
            (_, false) => write!(self.writer, "{name}=")?,
        }
        write!(Escaping(&mut self.writer), "{value:?}")
    }
}

impl Visit for FieldWriter<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        // Records of the `log` crate have fields such as `log.target`, which are part of the line already.
        if self.written.is_ok() && !field.name().starts_with("log.") {
            self.written = self.field(field, value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // The message is text without quotes; other text is in quotes, as `Debug` shows it.
        if field.name() == MESSAGE {
            self.record_debug(field, &format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::escape::{JsonEscaping, is_escaped};

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// An order's id as an attacker chooses it: a line break and a forged line, escape sequences, hidden characters.
    const HOSTILE: &str = "1\n2026-11-22T08:00:00Z ERROR forged\r\u{1b}[2J\u{7f}\u{9b}31m\u{202e}\u{2028}\u{200b}";

    fn log() {
        let cause = io::Error::other(HOSTILE);
        tracing::warn!(id = HOSTILE, shown = %HOSTILE, debug = ?Some(HOSTILE), error = %cause, r#type = 1, "refused");
        tracing::warn!(error = &cause as &dyn std::error::Error, "closed: {HOSTILE}");
    }

    #[test]
    fn no_text_of_others_forges_a_line_of_the_log_or_reaches_the_terminal() {
        for ansi in [false, true] {
            let lines = Lines::default();
            let written = lines.clone();
            let layer = tracing_subscriber::fmt::layer().with_writer(move || written.clone()).with_ansi(ansi);
            let subscriber = tracing_subscriber::registry().with(layer.fmt_fields(EscapedFields));
            tracing::subscriber::with_default(subscriber, log);
            let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
            assert_eq!(text.lines().count(), 2, "{text}");
            assert!(!text.contains("\u{1b}[2J"), "{text:?}");
            if !ansi {
                assert!(!text.replace('\n', "").contains(is_escaped), "{text:?}");
                assert!(text.contains("refused id=\"1\\n2026") && text.contains(" shown=1\\n2026"), "{text}");
                assert!(text.contains(" type=1\n") && text.contains("closed: 1\\n2026"), "{text}");
            }
        }
    }

    #[test]
    fn a_json_log_has_one_object_per_line_without_characters_that_a_terminal_interprets() {
        let lines = Lines::default();
        let written = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || JsonEscaping(written.clone())).json();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer.flatten_event(true)), log);
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(!text.replace('\n', "").contains(is_escaped), "{text:?}");
        let objects: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((objects.len(), objects[0]["id"].as_str()), (2, Some(HOSTILE)));
    }
}
