//! What the shop did and earned over time, read from the ledger's aggregates by any process.
//!
//! It owns the question, the answer and the exactness of both. It never reads a row of `orders`, never mixes two
//! currencies, and takes the clock as an argument.

mod query;
mod window;

#[cfg(test)]
mod tests;

use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

use super::sqlite::{self, OpenError};
use crate::domain::ExactSum;

pub use query::{By, Query, When, WrongTime};
pub use window::Window;
pub(super) use window::{DAY, HOUR, MINUTE};

/// Most rows of a report; more help nobody, and are a burden to who asked and who answers.
pub const MAX_ROWS: usize = 100_000;

/// What orders were worth in a stretch of time. Its JSON is a contract: see the README.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The stretch of time: at most an hour longer than asked for at either end.
    #[serde(flatten)]
    pub window: Window,
    /// What the rows tell apart.
    pub by: By,
    /// One for each currency in which there was anything, by its code. `XXX` are orders that named none.
    pub currencies: Vec<Block>,
    /// What was dead-lettered in this time, by consumer and reason.
    pub dead_lettered: Vec<DeadLettered>,
}

/// What there was in one currency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Block {
    /// ISO 4217.
    pub currency: String,
    /// What was processed in this time, whatever the rows tell apart.
    pub processed: Figures,
    /// Hours and days in their order; products by falling revenue; statuses and priorities as they are.
    pub rows: Vec<Row>,
}

/// One product, hour, day, status or priority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The product; the beginning of the hour (`2026-11-22T08:00Z`) or the day (`2026-11-22`), UTC; `accepted` or
    /// `processed`; `normal` or `urgent`.
    pub key: String,
    /// What belongs to it.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Orders, their pieces, and their worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Figures {
    /// Orders.
    pub orders: i64,
    /// Their pieces.
    pub quantity: i64,
    /// The exact sum of their totals.
    pub revenue: ExactSum,
}

impl Figures {
    /// Adds others. Counts saturate.
    pub fn add(&mut self, other: Figures) {
        self.orders = self.orders.saturating_add(other.orders);
        self.quantity = self.quantity.saturating_add(other.quantity);
        self.revenue.add(other.revenue);
    }
}

/// Messages of one consumer, dead-lettered for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLettered {
    /// The consumer that could not process them; `unknown` where that cannot be told.
    pub consumer: String,
    /// The value of `x-dead-letter-reason`.
    pub reason: String,
    /// How many. One that was replayed and dead-lettered again counts once, when it was dead-lettered last.
    pub messages: i64,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The question is wrong.
    #[error("the report would end at {until}, before it begins at {since}")]
    Backwards {
        /// Its beginning.
        since: Timestamp,
        /// Its end.
        until: Timestamp,
    },
    /// The question is too large.
    #[error("the report would have more than {MAX_ROWS} rows: ask for a shorter time, or by day")]
    TooLong,
    /// There is no ledger, or it cannot be read.
    #[error("cannot read the ledger")]
    Ledger(#[from] OpenError),
}

impl ReportError {
    /// Whether another question could be answered.
    pub fn is_question(&self) -> bool {
        match self {
            ReportError::Backwards { .. } | ReportError::TooLong => true,
            ReportError::Ledger(_) => false,
        }
    }
}

/// Answers a question from the ledger in a directory. Blocks for some milliseconds of disk I/O, longer where rows
/// are many; never holds up the daemon that writes.
///
/// # Errors
/// See [`ReportError`].
pub fn read(directory: &Path, query: &Query, now: Timestamp) -> Result<Report, ReportError> {
    let window = Window::new(query, now)?;
    sqlite::read_report(directory, window, query.by)
}
