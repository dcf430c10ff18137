//! The arguments that say which dead letters an action is for, and the question before it.

use std::io::{self, BufRead, IsTerminal, Write};

use clap::Args;
use jiff::Timestamp;

use super::filters::Matching;
use crate::cli::Exit;
use crate::ledger::{DeadLetterFilter, LetterSelection};

/// Which dead letters: by number, or by filters.
#[derive(Debug, Args)]
pub(super) struct Selection {
    /// Numbers of dead letters
    #[arg(value_name = "ID")]
    pub ids: Vec<i64>,
    /// All of them
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    matching: Matching,
}

impl Selection {
    /// The selection; `now` is what ages refer to.
    ///
    /// # Errors
    /// Nothing is selected, or in two ways.
    pub fn selection(&self, now: Timestamp) -> Result<LetterSelection, &'static str> {
        let filter = self.matching.filter(now);
        match (self.ids.is_empty(), self.all, filter == DeadLetterFilter::default()) {
            (false, false, true) => Ok(LetterSelection::Ids(self.ids.clone())),
            (true, true, true) | (true, false, false) => {
                Ok(LetterSelection::Filter { filter: Box::new(filter), up_to: i64::MAX })
            }
            (true, false, true) => {
                Err("which dead letters? name them by number, select them by options such as --code, or use --all")
            }
            (false, ..) | (true, true, false) => {
                Err("select dead letters either by number, or by options, or with --all")
            }
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
