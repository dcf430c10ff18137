//! Each kind of entry as statements, prepared once.
//!
//! It owns what one entry does within an open transaction, and the transaction's edges. Every effect hangs on
//! the row that proves it new. It must never decide which entries share a transaction.

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, Row, Statement, params};

use super::order_sums::OrderSums;
use super::prune::{Pruned, Pruner};
use super::sales::{Sales, parse_amount};
use super::schema;
use crate::domain::OrderId;
use crate::ledger::{LedgerEntry, LedgerError, NewAnalytics, NewAttempt, NewDeadLetter, NewOrder, Recorded};

/// What failed: one entry, or all that share its transaction.
#[derive(Debug)]
pub(super) enum Fault {
    /// Only this entry; nothing of it was kept.
    LedgerEntry(LedgerError),
    /// The transaction cannot go on.
    Batch(rusqlite::Error),
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // SQLite has undone the one statement and the transaction stands. None: the error is not SQLite's,
            // but that of a value read from it.
            Some(
                ErrorCode::ConstraintViolation
                | ErrorCode::TypeMismatch
                | ErrorCode::TooBig
                | ErrorCode::ParameterOutOfRange,
            )
            | None => Fault::LedgerEntry(LedgerError::store("record an entry", error)),
            Some(_) => Fault::Batch(error),
        }
    }
}

/// An order was finished that the ledger has not accepted: its file was replaced in between.
#[derive(Debug, thiserror::Error)]
#[error("order {0:?} was never accepted")]
struct NeverAccepted(OrderId);

/// The prepared statements of the writer's connection.
pub(super) struct Statements<'c> {
    connection: &'c Connection,
    begin: Statement<'c>,
    data_version: Statement<'c>,
    /// SQLite's count of other connections' commits, when last asked.
    others: i64,
    commit: Statement<'c>,
    accept: Statement<'c>,
    accepted: Statement<'c>,
    finish: Statement<'c>,
    finish_row: Statement<'c>,
    notification_known: Statement<'c>,
    enter_notification: Statement<'c>,
    enter_analytics: Statement<'c>,
    enter_attempt: Statement<'c>,
    enter_dead_letter: Statement<'c>,
    sales: Sales<'c>,
    order_sums: OrderSums<'c>,
    pruner: Pruner,
}

// `ON CONFLICT … DO NOTHING` and not `INSERT OR IGNORE`, which would hide other broken constraints too.
impl<'c> Statements<'c> {
    /// Prepares all statements; fails if a table is not as expected.
    pub(super) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            connection,
            begin: connection.prepare("BEGIN IMMEDIATE")?,
            data_version: connection.prepare("PRAGMA data_version")?,
            others: 0,
            commit: connection.prepare("COMMIT")?,
            accept: connection.prepare(
                "INSERT INTO orders (id, status, consumer, product, quantity, price, total, currency, priority,
                                     customer_id, placed_at, accepted_at)
                 VALUES (?1, 'accepted', ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT (id) DO NOTHING",
            )?,
            accepted: connection
                .prepare("SELECT status, product, quantity, price, currency, customer_id FROM orders WHERE id = ?1")?,
            finish: connection.prepare(
                "UPDATE orders SET status = 'processed', processed_at = ?2 WHERE id = ?1 AND status = 'accepted'",
            )?,
            finish_row: connection.prepare(
                "UPDATE orders SET status = 'processed', processed_at = ?3
                 WHERE rowid = ?1 AND id = ?2 AND status = 'accepted'",
            )?,
            notification_known: connection.prepare("SELECT 1 FROM events WHERE id = ?1 AND kind = 'notification'")?,
            enter_notification: connection.prepare(
                "INSERT INTO events (id, kind, name, order_id, recorded_at)
                 VALUES (?1, 'notification', ?2, ?3, ?4) ON CONFLICT (id, kind) DO NOTHING",
            )?,
            enter_analytics: connection.prepare(
                "INSERT INTO events (id, kind, name, order_id, recorded_at)
                 VALUES (?1, 'analytics', ?2, ?3, ?4) ON CONFLICT (id, kind) DO NOTHING",
            )?,
            enter_attempt: connection.prepare(
                "INSERT INTO attempts (identity, consumer, retry_count, failure_kind, failure_code, failure_reason,
                                       delay, failed_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (identity, consumer, retry_count) DO NOTHING",
            )?,
            enter_dead_letter: connection.prepare(
                "INSERT INTO dead_letters (identity, consumer, reason, retry_count, failure_kind, failure_code,
                                           failure_reason, origin_queue, failed_at, dead_lettered_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) ON CONFLICT (identity, consumer) DO UPDATE SET
                    reason = excluded.reason, retry_count = excluded.retry_count,
                    failure_kind = excluded.failure_kind, failure_code = excluded.failure_code,
                    failure_reason = excluded.failure_reason, origin_queue = excluded.origin_queue,
                    failed_at = excluded.failed_at, dead_lettered_at = excluded.dead_lettered_at
                 WHERE excluded.failed_at > failed_at",
            )?,
            sales: Sales::prepare(connection)?,
            order_sums: OrderSums::prepare(connection)?,
            pruner: Pruner::new(),
        })
    }

    /// Takes the write lock at once, so that a batch cannot fail half-way because another process wrote. If one has
    /// written before, sums in memory are no longer the file's, nor need the file be of this version.
    pub(super) fn begin(&mut self) -> Result<(), LedgerError> {
        let began = self.begin.execute([]).and_then(|_| self.data_version.query_row([], |row| row.get(0)));
        let others = began.map_err(|error| LedgerError::store(BEGIN, error))?;
        if others != self.others {
            let found = schema::version(self.connection).map_err(|error| LedgerError::store(BEGIN, error))?;
            let known = schema::last_version(schema::STEPS);
            if found != known {
                return Err(LedgerError::Outdated { found, known });
            }
            self.sales.forget();
            self.others = others;
        }
        Ok(())
    }

    /// Writes the folded aggregates and commits.
    pub(super) fn commit(&mut self) -> rusqlite::Result<()> {
        self.sales.write()?;
        self.order_sums.write()?;
        self.commit.execute([]).map(drop)
    }

    /// Leaves the transaction, if SQLite has not left it by itself, and forgets what it had folded.
    pub(super) fn roll_back(&mut self, connection: &Connection) {
        self.sales.forget();
        self.order_sums.forget();
        self.pruner.forget();
        if !connection.is_autocommit()
            && let Err(error) = connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "cannot roll back the ledger's transaction");
        }
    }

    /// Removes a little of what is older, within the open transaction.
    pub(super) fn prune(&mut self, connection: &Connection, before: Timestamp) -> rusqlite::Result<Pruned> {
        let pruned = self.pruner.prune(connection, before.as_millisecond())?;
        if pruned.minutes > 0 {
            // They may be among the sums in memory.
            self.sales.forget();
        }
        Ok(pruned)
    }

    /// Does what one entry asks, within the open transaction.
    pub(super) fn record(&mut self, entry: &LedgerEntry) -> Result<Recorded, Fault> {
        match entry {
            LedgerEntry::AcceptOrder(order) => self.accept_order(order),
            LedgerEntry::FinishOrder { id, at } => self.finish_order(id, *at),
            LedgerEntry::LookUpNotification { id } => {
                let known = self.notification_known.exists([id])?;
                Ok(if known { Recorded::Duplicate } else { Recorded::New })
            }
            LedgerEntry::Notification(it) => {
                let at = it.at.as_millisecond();
                let rows = self.enter_notification.execute((&it.id, &it.channel, &it.order_id, at))?;
                Ok(entered(rows))
            }
            LedgerEntry::Analytics(event) => self.enter_analytics(event),
            LedgerEntry::Attempt(attempt) => self.enter_attempt(attempt),
            LedgerEntry::DeadLetter(letter) => self.enter_dead_letter(letter),
        }
    }

    fn accept_order(&mut self, order: &NewOrder) -> Result<Recorded, Fault> {
        let rows = self.accept.execute((
            order.id.as_str(),
            &order.consumer,
            &order.product,
            order.quantity,
            order.price.to_string(),
            order.total.to_string(),
            order.currency.as_str(),
            order.priority,
            &order.customer_id,
            order.placed_at.map(Timestamp::as_millisecond),
            order.at.as_millisecond(),
        ))?;
        if rows == 1 {
            self.order_sums.accepted(order, self.connection.last_insert_rowid());
            return Ok(Recorded::New);
        }
        // Whoever accepted it may be another instance, and this one's memory of the id older.
        self.order_sums.take(&order.id);
        let mut found = self.accepted.query([order.id.as_str()])?;
        // The insert met a row of this id in this very transaction.
        let row = found.next()?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
        Ok(compare(row, order)?)
    }

    fn finish_order(&mut self, id: &OrderId, at: Timestamp) -> Result<Recorded, Fault> {
        let millis = at.as_millisecond();
        // By its row, no index is searched. Another instance may have changed, or removed, what this one remembers.
        if let Some(order) = self.order_sums.take(id)
            && self.finish_row.execute((order.rowid, id.as_str(), millis))? == 1
        {
            self.order_sums.processed(&order, at);
            return Ok(Recorded::New);
        }
        if self.finish.execute((id.as_str(), millis))? == 1 {
            // The row has changed: if it cannot be counted, it goes with its batch.
            let order = self.order_sums.read_order(id).map_err(Fault::Batch)?;
            self.order_sums.processed(&order, at);
            return Ok(Recorded::New);
        }
        if self.accepted.exists([id.as_str()])? {
            return Ok(Recorded::Duplicate);
        }
        Err(Fault::LedgerEntry(LedgerError::store("finish an order", NeverAccepted(id.clone()))))
    }

    fn enter_analytics(&mut self, event: &NewAnalytics) -> Result<Recorded, Fault> {
        let at = event.at.as_millisecond();
        let rows = self.enter_analytics.execute((&event.id, &event.name, &event.order_id, at))?;
        if let (1, Some(sale)) = (rows, &event.sale) {
            self.sales.add(sale);
        }
        Ok(entered(rows))
    }

    fn enter_attempt(&mut self, attempt: &NewAttempt) -> Result<Recorded, Fault> {
        let rows = self.enter_attempt.execute(params![
            attempt.identity,
            attempt.consumer,
            attempt.retry_count,
            attempt.kind,
            attempt.code,
            attempt.reason,
            attempt.delay,
            attempt.failed_at.as_millisecond(),
        ])?;
        Ok(entered(rows))
    }

    /// Two rows: what fails the second dooms the batch, so that there is never one without the other.
    fn enter_dead_letter(&mut self, letter: &NewDeadLetter) -> Result<Recorded, Fault> {
        let attempt = &letter.attempt;
        self.enter_attempt(attempt)?;
        let rows = self
            .enter_dead_letter
            .execute(params![
                attempt.identity,
                attempt.consumer,
                letter.reason,
                attempt.retry_count,
                attempt.kind,
                attempt.code,
                attempt.reason,
                letter.origin_queue,
                attempt.failed_at.as_millisecond(),
                letter.at.as_millisecond(),
            ])
            .map_err(Fault::Batch)?;
        Ok(entered(rows))
    }
}

/// What fails when a transaction cannot be begun.
const BEGIN: &str = "begin a transaction";

fn entered(rows: usize) -> Recorded {
    if rows == 1 { Recorded::New } else { Recorded::Duplicate }
}

/// Tells what a stored order means for one that comes again. Prices are compared as numbers: 400 is 400.00.
fn compare(row: &Row<'_>, order: &NewOrder) -> rusqlite::Result<Recorded> {
    let same = row.get_ref(1)?.as_str()? == order.product
        && row.get::<_, i64>(2)? == order.quantity
        && parse_amount(row.get_ref(3)?.as_str()?, 3)? == order.price
        && row.get_ref(4)?.as_str()? == order.currency.as_str()
        && row.get_ref(5)?.as_str_or_null()? == order.customer_id.as_deref();
    Ok(match row.get_ref(0)?.as_str()? {
        _ if !same => Recorded::Conflict,
        "accepted" => Recorded::Unfinished,
        _ => Recorded::Duplicate,
    })
}
