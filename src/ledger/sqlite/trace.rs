//! Reads all that is recorded of one order, by primary keys alone, on a connection of its own, in one snapshot.

use std::path::Path;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row};

use super::open::{self, OpenError};
use super::order_sums::exact_amount;
use super::{FILE_NAME, READ_PATIENCE};
use crate::ledger::trace::{Happened, Step, Subject, Trace, TracedOrder, due};

pub(in crate::ledger) fn read(directory: &Path, id: &str) -> Result<Trace, OpenError> {
    let connection = open::for_reading(directory, READ_PATIENCE)?;
    trace(&connection, id).map_err(|error| OpenError::from_sqlite(&directory.join(FILE_NAME), error))
}

fn trace(connection: &Connection, id: &str) -> rusqlite::Result<Trace> {
    // One transaction: all steps are of the same instant.
    let snapshot = connection.unchecked_transaction()?;
    let mut steps = Vec::new();
    let order = read_order(&snapshot, id, &mut steps)?;
    for (subject, suffix) in Subject::SUFFIXES {
        let identity = format!("{id}{suffix}");
        read_attempts(&snapshot, subject, &identity, &mut steps)?;
        read_dead_letters(&snapshot, subject, &identity, &mut steps)?;
        read_event(&snapshot, subject, &identity, &mut steps)?;
    }
    // What became of its events came after it was accepted, though failures are known to the second only. Stable: of
    // one time, an attempt stays before the parking that it led to.
    let accepted = steps.iter().find(|step| matches!(step.event, Happened::Accepted { .. })).map(|step| step.at);
    steps.sort_by_key(
        |step| if step.message == Subject::Order { step.at } else { step.at.max(accepted.unwrap_or(step.at)) },
    );
    Ok(Trace { id: id.to_owned(), order, steps })
}

fn read_order(snapshot: &Connection, id: &str, steps: &mut Vec<Step>) -> rusqlite::Result<Option<TracedOrder>> {
    let mut query = snapshot.prepare(
        "SELECT status, consumer, product, quantity, price, total, currency, priority, customer_id, placed_at,
                accepted_at, processed_at FROM orders WHERE id = ?1",
    )?;
    let found = query.query_row([id], |row| {
        let order = TracedOrder {
            status: row.get(0)?,
            consumer: row.get(1)?,
            product: row.get(2)?,
            quantity: row.get(3)?,
            price: exact_amount(row, 4)?,
            total: exact_amount(row, 5)?,
            currency: row.get(6)?,
            priority: row.get(7)?,
            customer_id: row.get(8)?,
            placed_at: row.get::<_, Option<i64>>(9)?.map(timestamp),
        };
        Ok((order, time(row, 10)?, row.get::<_, Option<i64>>(11)?.map(timestamp)))
    });
    let Some((order, accepted_at, processed_at)) = found.optional()? else { return Ok(None) };
    let step = |at, event| Step { at, message: Subject::Order, event };
    steps.push(step(accepted_at, Happened::Accepted { consumer: order.consumer.clone() }));
    steps.extend(processed_at.map(|at| step(at, Happened::Processed)));
    Ok(Some(order))
}

fn read_attempts(
    snapshot: &Connection,
    message: Subject,
    identity: &str,
    steps: &mut Vec<Step>,
) -> rusqlite::Result<()> {
    let mut query = snapshot.prepare(
        "SELECT failed_at, consumer, retry_count, failure_kind, failure_code, failure_reason, delay
         FROM attempts WHERE identity = ?1 ORDER BY consumer, retry_count",
    )?;
    let mut rows = query.query([identity])?;
    while let Some(row) = rows.next()? {
        let (at, delay) = (time(row, 0)?, row.get::<_, Option<String>>(6)?);
        let event = Happened::Failed {
            consumer: row.get(1)?,
            retries: row.get(2)?,
            kind: row.get(3)?,
            code: row.get(4)?,
            reason: row.get(5)?,
            due_at: delay.as_deref().and_then(|delay| due(at, delay)),
            delay,
        };
        steps.push(Step { at, message, event });
    }
    Ok(())
}

fn read_dead_letters(
    snapshot: &Connection,
    message: Subject,
    identity: &str,
    steps: &mut Vec<Step>,
) -> rusqlite::Result<()> {
    let mut query = snapshot.prepare(
        "SELECT dead_lettered_at, consumer, reason, retry_count, failure_code, origin_queue
         FROM dead_letters WHERE identity = ?1 ORDER BY consumer",
    )?;
    let mut rows = query.query([identity])?;
    while let Some(row) = rows.next()? {
        let event = Happened::DeadLettered {
            consumer: row.get(1)?,
            reason: row.get(2)?,
            retries: row.get(3)?,
            code: row.get(4)?,
            origin_queue: row.get(5)?,
        };
        steps.push(Step { at: time(row, 0)?, message, event });
    }
    Ok(())
}

fn read_event(snapshot: &Connection, message: Subject, id: &str, steps: &mut Vec<Step>) -> rusqlite::Result<()> {
    let kind = match message {
        Subject::Order => return Ok(()),
        Subject::Notification => "notification",
        Subject::Analytics | Subject::AnalyticsFailed => "analytics",
    };
    let mut query = snapshot.prepare("SELECT recorded_at, name FROM events WHERE id = ?1 AND kind = ?2")?;
    let found = query.query_row([id, kind], |row| Ok((time(row, 0)?, row.get(1)?))).optional()?;
    steps.extend(found.map(|(at, name)| {
        let event = match message {
            Subject::Order | Subject::Analytics | Subject::AnalyticsFailed => Happened::Counted,
            Subject::Notification => Happened::Notified { channel: name },
        };
        Step { at, message, event }
    }));
    Ok(())
}

fn time(row: &Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    row.get(column).map(timestamp)
}

/// A time that some other program has written into the file may be none.
fn timestamp(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MIN)
}
