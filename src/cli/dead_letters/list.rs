//! `orderd dead-letters list`.

use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::Done;
use super::filters::Filters;
use super::list_text;
use crate::cli::admin_client::DaemonTarget;
use crate::cli::ledger_source::LedgerSource;
use crate::cli::output::write_json;
use crate::cli::{Exit, Format};
use crate::ledger::{DeadLetter, DeadLetterQuery};

/// Arguments of `orderd dead-letters list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    filters: Filters,
    /// Group them by cause: count, oldest and newest, money at stake, and one example
    #[arg(long)]
    group: bool,
    /// How many to show at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Continue after the dead letter with this number, where the page before ended
    #[arg(long, value_name = "ID", conflicts_with = "group")]
    before: Option<i64>,
    #[command(flatten)]
    pub daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// One page. Its JSON is a contract: see `docs/reference/cli.md`.
#[derive(Debug, Serialize)]
struct Listing<'a> {
    dead_letters: &'a [DeadLetter],
    /// What `--before` needs for the next page; `None` if this is the last.
    next: Option<i64>,
}

pub(super) async fn run(
    args: &ListArgs,
    source: &LedgerSource,
    now: Timestamp,
    out: &mut dyn Write,
) -> io::Result<Done> {
    let filter = args.filters.filter(now);
    let limit = args.limit as usize;
    if args.group {
        let groups = match source.groups(filter, limit).await {
            Ok(groups) => groups,
            Err(error) => return Ok(Err(error)),
        };
        match args.format {
            Format::Text => list_text::write_groups(&groups, now, out)?,
            Format::Json => write_json(&groups, out)?,
        }
        return Ok(Ok(Exit::Done));
    }
    let page = match source.letters(DeadLetterQuery { filter, before: args.before, after: None, limit }).await {
        Ok(page) => page,
        Err(error) => return Ok(Err(error)),
    };
    let next = page.letters.last().map(|letter| letter.id).filter(|_| page.more);
    match args.format {
        Format::Text => list_text::write_letters(&page.letters, next, now, out)?,
        Format::Json => write_json(&Listing { dead_letters: &page.letters, next }, out)?,
    }
    Ok(Ok(Exit::Done))
}
