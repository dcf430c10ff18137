//! `orderd journal`: who did what, and whether the journal is as it was written.
//!
//! It only reads, whether a daemon runs or not. The list is asked of the daemon if one runs. The verification always reads the ledger of
//! this machine: it is about the file, whatever a daemon says.

mod list;
mod verify;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::ledger_source::{LedgerSource, SourceError};
use super::{Exit, find_ledger};
use crate::config::Sources;

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
    /// Always reads the ledger of this machine, never a daemon's answer: it is about the file. Exits with 1 if the journal is not as it was written.
    Verify(verify::VerifyArgs),
}

/// Runs the command.
///
/// Returns the exit code: 0, 1 if the journal is not as it was written, 69 if the daemon that is named does not answer, 70 or 78 if the
/// ledger cannot be read.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(
    args: JournalArgs,
    sources: &Sources,
    now: Timestamp,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let done = match args.command {
        JournalCommand::List(args) => {
            let source = match LedgerSource::open(&args.daemon, sources, err).await? {
                Ok(opened) => opened.source,
                Err(exit) => return Ok(exit),
            };
            list::run(&args, &source, now, out).await?
        }
        JournalCommand::Verify(args) => {
            let location = match find_ledger(sources, err)? {
                Ok((location, _)) => location,
                Err(exit) => return Ok(exit),
            };
            let verified = verify::run(&args, &*location.reader(), out).await?;
            verified.map_err(|error| SourceError::Ledger { error, no_token: false })
        }
    };
    match done {
        Ok(exit) => Ok(exit),
        Err(error) => error.report(err),
    }
}
