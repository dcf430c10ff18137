//! The dead letters of a replay as one JSON object. They may be many, so they come in parts.

use std::io::{self, Write};

use crate::escape::json_escaped;
use crate::ledger::ReplayLetter;

/// Writes them as [`ReplayLetters`](crate::dead_letters::ReplayLetters) that has no next page, indented.
#[derive(Default)]
pub(super) struct LettersJson {
    has_letters: bool,
}

impl LettersJson {
    /// The next ones, by number.
    pub fn write(&mut self, letters: &[ReplayLetter], out: &mut dyn Write) -> io::Result<()> {
        for letter in letters {
            let before = if std::mem::replace(&mut self.has_letters, true) { "," } else { "{\n  \"letters\": [" };
            let letter = json_escaped(&serde_json::to_string_pretty(letter)?).replace('\n', "\n    ");
            write!(out, "{before}\n    {letter}")?;
        }
        Ok(())
    }

    /// The end.
    pub fn finish(self, out: &mut dyn Write) -> io::Result<()> {
        let before = if self.has_letters { "\n  ]" } else { "{\n  \"letters\": []" };
        writeln!(out, "{before},\n  \"next\": null\n}}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::write_json;
    use crate::dead_letters::ReplayLetters;
    use crate::ledger::LetterProgress;

    #[test]
    fn letters_that_come_in_parts_are_written_as_they_come_and_are_one_document() {
        let letter = |id| ReplayLetter {
            id,
            progress: LetterProgress::FailedAgain,
            code: Some("a \"b\"\n\u{1b}".to_owned()),
            came_back_as: Some(100 + id),
        };
        for parts in [vec![], vec![vec![]], vec![vec![1]], vec![vec![1, 2], vec![3]]] {
            let (mut json, mut out) = (LettersJson::default(), Vec::new());
            for part in &parts {
                let (letters, before): (Vec<_>, _) = (part.iter().copied().map(letter).collect(), out.len());
                json.write(&letters, &mut out).unwrap();
                assert_eq!(out.len() > before, !part.is_empty(), "it is not kept");
            }
            json.finish(&mut out).unwrap();
            let letters = parts.concat().into_iter().map(letter).collect();
            let mut whole = Vec::new();
            write_json(&ReplayLetters { letters, next: None }, &mut whole).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), String::from_utf8(whole).unwrap());
        }
    }
}
