//! `orderd dead-letters export`: one dead letter after the other, so its memory does not grow with the store.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::Done;
use super::filters::Filters;
use super::selection::unusable;
use super::unknown_names::warn_of_unknown_names;
use crate::cli::Exit;
use crate::cli::admin_client::DaemonTarget;
use crate::cli::csv_cell::csv_cell;
use crate::cli::ledger_source::{LedgerSource, SourceError};
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
    export(args.format, &filter, source, out, err).await
}

async fn export(
    format: ExportFormat,
    filter: &DeadLetterFilter,
    source: &LedgerSource,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Done> {
    let exported = match format {
        ExportFormat::Ndjson => export_whole(filter, source, out).await?,
        ExportFormat::Csv => export_rows(filter, source, out).await?,
    };
    match exported {
        Ok(Exported::Some) => Ok(Ok(Exit::Done)),
        Ok(Exported::Nothing) => warn_of_unknown_names(filter, source, err).await,
        Err(error) => Ok(Err(error)),
    }
}

/// Whether there was anything to export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exported {
    Nothing,
    Some,
}

async fn export_whole(
    filter: &DeadLetterFilter,
    source: &LedgerSource,
    out: &mut dyn Write,
) -> io::Result<Result<Exported, SourceError>> {
    let mut letters = match source.export(filter.clone()).await {
        Ok(letters) => letters,
        Err(error) => return Ok(Err(error)),
    };
    let mut exported = Exported::Nothing;
    loop {
        match letters.next().await {
            Ok(Some(letter)) => write_json_line(&letter, out)?,
            Ok(None) => return Ok(Ok(exported)),
            Err(error) => return Ok(Err(error)),
        }
        exported = Exported::Some;
    }
}

async fn export_rows(
    filter: &DeadLetterFilter,
    source: &LedgerSource,
    out: &mut dyn Write,
) -> io::Result<Result<Exported, SourceError>> {
    let (mut after, mut has_header, mut exported) = (0, false, Exported::Nothing);
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
        if !page.letters.is_empty() {
            exported = Exported::Some;
        }
        match page.letters.last().filter(|_| page.more) {
            Some(last) => after = last.id,
            None => return Ok(Ok(exported)),
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
    use std::sync::Arc;

    use super::*;
    use crate::ledger::conformance::stored_letter;
    use crate::ledger::memory::MemoryLedger;
    use crate::ledger::{LedgerReader, LetterWriter};

    #[tokio::test]
    async fn a_row_has_each_cell_below_its_column_and_no_cell_ends_early_or_is_a_formula() {
        let ledger = MemoryLedger::default();
        ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
        let mut letter = ledger.dead_letter(1).await.unwrap().unwrap().letter;
        letter.product = Some("a,b".to_owned());
        letter.note = Some("=1+1".to_owned());
        letter.came_back_from = Some(39);
        let mut out = Vec::new();
        write_header(&mut out).unwrap();
        write_row(&letter, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        let (header, row) = text.trim_end().split_once('\n').unwrap();
        assert_eq!(row.matches("\"a,b\"").count(), 1, "{row}");
        // The only comma within a cell.
        let row = row.replace("\"a,b\"", "a;b");
        let cells: Vec<(&str, &str)> = header.split(',').zip(row.split(',')).collect();
        assert_eq!((header.split(',').count(), row.split(',').count()), (COLUMNS.len(), COLUMNS.len()), "{row}");
        for cell in
            [("product", "a;b"), ("note", "'=1+1"), ("came_back_from", "39"), ("id", "1"), ("order_id", "ord-1")]
        {
            assert!(cells.contains(&cell), "{cell:?}: {cells:?}");
        }
    }

    #[tokio::test]
    async fn an_export_that_finds_nothing_names_the_code_that_there_is_not_and_those_that_there_are() {
        let ledger = MemoryLedger::default();
        ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
        let ledger = Arc::new(ledger);
        let source = LedgerSource::Ledger { reader: Arc::clone(&ledger) as _, replays: ledger, no_token: false };
        for (format, lines) in [(ExportFormat::Ndjson, 0), (ExportFormat::Csv, 1)] {
            let shown = async |code: &str| {
                let filter = DeadLetterFilter { code: Some(code.to_owned()), ..DeadLetterFilter::default() };
                let (mut out, mut err) = (Vec::new(), Vec::new());
                export(format, &filter, &source, &mut out, &mut err).await.unwrap().unwrap();
                [out, err].map(|bytes| String::from_utf8(bytes).unwrap())
            };
            let [out, err] = shown("nope").await;
            assert!(out.lines().count() == lines && err.contains("has code nope; known: card_expired"), "{out}{err}");
            let [out, err] = shown("card_expired").await;
            assert_eq!((out.lines().count(), err.as_str()), (lines + 1, ""));
        }
    }
}
