//! Reads what was tried for a message: its failed attempts, deliveries of a notification that failed, and calls of its steps. Dead letters
//! and traces show the same.

use rusqlite::{Connection, Row};

use super::columns::{time, timestamp};
use crate::ledger::dead_letters::{LetterAttempt, LetterDelivery, LetterStep};

/// The latest attempts of one message that are shown: there is no limit to replays.
const MAX_ATTEMPTS: usize = 1_000;
/// The same of steps.
const MAX_CALLS: usize = 1_000;

/// The failed attempts of a message, each with its consumer, the oldest first; of one consumer, or of all.
pub(super) fn failed(
    snapshot: &Connection,
    identity: &str,
    consumer: Option<&str>,
) -> rusqlite::Result<Vec<(String, LetterAttempt)>> {
    let mut select = snapshot.prepare_cached(&format!(
        "SELECT consumer, failed_at, replay_id, retry_count, failure_kind, failure_code, failure_reason, delay
         FROM attempts LEFT JOIN replay_letters ON replay_letters.key = attempts.replay_key
         WHERE identity = ?1 AND (?2 IS NULL OR consumer = ?2)
         ORDER BY failed_at DESC, consumer DESC, replay_id DESC, retry_count DESC LIMIT {MAX_ATTEMPTS}"
    ))?;
    let attempts = select.query_map((identity, consumer), |row| {
        let attempt = LetterAttempt {
            at: time(row, 1)?,
            replay: row.get(2)?,
            retries: row.get(3)?,
            kind: row.get(4)?,
            code: row.get(5)?,
            reason: row.get(6)?,
            delay: row.get(7)?,
        };
        Ok((row.get(0)?, attempt))
    })?;
    let mut attempts = attempts.collect::<rusqlite::Result<Vec<_>>>()?;
    attempts.reverse();
    Ok(attempts)
}

/// What providers of channels did not accept of a notification, the oldest first.
pub(super) fn failed_deliveries(snapshot: &Connection, identity: &str) -> rusqlite::Result<Vec<LetterDelivery>> {
    let mut select = snapshot.prepare_cached(
        "SELECT failed_at, channel, provider, recipient, failure_kind, failure_code, failure_reason
         FROM notification_attempts WHERE identity = ?1 ORDER BY number",
    )?;
    let deliveries = select.query_map([identity], |row| {
        Ok(LetterDelivery {
            at: time(row, 0)?,
            channel: row.get(1)?,
            provider: row.get(2)?,
            recipient: row.get(3)?,
            kind: row.get(4)?,
            code: row.get(5)?,
            reason: row.get(6)?,
        })
    })?;
    deliveries.collect()
}

/// The calls of a run of steps, the oldest first. `scope` is empty for orders, else the consumer.
pub(super) fn calls(snapshot: &Connection, scope: &str, identity: &str) -> rusqlite::Result<Vec<LetterStep>> {
    let mut select = snapshot.prepare_cached(&format!(
        "SELECT called_at, finished_at, step, action, status, attempts, result, failure_code, failure_reason, round FROM steps
         WHERE scope = ?1 AND identity = ?2 ORDER BY called_at DESC, position DESC LIMIT {MAX_CALLS}"
    ))?;
    let mut calls = select.query_map([scope, identity], read_call)?.collect::<rusqlite::Result<Vec<_>>>()?;
    calls.reverse();
    Ok(calls)
}

fn read_call(row: &Row<'_>) -> rusqlite::Result<LetterStep> {
    let status: String = row.get(4)?;
    let (called_at, finished_at): (i64, Option<i64>) = (row.get(0)?, row.get(1)?);
    // While a call is repeated, the end of the one before it is still recorded.
    let finished_at = finished_at.filter(|_| status != "called");
    let result: Option<String> = row.get(6)?;
    Ok(LetterStep {
        at: timestamp(finished_at.unwrap_or(called_at)),
        name: row.get(2)?,
        action: row.get(3)?,
        round: row.get(9)?,
        status,
        attempts: row.get(5)?,
        duration_ms: finished_at.map(|finished_at| finished_at - called_at),
        result: result.and_then(|result| serde_json::from_str(&result).ok()),
        code: row.get(7)?,
        reason: row.get(8)?,
    })
}
