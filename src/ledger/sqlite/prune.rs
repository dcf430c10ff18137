//! Retention: removes what is old, a little at a time.
//!
//! Rows are in the order of their arrival, so the old ones are found from the oldest on, without an index. It never
//! removes an order that is not finished, a dead letter (its message is still in the queue), or an aggregate that a
//! report could need: of these only the minutes go.

use rusqlite::Connection;

use crate::ledger::retention::Pruned;

/// Rows looked at in each table in one transaction: a few milliseconds for the writer, which records nothing
/// meanwhile.
pub(super) const ROWS: i64 = 256;

/// One table with rows in order of arrival.
struct Table {
    name: &'static str,
    /// Tells rows that may go once they are old.
    done: &'static str,
    /// When a row came.
    came_at: &'static str,
    /// When it was done with.
    old_at: &'static str,
    /// The last row looked at in this pass.
    cursor: i64,
}

impl Table {
    /// Removes what is old among the next rows: how many, and whether the pass goes on. It ends, and the next begins
    /// anew, where rows are young.
    fn prune(&mut self, connection: &Connection, before: i64) -> rusqlite::Result<(usize, bool)> {
        let Table { name, done, came_at, old_at, cursor } = self;
        let mut look = connection.prepare(&format!(
            "SELECT rowid, {done} AND {old_at} < ?2, {came_at} < ?2 FROM {name} WHERE rowid > ?1
             ORDER BY rowid LIMIT {ROWS}"
        ))?;
        let rows = look.query_map((*cursor, before), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let rows: Vec<(i64, bool, bool)> = rows.collect::<rusqlite::Result<_>>()?;
        let mut remove = connection.prepare(&format!("DELETE FROM {name} WHERE rowid = ?1"))?;
        let mut removed = 0;
        for (rowid, _, _) in rows.iter().filter(|(_, goes, _)| *goes) {
            removed += remove.execute([rowid])?;
        }
        let any_old = rows.iter().any(|(_, _, came_before)| *came_before);
        let goes_on = any_old && rows.len() == usize::try_from(ROWS).expect("it is positive");
        self.cursor = rows.last().filter(|_| goes_on).map_or(0, |(rowid, _, _)| *rowid);
        Ok((removed, goes_on))
    }
}

/// How far the removing has come.
///
/// It prepares its statements each time: kept ones take up the memory that SQLite sets aside for a connection's
/// small allocations, and each order would cost more (`benches/ledger.rs`).
pub(super) struct Pruner {
    orders: Table,
    events: Table,
    attempts: Table,
}

impl Pruner {
    pub(super) fn new() -> Self {
        let table = |name, done, came_at, old_at| Table { name, done, came_at, old_at, cursor: 0 };
        Pruner {
            orders: table("orders", "status = 'processed'", "accepted_at", "processed_at"),
            events: table("events", "TRUE", "recorded_at", "recorded_at"),
            attempts: table("attempts", "TRUE", "failed_at", "failed_at"),
        }
    }

    /// Removes a little of what is older than `before`, in milliseconds since 1970, within the open transaction.
    pub(super) fn prune(&mut self, connection: &Connection, before: i64) -> rusqlite::Result<Pruned> {
        let (orders, more_orders) = self.orders.prune(connection, before)?;
        let (events, more_events) = self.events.prune(connection, before)?;
        let (attempts, more_attempts) = self.attempts.prune(connection, before)?;
        let mut minutes = 0;
        for (table, key) in [("sales", "currency, product"), ("order_sums", "currency, priority")] {
            let remove = format!(
                "DELETE FROM {table} WHERE (granularity, starts_at, {key}) IN (SELECT granularity, starts_at, {key}
                 FROM {table} WHERE granularity = 'minute' AND starts_at < ?1 ORDER BY starts_at LIMIT {ROWS})"
            );
            minutes += connection.execute(&remove, [before])?;
        }
        Ok(Pruned {
            orders,
            events,
            attempts,
            minutes,
            more: more_orders || more_events || more_attempts || minutes > 0,
        })
    }

    /// Begins anew, after a rollback.
    pub(super) fn clear(&mut self) {
        *self = Pruner::new();
    }
}
