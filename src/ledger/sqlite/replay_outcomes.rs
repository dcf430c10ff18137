//! Records what became of letters that were published again, within the open transaction.
//!
//! It never decides what is published.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use serde_json::json;

use super::letter_changes::EDITED_SINCE;
use super::record_error::recorded;
use super::replays;
use crate::ledger::entry::Recorded;
use crate::ledger::journal::JournalAction;
use crate::ledger::replay_outcome::ReplayOutcome;
use crate::ledger::replays::LetterProgress;

/// Why a letter was dead-lettered whose steps could not be undone.
const UNDO_FAILED: &str = "undo_failed";

/// Records an outcome. A letter that has one keeps it. One that the broker has refused is skipped, but it may have accepted it before a
/// connection was lost. [`Recorded::UnknownReplay`] if this ledger has no such replay.
pub(super) fn record(
    connection: &Connection,
    key: &str,
    outcome: &ReplayOutcome,
    code: Option<&str>,
    at: Timestamp,
) -> rusqlite::Result<Recorded> {
    let (progress, due) = match outcome {
        ReplayOutcome::Processed => (LetterProgress::Processed, None),
        ReplayOutcome::NotDelivered => (LetterProgress::NotDelivered, None),
        ReplayOutcome::Cancelled => (LetterProgress::Cancelled, None),
        ReplayOutcome::Retrying { due } => (LetterProgress::Retrying, Some(due.as_millisecond())),
        ReplayOutcome::Undone => (LetterProgress::Undone, None),
        ReplayOutcome::FailedAgain => (LetterProgress::FailedAgain, None),
    };
    let ended_at = if due.is_none() { Some(end(connection, key, at)?) } else { None };
    let mut update = connection.prepare_cached(
        "UPDATE replay_letters SET state = ?2, code = coalesce(?3, code), due_at = ?4, changed_at = ?5, ended_at = ?6
         WHERE key = ?1 AND state IN ('publishing', 'published', 'retrying', 'unknown', 'skipped')",
    )?;
    let rows = update.execute((key, progress.as_str(), code, due, at.as_millisecond(), ended_at))?;
    if rows == 1 && progress != LetterProgress::Retrying {
        close(connection, key, at)?;
        note_late(connection, key, progress, at)?;
    }
    let is_known =
        rows == 1 || connection.prepare_cached("SELECT 1 FROM replay_letters WHERE key = ?1")?.exists([key])?;
    Ok(if is_known { recorded(rows) } else { Recorded::UnknownReplay })
}

/// The time of an outcome. It is the latest of its replay also after the clock was set back: a replay stops if too many of the latest
/// outcomes are failures.
fn end(connection: &Connection, key: &str, at: Timestamp) -> rusqlite::Result<i64> {
    let mut select = connection.prepare_cached(
        "SELECT max(ended_at) FROM replay_letters
         WHERE replay_id = (SELECT replay_id FROM replay_letters WHERE key = ?1) AND ended_at IS NOT NULL",
    )?;
    let latest: Option<i64> = select.query_row([key], |row| row.get(0))?;
    let at = at.as_millisecond();
    Ok(latest.filter(|latest| *latest > at).map_or(at, |latest| latest + 1))
}

/// An outcome after the end of the replay, which the journal has as unknown, or not at all.
fn note_late(connection: &Connection, key: &str, progress: LetterProgress, at: Timestamp) -> rusqlite::Result<()> {
    let mut select = connection.prepare_cached(
        "SELECT replay_id, letter_id, actor FROM replay_letters JOIN replays ON replays.id = replay_id
         WHERE key = ?1 AND replays.state IN ('finished', 'stopped')",
    )?;
    let late: Option<(i64, i64, String)> =
        select.query_row([key], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
    let Some((replay, letter, actor)) = late else { return Ok(()) };
    let (subject, result) = (json!({"replay": replay, "ids": [letter]}), json!({progress.as_str(): 1}));
    replays::note(connection, (&actor, at), JournalAction::Replay, (&subject, &result))
}

/// The letter is not needed any more, unless it was edited since, or another replay has claimed it.
fn close(connection: &Connection, key: &str, at: Timestamp) -> rusqlite::Result<()> {
    let mut update = connection.prepare_cached(&format!(
        "UPDATE stored_dead_letters SET state = 'replayed', closed_at = ?2 FROM replay_letters AS replayed
         WHERE replayed.key = ?1 AND stored_dead_letters.id = replayed.letter_id
           AND stored_dead_letters.state IN ('open', 'held', 'replaying') AND NOT {EDITED_SINCE}
           AND NOT EXISTS (SELECT 1 FROM replay_letters AS later
                           WHERE later.letter_id = replayed.letter_id AND later.key IS NOT NULL
                             AND later.state NOT IN ('returned', 'skipped') AND later.replay_id > replayed.replay_id)"
    ))?;
    update.execute((key, at.as_millisecond())).map(drop)
}

/// A letter was dead-lettered again, and is stored as this one. `by_orderd`: orderd has decided that, and not the broker.
///
/// The handler that dead-lettered it records the outcome too, before or after this: both record the same one.
pub(super) fn came_back(
    connection: &Connection,
    key: &str,
    (id, by_orderd): (i64, bool),
    at: Timestamp,
) -> rusqlite::Result<()> {
    let is_undone = connection
        .prepare_cached(
            "SELECT (SELECT reason FROM stored_dead_letters WHERE id = letter_id) = ?3
                    AND (SELECT reason FROM stored_dead_letters WHERE id = ?2) <> ?3
             FROM replay_letters WHERE key = ?1",
        )?
        .query_row((key, id, UNDO_FAILED), |row| row.get::<_, bool>(0))
        .optional()?;
    // An instance with another ledger, or the broker itself, may have dead-lettered it.
    let outcome = match is_undone {
        None => return Ok(()),
        // What could not be undone before is undone now.
        Some(true) if by_orderd => ReplayOutcome::Undone,
        Some(_) => ReplayOutcome::FailedAgain,
    };
    record(connection, key, &outcome, None, at)?;
    // After the outcome: replay_counts has a letter that was skipped under its code before.
    connection
        .prepare_cached(
            "UPDATE replay_letters SET came_back_as = ?2, code = (SELECT code FROM stored_dead_letters WHERE id = ?2)
             WHERE key = ?1",
        )?
        .execute((key, id))
        .map(drop)
}
