//! `orderd dead-letters export`: page after page, so its memory does not grow with the store.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::Done;
use super::filters::Filters;
use crate::cli::Exit;
use crate::cli::csv_cell::csv_cell;
use crate::cli::output::write_json_line;
use crate::dead_letters::WholeLetter;
use crate::ledger::{DeadLetter, DeadLetterQuery, LedgerReader};

/// Dead letters that are read at a time.
const PAGE: usize = 500;
/// The bytes that their bodies take at most, and those of one more.
const MAX_BYTES: usize = 4 << 20;

/// Arguments of `orderd dead-letters export`.
#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    filters: Filters,
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
    reader: &dyn LedgerReader,
    now: Timestamp,
    out: &mut dyn Write,
) -> io::Result<Done> {
    let filter = args.filters.filter(now);
    if args.format == ExportFormat::Csv {
        write_header(out)?;
    }
    let mut after = 0;
    loop {
        let query = DeadLetterQuery { filter: filter.clone(), before: None, after: Some(after), limit: PAGE };
        let written = match args.format {
            ExportFormat::Csv => reader.dead_letters(query).await.map(|page| {
                let rows = page.letters.iter().try_for_each(|letter| write_row(letter, out));
                (rows, page.letters.last().map(|letter| letter.id).filter(|_| page.more))
            }),
            ExportFormat::Ndjson => reader.whole_dead_letters(query, MAX_BYTES).await.map(|page| {
                let lines = page.letters.iter().try_for_each(|detail| write_json_line(&WholeLetter::from(detail), out));
                (lines, page.letters.last().map(|detail| detail.letter.id).filter(|_| page.more))
            }),
        };
        match written {
            Ok((written, next)) => {
                written?;
                let Some(next) = next else { return Ok(Ok(Exit::Done)) };
                after = next;
            }
            Err(error) => return Ok(Err(error)),
        }
    }
}

/// The columns; a contract, see `docs/reference/cli.md`.
const COLUMNS: [&str; 17] = [
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
];

fn write_header(out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", COLUMNS.join(","))
}

fn write_row(letter: &DeadLetter, out: &mut dyn Write) -> io::Result<()> {
    let text = |text: &Option<String>| text.as_deref().map_or_else(String::new, csv_cell);
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
