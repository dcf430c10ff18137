//! `orderd dead-letters`: what failed for good, and why, from the ledger of this machine.
//!
//! It only reads, whether a daemon runs or not.

mod body;
mod export;
mod filters;
mod list;
mod list_text;
mod show;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::Exit;
use super::report::ledger_exit;
use crate::chain::chain;
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
}

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
