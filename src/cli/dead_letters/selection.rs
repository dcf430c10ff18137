//! The arguments that say which dead letters an action is for, and the question before it.

use std::io::{self, BufRead, IsTerminal, Read, Write};

use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::filters::Matching;
use super::interrupt::Interrupt;
use crate::cli::Exit;
use crate::cli::argument::number;
use crate::dead_letters::LetterChangeKind;
use crate::ledger::{DeadLetterFilter, LetterSelection, LetterState};

/// Which dead letters: by number, or by filters.
#[derive(Debug, Args)]
pub(super) struct Selection {
    /// Numbers of dead letters
    #[arg(value_name = "ID", value_parser = number)]
    pub ids: Vec<i64>,
    /// All of them
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    matching: Matching,
}

/// The states that an action can be applied to.
pub(super) fn states_of(action: LetterChangeKind) -> impl TypedValueParser<Value = LetterState> {
    let names = action.states().iter().map(|state| state.as_str());
    PossibleValuesParser::new(names).map(|name| LetterState::parse(&name).expect("it is one of the names"))
}

/// The only state of dead letters that can be replayed.
pub(super) fn replayable(name: &str) -> Result<LetterState, &'static str> {
    match LetterState::parse(name) {
        Some(LetterState::Open) => Ok(LetterState::Open),
        Some(LetterState::Held) => {
            Err("only open dead letters are replayed: open them first with `orderd dead-letters release`")
        }
        Some(LetterState::Replaying | LetterState::Replayed | LetterState::Discarded) => {
            Err("only open dead letters are replayed")
        }
        None => Err("must be open: only open dead letters are replayed"),
    }
}

impl Selection {
    /// The selection of letters in a state, or in the one that the action is for; `now` is what ages refer to.
    ///
    /// # Errors
    /// Nothing is selected, or in two ways.
    pub fn selection(&self, state: Option<LetterState>, now: Timestamp) -> Result<LetterSelection, &'static str> {
        let filter = DeadLetterFilter { states: state.into_iter().collect(), ..self.matching.filter(now)? };
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

/// How a question was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    /// Or an empty line, or the end of the input.
    No,
    /// There is no terminal, so nobody can answer.
    Nobody,
    /// With Ctrl-C.
    Interrupted,
}

/// The longest line that is read as an answer, in bytes.
const MAX_ANSWER: u64 = 1_024;

/// Asks on the terminal, until the answer is clear.
pub(super) async fn ask(question: &str, interrupt: &mut Interrupt, err: &mut dyn Write) -> io::Result<Answer> {
    if !io::stdin().is_terminal() {
        return Ok(Answer::Nobody);
    }
    loop {
        write!(err, "{question} [y/N] ")?;
        err.flush()?;
        let Some(line) = interrupt.unless(answer_line()).await else { return Ok(Answer::Interrupted) };
        let line = line?;
        if line.is_empty() {
            // Nothing has ended the line of the question.
            writeln!(err)?;
        }
        if let Some(answer) = answer(&line) {
            return Ok(answer);
        }
        writeln!(err, "please answer yes or no")?;
    }
}

/// What a line says; `None` if that is not clear.
fn answer(line: &str) -> Option<Answer> {
    match line.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Some(Answer::Yes),
        "" | "n" | "no" => Some(Answer::No),
        _ => None,
    }
}

/// A line from the terminal; empty at the end of the input.
async fn answer_line() -> io::Result<String> {
    let (sender, answer) = oneshot::channel();
    // Not a task of the runtime: a read from a terminal cannot be cancelled. It ends with the process.
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = io::stdin().lock().take(MAX_ANSWER).read_line(&mut line);
        // Nobody waits for it after Ctrl-C.
        let _ = sender.send(read.map(|_| line));
    });
    answer.await.map_err(io::Error::other)?
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
        #[arg(long, value_parser = states_of(LetterChangeKind::Hold))]
        state: Option<LetterState>,
    }

    #[test]
    fn dead_letters_are_selected_in_one_way() {
        let selected = |arguments: &[&str]| {
            let command = Command::try_parse_from([&["test"], arguments].concat()).unwrap();
            command.selection.selection(command.state, Timestamp::UNIX_EPOCH)
        };
        assert_eq!(selected(&["7", "8"]), Ok(LetterSelection::Ids(vec![7, 8])));
        for arguments in [
            &["--all"][..],
            &["--since", "-1h", "--until", "5m"],
            &["--code", "x"],
            &["--state", "held"],
            &["--all", "--state", "held"],
        ] {
            assert!(matches!(selected(arguments), Ok(LetterSelection::Filter { .. })), "{arguments:?}");
        }
        for arguments in [
            &[][..],
            &["--since", "5m", "--until", "1h"],
            &["--all", "--code", "x"],
            &["7", "--all"],
            &["7", "--code", "x"],
            &["7", "--state", "held"],
        ] {
            assert!(selected(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn an_unclear_answer_is_neither_yes_nor_no() {
        for (line, expected) in [
            ("y\n", Some(Answer::Yes)),
            ("Yes\n", Some(Answer::Yes)),
            ("no\n", Some(Answer::No)),
            ("\n", Some(Answer::No)),
            ("", Some(Answer::No)),
            ("maybe\n", None),
        ] {
            assert_eq!(answer(line), expected, "{line:?}");
        }
    }

    #[test]
    fn only_states_that_the_action_is_for_can_be_named_and_held_ones_have_to_be_released_before_a_replay() {
        assert!(Command::try_parse_from(["test", "--state", "held"]).is_ok());
        let refused = Command::try_parse_from(["test", "--state", "replayed"]).err().unwrap().to_string();
        assert!(refused.contains("[possible values: open, held]"), "{refused}");
        assert_eq!(replayable("open"), Ok(LetterState::Open));
        assert!(replayable("held").unwrap_err().contains("release"));
        assert!(replayable("x").is_err());
    }
}
