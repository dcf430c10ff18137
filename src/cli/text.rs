//! Text for a terminal: shortens or wraps long text, and formats ages. It knows nothing about
//! what it shows.

use std::io::{self, Write};
use std::time::Duration;

use jiff::Timestamp;

use crate::config::duration;

/// Maximum width of a line of the status, in columns.
pub(super) const MAX_WIDTH: usize = 110;
/// Column at which the text after a label begins.
const LABEL_WIDTH: usize = 14;

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
    wrap(&format!("{label:<width$} {text}", width = LABEL_WIDTH - 1), LABEL_WIDTH, out)
}

/// Writes text, wrapped; further lines are indented a little.
pub(super) fn wrapped(text: &str, out: &mut dyn Write) -> io::Result<()> {
    wrap(text, 2, out)
}

/// Writes text in lines of at most [`MAX_WIDTH`] characters, broken at spaces; all but the first are indented. A longer
/// word gets a line of its own.
fn wrap(text: &str, indent: usize, out: &mut dyn Write) -> io::Result<()> {
    let width = |text: &str| text.chars().count();
    let (mut line, mut has_word) = (String::new(), false);
    for word in text.split(' ') {
        if has_word && width(&line) + 1 + width(word) > MAX_WIDTH {
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
    fn a_long_text_is_shortened_to_its_beginning() {
        assert_eq!(["", "abc", "abcd", "产品产品"].map(|text| shortened(text, 3)), ["", "abc", "ab…", "产品…"]);
    }
}
