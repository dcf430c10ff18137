//! `orderd dead-letters replays`.

use std::io::{self, Write};

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::follow::{Until, follow};
use super::letters_text::LettersText;
use super::report_text::{summary, write_report};
use super::{Asked, ledger_of};
use crate::chain::chain;
use crate::cli::admin_client::{AdminClient, AdminClientError, DaemonTarget};
use crate::cli::local_actor::local_actor;
use crate::cli::output::write_json;
use crate::cli::report::ledger_exit;
use crate::cli::{Exit, Format};
use crate::config::Sources;
use crate::dead_letters::{ListedReplay, ReplayLetters, ReplayReport};
use crate::escape::escaped;

/// Letters of a replay that are asked for at a time.
const PAGE: usize = 1_000;

/// Arguments of `orderd dead-letters replays`.
#[derive(Debug, Args)]
pub(super) struct ReplaysArgs {
    /// Number of a replay to follow until it has ended
    #[arg(value_name = "ID")]
    id: Option<i64>,
    /// Stop this replay: what is not published is open again
    #[arg(long, value_name = "ID", conflicts_with = "id")]
    stop: Option<i64>,
    /// List the dead letters of this replay with what has become of each
    #[arg(long, value_name = "ID", conflicts_with_all = ["id", "stop"])]
    letters: Option<i64>,
    #[command(flatten)]
    daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The answer to a list.
#[derive(Deserialize)]
struct Replays {
    replays: Vec<ListedReplay>,
}

pub(super) async fn run(
    args: &ReplaysArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let client = match args.daemon.client(sources, err)? {
        Ok(client) => client,
        Err(error @ AdminClientError::NoAddress { .. }) if args.stop.is_some() => {
            return stop_in_ledger(args, error, sources, out, err).await;
        }
        Err(error) => return Ok(Err(error)),
    };
    match (args.id, args.stop, args.letters) {
        (Some(id), ..) => follow(&client, id, Until::Ended, args.format, out, err).await,
        (None, Some(id), _) => stop(args, &client, id, sources, out, err).await,
        (None, None, Some(id)) => letters(&client, id, args.format, out).await,
        (None, None, None) => list(&client, args.format, out).await,
    }
}

async fn list(client: &AdminClient, format: Format, out: &mut dyn Write) -> io::Result<Asked> {
    let (json, Replays { replays }): (Value, _) = match client.dead_letters("replays", None).await {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(error)),
    };
    match format {
        Format::Json => write_json(&json, out)?,
        Format::Text if replays.is_empty() => writeln!(out, "no replays")?,
        Format::Text => {
            for ListedReplay { replay, waiting } in replays {
                let (began, by) = (replay.began_at, escaped(&replay.by));
                let report = ReplayReport { replay, waiting, failed_again: Vec::new(), not_replayed: Vec::new() };
                writeln!(out, "{began:.0}  {}  (by {by})", summary(&report))?;
            }
        }
    }
    Ok(Ok(Exit::Done))
}

async fn letters(client: &AdminClient, id: i64, format: Format, out: &mut dyn Write) -> io::Result<Asked> {
    let (mut after, mut all, mut text) = (0, Vec::new(), LettersText::default());
    loop {
        let path = format!("replays/{id}/letters?after={after}&limit={PAGE}");
        let (_, ReplayLetters { letters, next }): (Value, _) = match client.dead_letters(&path, None).await {
            Ok(page) => page,
            Err(error) => return Ok(Err(error)),
        };
        match format {
            Format::Text => text.write(&letters, out)?,
            Format::Json => all.extend(letters),
        }
        let Some(next) = next else { break };
        after = next;
    }
    match format {
        Format::Text => text.finish(out)?,
        Format::Json => write_json(&ReplayLetters { letters: all, next: None }, out)?,
    }
    Ok(Ok(Exit::Done))
}

async fn stop(
    args: &ReplaysArgs,
    client: &AdminClient,
    id: i64,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    match client.dead_letters::<ReplayReport>(&format!("replays/{id}/stop"), Some(&json!({}))).await {
        Ok(_) => follow(client, id, Until::Stopped, args.format, out, err).await,
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
