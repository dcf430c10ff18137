//! The aggregates of orders for reports: accepted, processed and cancelled orders per minute or hour (UTC), currency and priority.
//!
//! They are kept when retention removes the orders' rows. Changes are added up in memory and written once per commit
//! and bucket. An order must never be counted unless its row was inserted or updated.

use std::collections::HashMap;

use jiff::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Statement, params, params_from_iter};

use crate::domain::{Currency, ExactSum, OrderId};
use crate::ledger::buckets::{HOUR, MINUTE, bucket_start};
use crate::ledger::entry::NewOrder;
use crate::ledger::figures::{ChargeSums, Figures, OrderFigures, OrdersByStatus};

/// The kinds of buckets: their names in the table, and their widths in milliseconds. A day is the sum of its hours.
const GRANULARITIES: [(&str, i64); 2] = [("minute", MINUTE), ("hour", HOUR)];

/// Most changed buckets that `count_all` keeps in memory before it writes them.
const MAX_UNWRITTEN_BUCKETS: usize = 64;

/// Most accepted orders cached until they are processed, about 5 MiB. If there are more, all are dropped, and read from
/// the file when they are processed.
const MAX_CACHED_ORDERS: usize = 16_384;

/// What orders are counted by, besides time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OrderGroup {
    pub currency: Currency,
    priority: bool,
}

/// What is counted of an order, and its row.
#[derive(Debug, Clone, Copy)]
pub(super) struct CountedOrder {
    pub rowid: i64,
    group: OrderGroup,
    figures: OrderFigures,
}

/// In the order of [`KINDS`].
fn each(sums: &OrdersByStatus) -> [&OrderFigures; KINDS.len()] {
    let OrdersByStatus { accepted, processed, cancelled, prevented } = sums;
    [accepted, processed, cancelled, prevented]
}

/// The figures of [`OrdersByStatus`], and the ends of the columns of each: the first one has none.
const KINDS: [&str; 4] = ["accepted", "processed", "cancelled", "prevented"];
const ENDS: [&str; 8] = ["", "_quantity", "_goods", "_shipping", "_fees", "_tax", "_discount", "_total"];

/// The columns of [`OrdersByStatus`], in the order in which [`read_sums`] reads them.
pub(super) fn sums_columns() -> String {
    columns("")
}

fn columns(prefix: &str) -> String {
    let columns = KINDS.iter().flat_map(|kind| ENDS.map(|end| [prefix, kind, end].concat()));
    columns.collect::<Vec<_>>().join(", ")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bucket {
    minute: i64,
    group: OrderGroup,
}

/// The changes of the open transaction, and the statements that add them to the table.
pub(super) struct OrderSums<'c> {
    read: Statement<'c>,
    write: Statement<'c>,
    connection: &'c Connection,
    changes: Vec<(Bucket, OrdersByStatus)>,
    /// Orders accepted and not yet processed. Much faster than reading the order back or using `UPDATE … RETURNING`.
    unprocessed: HashMap<OrderId, CountedOrder>,
}

impl<'c> OrderSums<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        let (sums, excluded) = (sums_columns(), columns("excluded."));
        let values = vec!["?"; 4 + KINDS.len() * ENDS.len()].join(", ");
        Ok(Self {
            read: connection.prepare(&format!(
                "SELECT {sums} FROM order_sums
                 WHERE granularity = ?1 AND starts_at = ?2 AND currency = ?3 AND priority = ?4"
            ))?,
            write: connection.prepare(&format!(
                "INSERT INTO order_sums (granularity, starts_at, currency, priority, {sums}) VALUES ({values})
                 ON CONFLICT (granularity, starts_at, currency, priority) DO UPDATE SET ({sums}) = ({excluded})"
            ))?,
            connection,
            changes: Vec::new(),
            unprocessed: HashMap::new(),
        })
    }

    /// Counts an accepted order and caches it; `rowid` is its row.
    pub(super) fn accepted(&mut self, order: &NewOrder, rowid: i64) {
        let group = OrderGroup { currency: order.amounts.currency, priority: order.priority };
        let figures = OrderFigures::from(&order.amounts);
        self.bucket(order.at.as_millisecond(), group).accepted.add(figures);
        if self.unprocessed.len() >= MAX_CACHED_ORDERS {
            self.unprocessed.clear();
        }
        self.unprocessed.insert(order.id.clone(), CountedOrder { rowid, group, figures });
    }

    /// Removes an accepted order from the cache and returns it.
    pub(super) fn take(&mut self, id: &OrderId) -> Option<CountedOrder> {
        self.unprocessed.remove(id)
    }

    /// Reads an order that is not cached from the file.
    pub(super) fn read_order(&self, id: &OrderId) -> rusqlite::Result<CountedOrder> {
        let read = format!("SELECT rowid, {COUNTED} FROM orders WHERE id = ?1");
        self.connection.prepare_cached(&read)?.query_row([id.as_str()], |row| {
            let (group, figures) = read_group_and_figures(row, 1)?;
            Ok(CountedOrder { rowid: row.get(0)?, group, figures })
        })
    }

    /// Counts a processed order.
    pub(super) fn processed(&mut self, order: &CountedOrder, at: Timestamp) {
        self.bucket(at.as_millisecond(), order.group).processed.add(order.figures);
    }

    /// Counts an order that is cancelled after it was processed.
    pub(super) fn cancelled(&mut self, order: &CountedOrder, at: Timestamp) {
        self.bucket(at.as_millisecond(), order.group).cancelled.add(order.figures);
    }

    /// Counts an order that is cancelled before it was processed.
    pub(super) fn prevented(&mut self, order: &CountedOrder, at: Timestamp) {
        self.bucket(at.as_millisecond(), order.group).prevented.add(order.figures);
    }

    /// Takes back that an order was prevented: it has been processed.
    pub(super) fn not_prevented(&mut self, order: &CountedOrder, at: Timestamp) {
        self.bucket(at.as_millisecond(), order.group).prevented.add(-order.figures);
    }

    /// The changes of one bucket. The orders of one commit have few buckets, and mostly that of the order before.
    fn bucket(&mut self, at: i64, group: OrderGroup) -> &mut OrdersByStatus {
        let bucket = Bucket { minute: bucket_start(at, MINUTE), group };
        let known = self.changes.iter().rposition(|(other, _)| *other == bucket);
        let index = known.unwrap_or_else(|| {
            self.changes.push((bucket, OrdersByStatus::default()));
            self.changes.len() - 1
        });
        &mut self.changes[index].1
    }

    /// How many orders the changes count that are accepted or processed in hours since a time, as [`super::overwrite::COUNT_ORDERS`]
    /// counts them.
    pub(super) fn changed_since(&self, since: i64) -> i64 {
        let counted = self.changes.iter().filter(|(bucket, _)| bucket_start(bucket.minute, HOUR) >= since);
        counted.map(|(_, sums)| sums.accepted.figures.orders + sums.processed.figures.orders).sum()
    }

    /// Adds the changes to the table. Call it before every commit.
    pub(super) fn write(&mut self) -> rusqlite::Result<()> {
        for (Bucket { minute, group: OrderGroup { currency, priority } }, change) in self.changes.drain(..) {
            for (granularity, width) in GRANULARITIES {
                let starts_at = bucket_start(minute, width);
                let key = params![granularity, starts_at, currency.as_str(), priority];
                let mut sums = self.read.query_row(key, |row| read_sums(row, 0)).optional()?.unwrap_or_default();
                sums.add(change);
                let key =
                    [granularity.to_owned().into(), starts_at.into(), currency.to_string().into(), priority.into()];
                let values = key.into_iter().chain(each(&sums).into_iter().flat_map(values));
                self.write.execute(params_from_iter(values))?;
            }
        }
        Ok(())
    }

    /// Drops all changes and cached orders. Call it after a rollback.
    pub(super) fn clear(&mut self) {
        self.changes.clear();
        self.unprocessed.clear();
    }
}

/// The values of the columns of one kind of figures.
fn values(figures: &OrderFigures) -> [Value; ENDS.len()] {
    let OrderFigures { figures: Figures { orders, quantity, revenue }, charges, total } = figures;
    let ChargeSums { shipping, fees, tax, discount } = charges;
    let amount = |amount: &ExactSum| Value::from(amount.to_string());
    let [goods, shipping, fees, tax, discount, total] = [revenue, shipping, fees, tax, discount, total].map(amount);
    [(*orders).into(), (*quantity).into(), goods, shipping, fees, tax, discount, total]
}

/// Reads the columns [`sums_columns`], of which `first` is the first.
pub(super) fn read_sums(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<OrdersByStatus> {
    let read = |first| {
        let amount = |column: usize| read_amount(row, first + column);
        let charges = ChargeSums { shipping: amount(3)?, fees: amount(4)?, tax: amount(5)?, discount: amount(6)? };
        Ok::<_, rusqlite::Error>(OrderFigures { figures: read_figures(row, first)?, charges, total: amount(7)? })
    };
    let [accepted, processed, cancelled, prevented] = [0, 1, 2, 3].map(|kind| read(first + kind * ENDS.len()));
    Ok(OrdersByStatus { accepted: accepted?, processed: processed?, cancelled: cancelled?, prevented: prevented? })
}

/// Reads orders, quantity and revenue from three columns, of which `first` is the first.
pub(super) fn read_figures(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Figures> {
    let revenue = read_amount(row, first + 2)?;
    Ok(Figures { orders: row.get(first)?, quantity: row.get(first + 1)?, revenue })
}

/// Reads an amount.
pub(super) fn read_amount(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<ExactSum> {
    row.get_ref(column)?.as_str()?.parse().map_err(|error| conversion_error(column, error))
}

/// The columns of an order that are counted, in the order in which [`read_group_and_figures`] reads them.
pub(super) const COUNTED: &str = "currency, priority, quantity, goods_total, shipping, fees, tax, discount, total";

/// Reads the columns [`COUNTED`], of which `first` is the first.
pub(super) fn read_group_and_figures(
    row: &rusqlite::Row<'_>,
    first: usize,
) -> rusqlite::Result<(OrderGroup, OrderFigures)> {
    let currency = row.get_ref(first)?.as_str()?.parse().map_err(|error| conversion_error(first, error))?;
    let group = OrderGroup { currency, priority: row.get(first + 1)? };
    let charge = |column: usize| match row.get_ref(first + column)?.as_str_or_null()? {
        Some(text) => text.parse().map_err(|error| conversion_error(first + column, error)),
        None => Ok(ExactSum::default()),
    };
    let charges = ChargeSums { shipping: charge(4)?, fees: charge(5)?, tax: charge(6)?, discount: charge(7)? };
    let figures = Figures { orders: 1, quantity: row.get(first + 2)?, revenue: read_amount(row, first + 3)? };
    Ok((group, OrderFigures { figures, charges, total: read_amount(row, first + 8)? }))
}

fn conversion_error(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
}

/// Counts every order in the file, for a migration from a version that did not count them. About 2.5 s per million
/// orders (`benches/report.rs`). A file that has sums already keeps them: they include orders whose rows were removed.
pub(super) fn count_uncounted(connection: &Connection) -> rusqlite::Result<()> {
    if connection.query_row("SELECT EXISTS (SELECT 1 FROM order_sums)", [], |row| row.get(0))? {
        return Ok(());
    }
    let mut order_sums = OrderSums::prepare(connection)?;
    let mut orders = connection.prepare(&format!("SELECT accepted_at, processed_at, {COUNTED} FROM orders"))?;
    let mut rows = orders.query([])?;
    while let Some(row) = rows.next()? {
        let (group, figures) = read_group_and_figures(row, 2)?;
        order_sums.bucket(row.get(0)?, group).accepted.add(figures);
        if let Some(at) = row.get(1)? {
            order_sums.bucket(at, group).processed.add(figures);
        }
        if order_sums.changes.len() > MAX_UNWRITTEN_BUCKETS {
            order_sums.write()?;
        }
    }
    order_sums.write()
}
