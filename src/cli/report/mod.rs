//! `orderd report`: orders and revenue over time, from the ledger of this machine.
//!
//! It only reads, whether a daemon runs or not. The report goes to standard output, errors go to standard error.

mod csv;
mod text;

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::Exit;
use super::output::write_json;
use crate::chain::chain;
use crate::ledger::report::{GroupBy, PointInTime, ReportError, ReportQuery};
use crate::ledger::{LedgerLocation, OpenError};

/// Arguments of `orderd report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Start: an age such as 24h or 7d, a date, or a time (RFC 3339; UTC without an offset)
    #[arg(long, value_name = "TIME", default_value = "7d")]
    since: PointInTime,
    /// End, in the same formats; exclusive
    #[arg(long, value_name = "TIME", default_value = "now")]
    until: PointInTime,
    /// Grouping of the rows
    #[arg(long, value_enum, default_value_t = Grouping::Day)]
    by: Grouping,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: ReportFormat,
}

/// Output format of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ReportFormat {
    /// A table per currency, with bars
    #[default]
    Text,
    /// One JSON object
    Json,
    /// One CSV line per row and currency
    Csv,
}

/// [`GroupBy`] as an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Grouping {
    /// Products, highest revenue first
    Product,
    /// Hours, UTC
    Hour,
    /// Days, UTC
    Day,
    /// Accepted, processed, cancelled and failed orders, each counted at that moment
    Status,
    /// Orders with priority, and others
    Priority,
}

impl From<Grouping> for GroupBy {
    fn from(grouping: Grouping) -> GroupBy {
        match grouping {
            Grouping::Product => GroupBy::Product,
            Grouping::Hour => GroupBy::Hour,
            Grouping::Day => GroupBy::Day,
            Grouping::Status => GroupBy::Status,
            Grouping::Priority => GroupBy::Priority,
        }
    }
}

/// Reads the ledger and prints the report.
///
/// Returns the exit code: 0, 64 if the time range is invalid, 70 or 78 if the ledger cannot be read.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(
    args: &ReportArgs,
    ledger: &LedgerLocation,
    now: Timestamp,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let query = ReportQuery { since: args.since, until: args.until, by: args.by.into() };
    match ledger.reader().report(query, now).await {
        Ok(report) => {
            match args.format {
                ReportFormat::Text => text::write(&report, out)?,
                ReportFormat::Json => write_json(&report, out)?,
                ReportFormat::Csv => csv::write(&report, out)?,
            }
            Ok(Exit::Done)
        }
        Err(error) => {
            writeln!(err, "orderd: {}", chain(&error))?;
            Ok(match &error {
                ReportError::Backwards { .. } | ReportError::TooLong => Exit::Usage,
                ReportError::Ledger(error) => ledger_exit(error),
            })
        }
    }
}

/// The exit code for a ledger that cannot be read: 78 if its configuration is the cause, else 70.
pub(super) fn ledger_exit(error: &OpenError) -> Exit {
    if error.is_configuration() { Exit::Config } else { Exit::Internal }
}
