//! `orderd dead-letters replay`.

use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Asked;
use super::follow::follow;
use super::selection::{Selection, confirmed, unusable};
use crate::cli::admin_client::DaemonTarget;
use crate::cli::output::write_json;
use crate::cli::{Exit, Format};
use crate::config::Sources;
use crate::dead_letters::{ReplayPlan, ReplayReport, ReplayRequest};
use crate::escape::escaped;
use crate::ledger::{LetterSelection, ReplayOptions};

/// Arguments of `orderd dead-letters replay`.
#[derive(Debug, Args)]
pub(super) struct ReplayArgs {
    #[command(flatten)]
    selection: Selection,
    /// Publish them to this queue instead of the one each came from; unrouted ones came from none
    #[arg(long, value_name = "QUEUE")]
    to: Option<String>,
    /// Publish at most this many a second, from 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    rate: u32,
    /// Stop when more than this share of those published has failed again, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=100))]
    stop_at: u8,
    /// Do not begin with one, then ten
    #[arg(long)]
    no_canary: bool,
    /// Show what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before it begins
    #[arg(long, short)]
    yes: bool,
    /// Do not wait for the outcome
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) async fn run(
    args: &ReplayArgs,
    sources: &Sources,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Asked> {
    let client = match args.daemon.client(sources, err)? {
        Ok(client) => client,
        Err(error) => return Ok(Err(error)),
    };
    let options = ReplayOptions {
        to: args.to.clone(),
        rate: args.rate,
        stop_at: f64::from(args.stop_at) / 100.0,
        canary: !args.no_canary,
    };
    let selection = match args.selection.selection(Timestamp::now()) {
        Ok(selection) => selection,
        Err(problem) => return unusable(problem, err).map(Ok),
    };
    let mut request = ReplayRequest { selection, options, dry_run: true };
    let (plan_json, plan): (Value, ReplayPlan) = match client.dead_letters("replays", Some(&json!(request))).await {
        Ok(plan) => plan,
        Err(error) => return Ok(Err(error)),
    };
    let letters: u64 = plan.queues.values().sum();
    let is_refused = !args.selection.ids.is_empty() && !plan.skipped.is_empty();
    if args.dry_run || letters == 0 {
        match args.format {
            Format::Text => write_plan(&plan, letters, out)?,
            Format::Json => write_json(&plan_json, out)?,
        }
        return Ok(Ok(if is_refused { Exit::Refused } else { Exit::Done }));
    }
    if !args.yes {
        write_plan(&plan, letters, err)?;
        match confirmed("Replay them?", err)? {
            Some(true) => {}
            Some(false) => return Ok(Ok(Exit::Refused)),
            None => {
                writeln!(err, "orderd: not replayed: use --yes, because nobody can be asked here")?;
                return Ok(Ok(Exit::Usage));
            }
        }
    }
    // What is stored from now on is not meant.
    if let LetterSelection::Filter { up_to, .. } = &mut request.selection {
        *up_to = plan.up_to;
    }
    request.dry_run = false;
    let (json, report): (Value, ReplayReport) = match client.dead_letters("replays", Some(&json!(request))).await {
        Ok(started) => started,
        Err(error) => return Ok(Err(error)),
    };
    if args.detach {
        match args.format {
            Format::Text => writeln!(out, "replay {} has begun: orderd dead-letters replays {0}", report.replay.id)?,
            Format::Json => write_json(&json, out)?,
        }
        return Ok(Ok(Exit::Done));
    }
    let followed = follow(&client, report.replay.id, args.format, out, err).await?;
    Ok(followed.map(|exit| if exit == Exit::Done && is_refused { Exit::Refused } else { exit }))
}

fn write_plan(plan: &ReplayPlan, letters: u64, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{letters} dead letters would be replayed")?;
    for (queue, letters) in &plan.queues {
        let waits = plan.waiting.get(queue).map_or_else(String::new, |reason| format!("; waits: {reason}"));
        writeln!(out, "  {letters} to {}{}", escaped(queue), escaped(&waits))?;
    }
    for (reason, letters) in &plan.skipped {
        let hint = match reason.as_str() {
            "no_queue" => "no consumer has their queue; name one with --to",
            "order_processed" => "their order was processed meanwhile",
            "order_cancelled" => "their order was cancelled",
            "maybe_duplicate" => "each may be another dead letter, delivered again; name those that are not",
            "held" => "they are held; release them first",
            "missing" => "there are none with these numbers",
            _ => "",
        };
        let hint = if hint.is_empty() { String::new() } else { format!(": {hint}") };
        writeln!(out, "  {letters} not ({}){hint}", escaped(reason))?;
    }
    Ok(())
}
