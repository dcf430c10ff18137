//! Reads everything recorded about one order, by primary keys alone, on a connection of its own, from one snapshot.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};

pub(super) use super::columns::{time, timestamp};

use super::open::{self, READ_BUSY_TIMEOUT};
use super::order_items::{self, UNKNOWN_QUANTITY};
use super::order_sums::read_amount;
use super::{letter_attempts, trace_letters};
use crate::domain::ExactSum;
use crate::ledger::dead_letters::{LetterAttempt, LetterDelivery, LetterStep};
use crate::ledger::error::OpenError;
use crate::ledger::trace::{Trace, TraceEvent, TraceStep, TracedItem, TracedMessage, TracedOrder, due};

/// Blocks for some milliseconds of disk I/O.
pub(super) fn read(directory: &Path, id: &str) -> Result<Trace, OpenError> {
    let connection = open::for_reading(directory, READ_BUSY_TIMEOUT)?;
    trace(&connection, id).map_err(|error| open::error(directory, error))
}

fn trace(connection: &Connection, id: &str) -> rusqlite::Result<Trace> {
    // One transaction, so one snapshot.
    let snapshot = connection.unchecked_transaction()?;
    let mut steps = Vec::new();
    let order = read_order(&snapshot, id, &mut steps)?;
    read_calls(&snapshot, id, &mut steps)?;
    let letters = trace_letters::of_order(&snapshot, id)?;
    for (message, suffix) in TracedMessage::SUFFIXES {
        let identity = format!("{id}{suffix}");
        read_attempts(&snapshot, message, &identity, &mut steps)?;
        let recorded = read_dead_letters(&snapshot, message, &identity)?;
        trace_letters::add(&snapshot, (message, &identity), &letters, recorded, &mut steps)?;
        read_failed_deliveries(&snapshot, message, &identity, &mut steps)?;
        read_event(&snapshot, message, &identity, &mut steps)?;
    }
    Ok(Trace::new(id, order, steps))
}

fn read_order(snapshot: &Connection, id: &str, steps: &mut Vec<TraceStep>) -> rusqlite::Result<Option<TracedOrder>> {
    let mut query = snapshot.prepare(
        "SELECT status, consumer, quantity, goods_total, shipping, tax, discount, total, currency, priority, customer_id,
                placed_at, accepted_at, processed_at, product, price, fees, tax_included, cancelled_at, prevented_at,
                cancellation_finished_at
         FROM orders WHERE id = ?1",
    )?;
    let found = query.query_row([id], |row| {
        let quantity = row.get(2)?;
        let goods_total = read_amount(row, 3)?;
        let charge = |column| optional_amount(row, column);
        let items = match row.get(14)? {
            Some(product) => vec![TracedItem { product, quantity, price: read_amount(row, 15)?, total: goods_total }],
            None => read_items(snapshot, id)?,
        };
        let order = TracedOrder {
            status: row.get(0)?,
            consumer: row.get(1)?,
            items,
            quantity,
            goods_total,
            shipping: charge(4)?,
            fees: charge(16)?,
            tax: charge(5)?,
            tax_included: row.get(17)?,
            discount: charge(6)?,
            total: read_amount(row, 7)?,
            currency: row.get(8)?,
            priority: row.get(9)?,
            customer_id: row.get(10)?,
            placed_at: row.get::<_, Option<i64>>(11)?.map(timestamp),
        };
        let optional_time = |column| row.get::<_, Option<i64>>(column).map(|at| at.map(timestamp));
        Ok((order, time(row, 12)?, [optional_time(13)?, optional_time(18)?, optional_time(19)?, optional_time(20)?]))
    });
    let Some((order, accepted_at, [processed_at, cancelled_at, prevented_at, finished_at])) = found.optional()? else {
        return Ok(None);
    };
    let step = |at, event| TraceStep { at, message: TracedMessage::Order, event };
    // An order that was cancelled before it arrived has no content until then.
    let is_known = order.quantity != UNKNOWN_QUANTITY;
    match prevented_at {
        Some(at) => steps.push(step(at, TraceEvent::Prevented)),
        None if is_known => {
            steps.push(step(accepted_at, TraceEvent::Accepted { consumer: order.consumer.clone() }));
        }
        None => {}
    }
    steps.extend(processed_at.map(|at| step(at, TraceEvent::Processed)));
    steps.extend(cancelled_at.map(|at| step(at, TraceEvent::Cancelled)));
    let finished_later = finished_at.filter(|at| Some(*at) > cancelled_at);
    steps.extend(finished_later.map(|at| TraceStep {
        at,
        message: TracedMessage::Cancellation,
        event: TraceEvent::CancellationFinished,
    }));
    Ok(is_known.then_some(order))
}

fn read_items(snapshot: &Connection, id: &str) -> rusqlite::Result<Vec<TracedItem>> {
    order_items::read(snapshot, id, |row| {
        let (price, total) = (read_amount(row, 2)?, read_amount(row, 3)?);
        Ok(TracedItem { product: row.get(0)?, quantity: row.get(1)?, price, total })
    })
}

fn optional_amount(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<ExactSum>> {
    match row.get_ref(column)?.as_str_or_null()? {
        Some(_) => read_amount(row, column).map(Some),
        None => Ok(None),
    }
}

/// The calls of the order's steps.
fn read_calls(snapshot: &Connection, id: &str, steps: &mut Vec<TraceStep>) -> rusqlite::Result<()> {
    for call in letter_attempts::calls(snapshot, "", id)? {
        let LetterStep { at, name, action, round, status, attempts, duration_ms, result, code, reason } = call;
        let event = TraceEvent::StepCalled { name, action, round, status, attempts, duration_ms, result, code, reason };
        steps.push(TraceStep { at, message: TracedMessage::Order, event });
    }
    Ok(())
}

/// What has failed of a message.
fn read_attempts(
    snapshot: &Connection,
    message: TracedMessage,
    identity: &str,
    steps: &mut Vec<TraceStep>,
) -> rusqlite::Result<()> {
    for (consumer, attempt) in letter_attempts::failed(snapshot, identity, None)? {
        let LetterAttempt { at, replay, retries, kind, code, reason, delay } = attempt;
        let due_at = delay.as_deref().and_then(|delay| due(at, delay));
        let event = TraceEvent::Failed { consumer, replay, retries, kind, code, reason, delay, due_at };
        steps.push(TraceStep { at, message, event });
    }
    Ok(())
}

/// The last dead-lettering in each consumer, with the time of the failure.
fn read_dead_letters(
    snapshot: &Connection,
    message: TracedMessage,
    identity: &str,
) -> rusqlite::Result<Vec<(Timestamp, TraceStep)>> {
    let mut query = snapshot.prepare(
        "SELECT dead_lettered_at, consumer, reason, retry_count, failure_code, origin_queue, failed_at
         FROM dead_letters WHERE identity = ?1 ORDER BY consumer",
    )?;
    let mut recorded = Vec::new();
    let mut rows = query.query([identity])?;
    while let Some(row) = rows.next()? {
        let event = TraceEvent::DeadLettered {
            consumer: row.get(1)?,
            reason: row.get(2)?,
            retries: row.get(3)?,
            code: row.get(4)?,
            origin_queue: row.get(5)?,
            letter: None,
        };
        recorded.push((time(row, 6)?, TraceStep { at: time(row, 0)?, message, event }));
    }
    Ok(recorded)
}

/// What providers of notification channels did not accept.
fn read_failed_deliveries(
    snapshot: &Connection,
    message: TracedMessage,
    identity: &str,
    steps: &mut Vec<TraceStep>,
) -> rusqlite::Result<()> {
    if !matches!(message, TracedMessage::Notification | TracedMessage::NotificationCancelled) {
        return Ok(());
    }
    for delivery in letter_attempts::failed_deliveries(snapshot, identity)? {
        let LetterDelivery { at, channel, provider, recipient, kind, code, reason } = delivery;
        let event = TraceEvent::DeliveryFailed { channel, provider, recipient, kind, code, reason };
        steps.push(TraceStep { at, message, event });
    }
    Ok(())
}

fn read_event(
    snapshot: &Connection,
    message: TracedMessage,
    id: &str,
    steps: &mut Vec<TraceStep>,
) -> rusqlite::Result<()> {
    let kind = match message {
        TracedMessage::Order | TracedMessage::Cancellation => return Ok(()),
        TracedMessage::Notification | TracedMessage::NotificationCancelled => "notification",
        TracedMessage::Analytics | TracedMessage::AnalyticsFailed | TracedMessage::AnalyticsCancelled => "analytics",
    };
    let columns = "recorded_at, name, provider, recipient, not_delivered";
    let mut query = snapshot.prepare(&format!("SELECT {columns} FROM events WHERE id = ?1 AND kind = ?2"))?;
    let read = |row: &Row<'_>| Ok((time(row, 0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?));
    let found = query.query_row([id, kind], read).optional()?;
    steps.extend(found.map(|(at, channel, provider, recipient, not_delivered)| {
        let event = match message {
            TracedMessage::Order
            | TracedMessage::Cancellation
            | TracedMessage::Analytics
            | TracedMessage::AnalyticsFailed
            | TracedMessage::AnalyticsCancelled => TraceEvent::Counted,
            TracedMessage::Notification | TracedMessage::NotificationCancelled => match not_delivered {
                Some(code) => TraceEvent::Skipped { channel, code },
                None => TraceEvent::Notified { channel, provider, recipient },
            },
        };
        TraceStep { at, message, event }
    }));
    Ok(())
}
