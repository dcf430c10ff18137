//! The aggregates of orders themselves: what was accepted and processed per minute and hour (UTC), currency and
//! priority.
//!
//! They outlive the rows they count. Changes are added up in memory and written once per commit and bucket; this
//! must never count what did not change a row.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Statement, params};

use crate::domain::{Currency, ExactSum, OrderId};
use crate::ledger::buckets::{HOUR, MINUTE, bucket_start};
use crate::ledger::entry::NewOrder;
use crate::ledger::figures::Figures;

/// Widths of the buckets in milliseconds, with their names in the table. A day is the sum of its hours.
const GRANULARITIES: [(&str, i64); 2] = [("minute", MINUTE), ("hour", HOUR)];

/// Buckets that a pass over many orders keeps before it writes them.
const MANY: usize = 64;

/// Accepted orders kept in memory until they are processed, about 3 MiB; beyond it all are dropped, and read when
/// they are processed.
const KEPT_ORDERS: usize = 16_384;

/// What tells one order's bucket from another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    currency: Currency,
    priority: bool,
}

/// An order as far as it is counted, and its row.
#[derive(Debug, Clone, Copy)]
pub(super) struct CountedOrder {
    pub rowid: i64,
    kind: Kind,
    figures: Figures,
}

/// What happened in one bucket.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    pub accepted: Figures,
    pub processed: Figures,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    minute: i64,
    kind: Kind,
}

/// What this transaction changes, and the statements that add it to the table.
pub(super) struct OrderSums<'c> {
    read: Statement<'c>,
    write: Statement<'c>,
    connection: &'c Connection,
    changes: Vec<(Bucket, Sums)>,
    /// Accepted and not yet processed. Faster by far than to read the order back, or to let the update return it.
    open: HashMap<OrderId, CountedOrder>,
}

impl<'c> OrderSums<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            read: connection.prepare(
                "SELECT accepted, accepted_quantity, accepted_total, processed, processed_quantity, processed_total
                 FROM order_sums WHERE granularity = ?1 AND starts_at = ?2 AND currency = ?3 AND priority = ?4",
            )?,
            write: connection.prepare(
                "INSERT INTO order_sums (granularity, starts_at, currency, priority,
                     accepted, accepted_quantity, accepted_total, processed, processed_quantity, processed_total)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)
                 ON CONFLICT (granularity, starts_at, currency, priority) DO UPDATE SET
                     accepted = excluded.accepted, accepted_quantity = excluded.accepted_quantity,
                     accepted_total = excluded.accepted_total, processed = excluded.processed,
                     processed_quantity = excluded.processed_quantity, processed_total = excluded.processed_total",
            )?,
            connection,
            changes: Vec::new(),
            open: HashMap::new(),
        })
    }

    /// Counts an order that was accepted as this row.
    pub(super) fn accepted(&mut self, order: &NewOrder, rowid: i64) {
        let kind = Kind { currency: order.currency, priority: order.priority };
        let figures = Figures { orders: 1, quantity: order.quantity, revenue: order.total.into() };
        self.bucket(order.at.as_millisecond(), kind).accepted.add(figures);
        if self.open.len() >= KEPT_ORDERS {
            self.open.clear();
        }
        self.open.insert(order.id.clone(), CountedOrder { rowid, kind, figures });
    }

    /// Hands out, and drops, what it remembers of an order that was accepted.
    pub(super) fn take(&mut self, id: &OrderId) -> Option<CountedOrder> {
        self.open.remove(id)
    }

    /// Reads an order that is not remembered.
    pub(super) fn read_order(&self, id: &OrderId) -> rusqlite::Result<CountedOrder> {
        let read = "SELECT rowid, currency, priority, quantity, total FROM orders WHERE id = ?1";
        self.connection.prepare_cached(read)?.query_row([id.as_str()], |row| {
            let (kind, figures) = order(row, 1)?;
            Ok(CountedOrder { rowid: row.get(0)?, kind, figures })
        })
    }

    /// Counts an order that was processed.
    pub(super) fn processed(&mut self, order: &CountedOrder, at: Timestamp) {
        self.bucket(at.as_millisecond(), order.kind).processed.add(order.figures);
    }

    /// Orders of one commit are of few buckets, and mostly of the one used last.
    fn bucket(&mut self, at: i64, kind: Kind) -> &mut Sums {
        let bucket = Bucket { minute: bucket_start(at, MINUTE), kind };
        let known = self.changes.iter().rposition(|(other, _)| *other == bucket);
        let index = known.unwrap_or_else(|| {
            self.changes.push((bucket, Sums::default()));
            self.changes.len() - 1
        });
        &mut self.changes[index].1
    }

    /// Adds the changes to the table. Among the last steps before every commit.
    pub(super) fn write(&mut self) -> rusqlite::Result<()> {
        for (Bucket { minute, kind: Kind { currency, priority } }, change) in self.changes.drain(..) {
            for (granularity, width) in GRANULARITIES {
                let starts_at = bucket_start(minute, width);
                let key = params![granularity, starts_at, currency.as_str(), priority];
                let mut sums = self.read.query_row(key, |row| sums(row, 0)).optional()?.unwrap_or_default();
                sums.accepted.add(change.accepted);
                sums.processed.add(change.processed);
                let Sums { accepted, processed } = sums;
                self.write.execute(params![
                    granularity,
                    starts_at,
                    currency.as_str(),
                    priority,
                    accepted.orders,
                    accepted.quantity,
                    accepted.revenue.to_string(),
                    processed.orders,
                    processed.quantity,
                    processed.revenue.to_string(),
                ])?;
            }
        }
        Ok(())
    }

    /// Drops all it knows, after a rollback.
    pub(super) fn clear(&mut self) {
        self.changes.clear();
        self.open.clear();
    }
}

/// Reads the six columns of sums, from this one on.
pub(super) fn sums(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Sums> {
    Ok(Sums { accepted: figures(row, first)?, processed: figures(row, first + 3)? })
}

/// Reads orders, quantity and amount, from this column on.
pub(super) fn figures(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Figures> {
    let revenue = exact_amount(row, first + 2)?;
    Ok(Figures { orders: row.get(first)?, quantity: row.get(first + 1)?, revenue })
}

/// Reads an amount from its text.
pub(super) fn exact_amount(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<ExactSum> {
    row.get_ref(column)?.as_str()?.parse().map_err(|error| unreadable(column, error))
}

/// Reads currency, priority, quantity and total of an order, from this column on.
fn order(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<(Kind, Figures)> {
    let currency = row.get_ref(first)?.as_str()?.parse().map_err(|error| unreadable(first, error))?;
    let kind = Kind { currency, priority: row.get(first + 1)? };
    Ok((kind, Figures { orders: 1, quantity: row.get(first + 2)?, revenue: exact_amount(row, first + 3)? }))
}

fn unreadable(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

/// Counts every order that the file has, for one whose orders were not counted when they came. About 2.5 s per million
/// orders (`benches/report.rs`).
pub(super) fn count_all(connection: &Connection) -> rusqlite::Result<()> {
    let mut order_sums = OrderSums::prepare(connection)?;
    let mut orders =
        connection.prepare("SELECT accepted_at, processed_at, currency, priority, quantity, total FROM orders")?;
    let mut rows = orders.query([])?;
    while let Some(row) = rows.next()? {
        let (kind, figures) = order(row, 2)?;
        order_sums.bucket(row.get(0)?, kind).accepted.add(figures);
        if let Some(at) = row.get(1)? {
            order_sums.bucket(at, kind).processed.add(figures);
        }
        if order_sums.changes.len() > MANY {
            order_sums.write()?;
        }
    }
    order_sums.write()
}
