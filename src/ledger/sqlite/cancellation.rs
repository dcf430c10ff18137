//! Cancelled orders, within the writer's open transaction: what a cancellation does to an order, and what happens to an order
//! that was cancelled.
//!
//! Its statements are prepared when they are first used: most shops cancel few orders. Where one of several statements fails, the
//! whole transaction must.

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use rust_decimal::Decimal;

use super::order_items::{self, CANCELLED, UNKNOWN_QUANTITY, only_item};
use super::order_sums::OrderSums;
use super::sales::{Sales, parse_amount};
use crate::domain::{Amounts, Charges, Currency, Item, OrderId, Sale};
use crate::ledger::entry::{CancelAnswer, CancelledOrder, NewCancellation, NewOrder, OtherOrder, Recorded};
use crate::ledger::erase::ERASED;

/// Cancels an order.
pub(super) fn cancel(
    connection: &Connection,
    sums: &mut OrderSums<'_>,
    sales: &mut Sales<'_>,
    cancellation: &NewCancellation,
) -> rusqlite::Result<CancelAnswer> {
    let id = &cancellation.id;
    let Some(stored) = read(connection, id)? else {
        keep(connection, cancellation)?;
        return Ok(CancelAnswer::Kept);
    };
    let (was_announced, at) = match &*stored.status {
        CANCELLED if stored.is_finished => return Ok(CancelAnswer::Duplicate),
        CANCELLED => (stored.was_announced, stored.cancelled_at.unwrap_or(cancellation.at)),
        status => {
            // Without steps, or once they are done, an accepted order's events may be being published; also if another copy of it was
            // dead-lettered meanwhile.
            let is_finishing =
                matches!((status, stored.run.as_deref()), ("accepted", None) | ("accepted" | "failed", Some("done")));
            let was_announced = stored.is_processed || stored.is_sold || is_finishing;
            let mut update = connection.prepare_cached(
                "UPDATE orders SET status = 'cancelled', cancelled_at = ?2, was_announced = ?3 WHERE id = ?1",
            )?;
            update.execute((id.as_str(), cancellation.at.as_millisecond(), was_announced))?;
            let counted = sums.read_order(id)?;
            if stored.is_processed {
                sums.cancelled(&counted, cancellation.at);
            } else {
                sums.prevented(&counted, cancellation.at);
            }
            if stored.is_sold {
                sales.add(&sale(&stored.order).cancelled(cancellation.at));
            }
            (was_announced, cancellation.at)
        }
    };
    sums.take(id);
    let (order, steps_queue) = (stored.order, stored.steps_queue);
    Ok(CancelAnswer::Cancelled(Box::new(CancelledOrder { order, at, was_announced, steps_queue })))
}

/// Keeps the cancellation of an order that is not known.
fn keep(connection: &Connection, cancellation: &NewCancellation) -> rusqlite::Result<()> {
    let mut insert = connection.prepare_cached(
        "INSERT INTO orders (id, status, consumer, quantity, goods_total, total, currency, priority, accepted_at,
                             cancelled_at, was_announced, cancellation_finished_at)
         VALUES (?1, 'cancelled', ?2, ?3, '0', '0', 'XXX', 0, ?4, ?4, 0, ?4)",
    )?;
    let at = cancellation.at.as_millisecond();
    insert.execute((cancellation.id.as_str(), &cancellation.consumer, UNKNOWN_QUANTITY, at))?;
    Ok(())
}

/// Adds the content of an order that was cancelled before it arrived.
pub(super) fn prevent(connection: &Connection, sums: &mut OrderSums<'_>, order: &NewOrder) -> rusqlite::Result<()> {
    let (only, amounts) = (only_item(order), &order.amounts);
    let charge = |charge: Option<Decimal>| charge.map(|amount| amount.to_string());
    let mut update = connection.prepare_cached(
        "UPDATE orders SET consumer = ?2, product = ?3, quantity = ?4, price = ?5, goods_total = ?6, shipping = ?7,
                           fees = ?8, tax = ?9, tax_included = ?10, discount = ?11, total = ?12, currency = ?13,
                           priority = ?14, customer_id = ?15, placed_at = ?16, prevented_at = ?17
         WHERE id = ?1",
    )?;
    update.execute(params![
        order.id.as_str(),
        &order.consumer,
        only.map(|item| item.product.as_str()),
        amounts.quantity,
        only.map(|item| item.price.to_string()),
        amounts.goods.to_string(),
        charge(amounts.charges.shipping),
        charge(amounts.charges.fees),
        charge(amounts.charges.tax),
        amounts.charges.stated_tax_included(),
        charge(amounts.charges.discount),
        amounts.total.to_string(),
        amounts.currency.as_str(),
        order.priority,
        &order.customer_id,
        order.placed_at.map(Timestamp::as_millisecond),
        order.at.as_millisecond(),
    ])?;
    if only.is_none() {
        order_items::insert(connection, order)?;
    }
    sums.prevented(&sums.read_order(&order.id)?, order.at);
    Ok(())
}

/// Accepts an order again that has failed: it was replayed.
pub(super) fn accept_again(connection: &Connection, id: &OrderId) -> rusqlite::Result<()> {
    let update = "UPDATE orders SET status = 'accepted' WHERE id = ?1 AND status = 'failed'";
    connection.prepare_cached(update)?.execute([id.as_str()])?;
    Ok(())
}

/// The events of a cancelled order's processing are confirmed: it was cancelled while they were published.
pub(super) fn finish_cancelled(
    connection: &Connection,
    sums: &mut OrderSums<'_>,
    id: &OrderId,
    at: Timestamp,
) -> rusqlite::Result<Recorded> {
    let update = "UPDATE orders SET processed_at = ?2 WHERE id = ?1 AND processed_at IS NULL RETURNING cancelled_at";
    let cancelled_at: Option<i64> = connection
        .prepare_cached(update)?
        .query_row((id.as_str(), at.as_millisecond()), |row| row.get(0))
        .optional()?;
    let Some(cancelled_at) = cancelled_at.map(timestamp) else { return Ok(Recorded::Duplicate) };
    let counted = sums.read_order(id)?;
    sums.processed(&counted, at);
    sums.cancelled(&counted, cancelled_at);
    sums.not_prevented(&counted, cancelled_at);
    Ok(Recorded::Cancelled)
}

/// A cancellation is complete.
pub(super) fn finish(connection: &Connection, id: &OrderId, at: Timestamp) -> rusqlite::Result<Recorded> {
    let update = "UPDATE orders SET cancellation_finished_at = ?2
                  WHERE id = ?1 AND status = 'cancelled' AND cancellation_finished_at IS NULL";
    let rows = connection.prepare_cached(update)?.execute((id.as_str(), at.as_millisecond()))?;
    Ok(if rows == 1 { Recorded::New } else { Recorded::Duplicate })
}

/// Sets the status of an accepted order that is dead-lettered.
pub(super) fn fail(connection: &Connection, id: &OrderId) -> rusqlite::Result<()> {
    let update = "UPDATE orders SET status = 'failed' WHERE id = ?1 AND status = 'accepted'";
    connection.prepare_cached(update)?.execute([id.as_str()])?;
    Ok(())
}

/// How far an order is.
pub(super) fn progress(connection: &Connection, id: &OrderId) -> rusqlite::Result<OtherOrder> {
    let select = "SELECT status, EXISTS (SELECT 1 FROM step_runs WHERE scope = '' AND identity = orders.id
                                         AND state IN ('undoing', 'undone', 'undo_failed'))
                  FROM orders WHERE id = ?1";
    connection.prepare_cached(select)?.query_row([id.as_str()], |row| {
        Ok(match (row.get_ref(0)?.as_str()?, row.get(1)?) {
            ("processed" | CANCELLED, _) => OtherOrder::Finished,
            ("failed", _) | (_, true) => OtherOrder::Failed,
            (_, false) => OtherOrder::InProgress,
        })
    })
}

/// When an order was cancelled, if it was.
pub(super) fn cancelled_at(connection: &Connection, id: &str) -> rusqlite::Result<Option<Timestamp>> {
    let select = "SELECT cancelled_at FROM orders WHERE id = ?1 AND status = 'cancelled'";
    let found: Option<Option<i64>> = connection.prepare_cached(select)?.query_row([id], |row| row.get(0)).optional()?;
    Ok(found.flatten().map(timestamp))
}

/// What was counted of an order.
fn sale(order: &NewOrder) -> Sale {
    let lines = order.items.iter().map(|item| (item.product.clone(), item.quantity, item.total));
    Sale::new(lines, order.amounts.currency, order.at)
}

/// An order that is to be cancelled.
struct Stored {
    status: String,
    order: NewOrder,
    is_processed: bool,
    /// Its sale is in the aggregates.
    is_sold: bool,
    cancelled_at: Option<Timestamp>,
    was_announced: bool,
    /// The cancellation is complete.
    is_finished: bool,
    /// The state of its run of steps.
    run: Option<String>,
    /// The queue of the consumer that has called them.
    steps_queue: Option<String>,
}

fn read(connection: &Connection, id: &OrderId) -> rusqlite::Result<Option<Stored>> {
    let mut select = connection.prepare_cached(
        "SELECT status, consumer, product, quantity, price, goods_total, shipping, fees, tax, tax_included, discount,
                total, currency, priority, customer_id, email, notify, placed_at, accepted_at,
                processed_at IS NOT NULL, cancelled_at, coalesce(was_announced, 0),
                cancellation_finished_at IS NOT NULL,
                (SELECT state FROM step_runs WHERE scope = '' AND identity = orders.id),
                -- An id that looks like an identity of orderd's own has a prefix.
                EXISTS (SELECT 1 FROM events WHERE kind = 'analytics' AND events.id IN
                    (orders.id || '/analytics/processed', 'message_id:' || orders.id || '/analytics/processed')),
                phone, locale, (SELECT queue FROM step_runs WHERE scope = '' AND identity = orders.id)
         FROM orders WHERE id = ?1",
    )?;
    let read = |row: &Row<'_>| {
        Ok(Stored {
            status: row.get(0)?,
            order: read_order(connection, id, row)?,
            is_processed: row.get(19)?,
            cancelled_at: row.get::<_, Option<i64>>(20)?.map(timestamp),
            was_announced: row.get(21)?,
            is_finished: row.get(22)?,
            run: row.get(23)?,
            steps_queue: row.get(27)?,
            is_sold: row.get(24)?,
        })
    };
    select.query_row([id.as_str()], read).optional()
}

fn read_order(connection: &Connection, id: &OrderId, row: &Row<'_>) -> rusqlite::Result<NewOrder> {
    let amount = |column: usize| parse_amount(row.get_ref(column)?.as_str()?, column);
    let optional = |column: usize| match row.get_ref(column)?.as_str_or_null()? {
        Some(text) => parse_amount(text, column).map(Some),
        None => Ok::<_, rusqlite::Error>(None),
    };
    let (quantity, goods) = (row.get(3)?, amount(5)?);
    let items = match (row.get::<_, Option<String>>(2)?, optional(4)?) {
        (Some(product), Some(price)) => vec![Item { product, quantity, price, total: goods }],
        (Some(_) | None, _) => order_items::read(connection, id.as_str(), |row| {
            let price = parse_amount(row.get_ref(2)?.as_str()?, 2)?;
            let total = parse_amount(row.get_ref(3)?.as_str()?, 3)?;
            Ok(Item { product: row.get(0)?, quantity: row.get(1)?, price, total })
        })?,
    };
    let charges = Charges {
        shipping: optional(6)?,
        fees: optional(7)?,
        tax: optional(8)?,
        tax_included: row.get::<_, Option<bool>>(9)?.unwrap_or(false),
        discount: optional(10)?,
    };
    let currency = row.get_ref(12)?.as_str()?.parse().unwrap_or(Currency::NONE);
    let text = |column: usize| row.get::<_, Option<String>>(column).map(|text| text.filter(|text| text != ERASED));
    Ok(NewOrder {
        id: id.clone(),
        consumer: Arc::from(row.get_ref(1)?.as_str()?),
        items: items.into(),
        amounts: Amounts { goods, charges, total: amount(11)?, currency, quantity },
        priority: row.get(13)?,
        customer_id: text(14)?,
        email: text(15)?,
        phone: text(25)?,
        locale: text(26)?,
        notify: text(16)?,
        placed_at: row.get::<_, Option<i64>>(17)?.map(timestamp),
        at: row.get(18).map(timestamp)?,
    })
}

/// A time from the file. Another program may have written a number that is out of range; it becomes `Timestamp::MIN`.
fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MIN)
}
