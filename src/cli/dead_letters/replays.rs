//! `orderd dead-letters replays`.

use std::io::{self, Write};

use clap::Args;
use serde_json::json;

use super::follow::{Until, follow};
use super::interrupt::{Interrupt, interrupted};
use super::letters_json::LettersJson;
use super::letters_text::LettersText;
use super::report_text::{exit, summary, write_report};
use super::{Asked, ledger_of};
use crate::chain::chain;
use crate::cli::admin_client::{AdminClient, AdminClientError, DaemonTarget};
use crate::cli::argument::number;
use crate::cli::ledger_source::{LedgerSource, SourceError};
use crate::cli::local_actor::local_actor;
use crate::cli::output::write_json;
use crate::cli::report::ledger_exit;
use crate::cli::{Exit, Format};
use crate::config::Sources;
use crate::dead_letters::{ListedReplay, ReplayLetters, ReplayReport};
use crate::escape::escaped;

/// Arguments of `orderd dead-letters replays`.
#[derive(Debug, Args)]
pub(super) struct ReplaysArgs {
    /// Number of a replay to follow until it has ended; without a daemon, to show as it is recorded
    #[arg(value_name = "ID", value_parser = number)]
    id: Option<i64>,
    /// Stop this replay: what is not published is open again
    #[arg(long, value_name = "ID", conflicts_with = "id", value_parser = number)]
    stop: Option<i64>,
    /// List the dead letters of this replay with what has become of each
    #[arg(long, value_name = "ID", conflicts_with_all = ["id", "stop"], value_parser = number)]
    letters: Option<i64>,
    #[command(flatten)]
    daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) async fn run(
    args: &ReplaysArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    if let Some(id) = args.stop {
        return match args.daemon.client(sources, err)? {
            Ok(client) => stop(args, &client, id, sources, out, err).await,
            Err(error @ AdminClientError::NoAddress { .. }) => stop_in_ledger(args, error, sources, out, err).await,
            Err(error) => Ok(Err(error)),
        };
    }
    let source = match LedgerSource::open(&args.daemon, sources, err).await? {
        Ok(opened) => opened.source,
        Err(exit) => return Ok(Ok(exit)),
    };
    let read = match (args.id, args.letters) {
        (Some(id), _) => match &source {
            LedgerSource::Daemon(client) => {
                let mut interrupt = Interrupt::new()?;
                let until = Until::Ended { is_named: false };
                return follow(client, id, until, args.format, &mut interrupt, out, err).await;
            }
            LedgerSource::Ledger { replays, .. } => match source.recorded_replay(&**replays, id).await {
                Ok(report) => return recorded(&report, args.format, out, err).map(Ok),
                Err(error) => Err(error),
            },
        },
        (None, Some(id)) => letters(&source, id, args.format, out).await?,
        (None, None) => list(&source, args.format, out).await?,
    };
    match read {
        Ok(()) => Ok(Ok(Exit::Done)),
        Err(error) => error.report(err).map(Ok),
    }
}

/// A replay in the ledger, which nobody carries out as far as this command knows.
fn recorded(report: &ReplayReport, format: Format, out: &mut dyn Write, err: &mut dyn Write) -> io::Result<Exit> {
    match format {
        Format::Text => write_report(report, out)?,
        // With the fields in the order in which a daemon's answer is printed.
        Format::Json => write_json(&json!(report), out)?,
    }
    let is_over = report.replay.state.has_ended() && report.replay.in_flight() == 0;
    if is_over {
        return Ok(exit(report, false));
    }
    writeln!(
        err,
        "orderd: no daemon answers, so this is what the ledger has recorded: the replay continues as soon as a daemon runs"
    )?;
    Ok(Exit::Unavailable)
}

async fn list(source: &LedgerSource, format: Format, out: &mut dyn Write) -> io::Result<Result<(), SourceError>> {
    let list = match source.replays().await {
        Ok(list) => list,
        Err(error) => return Ok(Err(error)),
    };
    match format {
        Format::Json => write_json(&list, out)?,
        Format::Text if list.replays.is_empty() => writeln!(out, "no replays")?,
        Format::Text => {
            for ListedReplay { replay, waiting } in list.replays {
                let (began, by) = (replay.began_at, escaped(&replay.by));
                let report = ReplayReport { replay, waiting, failed_again: Vec::new(), not_replayed: Vec::new() };
                writeln!(out, "{began:.0}  {}  (by {by})", summary(&report))?;
            }
        }
    }
    Ok(Ok(()))
}

async fn letters(
    source: &LedgerSource,
    id: i64,
    format: Format,
    out: &mut dyn Write,
) -> io::Result<Result<(), SourceError>> {
    let (mut after, mut json, mut text) = (0, LettersJson::default(), LettersText::default());
    loop {
        let ReplayLetters { letters, next } = match source.replay_letters(id, after).await {
            Ok(page) => page,
            Err(error) => return Ok(Err(error)),
        };
        match format {
            Format::Text => text.write(&letters, out)?,
            Format::Json => json.write(&letters, out)?,
        }
        let Some(next) = next else { break };
        after = next;
    }
    match format {
        Format::Text => text.finish(out)?,
        Format::Json => json.finish(out)?,
    }
    Ok(Ok(()))
}

async fn stop(
    args: &ReplaysArgs,
    client: &AdminClient,
    id: i64,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let mut interrupt = Interrupt::new()?;
    let (path, body) = (format!("replays/{id}/stop"), json!({}));
    let Some(answer) = interrupt.unless(client.dead_letters::<ReplayReport>(&path, Some(&body))).await else {
        let text = format!("the daemon may have stopped it; see `orderd dead-letters replays {id}`");
        return interrupted(&text, err).map(Ok);
    };
    match answer {
        Ok(_) => follow(client, id, Until::Stopped, args.format, &mut interrupt, out, err).await,
        // Not with --address: the daemon may use another ledger.
        Err(error @ (AdminClientError::Unreachable { .. } | AdminClientError::NoAnswer { .. })) => {
            stop_in_ledger(args, error, sources, out, err).await
        }
        Err(error) => Ok(Err(error)),
    }
}

/// Without a daemon that answers, as when reading a dead letter ends it each time, the replay is stopped in the ledger of this machine.
async fn stop_in_ledger(
    args: &ReplaysArgs,
    error: AdminClientError,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let Some((id, location)) = args.stop.zip(ledger_of(sources)).filter(|_| !args.daemon.has_address()) else {
        return Ok(Err(error));
    };
    writeln!(err, "orderd: {}; stopping replay {id} in the ledger", escaped(&chain(&error)))?;
    match location.stop_replay(id, &local_actor()).await {
        Ok(Some(replay)) => {
            let report = ReplayReport { replay, waiting: None, failed_again: Vec::new(), not_replayed: Vec::new() };
            match args.format {
                Format::Text => write_report(&report, out)?,
                Format::Json => write_json(&report, out)?,
            }
            Ok(Ok(if report.replay.state.has_ended() { Exit::Done } else { Exit::Refused }))
        }
        Ok(None) => {
            writeln!(err, "orderd: there is no replay {id}")?;
            Ok(Ok(Exit::Refused))
        }
        Err(error) => {
            writeln!(err, "orderd: cannot use the ledger: {}", chain(&error))?;
            Ok(Ok(ledger_exit(&error)))
        }
    }
}
