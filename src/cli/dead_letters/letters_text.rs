//! The dead letters of a replay, one on a line, and below them what the words mean. They may be many, so they come in parts.

use std::collections::BTreeSet;
use std::io::{self, Write};

use super::plan_text::reason_text;
use crate::cli::outcome_text::outcome_text;
use crate::escape::escaped;
use crate::ledger::{LetterProgress, ReplayLetter};

/// Columns of an outcome: the longest text has as many.
const OUTCOME_WIDTH: usize = 22;
/// Columns of a code; a longer one moves what is behind it.
const CODE_WIDTH: usize = 20;
/// Shown for what there is not.
const NONE: &str = "-";

/// Writes them.
#[derive(Default)]
pub(super) struct LettersText {
    has_header: bool,
    /// What occurs and may need an explanation.
    outcomes: BTreeSet<LetterProgress>,
    /// Why some were not replayed.
    reasons: BTreeSet<String>,
}

impl LettersText {
    /// The next ones, by number.
    pub fn write(&mut self, letters: &[ReplayLetter], out: &mut dyn Write) -> io::Result<()> {
        if !letters.is_empty() && !std::mem::replace(&mut self.has_header, true) {
            writeln!(out, "{:>11}  {:<OUTCOME_WIDTH$}  {:<CODE_WIDTH$}  NOW", "DEAD LETTER", "OUTCOME", "CODE")?;
        }
        for ReplayLetter { id, progress, code, came_back_as } in letters {
            self.outcomes.insert(*progress);
            if let Some(code) = code.as_ref().filter(|_| *progress == LetterProgress::Skipped) {
                self.reasons.insert(code.clone());
            }
            let outcome = outcome_text(*progress);
            let code = code.as_deref().map_or_else(|| NONE.to_owned(), escaped);
            let now = came_back_as.map_or_else(|| NONE.to_owned(), |now| now.to_string());
            writeln!(out, "{id:>11}  {outcome:<OUTCOME_WIDTH$}  {code:<CODE_WIDTH$}  {now}")?;
        }
        Ok(())
    }

    /// What those that were written need as an explanation.
    pub fn finish(self, out: &mut dyn Write) -> io::Result<()> {
        if !self.has_header {
            return writeln!(out, "no dead letters");
        }
        for outcome in &self.outcomes {
            if let Some(text) = explanation(*outcome) {
                writeln!(out, "{}: {text}", outcome_text(*outcome))?;
            }
        }
        for reason in &self.reasons {
            writeln!(out, "{}: {}", escaped(reason), reason_text(reason, 1, &[]))?;
        }
        Ok(())
    }
}

fn explanation(outcome: LetterProgress) -> Option<&'static str> {
    match outcome {
        LetterProgress::FailedAgain => Some("dead-lettered again; NOW is the number of that dead letter"),
        LetterProgress::Undone => {
            Some("its steps are undone; NOW is the dead letter that says why the order had failed")
        }
        LetterProgress::NotDelivered => Some("a notification that was recorded; its order has no address"),
        LetterProgress::Publishing | LetterProgress::Published => {
            Some("published; it is not known yet what has become of it")
        }
        LetterProgress::Retrying => Some("it failed, and is tried again after a delay"),
        LetterProgress::Returned => Some("the replay was stopped before it was published"),
        LetterProgress::Unknown => Some(
            "no outcome was seen in time: look at the order with `orderd trace`, then `orderd dead-letters release` the dead letter",
        ),
        LetterProgress::Selected
        | LetterProgress::Processed
        | LetterProgress::Cancelled
        // The reasons are explained instead.
        | LetterProgress::Skipped => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dead_letters_of_a_replay_have_one_header_and_every_word_is_explained_once() {
        let letter = |id, progress, code: Option<&str>, came_back_as| ReplayLetter {
            id,
            progress,
            code: code.map(str::to_owned),
            came_back_as,
        };
        let (mut text, mut out) = (LettersText::default(), Vec::new());
        let first = [
            letter(7, LetterProgress::FailedAgain, Some("http_402"), Some(82)),
            letter(8, LetterProgress::Skipped, Some("no_queue"), None),
        ];
        text.write(&first, &mut out).unwrap();
        text.write(&[letter(9, LetterProgress::Skipped, Some("no_queue"), None)], &mut out).unwrap();
        text.write(&[letter(10, LetterProgress::Published, None, None)], &mut out).unwrap();
        text.finish(&mut out).unwrap();
        let shown = String::from_utf8(out).unwrap();
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(
            lines[..5],
            [
                "DEAD LETTER  OUTCOME                 CODE                  NOW",
                "          7  failed again            http_402              82",
                "          8  not replayed            no_queue              -",
                "          9  not replayed            no_queue              -",
                "         10  waiting for an outcome  -                     -",
            ]
        );
        let explained = |word: &str| lines[5..].iter().filter(|line| line.starts_with(&format!("{word}: "))).count();
        assert_eq!(["failed again", "no_queue", "waiting for an outcome"].map(explained), [1, 1, 1], "{shown}");
        assert_eq!(lines.len(), 8, "{shown}");
        let mut empty = Vec::new();
        LettersText::default().finish(&mut empty).unwrap();
        assert_eq!(empty, b"no dead letters\n");
    }

    #[test]
    fn every_outcome_fits_its_column() {
        for outcome in LetterProgress::ALL {
            assert!(outcome_text(*outcome).len() <= OUTCOME_WIDTH, "{outcome:?}");
        }
    }
}
