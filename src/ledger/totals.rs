//! Counts of everything in the ledger.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::domain::ExactSum;

/// Counts from one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Totals {
    /// Orders by the consumer that accepted them.
    pub orders: BTreeMap<String, OrderCounts>,
    /// Notifications sent to their channels, or skipped.
    pub notifications: u64,
    /// Analytics events received, of any name.
    pub analytics: u64,
    /// Failed attempts that were sent to a delayed retry.
    pub retried: u64,
    /// Dead-lettered messages by `x-dead-letter-reason`.
    pub dead_letters: BTreeMap<String, u64>,
    /// Revenue by currency.
    pub revenue: BTreeMap<String, Revenue>,
}

/// Orders of one consumer by status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct OrderCounts {
    /// Accepted; the broker is not yet known to have confirmed their events.
    pub accepted: u64,
    /// Processed, and not cancelled.
    pub processed: u64,
    /// Dead-lettered.
    pub failed: u64,
    /// Cancelled. One that was cancelled before it arrived counts for the consumer that received the cancellation, until it does.
    pub cancelled: u64,
}

/// Revenue in one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Revenue {
    /// Pieces sold in processed orders whose analytics event has been recorded, less those of cancelled orders.
    pub quantity: i64,
    /// What they cost: the exact sum of the orders' lines.
    pub total: ExactSum,
}
