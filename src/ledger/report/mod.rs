//! Reports: order counts and revenue over time.
//!
//! It owns the query, the report, and how a report is put together from an implementation's aggregates. Pure: no clock,
//! no I/O. A report never adds up two currencies.

mod builder;
mod query;
mod window;

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::dead_letters::LetterState;
use super::error::OpenError;
use super::figures::{ChargeSums, Figures, OrderFigures};
use crate::domain::ExactSum;

pub(super) use builder::ReportBuilder;
pub use query::{GroupBy, InvalidTime, PointInTime, ReportQuery};
pub use window::Window;

/// Most rows of a report.
pub const MAX_ROWS: usize = 100_000;

/// Order counts and revenue in a period. Its JSON is a contract: see `docs/reference/http-api.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Report {
    /// The period: at most an hour longer than asked for at either end.
    #[serde(flatten)]
    pub window: Window,
    /// What the rows are grouped by.
    pub by: GroupBy,
    /// One for each currency with any orders, sorted by code. `XXX` stands for orders that name no currency.
    pub currencies: Vec<CurrencyReport>,
    /// Messages dead-lettered in this period, by consumer and reason.
    pub dead_lettered: Vec<DeadLettered>,
}

/// The orders of one currency.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct CurrencyReport {
    /// ISO 4217.
    pub currency: String,
    /// All orders processed in this period, less those cancelled in it, whatever the rows are grouped by.
    pub processed: OrderFigures,
    /// Orders cancelled in this period after they were processed, whenever that was. The rows do not include them, except that of
    /// this status.
    pub cancelled: OrderFigures,
    /// Orders cancelled before they were processed: in this period, they were cancelled or, if later, arrived.
    pub prevented: OrderFigures,
    /// Orders that were accepted and, in this period, dead-lettered, and that are neither processed nor cancelled since.
    pub failed: OrderFigures,
    /// How many of those were replayed and have failed again.
    pub failed_again: i64,
    /// How many of those have a dead letter that was discarded.
    pub failed_discarded: i64,
    /// Sorted by time, by descending revenue (products), or in a fixed order (statuses, priorities).
    pub rows: Vec<ReportRow>,
}

/// One product, hour, day, status or priority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ReportRow {
    /// The product; the start of the hour (`2026-11-22T08:00Z`) or the day (`2026-11-22`), UTC; `accepted`,
    /// `processed`, `cancelled`, `prevented` or `failed`; `normal` or `urgent`.
    pub key: String,
    /// Its orders. A product's orders are those with at least one line of it; its revenue is that of its lines.
    #[serde(flatten)]
    pub figures: Figures,
    /// What its orders charge besides their goods; `None` for a product.
    #[serde(flatten)]
    #[schema(value_type = RowCharges)]
    pub charges: Option<ChargeSums>,
    /// What customers paid for its orders; `None` for a product.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<ExactSum>,
}

/// The fields of [`ChargeSums`], none of which a product has.
#[derive(ToSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct RowCharges {
    /// Shipping.
    #[schema(required = false)]
    shipping: ExactSum,
    /// Fees, such as those for payments; may be negative.
    #[schema(required = false)]
    fees: ExactSum,
    /// Tax, whether the prices include it or not.
    #[schema(required = false)]
    tax: ExactSum,
    /// Discounts.
    #[schema(required = false)]
    discount: ExactSum,
}

/// Messages of one consumer, dead-lettered for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, ToSchema)]
pub struct DeadLettered {
    /// The consumer that could not process them; `unknown` if the message does not say.
    pub consumer: String,
    /// The value of `x-dead-letter-reason`.
    pub reason: String,
    /// How many. A message that was replayed and dead-lettered again counts once, at its latest dead-lettering.
    pub messages: i64,
    /// How many of them are in the store and neither replayed nor discarded: open, held or replaying.
    pub unresolved: i64,
    /// How many were replayed and not dead-lettered again.
    pub replayed: i64,
    /// How many were discarded.
    pub discarded: i64,
}

impl DeadLettered {
    /// Adds messages with this state in the store; `None`: they are not there.
    pub(super) fn add(&mut self, state: Option<LetterState>, messages: i64) {
        self.messages += messages;
        match state {
            Some(LetterState::Open | LetterState::Held | LetterState::Replaying) => self.unresolved += messages,
            Some(LetterState::Replayed) => self.replayed += messages,
            Some(LetterState::Discarded) => self.discarded += messages,
            None => {}
        }
    }
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The query's end is before its start.
    #[error("the report would end at {until}, before it begins at {since}")]
    Backwards {
        /// Its start.
        since: Timestamp,
        /// Its end.
        until: Timestamp,
    },
    /// The report would exceed [`MAX_ROWS`].
    #[error("the report would have more than {MAX_ROWS} rows: ask for a shorter time, or by day")]
    TooLong,
    /// The ledger is missing or cannot be read.
    #[error("cannot read the ledger")]
    Ledger(#[from] OpenError),
}

impl ReportError {
    /// Whether the query is at fault, not the ledger.
    pub fn is_query_error(&self) -> bool {
        match self {
            ReportError::Backwards { .. } | ReportError::TooLong => true,
            ReportError::Ledger(_) => false,
        }
    }
}
