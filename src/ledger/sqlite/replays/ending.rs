//! Stops and ends replays: what was not published is open again.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};

use super::{note, set_progress};
use crate::ledger::journal::JournalAction;
use crate::ledger::replays::{LetterProgress, ReplayState};
use crate::ledger::sqlite::letter_changes::open_again;

/// The most letters of one state whose numbers the journal has at the end of a replay.
const MAX_NOTED_LETTERS: usize = 1_000;

/// Stops a replay; one that a person stops again gives up what it cannot publish. Whether anything was changed.
pub(super) fn stop(
    connection: &Connection,
    replay: i64,
    by: Option<&str>,
    reason: (&str, Option<&str>),
    at: Timestamp,
) -> rusqlite::Result<bool> {
    Ok(begin_stopping(connection, replay, by, reason, at)?
        || by.map_or(Ok(false), |by| give_up_half_published(connection, replay, by, at))?)
}

/// Whether the replay was neither stopping nor over. `by`: `None` if it stops by itself.
pub(in crate::ledger::sqlite) fn begin_stopping(
    connection: &Connection,
    replay: i64,
    by: Option<&str>,
    (reason, detail): (&str, Option<&str>),
    at: Timestamp,
) -> rusqlite::Result<bool> {
    let mut update = connection.prepare_cached(
        "UPDATE replays SET state = 'stopping', end_reason = ?2, end_detail = ?3, stopped_by = ?4
         WHERE id = ?1 AND state IN ('selecting', 'running') RETURNING actor",
    )?;
    let actor: Option<String> = update.query_row((replay, reason, detail, by), |row| row.get(0)).optional()?;
    let Some(actor) = actor else { return Ok(false) };
    let result = json!({"state": "stopping", "reason": reason});
    let by = by.unwrap_or(&actor);
    note(connection, (by, at), JournalAction::Replay, (&json!({"replay": replay}), &result))?;
    Ok(true)
}

/// A person stops a replay again that is stopping, and cannot publish what may be on its way already.
pub(in crate::ledger::sqlite) fn give_up_half_published(
    connection: &Connection,
    replay: i64,
    by: &str,
    at: Timestamp,
) -> rusqlite::Result<bool> {
    let mut update = connection.prepare_cached(
        "UPDATE replay_letters SET state = 'unknown', changed_at = ?2 WHERE replay_id = ?1 AND state = 'publishing'
         AND EXISTS (SELECT 1 FROM replays WHERE id = ?1 AND state = 'stopping') RETURNING letter_id",
    )?;
    let given_up = update.query_map((replay, at.as_millisecond()), |row| row.get(0))?;
    let given_up: Vec<i64> = given_up.collect::<rusqlite::Result<_>>()?;
    if given_up.is_empty() {
        return Ok(false);
    }
    let (subject, result) = (json!({"replay": replay, "ids": given_up}), json!({"unknown": given_up.len()}));
    note(connection, (by, at), JournalAction::Replay, (&subject, &result))?;
    Ok(true)
}

pub(super) fn give_back(connection: &Connection, replay: i64, limit: usize, at: Timestamp) -> rusqlite::Result<bool> {
    let mut select = connection
        .prepare_cached("SELECT letter_id FROM replay_letters WHERE replay_id = ?1 AND state = 'selected' LIMIT ?2")?;
    let ids = select.query_map(params![replay, i64::try_from(limit).unwrap_or(i64::MAX)], |row| row.get(0))?;
    let ids: Vec<i64> = ids.collect::<rusqlite::Result<_>>()?;
    for id in &ids {
        if set_progress(connection, (replay, *id), LetterProgress::Selected, LetterProgress::Returned, None, at)? {
            open_again(connection, *id, at)?;
        }
    }
    Ok(ids.len() == limit)
}

/// Gives back some letters of a stopped replay, and ends it once nothing is left that may be on its way. Whether there is more to do.
pub(in crate::ledger::sqlite) fn end_stopped(
    connection: &Connection,
    replay: i64,
    limit: usize,
    at: Timestamp,
) -> rusqlite::Result<bool> {
    let mut is_stopping = connection.prepare_cached("SELECT 1 FROM replays WHERE id = ?1 AND state = 'stopping'")?;
    if !is_stopping.exists([replay])? {
        return Ok(false);
    }
    if give_back(connection, replay, limit, at)? {
        return Ok(true);
    }
    let mut half_published =
        connection.prepare_cached("SELECT 1 FROM replay_letters WHERE replay_id = ?1 AND state = 'publishing'")?;
    if !half_published.exists([replay])? {
        finish(connection, replay, at)?;
    }
    Ok(false)
}

pub(super) fn finish(connection: &Connection, replay: i64, at: Timestamp) -> rusqlite::Result<bool> {
    let mut update = connection.prepare_cached(
        "UPDATE replays SET state = iif(state = 'stopping', 'stopped', 'finished'), ended_at = ?2, selection = NULL,
                owner = NULL, leased_until = NULL
         WHERE id = ?1 AND state IN ('running', 'stopping') RETURNING actor, state",
    )?;
    let ended: Option<(String, String)> =
        update.query_row((replay, at.as_millisecond()), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((actor, state)) = ended else { return Ok(false) };
    if state == ReplayState::Finished.as_str() {
        connection
            .prepare_cached(
                "UPDATE replay_letters SET state = 'unknown', changed_at = ?2
                 WHERE replay_id = ?1 AND state IN ('publishing', 'published', 'retrying')",
            )?
            .execute((replay, at.as_millisecond()))?;
    }
    let mut select = connection.prepare_cached(
        "SELECT state, sum(letters) FROM replay_counts WHERE replay_id = ?1 AND letters > 0 GROUP BY state",
    )?;
    let counts =
        select.query_map([replay], |row| Ok((row.get::<_, String>(0)?, Value::from(row.get::<_, i64>(1)?))))?;
    let counts: serde_json::Map<String, Value> = counts.collect::<rusqlite::Result<_>>()?;
    let mut result = json!({"state": state, "letters": counts});
    for progress in [LetterProgress::FailedAgain, LetterProgress::Unknown] {
        let sql = format!(
            "SELECT letter_id FROM replay_letters WHERE replay_id = ?1 AND state = ?2 ORDER BY letter_id
             LIMIT {MAX_NOTED_LETTERS}"
        );
        let mut select = connection.prepare_cached(&sql)?;
        let ids = select.query_map((replay, progress.as_str()), |row| row.get::<_, i64>(0))?;
        let ids: Vec<i64> = ids.collect::<rusqlite::Result<_>>()?;
        if !ids.is_empty() {
            result[progress.as_str()] = json!(ids);
        }
    }
    note(connection, (&actor, at), JournalAction::Replay, (&json!({"replay": replay}), &result))?;
    Ok(true)
}
