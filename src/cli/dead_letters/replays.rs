//! `orderd dead-letters replays`.

use std::io::{self, Write};

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Asked;
use super::follow::{follow, summary, write_report};
use crate::cli::admin_client::DaemonTarget;
use crate::cli::output::write_json;
use crate::cli::{Exit, Format};
use crate::config::Sources;
use crate::dead_letters::ReplayReport;
use crate::escape::escaped;
use crate::ledger::Replay;

/// Arguments of `orderd dead-letters replays`.
#[derive(Debug, Args)]
pub(super) struct ReplaysArgs {
    /// Number of a replay to follow until it has ended
    #[arg(value_name = "ID")]
    id: Option<i64>,
    /// Stop this replay: what is not published is open again
    #[arg(long, value_name = "ID", conflicts_with = "id")]
    stop: Option<i64>,
    #[command(flatten)]
    daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// The answer to a list.
#[derive(Deserialize)]
struct Replays {
    replays: Vec<Replay>,
}

pub(super) async fn run(
    args: &ReplaysArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let client = match args.daemon.client(sources, err)? {
        Ok(client) => client,
        Err(error) => return Ok(Err(error)),
    };
    if let Some(id) = args.id {
        return follow(&client, id, args.format, out, err).await;
    }
    if let Some(id) = args.stop {
        let path = format!("replays/{id}/stop");
        return match client.dead_letters::<ReplayReport>(&path, Some(&json!({}))).await {
            Ok((json, report)) => {
                match args.format {
                    Format::Text => write_report(&report, out)?,
                    Format::Json => write_json(&json, out)?,
                }
                Ok(Ok(Exit::Done))
            }
            Err(error) => Ok(Err(error)),
        };
    }
    let (json, Replays { replays }): (Value, _) = match client.dead_letters("replays", None).await {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(error)),
    };
    match args.format {
        Format::Json => write_json(&json, out)?,
        Format::Text if replays.is_empty() => writeln!(out, "no replays")?,
        Format::Text => {
            for replay in replays {
                let (began, by) = (replay.began_at, escaped(&replay.by));
                let report = ReplayReport { replay, waiting: None, failed_again: Vec::new() };
                writeln!(out, "{began:.0}  {}  (by {by})", summary(&report))?;
            }
        }
    }
    Ok(Ok(Exit::Done))
}
