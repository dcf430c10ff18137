//! `orderd journal list`.

use std::io::{self, Write};

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use serde_json::Value;

use crate::cli::Exit;
use crate::cli::admin_client::DaemonTarget;
use crate::cli::ledger_source::{LedgerSource, SourceError};
use crate::cli::output::{write_json, write_json_line};
use crate::cli::table::{self, Layout};
use crate::cli::text::shortened;
use crate::escape::escaped;
use crate::ledger::report::PointInTime;
use crate::ledger::{JournalAction, JournalEntry, JournalFilter, JournalPage, JournalQuery};

/// Characters of a subject or a result in a cell.
const MAX_CELL: usize = 60;

/// Arguments of `orderd journal list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only actions at this time or later: an age such as 24h or 7d, a date, or a time (RFC 3339; UTC without an offset)
    #[arg(long, value_name = "TIME")]
    since: Option<PointInTime>,
    /// Only actions before this time, in the same formats
    #[arg(long, value_name = "TIME")]
    until: Option<PointInTime>,
    /// Only actions of this user
    #[arg(long, value_name = "ACTOR", value_parser = NonEmptyStringValueParser::new())]
    actor: Option<String>,
    /// Only actions of this kind
    #[arg(long, value_name = "ACTION", value_parser = actions())]
    action: Option<String>,
    /// How many to show at most
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Continue after the entry with this number, where the page before ended
    #[arg(long, value_name = "SEQ")]
    before: Option<i64>,
    #[command(flatten)]
    pub daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: ListFormat,
}

/// Output format of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum ListFormat {
    /// A table
    #[default]
    Text,
    /// One JSON object: `entries`, and `next`, which `--before` needs for the next page
    Json,
    /// One JSON object per line and entry
    Ndjson,
}

fn actions() -> PossibleValuesParser {
    PossibleValuesParser::new(JournalAction::ALL.iter().map(|action| action.as_str()))
}

pub(super) async fn run(
    args: &ListArgs,
    source: &LedgerSource,
    now: Timestamp,
    out: &mut dyn Write,
) -> io::Result<Result<Exit, SourceError>> {
    let ListArgs { since, until, actor, action, limit, before, format, daemon: _ } = args;
    let filter = JournalFilter {
        since: since.map(|since| since.at(now)),
        until: until.map(|until| until.at(now)),
        actor: actor.clone(),
        action: action.clone(),
    };
    let page = match source.journal(JournalQuery { filter, before: *before, limit: *limit as usize }).await {
        Ok(page) => page,
        Err(error) => return Ok(Err(error)),
    };
    match format {
        ListFormat::Text => write_text(&page, out)?,
        ListFormat::Json => write_json(&page, out)?,
        ListFormat::Ndjson => page.entries.iter().try_for_each(|entry| write_json_line(entry, out))?,
    }
    Ok(Ok(Exit::Done))
}

fn write_text(page: &JournalPage, out: &mut dyn Write) -> io::Result<()> {
    if page.entries.is_empty() {
        return writeln!(out, "no entries");
    }
    let mut table = table::new(["SEQ", "TIME", "ACTOR", "ACTION", "ON", "RESULT"]);
    for JournalEntry { seq, at, actor, action, subject, result, .. } in &page.entries {
        table.add_row([
            seq.to_string(),
            format!("{at:.0}"),
            escaped(actor),
            escaped(action),
            cell(subject),
            cell(result),
        ]);
    }
    table::write(table, &Layout { indent: 0, ..Layout::default() }, out)?;
    match page.next {
        Some(next) => writeln!(out, "there are more: --before {next}"),
        None => Ok(()),
    }
}

/// `consumer=order, changed=true`.
fn cell(value: &Value) -> String {
    let text = match value {
        Value::Object(fields) => {
            let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            fields.iter().map(|(key, value)| format!("{key}={}", shown(value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    };
    shortened(&escaped(&text), MAX_CELL)
}
