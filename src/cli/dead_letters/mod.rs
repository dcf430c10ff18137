//! `orderd dead-letters`: shows dead letters and acts on them.
//!
//! What only reads asks the daemon, or reads the ledger of this machine if none runs. What changes something is asked of the daemon,
//! which carries it out.

mod body;
mod change;
mod edit;
mod export;
mod filters;
mod follow;
mod interrupt;
mod letters_json;
mod letters_text;
mod list;
mod list_text;
mod plan_text;
mod progress;
mod replay;
mod replays;
mod report_text;
mod selection;
mod show;
mod unknown_names;

use std::io::{self, Write};

use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::Exit;
use super::admin_client::{AdminClientError, DaemonTarget};
use super::ledger_source::{LedgerSource, SourceError};
use crate::chain::chain;
use crate::config::{Config, Sources, load_ledger_directory};
use crate::escape::escaped;
use crate::ledger::LedgerLocation;

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
    /// Publish dead letters again, each to the queue it came from, and wait for the outcome
    ///
    /// One is published first, then ten, then the rest; it stops when too many fail again. Interrupted, the command exits with 130, and a
    /// replay that has begun continues in the daemon. Exits with 1 if any failed again, or was not replayed although it was named; with 3 if there is
    /// nothing to replay.
    Replay(replay::ReplayArgs),
    /// Show replays, follow one, list its dead letters, or stop it, also if no daemon runs
    Replays(replays::ReplaysArgs),
    /// Edit the body of a dead letter in $VISUAL or $EDITOR, decompressed; the original is kept
    Edit(edit::EditArgs),
    /// Hold dead letters, with a note: replays leave them out
    Hold(change::HoldArgs),
    /// Open held dead letters again, and those whose replay ended without an outcome
    Release(change::ReleaseArgs),
    /// Discard dead letters that are not needed; their contents are kept for ledger.retention
    Discard(change::DiscardArgs),
}

impl DeadLettersArgs {
    /// Whether it changes nothing, so that the ledger will do.
    pub(super) fn only_reads(&self) -> bool {
        self.source().is_some()
    }

    /// Whether it only says what it would do.
    fn is_dry_run(&self) -> bool {
        match &self.command {
            DeadLettersCommand::Replay(args) => args.dry_run,
            DeadLettersCommand::Hold(args) => args.is_dry_run(),
            DeadLettersCommand::Release(args) => args.is_dry_run(),
            DeadLettersCommand::Discard(args) => args.is_dry_run(),
            DeadLettersCommand::List(_)
            | DeadLettersCommand::Show(_)
            | DeadLettersCommand::Export(_)
            | DeadLettersCommand::Replays(_)
            | DeadLettersCommand::Edit(_) => false,
        }
    }

    /// The daemon that a read-only command asks first; `None` for the others.
    fn source(&self) -> Option<&DaemonTarget> {
        match &self.command {
            DeadLettersCommand::List(args) => Some(&args.daemon),
            DeadLettersCommand::Show(args) => Some(&args.daemon),
            DeadLettersCommand::Export(args) => Some(&args.daemon),
            DeadLettersCommand::Replay(_)
            | DeadLettersCommand::Replays(_)
            | DeadLettersCommand::Edit(_)
            | DeadLettersCommand::Hold(_)
            | DeadLettersCommand::Release(_)
            | DeadLettersCommand::Discard(_) => None,
        }
    }
}

/// Asks the daemon.
///
/// Returns the exit code: 0, 1 if not all was done, 3 if there was nothing to do, 64 if the request makes no sense, 69 if no daemon
/// answers, 77 if it does not accept the token, 130 if the command was interrupted.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn act(
    args: DeadLettersArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let is_dry_run = args.is_dry_run();
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
            let is_without_daemon =
                error.exit() == Exit::Unavailable || matches!(error, AdminClientError::NoAddress { .. });
            if is_dry_run && is_without_daemon {
                let text = "a dry run needs the daemon, because it depends on its consumers and what they wait for";
                writeln!(
                    err,
                    "orderd: {text}; `orderd dead-letters list --group` shows what is stored, also without one"
                )?;
            }
            Ok(error.exit())
        }
    }
}

/// The ledger of this machine. Errors elsewhere in the configuration do not matter.
fn ledger_of(sources: &Sources) -> Option<LedgerLocation> {
    match Config::load_usable(sources) {
        Ok((loaded, _)) => Some(loaded.config.ledger.location()),
        Err(_) => load_ledger_directory(sources).map(LedgerLocation::Directory),
    }
}

/// What a command that asks the daemon has done, unless the daemon did not answer or refused.
type Asked = Result<Exit, AdminClientError>;

/// Shows what is stored.
///
/// Returns the exit code: 0, 1 if a dead letter that is asked for does not exist, 69 if the daemon that is named does not answer, 70 or 78
/// if the ledger cannot be read.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn read(
    args: DeadLettersArgs,
    sources: &Sources,
    now: Timestamp,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let Some(target) = args.source() else { unreachable!("the others are asked of the daemon") };
    let source = match LedgerSource::open(target, sources, err).await? {
        Ok(opened) => opened.source,
        Err(exit) => return Ok(exit),
    };
    let done = match args.command {
        DeadLettersCommand::List(args) => list::run(&args, &source, now, out, err).await?,
        DeadLettersCommand::Show(args) => show::run(&args, &source, out, err).await?,
        DeadLettersCommand::Export(args) => export::run(&args, &source, now, out, err).await?,
        DeadLettersCommand::Replay(_)
        | DeadLettersCommand::Replays(_)
        | DeadLettersCommand::Edit(_)
        | DeadLettersCommand::Hold(_)
        | DeadLettersCommand::Release(_)
        | DeadLettersCommand::Discard(_) => unreachable!("they are asked of the daemon"),
    };
    match done {
        Ok(exit) => Ok(exit),
        Err(error) => error.report(err),
    }
}

/// What a command that reads has done, unless its source could not be read.
type Done = Result<Exit, SourceError>;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::handlers;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: DeadLettersArgs,
    }

    #[tokio::test]
    async fn a_dry_run_names_what_works_without_a_daemon_also_if_the_daemon_has_no_address() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("orderd.toml");
        std::fs::write(&file, "[admin]\nlisten = \"off\"\n").unwrap();
        let sources = Sources { file: Some(file), ..handlers::sources() };
        for (more, has_hint) in [(&["--dry-run"][..], true), (&["--note", "x"], false)] {
            let args = Cli::try_parse_from([&["test", "hold", "7"], more].concat()).unwrap().args;
            let mut err = Vec::new();
            let exit = act(args, &sources, &mut io::sink(), &mut err).await.unwrap();
            let shown = String::from_utf8(err).unwrap();
            assert_eq!(
                (exit, shown.contains("list --group` shows what is stored, also without one")),
                (Exit::Config, has_hint),
                "{shown}"
            );
        }
    }
}
