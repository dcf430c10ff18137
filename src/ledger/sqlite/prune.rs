//! Retention: removes old rows, one small batch at a time.
//!
//! Rows are stored in order of arrival, so a pass finds the old ones from the start of a table, without an index. It
//! never removes an order that is neither processed nor cancelled, what a stored dead letter is compared with when it is replayed,
//! what failed before it was dead-lettered, a dead letter (its message may still be in the queue), or an aggregate
//! of an hour or day, which reports need.

use rusqlite::Connection;

use super::prune_runs::{PrunedRuns, RunPruner};
use super::{letters, order_items};
use crate::ledger::retention::Pruned;

/// Rows read in each table in one transaction. This takes a few milliseconds, during which the writer records nothing.
pub(super) const BATCH_ROWS: i64 = 256;

/// Lines of orders removed in one transaction, and those of one more order.
const BATCH_LINES: usize = 2_048;

/// A table whose rows are in order of arrival, and the position of the pass over it.
struct Table {
    name: &'static str,
    /// SQL condition: the row may be removed once it is old.
    removable: &'static str,
    /// Column with the time of arrival.
    arrived_at: &'static str,
    /// Column with the time from which the row's age counts.
    finished_at: &'static str,
    /// Its rows are orders, which may have lines in a table of their own.
    has_lines: bool,
    /// The last row read in this pass; 0 before the first.
    cursor: i64,
}

impl Table {
    /// Removes the old ones among the next rows. Returns how many, and whether the pass continues. It ends at the end
    /// of the table, or at a batch without old rows; the next pass then starts from the first row.
    fn prune(&mut self, connection: &Connection, before: i64) -> rusqlite::Result<(usize, bool)> {
        let Table { name, removable, arrived_at, finished_at, has_lines, cursor } = self;
        let mut select = connection.prepare(&format!(
            "SELECT rowid, {removable} AND {finished_at} < ?2, {arrived_at} < ?2 FROM {name} WHERE rowid > ?1
             ORDER BY rowid LIMIT {BATCH_ROWS}"
        ))?;
        let rows = select.query_map((*cursor, before), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let rows: Vec<(i64, bool, bool)> = rows.collect::<rusqlite::Result<_>>()?;
        let mut remove = connection.prepare(&format!("DELETE FROM {name} WHERE rowid = ?1"))?;
        let (mut removed, mut lines) = (0, 0);
        for (rowid, _, _) in rows.iter().filter(|(_, is_old, _)| *is_old) {
            if *has_lines {
                lines += order_items::remove(connection, *rowid)?;
            }
            removed += remove.execute([rowid])?;
            if lines > BATCH_LINES {
                self.cursor = *rowid;
                return Ok((removed, true));
            }
        }
        let any_arrived_before = rows.iter().any(|(_, _, arrived_before)| *arrived_before);
        let continues = any_arrived_before && rows.len() == usize::try_from(BATCH_ROWS).expect("it is positive");
        self.cursor = rows.last().filter(|_| continues).map_or(0, |(rowid, _, _)| *rowid);
        Ok((removed, continues))
    }
}

/// The passes over the tables.
///
/// It prepares its statements for each batch. If it kept them, they would use up the memory that SQLite reserves for a
/// connection's small allocations, and recording an order would cost more (`benches/ledger.rs`).
pub(super) struct Pruner {
    orders: Table,
    events: Table,
    attempts: Table,
    notification_attempts: Table,
    step_runs: RunPruner,
}

impl Pruner {
    pub(super) fn new() -> Self {
        let table = |name, removable, arrived_at, finished_at| Table {
            name,
            removable,
            arrived_at,
            finished_at,
            has_lines: false,
            cursor: 0,
        };
        Pruner {
            orders: Table {
                has_lines: true,
                ..table(
                    "orders",
                    // A dead letter of a cancelled order may be replayed, and must not be processed then.
                    "(status = 'processed' OR cancellation_finished_at IS NOT NULL
                      AND NOT EXISTS (SELECT 1 FROM dead_letters WHERE dead_letters.identity = orders.id))
                     AND NOT EXISTS (SELECT 1 FROM stored_dead_letters WHERE stored_dead_letters.order_id = orders.id
                                     AND state IN ('open', 'held', 'replaying'))",
                    "accepted_at",
                    "coalesce(max(prevented_at, cancellation_finished_at), cancellation_finished_at, processed_at)",
                )
            },
            // Whether an order's sale is in the aggregates is read from its event when the order is cancelled.
            events: table(
                "events",
                "NOT EXISTS (SELECT 1 FROM orders WHERE orders.id = events.order_id)
                 AND NOT EXISTS (SELECT 1 FROM stored_dead_letters WHERE stored_dead_letters.identity = events.id
                                 AND state IN ('open', 'held', 'replaying'))",
                "recorded_at",
                "recorded_at",
            ),
            attempts: table(
                "attempts",
                // A person may still look at what has become of a dead letter. One that was edited to another order shows the attempts
                // of the order that it was.
                "NOT EXISTS (SELECT 1 FROM stored_dead_letters WHERE stored_dead_letters.identity = attempts.identity
                             AND state IN ('open', 'held', 'replaying'))
                 AND NOT EXISTS (SELECT 1 FROM stored_dead_letters
                                 WHERE stored_dead_letters.former_order_id = attempts.identity
                                   AND state IN ('open', 'held', 'replaying'))",
                "failed_at",
                "failed_at",
            ),
            notification_attempts: table(
                "notification_attempts",
                // For the same reason.
                "NOT EXISTS (SELECT 1 FROM stored_dead_letters
                             WHERE stored_dead_letters.identity = notification_attempts.identity
                             AND state IN ('open', 'held', 'replaying'))",
                "failed_at",
                "failed_at",
            ),
            step_runs: RunPruner::default(),
        }
    }

    /// Removes one batch of rows older than `before`, in milliseconds since 1970, within the open transaction.
    pub(super) fn prune(&mut self, connection: &Connection, before: i64) -> rusqlite::Result<Pruned> {
        let (orders, more_orders) = self.orders.prune(connection, before)?;
        let (events, more_events) = self.events.prune(connection, before)?;
        let (attempts, more_attempts) = self.attempts.prune(connection, before)?;
        let (deliveries, more_deliveries) = self.notification_attempts.prune(connection, before)?;
        // After the orders: with its row, an order keeps its run.
        let PrunedRuns { removed: step_runs, erased: erased_runs, more: more_runs } =
            self.step_runs.prune(connection, before)?;
        let mut minutes = 0;
        for (table, key) in [("sales", "currency, product"), ("order_sums", "currency, priority")] {
            let remove = format!(
                "DELETE FROM {table} WHERE (granularity, starts_at, {key}) IN (SELECT granularity, starts_at, {key}
                 FROM {table} WHERE granularity = 'minute' AND starts_at < ?1 ORDER BY starts_at LIMIT {BATCH_ROWS})"
            );
            minutes += connection.execute(&remove, [before])?;
        }
        let (letters, more_letters) = letters::prune(connection, before)?;
        Ok(Pruned {
            orders,
            events,
            attempts: attempts + deliveries,
            step_runs,
            erased_runs,
            minutes,
            letters,
            more: more_orders
                || more_events
                || more_attempts
                || more_deliveries
                || more_runs
                || minutes > 0
                || more_letters,
        })
    }

    /// Restarts all passes. Call it after a rollback.
    pub(super) fn clear(&mut self) {
        *self = Pruner::new();
    }
}
