//! `orderd dead-letters`: what failed for good, and why, from the ledger of this machine; and what is done with it.
//!
//! What only reads works whether a daemon runs or not. What changes something is asked of the daemon, which carries it out.

mod body;
mod change;
mod edit;
mod export;
mod filters;
mod follow;
mod list;
mod list_text;
mod replay;
mod replays;
mod selection;
mod show;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::Exit;
use super::admin_client::AdminClientError;
use super::report::ledger_exit;
use crate::chain::chain;
use crate::config::Sources;
use crate::escape::escaped;
use crate::ledger::{LedgerLocation, OpenError};

/// Arguments of `orderd dead-letters`.
#[derive(Debug, Args)]
#[command(subcommand_value_name = "COMMAND", subcommand_help_heading = "Commands")]
pub struct DeadLettersArgs {
    #[command(subcommand)]
    command: DeadLettersCommand,
}

#[derive(Debug, Subcommand)]
enum DeadLettersCommand {
    /// List dead letters, the latest first, or group them by their cause
    List(list::ListArgs),
    /// Show one dead letter: body, headers, and each attempt and step
    ///
    /// Exits with 1 if there is none with this number.
    Show(show::ShowArgs),
    /// Write dead letters to standard output, the oldest first: each with its content as one line of JSON, or as a row of CSV
    Export(export::ExportArgs),
    /// Give dead letters back to the queues they came from, and wait for the outcome
    ///
    /// One is published first, then ten, then the rest; it stops when too many fail again. Interrupted, the replay continues in the daemon.
    /// Exits with 1 if any failed again, or was not replayed although it was named.
    Replay(replay::ReplayArgs),
    /// Show replays, follow one, or stop one
    Replays(replays::ReplaysArgs),
    /// Edit the body of a dead letter in $VISUAL or $EDITOR; the original is kept
    Edit(edit::EditArgs),
    /// Put dead letters aside with a note: no replay takes them
    Hold(change::HoldArgs),
    /// Open dead letters again that were put aside, or whose replay ended without an outcome
    Release(change::ReleaseArgs),
    /// Close dead letters that are not needed; their contents are kept for ledger.retention
    Discard(change::DiscardArgs),
}

impl DeadLettersArgs {
    /// Whether only the ledger is read.
    pub(super) fn only_reads(&self) -> bool {
        match self.command {
            DeadLettersCommand::List(_) | DeadLettersCommand::Show(_) | DeadLettersCommand::Export(_) => true,
            DeadLettersCommand::Replay(_)
            | DeadLettersCommand::Replays(_)
            | DeadLettersCommand::Edit(_)
            | DeadLettersCommand::Hold(_)
            | DeadLettersCommand::Release(_)
            | DeadLettersCommand::Discard(_) => false,
        }
    }
}

/// Asks the daemon.
///
/// Returns the exit code: 0, 1 if not all was done, 64 if the request makes no sense, 69 if no daemon answers.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn act(
    args: DeadLettersArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let asked = match args.command {
        DeadLettersCommand::Replay(args) => replay::run(&args, sources, out, err).await?,
        DeadLettersCommand::Replays(args) => replays::run(&args, sources, out, err).await?,
        DeadLettersCommand::Edit(args) => edit::run(&args, sources, out, err).await?,
        DeadLettersCommand::Hold(args) => change::hold(&args, sources, out, err).await?,
        DeadLettersCommand::Release(args) => change::release(&args, sources, out, err).await?,
        DeadLettersCommand::Discard(args) => change::discard(&args, sources, out, err).await?,
        DeadLettersCommand::List(_) | DeadLettersCommand::Show(_) | DeadLettersCommand::Export(_) => {
            unreachable!("they only read")
        }
    };
    match asked {
        Ok(exit) => Ok(exit),
        Err(error) => {
            writeln!(err, "orderd: {}", escaped(&chain(&error)))?;
            Ok(error.exit())
        }
    }
}

/// What a command that asks the daemon has done, unless the daemon did not answer or refused.
type Asked = Result<Exit, AdminClientError>;

/// Runs the command.
///
/// Returns the exit code: 0, 1 if a dead letter that is asked for does not exist, 70 or 78 if the ledger cannot be read.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(
    args: DeadLettersArgs,
    ledger: &LedgerLocation,
    now: Timestamp,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let reader = ledger.reader();
    let done = match args.command {
        DeadLettersCommand::List(args) => list::run(&args, &*reader, now, out).await?,
        DeadLettersCommand::Show(args) => show::run(&args, &*reader, out, err).await?,
        DeadLettersCommand::Export(args) => export::run(&args, &*reader, now, out).await?,
        DeadLettersCommand::Replay(_)
        | DeadLettersCommand::Replays(_)
        | DeadLettersCommand::Edit(_)
        | DeadLettersCommand::Hold(_)
        | DeadLettersCommand::Release(_)
        | DeadLettersCommand::Discard(_) => unreachable!("they are asked of the daemon"),
    };
    match done {
        Ok(exit) => Ok(exit),
        Err(error) => {
            writeln!(err, "orderd: cannot read the ledger: {}", chain(&error))?;
            Ok(ledger_exit(&error))
        }
    }
}

/// What a command has done, unless the ledger could not be read.
type Done = Result<Exit, OpenError>;
