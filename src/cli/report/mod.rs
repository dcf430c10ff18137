//! `orderd report`: what the shop did and earned over time, from the ledger of this machine.
//!
//! It only reads, while a daemon writes or while none runs. Figures go to standard output, problems to standard
//! error.

mod csv;
mod text;

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use jiff::Timestamp;

use super::Exit;
use crate::chain::chain;
use crate::config::Config;
use crate::ledger::OpenError;
use crate::ledger::report::{GroupBy, PointInTime, ReportError, ReportQuery};

/// Arguments of `orderd report`.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The beginning: an age such as 24h or 7d, a date, or a time (RFC 3339; UTC where it names no offset)
    #[arg(long, value_name = "TIME", default_value = "7d")]
    since: PointInTime,
    /// The end, as above; not part of the report
    #[arg(long, value_name = "TIME", default_value = "now")]
    until: PointInTime,
    /// What the rows tell apart
    #[arg(long, value_enum, default_value_t = Grouping::Day)]
    by: Grouping,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: ReportFormat,
}

/// How a report is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ReportFormat {
    /// A table with bars for each currency
    #[default]
    Text,
    /// One object
    Json,
    /// One line for each row of each currency
    Csv,
}

/// [`By`], as an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Grouping {
    /// What was ordered, the most earned first
    Product,
    /// Hours, UTC
    Hour,
    /// Days, UTC
    Day,
    /// Accepted and processed, each counted when it happened
    Status,
    /// Orders marked urgent, and others
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

/// Reads and prints.
///
/// Returns the exit code: 0, 64 where another question is needed, 70 or 78 where the ledger cannot be read.
///
/// # Errors
/// PointInTime `out` or `err` cannot be written.
pub async fn run(
    args: &ReportArgs,
    config: &Config,
    now: Timestamp,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let query = ReportQuery { since: args.since, until: args.until, by: args.by.into() };
    match config.ledger.location().reader().report(query, now).await {
        Ok(report) => {
            match args.format {
                ReportFormat::Text => text::write(&report, out)?,
                ReportFormat::Json => writeln!(out, "{:#}", serde_json::to_value(&report)?)?,
                ReportFormat::Csv => csv::write(&report, out)?,
            }
            Ok(Exit::Done)
        }
        Err(error) => {
            writeln!(err, "orderd: {}", chain(&error))?;
            Ok(match &error {
                ReportError::Backwards { .. } | ReportError::TooLong => Exit::Usage,
                ReportError::Ledger(error) => unreadable(error),
            })
        }
    }
}

/// The exit code for a ledger that cannot be read: 78 where a person can mend it, else 70.
pub(super) fn unreadable(error: &OpenError) -> Exit {
    if error.is_configuration() { Exit::Config } else { Exit::Internal }
}
