//! What the ledger holds, counted for summaries, from any process.
//!
//! It only reads, on a connection of its own. It must never wait for the writer, or make the writer wait.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;
use serde::Serialize;

use super::open::{self, OpenError};
use super::order_sums;
use super::{FILE_NAME, READ_PATIENCE};
use crate::domain::ExactSum;

/// Counts of one instant.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Totals {
    /// Orders by the consumer that took them.
    pub orders: BTreeMap<String, OrderCounts>,
    /// Notifications handed to their channels.
    pub notifications: u64,
    /// Analytics events received, of any name.
    pub analytics: u64,
    /// Failed attempts that were sent to a delayed retry.
    pub retried: u64,
    /// Dead-lettered messages by `x-dead-letter-reason`.
    pub dead_letters: BTreeMap<String, u64>,
    /// What was sold, by currency.
    pub revenue: BTreeMap<String, Revenue>,
}

/// Orders of one consumer by status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct OrderCounts {
    /// Accepted, their events not yet known to be confirmed.
    pub accepted: u64,
    /// Done.
    pub processed: u64,
}

/// What was sold in one currency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Revenue {
    /// Processed orders whose analytics event has been recorded.
    pub orders: u64,
    /// Their pieces.
    pub quantity: i64,
    /// The exact sum of their totals.
    pub total: ExactSum,
}

/// Counts all tables of one snapshot.
pub(super) fn read(directory: &Path) -> Result<Totals, OpenError> {
    let connection = open::for_reading(directory, READ_PATIENCE)?;
    count(&connection).map_err(|error| OpenError::from_sqlite(&directory.join(FILE_NAME), error))
}

fn count(connection: &Connection) -> rusqlite::Result<Totals> {
    // One transaction: all counts are of the same instant.
    let snapshot = connection.unchecked_transaction()?;
    let single = |sql: &str| snapshot.query_row(sql, [], |row| row.get::<_, i64>(0).map(i64::cast_unsigned));
    Ok(Totals {
        orders: count_orders(&snapshot)?,
        notifications: single("SELECT count(*) FROM events WHERE kind = 'notification'")?,
        analytics: single("SELECT count(*) FROM events WHERE kind = 'analytics'")?,
        retried: single("SELECT count(*) FROM attempts WHERE delay IS NOT NULL")?,
        dead_letters: snapshot
            .prepare("SELECT reason, count(*) FROM dead_letters GROUP BY reason")?
            .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned())))?
            .collect::<rusqlite::Result<_>>()?,
        revenue: sum_revenue(&snapshot)?,
    })
}

/// Counted here and not by `GROUP BY`, which would sort the whole table first.
fn count_orders(snapshot: &Connection) -> rusqlite::Result<BTreeMap<String, OrderCounts>> {
    let mut orders = BTreeMap::<String, OrderCounts>::new();
    let mut query = snapshot.prepare("SELECT consumer, status FROM orders")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let consumer = row.get_ref(0)?.as_str()?;
        if !orders.contains_key(consumer) {
            orders.insert(consumer.to_owned(), OrderCounts::default());
        }
        let counts = orders.get_mut(consumer).expect("it was inserted above");
        match row.get_ref(1)?.as_str()? {
            "accepted" => counts.accepted += 1,
            _ => counts.processed += 1,
        }
    }
    Ok(orders)
}

fn sum_revenue(snapshot: &Connection) -> rusqlite::Result<BTreeMap<String, Revenue>> {
    let mut revenue = BTreeMap::<String, Revenue>::new();
    let mut query =
        snapshot.prepare("SELECT currency, orders, quantity, revenue FROM sales WHERE granularity = 'day'")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let sum = revenue.entry(row.get(0)?).or_default();
        let figures = order_sums::figures(row, 1)?;
        sum.orders += figures.orders.cast_unsigned();
        sum.quantity = sum.quantity.saturating_add(figures.quantity);
        sum.total.add(figures.revenue);
    }
    Ok(revenue)
}
