//! `orderd journal`: who did what, from the ledger of this machine, and whether the journal is as it was written.
//!
//! It only reads, whether a daemon runs or not.

mod list;
mod verify;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::Exit;
use super::report::ledger_exit;
use crate::chain::chain;
use crate::ledger::{LedgerLocation, OpenError};

/// Arguments of `orderd journal`.
#[derive(Debug, Args)]
#[command(subcommand_value_name = "COMMAND", subcommand_help_heading = "Commands")]
pub struct JournalArgs {
    #[command(subcommand)]
    command: JournalCommand,
}

#[derive(Debug, Subcommand)]
enum JournalCommand {
    /// List actions, the latest first
    List(list::ListArgs),
    /// Find entries that were changed or removed, and print the hash of the last one
    ///
    /// Exits with 1 if the journal is not as it was written.
    Verify(verify::VerifyArgs),
}

/// Runs the command.
///
/// Returns the exit code: 0, 1 if the journal is not as it was written, 70 or 78 if the ledger cannot be read.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(
    args: JournalArgs,
    ledger: &LedgerLocation,
    now: Timestamp,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let reader = ledger.reader();
    let done = match args.command {
        JournalCommand::List(args) => list::run(&args, &*reader, now, out).await?,
        JournalCommand::Verify(args) => verify::run(&args, &*reader, out).await?,
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
