//! Operators' alerts: the tables `alerts` and `alert_messages`, which has one row once there was an alert.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::ledger::alerts::{AlertAnswer, AlertBook, AlertRecord};

/// As [`exchange`]. If its statements are refused, as with a damaged table, nothing of it is kept, and the open transaction continues:
/// orders are recorded in it too.
pub(super) fn exchange_apart(
    connection: &Connection,
    replacement: Option<&AlertBook>,
) -> rusqlite::Result<AlertAnswer> {
    connection.execute_batch("SAVEPOINT alerts")?;
    let answer = exchange(connection, replacement);
    // After a failure of the store, SQLite may have rolled back everything.
    if !connection.is_autocommit() {
        let end = if answer.is_ok() { "RELEASE alerts" } else { "ROLLBACK TO alerts; RELEASE alerts" };
        connection.execute_batch(end)?;
    }
    answer
}

/// Within the open transaction: replaces all alerts, if that is asked for and nothing has changed since, and reads them.
pub(super) fn exchange(connection: &Connection, replacement: Option<&AlertBook>) -> rusqlite::Result<AlertAnswer> {
    let recorded = read(connection)?;
    match replacement {
        Some(replacement) if replacement.version == recorded.version => {
            let book = AlertBook { version: recorded.version + 1, ..replacement.clone() };
            write(connection, &book)?;
            // Times as precise as they are recorded.
            Ok(AlertAnswer { replaced: true, book: read(connection)? })
        }
        Some(_) | None => Ok(AlertAnswer { replaced: false, book: recorded }),
    }
}

fn write(connection: &Connection, book: &AlertBook) -> rusqlite::Result<()> {
    let AlertBook { version, messages, sent_at, sender, alerts } = book;
    connection.execute_batch("DELETE FROM alert_messages; DELETE FROM alerts;")?;
    let (sender, until) = sender.as_ref().map_or((None, None), |(name, until)| (Some(name), Some(until)));
    connection.execute(
        "INSERT INTO alert_messages (version, messages, sent_at, sender, sender_until) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![
            version.cast_signed(),
            messages.cast_signed(),
            sent_at.map(Timestamp::as_millisecond),
            sender,
            until.map(|until| until.as_millisecond())
        ],
    )?;
    let mut insert = connection.prepare_cached(
        "INSERT INTO alerts (scope, cause, title, detail, instance, opened_at, observed_at, resolved_at, reported_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?;
    for alert in alerts {
        let AlertRecord { scope, cause, title, detail, instance, opened_at, observed_at, resolved_at, reported_at } =
            alert;
        insert.execute(params![
            scope,
            cause,
            title,
            detail,
            instance,
            opened_at.as_millisecond(),
            observed_at.as_millisecond(),
            resolved_at.map(Timestamp::as_millisecond),
            reported_at.map(Timestamp::as_millisecond),
        ])?;
    }
    Ok(())
}

fn read(connection: &Connection) -> rusqlite::Result<AlertBook> {
    let messages = "SELECT version, messages, sent_at, sender, sender_until FROM alert_messages";
    let book = connection
        .query_row(messages, [], |row| {
            let (sender, until): (Option<String>, _) = (row.get(3)?, optional_time(row, 4)?);
            Ok(AlertBook {
                version: row.get::<_, i64>(0)?.cast_unsigned(),
                messages: row.get::<_, i64>(1)?.cast_unsigned(),
                sent_at: optional_time(row, 2)?,
                sender: sender.zip(until),
                alerts: Vec::new(),
            })
        })
        .optional()?;
    let Some(book) = book else { return Ok(AlertBook::default()) };
    let mut select = connection.prepare_cached(
        "SELECT scope, cause, title, detail, instance, opened_at, observed_at, resolved_at, reported_at
         FROM alerts ORDER BY scope, cause",
    )?;
    let alerts = select.query_map([], |row| {
        Ok(AlertRecord {
            scope: row.get(0)?,
            cause: row.get(1)?,
            title: row.get(2)?,
            detail: row.get(3)?,
            instance: row.get(4)?,
            opened_at: time(row.get(5)?),
            observed_at: time(row.get(6)?),
            resolved_at: optional_time(row, 7)?,
            reported_at: optional_time(row, 8)?,
        })
    })?;
    Ok(AlertBook { alerts: alerts.collect::<rusqlite::Result<_>>()?, ..book })
}

fn optional_time(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<Timestamp>> {
    Ok(row.get::<_, Option<i64>>(index)?.map(time))
}

/// Other programs may have written what is no time.
fn time(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
}
