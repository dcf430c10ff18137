//! `orderd dead-letters export`: one dead letter after the other, so its memory does not grow with the store.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::Done;
use super::filters::Filters;
use super::selection::unusable;
use crate::cli::Exit;
use crate::cli::admin_client::DaemonTarget;
use crate::cli::csv_cell::csv_cell;
use crate::cli::ledger_source::LedgerSource;
use crate::cli::output::write_json_line;
use crate::ledger::{DeadLetter, DeadLetterFilter, DeadLetterQuery};

/// Rows that are read at a time.
const PAGE: usize = 500;

/// Arguments of `orderd dead-letters export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    filters: Filters,
    #[command(flatten)]
    pub daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: ExportFormat,
}

/// Output format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum ExportFormat {
    /// Whole dead letters, one JSON object per line
    #[default]
    Ndjson,
    /// One row per dead letter, without its content
    Csv,
}

pub(super) async fn run(
    args: &ExportArgs,
    source: &LedgerSource,
    now: Timestamp,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Done> {
    let filter = match args.filters.filter(now) {
        Ok(filter) => filter,
        Err(problem) => return unusable(problem, err).map(Ok),
    };
    match args.format {
        ExportFormat::Ndjson => export_whole(filter, source, out).await,
        ExportFormat::Csv => export_rows(filter, source, out).await,
    }
}

async fn export_whole(filter: DeadLetterFilter, source: &LedgerSource, out: &mut dyn Write) -> io::Result<Done> {
    let mut letters = match source.export(filter).await {
        Ok(letters) => letters,
        Err(error) => return Ok(Err(error)),
    };
    loop {
        match letters.next().await {
            Ok(Some(letter)) => write_json_line(&letter, out)?,
            Ok(None) => return Ok(Ok(Exit::Done)),
            Err(error) => return Ok(Err(error)),
        }
    }
}

async fn export_rows(filter: DeadLetterFilter, source: &LedgerSource, out: &mut dyn Write) -> io::Result<Done> {
    let (mut after, mut has_header) = (0, false);
    loop {
        let query = DeadLetterQuery { filter: filter.clone(), before: None, after: Some(after), limit: PAGE };
        let page = match source.letters(query).await {
            Ok(page) => page,
            Err(error) => return Ok(Err(error)),
        };
        if !has_header {
            write_header(out)?;
            has_header = true;
        }
        page.letters.iter().try_for_each(|letter| write_row(letter, out))?;
        match page.letters.last().filter(|_| page.more) {
            Some(last) => after = last.id,
            None => return Ok(Ok(Exit::Done)),
        }
    }
}

/// The columns; a contract, see `docs/reference/cli.md`.
const COLUMNS: [&str; 25] = [
    "id",
    "state",
    "source",
    "origin",
    "reason",
    "code",
    "consumer",
    "retries",
    "identity",
    "order_id",
    "customer_id",
    "product",
    "total",
    "currency",
    "failed_at",
    "collected_at",
    "failure_reason",
    "origin_queue",
    "exchange",
    "routing_key",
    "note",
    "replay",
    "outcome",
    "came_back_as",
    "came_back_from",
];

fn write_header(out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", COLUMNS.join(","))
}

fn write_row(letter: &DeadLetter, out: &mut dyn Write) -> io::Result<()> {
    let text = |text: &Option<String>| text.as_deref().map_or_else(String::new, csv_cell);
    let number = |number: Option<i64>| number.map_or_else(String::new, |number| number.to_string());
    let replay = letter.last_replay.as_ref();
    let cells: [String; COLUMNS.len()] = [
        letter.id.to_string(),
        letter.state.as_str().to_owned(),
        letter.source.as_str().to_owned(),
        letter.origin.as_str().to_owned(),
        csv_cell(&letter.reason),
        csv_cell(&letter.code),
        text(&letter.consumer),
        letter.retries.to_string(),
        text(&letter.identity),
        text(&letter.order_id),
        text(&letter.customer_id),
        text(&letter.product),
        letter.total.map_or_else(String::new, |total| total.to_string()),
        text(&letter.currency),
        letter.failed_at.to_string(),
        letter.collected_at.to_string(),
        text(&letter.failure_reason),
        text(&letter.origin_queue),
        csv_cell(&letter.exchange),
        csv_cell(&letter.routing_key),
        text(&letter.note),
        number(replay.map(|replay| replay.replay)),
        replay.map_or_else(String::new, |replay| replay.outcome.as_str().to_owned()),
        number(replay.and_then(|replay| replay.came_back_as)),
        number(letter.came_back_from),
    ];
    writeln!(out, "{}", cells.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_as_many_cells_as_a_row() {
        let mut out = Vec::new();
        write_header(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap().split(',').count(), COLUMNS.len());
    }
}
