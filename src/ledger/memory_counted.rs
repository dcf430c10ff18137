//! What the ledger in memory counts for reports.

use jiff::Timestamp;

use super::figures::OrderFigures;
use crate::domain::Currency;

/// One contribution to reports.
#[derive(Debug)]
pub(super) struct Counted {
    pub at: Timestamp,
    pub currency: Currency,
    pub what: CountedAs,
    pub figures: OrderFigures,
}

#[derive(Debug, Clone)]
pub(super) enum CountedAs {
    Accepted { priority: bool },
    Processed { priority: bool },
    Cancelled { priority: bool },
    Prevented { priority: bool },
    Sold { product: String },
}
