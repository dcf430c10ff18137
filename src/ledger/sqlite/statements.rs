//! Records each kind of entry with statements that are prepared once.
//!
//! It owns what an entry does within an open transaction, and beginning and committing that. An effect is added only if
//! its entry's row was inserted or changed. It must never decide which entries share a transaction.

mod failures;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Statement, params};
use rust_decimal::Decimal;

use super::notifications::Notifications;
use super::order_items::{self, Compared, SELECT_STORED, compare, only_item};
use super::order_sums::OrderSums;
use super::overwrite::COUNT_ORDERS;
use super::prune::Pruner;
use super::record_error::{RecordError, recorded};
use super::request::{WriterAnswer, WriterEntry};
use super::sales::Sales;
use super::store_error::ledger_error;
use super::{alerts, cancellation, journal, letters, replay_outcomes, replays, schema, step_runs, step_texts};
use crate::domain::{OrderId, Sale};
use crate::ledger::entry::{LedgerEntry, NewAnalytics, NewOrder, Recorded};
use crate::ledger::error::LedgerError;
use crate::ledger::retention::Pruned;
use crate::ledger::step_runs::{ClaimAnswer, RunKey, RunState};

/// An order is to be finished that is not in the ledger: the file was replaced after it was accepted.
#[derive(Debug, thiserror::Error)]
#[error("order {0:?} was never accepted")]
struct NeverAccepted(OrderId);

/// The prepared statements of the writer's connection.
pub(super) struct Statements<'c> {
    connection: &'c Connection,
    begin: Statement<'c>,
    data_version: Statement<'c>,
    page_count: Statement<'c>,
    count_orders: Statement<'c>,
    page_size: i64,
    /// `PRAGMA data_version` when last read; it changes with every commit of another connection.
    last_data_version: i64,
    commit: Statement<'c>,
    insert_order: Statement<'c>,
    select_order: Statement<'c>,
    finish_order: Statement<'c>,
    finish_order_at_row: Statement<'c>,
    select_event: Statement<'c>,
    notifications: Notifications<'c>,
    insert_analytics: Statement<'c>,
    insert_attempt: Statement<'c>,
    delete_retried: Statement<'c>,
    insert_dead_letter: Statement<'c>,
    sales: Sales<'c>,
    order_sums: OrderSums<'c>,
    pruner: Pruner,
    /// Whether the results of any unfinished run are to be erased once it has ended.
    erases_at_end: bool,
}

// `ON CONFLICT … DO NOTHING` and not `INSERT OR IGNORE`, which would hide other broken constraints too.
impl<'c> Statements<'c> {
    /// Prepares all statements. Fails if a table is not as expected.
    pub(super) fn prepare(connection: &'c Connection) -> rusqlite::Result<Self> {
        Ok(Self {
            connection,
            begin: connection.prepare("BEGIN IMMEDIATE")?,
            data_version: connection.prepare("PRAGMA data_version")?,
            last_data_version: 0,
            page_count: connection.prepare("PRAGMA page_count")?,
            count_orders: connection.prepare(COUNT_ORDERS)?,
            page_size: connection.query_row("PRAGMA page_size", [], |row| row.get(0))?,
            commit: connection.prepare("COMMIT")?,
            insert_order: connection.prepare(
                "INSERT INTO orders (id, status, consumer, product, quantity, price, goods_total, shipping, fees, tax,
                                     tax_included, discount, total, currency, priority, customer_id, placed_at,
                                     accepted_at, email, notify, phone, locale)
                 VALUES (?1, 'accepted', ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15,
                         ?16, ?17, ?18, ?19, ?20, ?21)
                 ON CONFLICT (id) DO NOTHING",
            )?,
            select_order: connection.prepare(SELECT_STORED)?,
            finish_order: connection.prepare(
                "UPDATE orders SET status = 'processed', processed_at = ?2
                 WHERE id = ?1 AND status IN ('accepted', 'failed')
                   AND NOT EXISTS (SELECT 1 FROM step_runs WHERE scope = '' AND identity = ?1
                                   AND state IN ('undoing', 'undone', 'undo_failed'))",
            )?,
            finish_order_at_row: connection.prepare(
                "UPDATE orders SET status = 'processed', processed_at = ?3
                 WHERE rowid = ?1 AND id = ?2 AND status IN ('accepted', 'failed')
                   AND NOT EXISTS (SELECT 1 FROM step_runs WHERE scope = '' AND identity = ?2
                                   AND state IN ('undoing', 'undone', 'undo_failed'))",
            )?,
            select_event: connection.prepare("SELECT 1 FROM events WHERE id = ?1 AND kind = ?2")?,
            notifications: Notifications::prepare(connection)?,
            insert_analytics: connection.prepare(
                "INSERT INTO events (id, kind, name, order_id, recorded_at)
                 VALUES (?1, 'analytics', ?2, ?3, ?4) ON CONFLICT (id, kind) DO NOTHING",
            )?,
            insert_attempt: connection.prepare(
                "INSERT INTO attempts (identity, consumer, retry_count, failure_kind, failure_code, failure_reason,
                                       delay, failed_at, replay_key)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)
                 ON CONFLICT (identity, consumer, replay_key, retry_count) DO UPDATE SET delay = excluded.delay
                 WHERE excluded.failed_at = failed_at AND excluded.failure_code = failure_code
                   AND excluded.delay IS NOT delay",
            )?,
            delete_retried: connection.prepare(
                "DELETE FROM dead_letters WHERE identity = ?1 AND consumer = ?2 AND retry_count = ?3 AND failed_at = ?4
                                           AND failure_code = ?5 AND replay_key = ?6",
            )?,
            insert_dead_letter: connection.prepare(
                "INSERT INTO dead_letters (identity, consumer, reason, retry_count, failure_kind, failure_code,
                                           failure_reason, origin_queue, failed_at, dead_lettered_at, replay_key)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
                 ON CONFLICT (identity, consumer) DO UPDATE SET
                    reason = excluded.reason, retry_count = excluded.retry_count,
                    failure_kind = excluded.failure_kind, failure_code = excluded.failure_code,
                    failure_reason = excluded.failure_reason, origin_queue = excluded.origin_queue,
                    failed_at = excluded.failed_at, dead_lettered_at = excluded.dead_lettered_at,
                    replay_key = excluded.replay_key
                 WHERE excluded.failed_at > failed_at
                    OR excluded.failed_at = failed_at
                       AND (excluded.replay_key <> replay_key
                            OR excluded.retry_count = retry_count
                               AND (excluded.reason, excluded.failure_code) <> (reason, failure_code))",
            )?,
            sales: Sales::prepare(connection)?,
            order_sums: OrderSums::prepare(connection)?,
            pruner: Pruner::new(),
            erases_at_end: false,
        })
    }

    /// Takes the write lock at once, so that a batch cannot fail half-way because another process wrote. If another
    /// process has written since, the sums in memory may be stale, and the file may have been migrated. Returns whether one
    /// has.
    pub(super) fn begin(&mut self) -> Result<bool, LedgerError> {
        let began = self.begin.execute([]).and_then(|_| self.data_version.query_row([], |row| row.get(0)));
        let data_version = began.map_err(|error| ledger_error(BEGIN, error))?;
        let others_have_committed = data_version != self.last_data_version;
        if others_have_committed {
            let found = schema::version(self.connection).map_err(|error| ledger_error(BEGIN, error))?;
            let known = schema::last_version(schema::MIGRATIONS);
            if found != known {
                return Err(LedgerError::Outdated { found, known });
            }
            self.erases_at_end =
                step_texts::any_requested(self.connection).map_err(|error| ledger_error(BEGIN, error))?;
            self.sales.clear();
            self.last_data_version = data_version;
        }
        Ok(others_have_committed)
    }

    /// Whether another connection has committed since the last transaction began.
    pub(super) fn others_have_committed(&mut self) -> Result<bool, LedgerError> {
        let data_version: rusqlite::Result<i64> = self.data_version.query_row([], |row| row.get(0));
        Ok(data_version.map_err(|error| ledger_error(BEGIN, error))? != self.last_data_version)
    }

    /// The size of the database in bytes. That of its file may be smaller or larger until the next checkpoint.
    pub(super) fn database_size(&mut self) -> Result<u64, LedgerError> {
        let pages: rusqlite::Result<i64> = self.page_count.query_row([], |row| row.get(0));
        let pages = pages.map_err(|error| ledger_error("read the number of pages", error))?;
        Ok(pages.saturating_mul(self.page_size).cast_unsigned())
    }

    /// See [`COUNT_ORDERS`].
    pub(super) fn count_orders(&mut self, since: i64) -> Result<i64, LedgerError> {
        let counted = self.count_orders.query_row([since], |row| row.get(0));
        counted.map_err(|error| ledger_error("count the orders", error))
    }

    /// What the open transaction adds to [`COUNT_ORDERS`].
    pub(super) fn new_orders(&self, since: i64) -> i64 {
        self.order_sums.changed_since(since)
    }

    /// Writes the aggregates' changes and commits.
    pub(super) fn commit(&mut self) -> rusqlite::Result<()> {
        self.sales.write()?;
        self.order_sums.write()?;
        self.commit.execute([]).map(drop)
    }

    /// Rolls the transaction back, unless SQLite has done so itself, and drops the aggregates' changes.
    pub(super) fn roll_back(&mut self, connection: &Connection) {
        self.sales.clear();
        self.order_sums.clear();
        self.pruner.clear();
        if !connection.is_autocommit()
            && let Err(error) = connection.execute_batch("ROLLBACK")
        {
            tracing::error!(%error, "cannot roll back the ledger's transaction");
        }
    }

    /// Removes one batch of what is older than `before`, within the open transaction.
    pub(super) fn prune(&mut self, connection: &Connection, before: Timestamp) -> rusqlite::Result<Pruned> {
        let pruned = self.pruner.prune(connection, before.as_millisecond())?;
        if pruned.minutes > 0 {
            // The sums in memory may include these minutes.
            self.sales.clear();
        }
        Ok(pruned)
    }

    /// Records one entry within the open transaction.
    pub(super) fn record(&mut self, entry: &WriterEntry) -> Result<WriterAnswer, RecordError> {
        match entry {
            WriterEntry::Effect(entry) => self.record_effect(entry).map(WriterAnswer::Effect),
            // Several statements: if one fails, the whole batch does, so that nothing of it is kept.
            WriterEntry::Claim(claim) => {
                if let Some(order) = &claim.order {
                    match self.accept_order(order)? {
                        Recorded::New | Recorded::Unfinished => {}
                        answer @ (Recorded::Duplicate
                        | Recorded::Conflict(_)
                        | Recorded::InProgress
                        | Recorded::Undone
                        | Recorded::Cancelled
                        | Recorded::UnknownReplay
                        | Recorded::Held) => {
                            return Ok(WriterAnswer::Claim(ClaimAnswer::NotAccepted(answer)));
                        }
                    }
                }
                step_runs::claim(self.connection, claim).map(WriterAnswer::Claim).map_err(RecordError::Batch)
            }
            WriterEntry::Cancel(cancelled) => {
                let answer = cancellation::cancel(self.connection, &mut self.order_sums, &mut self.sales, cancelled);
                answer.map(WriterAnswer::Cancel).map_err(RecordError::Batch)
            }
            WriterEntry::Run(record) => {
                step_runs::record(self.connection, record).map(WriterAnswer::Run).map_err(RecordError::Batch)
            }
            WriterEntry::Alerts(replacement) => {
                Ok(WriterAnswer::Alerts(alerts::exchange_apart(self.connection, replacement.as_deref())?))
            }
            WriterEntry::Letter(letter) => {
                letters::store(self.connection, letter).map(WriterAnswer::Letter).map_err(RecordError::Batch)
            }
            WriterEntry::BeginReading { fingerprint, process } => {
                let began = letters::begin_parsing(self.connection, fingerprint, process);
                began.map(WriterAnswer::Reading).map_err(RecordError::Batch)
            }
            WriterEntry::EndReading { fingerprint } => {
                let ended = letters::end_parsing(self.connection, fingerprint);
                ended.map(WriterAnswer::ReadingEnded).map_err(RecordError::Batch)
            }
            WriterEntry::BeginReadingAgain { version } => {
                let began = letters::begin_reparsing(self.connection, version);
                began.map(WriterAnswer::Reparse).map_err(RecordError::Batch)
            }
            WriterEntry::EndReadingAgain(ended) => {
                let ended = letters::end_reparsing(self.connection, ended);
                ended.map(WriterAnswer::ReadingEnded).map_err(RecordError::Batch)
            }
            WriterEntry::Journal(entry) => {
                journal::append(self.connection, entry).map(WriterAnswer::Journal).map_err(RecordError::Batch)
            }
            WriterEntry::Operation(operation) => {
                replays::carry_out(self.connection, operation).map(WriterAnswer::Operation).map_err(RecordError::Batch)
            }
        }
    }

    fn record_effect(&mut self, entry: &LedgerEntry) -> Result<Recorded, RecordError> {
        match entry {
            LedgerEntry::AcceptOrder(order) => match self.accept_order(order)? {
                Recorded::Unfinished => {
                    let state = step_runs::state(self.connection, &order.id)?;
                    Ok(state.map_or(Recorded::Unfinished, RunState::answer))
                }
                answer => Ok(answer),
            },
            LedgerEntry::FinishOrder { id, at } => {
                let finished = self.finish_order(id, *at)?;
                if self.erases_at_end && finished == Recorded::New {
                    self.erase_at_end(id).map_err(RecordError::Batch)?;
                }
                Ok(finished)
            }
            LedgerEntry::FinishCancellation { id, at } => Ok(cancellation::finish(self.connection, id, *at)?),
            LedgerEntry::LookUpNotification { id } => Ok(known(self.select_event.exists((id, "notification"))?)),
            LedgerEntry::ClaimNotification { id, owner, at, until } => {
                if self.select_event.exists((id, "notification"))? {
                    return Ok(Recorded::Duplicate);
                }
                Ok(self.notifications.claim(id, owner, *at, *until)?)
            }
            LedgerEntry::ReleaseNotification { id, owner, failed } => self.notifications.release(id, owner, failed),
            LedgerEntry::LookUpAnalytics { id } => Ok(known(self.select_event.exists((id, "analytics"))?)),
            LedgerEntry::Notification(notification) => self.notifications.insert(notification),
            LedgerEntry::Analytics(event) => self.insert_analytics(event),
            LedgerEntry::ReplayOutcome { key, outcome, code, at } => {
                replay_outcomes::record(self.connection, key, outcome, code.as_deref(), *at).map_err(RecordError::Batch)
            }
            LedgerEntry::Attempt(attempt) => self.insert_retried(attempt),
            LedgerEntry::DeadLetter(letter) => self.insert_dead_letter(letter),
        }
    }

    fn accept_order(&mut self, order: &NewOrder) -> Result<Recorded, RecordError> {
        let (only, amounts) = (only_item(order), &order.amounts);
        let goods = amounts.goods.to_string();
        let total = (amounts.total != amounts.goods).then(|| amounts.total.to_string());
        let charge = |charge: Option<Decimal>| charge.map(|amount| amount.to_string());
        let rows = self.insert_order.execute(params![
            order.id.as_str(),
            &order.consumer,
            only.map(|item| item.product.as_str()),
            amounts.quantity,
            only.map(|item| item.price.to_string()),
            &goods,
            charge(amounts.charges.shipping),
            charge(amounts.charges.fees),
            charge(amounts.charges.tax),
            amounts.charges.stated_tax_included(),
            charge(amounts.charges.discount),
            total.as_ref().unwrap_or(&goods),
            amounts.currency.as_str(),
            order.priority,
            &order.customer_id,
            order.placed_at.map(Timestamp::as_millisecond),
            order.at.as_millisecond(),
            &order.email,
            &order.notify,
            &order.phone,
            &order.locale,
        ])?;
        if rows == 1 {
            let rowid = self.connection.last_insert_rowid();
            if only.is_none() {
                // Without all of its lines, no order is kept: the whole batch fails.
                order_items::insert(self.connection, order).map_err(RecordError::Batch)?;
            }
            self.order_sums.accepted(order, rowid);
            return Ok(Recorded::New);
        }
        // Another instance may have accepted the order after this instance cached it, so the cached one may be stale.
        self.order_sums.take(&order.id);
        let connection = self.connection;
        // The insert found a row with this id in this same transaction.
        let compared = self.select_order.query_row([order.id.as_str()], |row| compare(connection, row, order))?;
        Ok(match compared {
            Compared::Different => Recorded::Conflict(cancellation::progress(connection, &order.id)?),
            Compared::Accepted => Recorded::Unfinished,
            Compared::Processed | Compared::Revoked => Recorded::Duplicate,
            Compared::Cancelled => Recorded::Cancelled,
            Compared::Failed => {
                cancellation::accept_again(connection, &order.id)?;
                Recorded::Unfinished
            }
            Compared::CancelledUnknown => {
                cancellation::prevent(connection, &mut self.order_sums, order).map_err(RecordError::Batch)?;
                Recorded::Cancelled
            }
        })
    }

    fn finish_order(&mut self, id: &OrderId, at: Timestamp) -> Result<Recorded, RecordError> {
        let millis = at.as_millisecond();
        // Updating by row id searches no index. Another instance may have changed or removed the cached row, so the
        // id is compared too.
        if let Some(order) = self.order_sums.take(id)
            && self.finish_order_at_row.execute((order.rowid, id.as_str(), millis))? == 1
        {
            self.order_sums.processed(&order, at);
            return Ok(Recorded::New);
        }
        if self.finish_order.execute((id.as_str(), millis))? == 1 {
            // The row has been updated already, so if it cannot be counted, the whole batch fails.
            let order = self.order_sums.read_order(id).map_err(RecordError::Batch)?;
            self.order_sums.processed(&order, at);
            return Ok(Recorded::New);
        }
        let status = self.select_order.query_row([id.as_str()], |row| row.get::<_, String>(0)).optional()?;
        match status.as_deref() {
            Some("accepted" | "failed") => return Ok(Recorded::Undone),
            Some(order_items::CANCELLED) => {
                let finished = cancellation::finish_cancelled(self.connection, &mut self.order_sums, id, at);
                return finished.map_err(RecordError::Batch);
            }
            Some(_) => return Ok(Recorded::Duplicate),
            None => {}
        }
        Err(RecordError::Entry(LedgerError::refused("finish an order", NeverAccepted(id.clone()))))
    }

    /// The results of the order's steps were to be erased once it is finished.
    fn erase_at_end(&self, id: &OrderId) -> rusqlite::Result<()> {
        step_texts::erase_requested(self.connection, &RunKey { scope: String::new(), identity: id.as_str().to_owned() })
    }

    fn insert_analytics(&mut self, event: &NewAnalytics) -> Result<Recorded, RecordError> {
        let at = event.at.as_millisecond();
        let rows = self.insert_analytics.execute((&event.id, &event.name, &event.order_id, at))?;
        if let (1, Some(sale)) = (rows, &event.sale) {
            self.count_sale(sale, event.order_id.as_deref()).map_err(RecordError::Batch)?;
        }
        Ok(recorded(rows))
    }

    /// Adds the sale of a processed order, and subtracts it if the order was cancelled meanwhile.
    fn count_sale(&mut self, sale: &Sale, order: Option<&str>) -> rusqlite::Result<()> {
        self.sales.add(sale);
        if let Some(order) = order
            && let Some(at) = cancellation::cancelled_at(self.connection, order)?
        {
            self.sales.add(&sale.clone().cancelled(at));
        }
        Ok(())
    }
}

/// The action in errors when a transaction cannot be started.
const BEGIN: &str = "begin a transaction";

fn known(is_known: bool) -> Recorded {
    if is_known { Recorded::Duplicate } else { Recorded::New }
}
