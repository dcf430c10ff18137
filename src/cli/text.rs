//! Text for a terminal: shortens or wraps long text, and formats ages. It knows nothing about
//! what it shows.

use std::io::{self, Write};
use std::sync::OnceLock;
use std::time::Duration;

use jiff::Timestamp;

use crate::config::duration;

/// Maximum width of a line of the status, in columns.
pub(super) const MAX_WIDTH: usize = 110;
/// A narrower terminal wraps what it gets.
const MIN_WIDTH: usize = 40;
/// Columns of the terminal that the output is for; `None` inside: it is not for a terminal.
static TERMINAL_WIDTH: OnceLock<Option<usize>> = OnceLock::new();
/// Column at which the text after a label begins.
const LABEL_WIDTH: usize = 14;

/// Says once, at the start, what the output is for. Text that another program reads is not wrapped, so that it finds each line whole.
pub(super) fn set_terminal_width(width: Option<u16>) {
    // Only the first call counts.
    let _ = TERMINAL_WIDTH.set(width.map(usize::from));
}

/// Maximum width of a line of text, in columns; `None`: nothing is wrapped.
pub(super) fn line_width() -> Option<usize> {
    match TERMINAL_WIDTH.get() {
        None => Some(MAX_WIDTH),
        Some(width) => width.map(|width| width.clamp(MIN_WIDTH, MAX_WIDTH)),
    }
}

/// Maximum width of a table that needs as much as there is, in columns; `None`: nothing is wrapped.
pub(super) fn table_width() -> Option<u16> {
    TERMINAL_WIDTH.get().copied().flatten().map(|width| u16::try_from(width.max(MIN_WIDTH)).unwrap_or(u16::MAX))
}

/// At most `max` characters of a text; an ellipsis replaces the rest.
pub(super) fn shortened(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => text.to_owned(),
        Some(_) => text.chars().take(max - 1).chain(['…']).collect(),
    }
}

/// A number of things: `1 order`, `2 orders`, `2 retries`.
pub(super) fn counted(count: impl Into<i128>, what: &str) -> String {
    let count = count.into();
    match what.strip_suffix("ry") {
        _ if count == 1 => format!("{count} {what}"),
        Some(stem) => format!("{count} {stem}ries"),
        None => format!("{count} {what}s"),
    }
}

/// A channel, the fallback that stands in for it, and the shortened recipient.
pub(super) fn route(channel: &str, provider: Option<&str>, recipient: Option<&str>) -> String {
    let fallback = provider.filter(|provider| *provider != channel);
    let fallback = fallback.map_or_else(String::new, |provider| format!(" by its fallback {provider}"));
    let recipient = recipient.map_or_else(String::new, |recipient| format!(" ({recipient})"));
    format!("channel {channel}{fallback}{recipient}")
}

/// Which round of a message's steps, unless it is the first.
pub(super) fn round_text(round: i64) -> String {
    if round > 1 { format!(", round {round}") } else { String::new() }
}

/// The time since a moment, in whole seconds.
pub(super) fn age(moment: Timestamp, now: Timestamp) -> String {
    whole_seconds(now.duration_since(moment).as_secs_f64())
}

/// A time such as `1h 2m 5s`.
pub(super) fn whole_seconds(seconds: f64) -> String {
    duration::format(Duration::from_secs(seconds.max(0.0) as u64))
}

/// Writes a label with text beside it, wrapped.
pub(super) fn labelled(label: &str, text: &str, out: &mut dyn Write) -> io::Result<()> {
    wrap(&format!("{label:<width$} {text}", width = LABEL_WIDTH - 1), LABEL_WIDTH, line_width(), out)
}

/// Writes text, wrapped; further lines are indented a little.
pub(super) fn wrapped(text: &str, out: &mut dyn Write) -> io::Result<()> {
    wrap(text, 2, line_width(), out)
}

/// Writes text in lines of at most `max` characters, broken at spaces; all but the first are indented. A longer word gets a line of its
/// own.
fn wrap(text: &str, indent: usize, max: Option<usize>, out: &mut dyn Write) -> io::Result<()> {
    let Some(max) = max else { return writeln!(out, "{}", text.trim_end()) };
    let width = |text: &str| text.chars().count();
    let (mut line, mut has_word) = (String::new(), false);
    for word in text.split(' ') {
        if has_word && width(&line) + 1 + width(word) > max {
            writeln!(out, "{}", line.trim_end())?;
            (line, has_word) = (" ".repeat(indent), false);
        }
        if has_word {
            line.push(' ');
        }
        line.push_str(word);
        has_word = true;
    }
    writeln!(out, "{}", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thing_is_not_called_several() {
        assert_eq!(
            [0, 1, 2].map(|count| counted(count, "delayed retry")),
            ["0 delayed retries", "1 delayed retry", "2 delayed retries"]
        );
        assert_eq!([1, 2].map(|count| counted(count, "call")), ["1 call", "2 calls"]);
    }

    #[test]
    fn text_is_wrapped_at_the_width_of_the_terminal_and_not_at_all_for_another_program() {
        let shown = |max| {
            let mut out = Vec::new();
            wrap("in the store: 3 open", 2, max, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(shown(Some(14)), "in the store:\n  3 open\n");
        assert_eq!(shown(None), "in the store: 3 open\n");
    }

    #[test]
    fn a_long_text_is_shortened_to_its_beginning() {
        assert_eq!(["", "abc", "abcd", "产品产品"].map(|text| shortened(text, 3)), ["", "abc", "ab…", "产品…"]);
    }
}
