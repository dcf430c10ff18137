//! Retention: removes what is old, a little at a time.
//!
//! Rows are in the order of their arrival, so the old ones are found from the oldest on, without an index. It never
//! removes an order that is not finished, a dead letter (its message is still in the queue), or an aggregate that a
//! report could need: of these only the minutes go.

use rusqlite::{Connection, Statement};

/// Rows looked at in each table in one transaction: a few milliseconds for the writer, which records nothing
/// meanwhile.
const ROWS: i64 = 256;

/// What one transaction removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Rows of processed orders.
    pub orders: usize,
    /// Rows of events.
    pub events: usize,
    /// Rows of attempts.
    pub attempts: usize,
    /// Minutes of the aggregates.
    pub minutes: usize,
    /// Whether there may be more.
    pub more: bool,
}

impl Pruned {
    /// Adds what another transaction removed; `more` is the other's.
    pub fn add(&mut self, other: Pruned) {
        let Pruned { orders, events, attempts, minutes, more } = other;
        self.orders += orders;
        self.events += events;
        self.attempts += attempts;
        self.minutes += minutes;
        self.more = more;
    }

    /// Whether nothing was removed.
    pub fn is_empty(&self) -> bool {
        self.orders + self.events + self.attempts + self.minutes == 0
    }
}

/// One table with rows in order of arrival.
struct Table<'c> {
    look: Statement<'c>,
    remove: Statement<'c>,
    /// The last row looked at in this pass.
    cursor: i64,
}

impl<'c> Table<'c> {
    /// `done` tells rows that may go once they are old, `came_at` when they came, `old_at` when they were done with.
    fn prepare(
        connection: &'c Connection,
        name: &str,
        done: &str,
        came_at: &str,
        old_at: &str,
    ) -> rusqlite::Result<Self> {
        let look = format!(
            "SELECT rowid, {done} AND {old_at} < ?2, {came_at} < ?2 FROM {name} WHERE rowid > ?1 ORDER BY rowid LIMIT {ROWS}"
        );
        let remove = format!("DELETE FROM {name} WHERE rowid = ?1");
        Ok(Table { look: connection.prepare(&look)?, remove: connection.prepare(&remove)?, cursor: 0 })
    }

    /// Removes what is old among the next rows: how many, and whether the pass goes on. It ends, and the next begins
    /// anew, where rows are young.
    fn prune(&mut self, before: i64) -> rusqlite::Result<(usize, bool)> {
        let rows = self.look.query_map((self.cursor, before), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let rows: Vec<(i64, bool, bool)> = rows.collect::<rusqlite::Result<_>>()?;
        let mut removed = 0;
        for (rowid, _, _) in rows.iter().filter(|(_, goes, _)| *goes) {
            removed += self.remove.execute([rowid])?;
        }
        let any_old = rows.iter().any(|(_, _, came_before)| *came_before);
        let goes_on = any_old && rows.len() == usize::try_from(ROWS).expect("it is positive");
        self.cursor = rows.last().filter(|_| goes_on).map_or(0, |(rowid, _, _)| *rowid);
        Ok((removed, goes_on))
    }
}

/// The statements that remove, and how far they have come.
pub(super) struct Pruner<'c> {
    orders: Table<'c>,
    events: Table<'c>,
    attempts: Table<'c>,
    minutes: [Statement<'c>; 2],
}

impl<'c> Pruner<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        let minutes = |table: &str, key: &str| {
            connection.prepare(&format!(
                "DELETE FROM {table} WHERE (granularity, starts_at, {key}) IN (SELECT granularity, starts_at, {key}
                 FROM {table} WHERE granularity = 'minute' AND starts_at < ?1 ORDER BY starts_at LIMIT {ROWS})"
            ))
        };
        let finished = "status = 'processed'";
        Ok(Pruner {
            orders: Table::prepare(connection, "orders", finished, "accepted_at", "processed_at")?,
            events: Table::prepare(connection, "events", "TRUE", "recorded_at", "recorded_at")?,
            attempts: Table::prepare(connection, "attempts", "TRUE", "failed_at", "failed_at")?,
            minutes: [minutes("sales", "currency, product")?, minutes("order_sums", "currency, priority")?],
        })
    }

    /// Removes a little of what is older than `before`, in milliseconds since 1970, within the open transaction.
    pub(super) fn prune(&mut self, before: i64) -> rusqlite::Result<Pruned> {
        let (orders, more_orders) = self.orders.prune(before)?;
        let (events, more_events) = self.events.prune(before)?;
        let (attempts, more_attempts) = self.attempts.prune(before)?;
        let mut minutes = 0;
        for statement in &mut self.minutes {
            minutes += statement.execute([before])?;
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
    pub(super) fn forget(&mut self) {
        for table in [&mut self.orders, &mut self.events, &mut self.attempts] {
            table.cursor = 0;
        }
    }
}

#[cfg(test)]
#[path = "prune_tests.rs"]
mod tests;
