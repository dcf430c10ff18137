//! Counts everything in the ledger, on a connection of its own, from one snapshot.
//!
//! It must never wait for the writer, or make the writer wait.

use std::collections::BTreeMap;
use std::path::Path;

use rusqlite::Connection;

use super::open::{self, READ_BUSY_TIMEOUT};
use super::order_sums;
use crate::ledger::error::OpenError;
use crate::ledger::totals::{OrderCounts, Revenue, Totals};

/// Blocks: it reads the whole `orders` table, about 0.6 s per million orders.
pub(super) fn read(directory: &Path) -> Result<Totals, OpenError> {
    let connection = open::for_reading(directory, READ_BUSY_TIMEOUT)?;
    count(&connection).map_err(|error| open::error(directory, error))
}

fn count(connection: &Connection) -> rusqlite::Result<Totals> {
    // One transaction, so one snapshot.
    let snapshot = connection.unchecked_transaction()?;
    let count = |sql: &str| snapshot.query_row(sql, [], |row| row.get::<_, i64>(0).map(i64::cast_unsigned));
    Ok(Totals {
        orders: count_orders(&snapshot)?,
        notifications: count("SELECT count(*) FROM events WHERE kind = 'notification'")?,
        analytics: count("SELECT count(*) FROM events WHERE kind = 'analytics'")?,
        retried: count("SELECT count(*) FROM attempts WHERE delay IS NOT NULL")?,
        dead_letters: snapshot
            .prepare("SELECT reason, count(*) FROM dead_letters GROUP BY reason")?
            .query_map([], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.cast_unsigned())))?
            .collect::<rusqlite::Result<_>>()?,
        revenue: sum_revenue(&snapshot)?,
    })
}

/// Counts in Rust and not with `GROUP BY`, which would sort the whole table first.
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
            "failed" => counts.failed += 1,
            "cancelled" => counts.cancelled += 1,
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
        let figures = order_sums::read_figures(row, 1)?;
        sum.quantity = sum.quantity.saturating_add(figures.quantity);
        sum.total.add(figures.revenue);
    }
    Ok(revenue)
}
