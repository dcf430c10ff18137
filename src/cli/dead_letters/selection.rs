//! The arguments that say which dead letters an action is for, and the question before it.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;

use super::filters::Matching;
use crate::cli::Exit;
use crate::ledger::{DeadLetterFilter, LetterSelection, LetterState};

/// Which dead letters: by number, or by filters.
#[derive(Debug, Args)]
pub(super) struct Selection {
    /// Numbers of dead letters
    #[arg(value_name = "ID")]
    pub ids: Vec<i64>,
    /// All of them
    #[arg(long)]
    all: bool,
    /// Only those in this state; by default open, and to release: held
    #[arg(long, value_name = "STATE", value_parser = state_names())]
    state: Option<LetterState>,
    #[command(flatten)]
    matching: Matching,
}

fn state_names() -> impl TypedValueParser<Value = LetterState> {
    let names = LetterState::ALL.iter().map(|state| state.as_str());
    PossibleValuesParser::new(names).map(|name| LetterState::parse(&name).expect("it is one of the names"))
}

impl Selection {
    /// The selection; `now` is what ages refer to.
    ///
    /// # Errors
    /// Nothing is selected, or in two ways.
    pub fn selection(&self, now: Timestamp) -> Result<LetterSelection, &'static str> {
        let filter = DeadLetterFilter { states: self.state.into_iter().collect(), ..self.matching.filter(now) };
        let only_state = DeadLetterFilter { states: Vec::new(), ..filter.clone() } == DeadLetterFilter::default();
        match (self.ids.is_empty(), self.all, filter == DeadLetterFilter::default()) {
            (false, false, true) => Ok(LetterSelection::Ids(self.ids.clone())),
            (true, true, _) if !only_state => {
                Err("--all selects every dead letter: leave it out to select by the other options")
            }
            (true, true, _) | (true, false, false) => {
                Ok(LetterSelection::Filter { filter: Box::new(filter), up_to: i64::MAX })
            }
            (true, false, true) => {
                Err("which dead letters? name them by number, select them by options such as --code, or use --all")
            }
            (false, ..) => Err("select dead letters either by number, or by options, or with --all"),
        }
    }
}

/// Asks on the terminal. `None`: there is none, so nobody can answer.
pub(super) fn confirmed(question: &str, err: &mut dyn Write) -> io::Result<Option<bool>> {
    let input = io::stdin();
    if !input.is_terminal() {
        return Ok(None);
    }
    write!(err, "{question} [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    input.lock().read_line(&mut answer)?;
    Ok(Some(matches!(answer.trim(), "y" | "Y" | "yes")))
}

/// The arguments make no sense.
pub(super) fn unusable(problem: &str, err: &mut dyn Write) -> io::Result<Exit> {
    writeln!(err, "orderd: {problem}")?;
    Ok(Exit::Usage)
}

/// The selection without what is stored later than this letter.
pub(super) fn bounded(selection: &mut LetterSelection, last: i64) {
    match selection {
        LetterSelection::Filter { up_to, .. } => *up_to = last,
        LetterSelection::Ids(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        selection: Selection,
    }

    #[test]
    fn dead_letters_are_selected_in_one_way() {
        let selected = |arguments: &[&str]| {
            let command = Command::try_parse_from([&["test"], arguments].concat()).unwrap();
            command.selection.selection(Timestamp::UNIX_EPOCH)
        };
        assert_eq!(selected(&["7", "8"]), Ok(LetterSelection::Ids(vec![7, 8])));
        for arguments in [&["--all"][..], &["--code", "x"], &["--state", "held"], &["--all", "--state", "held"]] {
            assert!(matches!(selected(arguments), Ok(LetterSelection::Filter { .. })), "{arguments:?}");
        }
        for arguments in
            [&[][..], &["--all", "--code", "x"], &["7", "--all"], &["7", "--code", "x"], &["7", "--state", "held"]]
        {
            assert!(selected(arguments).is_err(), "{arguments:?}");
        }
    }
}
