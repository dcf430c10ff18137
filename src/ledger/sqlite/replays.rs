//! Records replays, within the open transaction: which letters they claim, and how far they are.
//!
//! A letter changes its state only from the state that is expected, so of two who want it only one gets it. It never publishes, and
//! never decides on the pace.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::journal;
use super::letter_changes::{self, open_again};
use super::letter_queries::found_ids;
use super::order_items::{Compared, SELECT_STORED, compare};
use crate::ledger::dead_letters::{DeadLetterFilter, LetterState};
use crate::ledger::entry::NewOrder;
use crate::ledger::journal::{JournalAction, NewJournalEntry, text_hash};
use crate::ledger::replays::{
    BeginAnswer, DeskAnswer, DeskChange, LetterProgress, LetterSelection, MAYBE_DUPLICATE, NewReplay, PublishAnswer,
    ToPublish,
};

/// Bytes of a key's hash.
const KEY_BYTES: usize = 16;

/// Carries out a change. If a statement fails, the whole transaction does.
pub(super) fn change(connection: &Connection, change: &DeskChange) -> rusqlite::Result<DeskAnswer> {
    Ok(match change {
        DeskChange::Begin(replay) => DeskAnswer::Begun(begin(connection, replay)?),
        DeskChange::Claim { replay, owner, at, until } => {
            DeskAnswer::Done(claim(connection, *replay, owner, *at, *until)?)
        }
        DeskChange::Select { replay, limit, at } => DeskAnswer::More(select(connection, *replay, *limit, *at)?),
        DeskChange::BeginPublishing { replay, letters, at } => {
            let answers = letters.iter().map(|letter| begin_publishing(connection, *replay, letter, *at));
            DeskAnswer::Publishing(answers.collect::<rusqlite::Result<_>>()?)
        }
        DeskChange::Published { replay, letters, at, due } => {
            published(connection, *replay, letters, *at, *due)?;
            DeskAnswer::Done(true)
        }
        DeskChange::Skip { replay, letter, code, at } => {
            DeskAnswer::Done(skip(connection, (*replay, *letter), code, *at)?)
        }
        DeskChange::Stop { replay, by, reason, at } => {
            DeskAnswer::Done(stop(connection, *replay, by.as_deref(), reason, *at)?)
        }
        DeskChange::GiveBack { replay, limit, at } => DeskAnswer::More(give_back(connection, *replay, *limit, *at)?),
        DeskChange::Finish { replay, at } => DeskAnswer::Done(finish(connection, *replay, *at)?),
        DeskChange::Letters { ids, change, by, at } => {
            DeskAnswer::Letters(letter_changes::change(connection, ids, change, by, *at)?)
        }
        DeskChange::Edit(edit) => DeskAnswer::Letters(vec![letter_changes::edit(connection, edit)?]),
    })
}

/// What the journal says of a selection: nothing that `orderd erase` may have to remove.
fn journaled(selection: &LetterSelection) -> Value {
    match selection {
        LetterSelection::Ids(ids) => json!({"ids": ids}),
        LetterSelection::Filter { filter, up_to } => {
            let mut filter = filter.clone();
            for secret in [&mut filter.customer, &mut filter.text] {
                *secret = secret.as_deref().map(text_hash);
            }
            json!({"filter": filter, "up_to": up_to})
        }
    }
}

fn note(
    connection: &Connection,
    (by, at): (&str, Timestamp),
    action: JournalAction,
    (subject, result): (&Value, &Value),
) -> rusqlite::Result<()> {
    journal::append(connection, &NewJournalEntry::new(at, by, action, subject, result)).map(drop)
}

fn begin(connection: &Connection, replay: &NewReplay) -> rusqlite::Result<BeginAnswer> {
    let (selection, options) = (json!(replay.selection).to_string(), json!(replay.options).to_string());
    let mut token = [0; KEY_BYTES];
    fastrand::fill(&mut token);
    connection
        .prepare_cached(
            "INSERT INTO replays (state, actor, selection, options, token, selected_to, began_at)
             VALUES ('selecting', ?1, ?2, ?3, ?4, 0, ?5)",
        )?
        .execute((&replay.by, &selection, &options, token, replay.at.as_millisecond()))?;
    let id = connection.last_insert_rowid();
    let subject = json!({"replay": id, "options": replay.options, "selection": journaled(&replay.selection)});
    note(connection, (&replay.by, replay.at), JournalAction::Replay, (&subject, &json!({"state": "selecting"})))?;
    Ok(BeginAnswer { replay: id })
}

/// A lease that seems to last longer than this was written before the clock was set back.
const MAX_LEASE_MILLIS: i64 = 60_000;

fn claim(connection: &Connection, replay: i64, owner: &str, at: Timestamp, until: Timestamp) -> rusqlite::Result<bool> {
    let mut update = connection.prepare_cached(
        "UPDATE replays SET owner = ?2, leased_until = ?4 WHERE id = ?1 AND state IN ('selecting', 'running', 'stopping')
         AND (owner IS NULL OR owner = ?2 OR leased_until <= ?3 OR leased_until > ?3 + ?5)",
    )?;
    let (at, until) = (at.as_millisecond(), until.as_millisecond());
    Ok(update.execute((replay, owner, at, until, MAX_LEASE_MILLIS))? == 1)
}

/// Claims the next letters of the selection. Returns whether there are more.
fn select(connection: &Connection, replay: i64, limit: usize, at: Timestamp) -> rusqlite::Result<bool> {
    let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?, row.get(2)?));
    let found = connection
        .prepare_cached("SELECT selection, selected_to, token FROM replays WHERE id = ?1 AND state = 'selecting'")?
        .query_row([replay], read)
        .optional()?;
    let Some((selection, selected_to, token)) = found else { return Ok(false) };
    let selection: LetterSelection = serde_json::from_str(&selection)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, error.into()))?;
    let (ids, is_named) = match selection {
        LetterSelection::Ids(mut ids) => {
            ids.retain(|id| *id > selected_to);
            ids.sort_unstable();
            ids.dedup();
            ids.truncate(limit);
            (ids, true)
        }
        LetterSelection::Filter { filter, up_to } => {
            let filter = DeadLetterFilter { states: vec![LetterState::Open], ..*filter };
            (found_ids(connection, &filter, (selected_to, up_to), limit)?, false)
        }
    };
    for id in &ids {
        select_one(connection, (replay, &token), *id, is_named, at)?;
    }
    let more = ids.len() == limit;
    let state = if more { "selecting" } else { "running" };
    connection.prepare_cached("UPDATE replays SET selected_to = ?2, state = ?3 WHERE id = ?1")?.execute((
        replay,
        ids.last().copied().unwrap_or(selected_to),
        state,
    ))?;
    Ok(more)
}

fn select_one(
    connection: &Connection,
    (replay, token): (i64, &[u8; KEY_BYTES]),
    id: i64,
    is_named: bool,
    at: Timestamp,
) -> rusqlite::Result<()> {
    let claimed = connection
        .prepare_cached(
            "UPDATE stored_dead_letters SET state = 'replaying'
             WHERE id = ?1 AND state = 'open' AND (?2 OR maybe_duplicate_of IS NULL) RETURNING fingerprint",
        )?
        .query_row((id, is_named), |row| row.get(0))
        .optional()?;
    let mut insert = connection.prepare_cached(
        "INSERT INTO replay_letters (replay_id, letter_id, key, state, code, changed_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    let at = at.as_millisecond();
    let Some(fingerprint) = claimed else {
        // A filter finds open ones only.
        let state: Option<String> = connection
            .prepare_cached("SELECT state FROM stored_dead_letters WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        let code = if is_named { state.unwrap_or_else(|| "missing".to_owned()) } else { MAYBE_DUPLICATE.to_owned() };
        insert.execute((replay, id, None::<&str>, LetterProgress::Skipped.as_str(), Some(code), at))?;
        return Ok(());
    };
    let key = key(connection, replay, token, &fingerprint)?;
    insert.execute((replay, id, key, LetterProgress::Selected.as_str(), None::<&str>, at))?;
    Ok(())
}

/// A value of `x-replay-id` that no other letter has. It depends on what the message contains, and not on its number, which differs
/// in another ledger.
fn key(
    connection: &Connection,
    replay: i64,
    token: &[u8; KEY_BYTES],
    fingerprint: &[u8; 32],
) -> rusqlite::Result<String> {
    let mut exists = connection.prepare_cached("SELECT 1 FROM replay_letters WHERE key = ?1")?;
    let mut twin = 0_u64;
    loop {
        let mut digest = Sha256::new();
        digest.update(token);
        digest.update(fingerprint);
        digest.update(twin.to_be_bytes());
        let hex: String = digest.finalize()[..KEY_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
        let key = format!("{replay}-{hex}");
        if !exists.exists([&key])? {
            return Ok(key);
        }
        twin += 1;
    }
}

fn begin_publishing(
    connection: &Connection,
    replay: i64,
    to_publish: &ToPublish,
    at: Timestamp,
) -> rusqlite::Result<PublishAnswer> {
    let letter = to_publish.letter;
    let found = connection
        .prepare_cached(
            "SELECT key, fingerprint FROM replay_letters JOIN stored_dead_letters ON id = letter_id
             WHERE replay_id = ?1 AND letter_id = ?2 AND replay_letters.state IN ('selected', 'publishing')
               AND stored_dead_letters.state = 'replaying'",
        )?
        .query_row((replay, letter), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((key, fingerprint)) = found else { return Ok(PublishAnswer::NotSelected) };
    if let Some((code, note)) =
        to_publish.order.as_ref().map(|order| meanwhile(connection, order)).transpose()?.flatten()
    {
        // One that may have been published has its outcome by the copy.
        let is_new = set_progress(connection, (replay, letter), "selected", LetterProgress::Skipped, Some(code), at)?;
        if is_new {
            connection
                .prepare_cached(
                    "UPDATE stored_dead_letters SET state = 'discarded', closed_at = ?2, note = ?3 WHERE id = ?1",
                )?
                .execute((letter, at.as_millisecond(), note))?;
            return Ok(PublishAnswer::Closed);
        }
    }
    set_progress(connection, (replay, letter), "selected", LetterProgress::Publishing, None, at)?;
    Ok(PublishAnswer::Publish { key, fingerprint })
}

/// Whether this very order was processed or cancelled meanwhile: the code and the note of its letter.
fn meanwhile(connection: &Connection, order: &NewOrder) -> rusqlite::Result<Option<(&'static str, &'static str)>> {
    let mut select = connection.prepare_cached(SELECT_STORED)?;
    let compared = select.query_row([order.id.as_str()], |row| compare(connection, row, order)).optional()?;
    Ok(match compared {
        Some(Compared::Processed) => Some(("order_processed", "its order was processed meanwhile")),
        Some(Compared::Revoked | Compared::Cancelled | Compared::CancelledUnknown) => {
            Some(("order_cancelled", "its order was cancelled meanwhile"))
        }
        Some(Compared::Different | Compared::Accepted | Compared::Failed) | None => None,
    })
}

/// Whether the letter was in the state `from`.
fn set_progress(
    connection: &Connection,
    (replay, letter): (i64, i64),
    from: &str,
    progress: LetterProgress,
    code: Option<&str>,
    at: Timestamp,
) -> rusqlite::Result<bool> {
    let mut update = connection.prepare_cached(
        "UPDATE replay_letters SET state = ?4, code = ?5, changed_at = ?6
         WHERE replay_id = ?1 AND letter_id = ?2 AND state = ?3",
    )?;
    Ok(update.execute((replay, letter, from, progress.as_str(), code, at.as_millisecond()))? == 1)
}

fn published(
    connection: &Connection,
    replay: i64,
    letters: &[i64],
    at: Timestamp,
    due: Timestamp,
) -> rusqlite::Result<()> {
    // Its outcome may be recorded already.
    let mut update = connection.prepare_cached(
        "UPDATE replay_letters SET state = 'published', due_at = ?3, changed_at = ?4
         WHERE replay_id = ?1 AND letter_id = ?2 AND state = 'publishing'",
    )?;
    for letter in letters {
        update.execute((replay, letter, due.as_millisecond(), at.as_millisecond()))?;
    }
    Ok(())
}

fn skip(connection: &Connection, of: (i64, i64), code: &str, at: Timestamp) -> rusqlite::Result<bool> {
    let skipped = set_progress(connection, of, "selected", LetterProgress::Skipped, Some(code), at)?
        || set_progress(connection, of, "publishing", LetterProgress::Skipped, Some(code), at)?;
    if skipped {
        open_again(connection, of.1)?;
    }
    Ok(skipped)
}

fn stop(connection: &Connection, replay: i64, by: Option<&str>, reason: &str, at: Timestamp) -> rusqlite::Result<bool> {
    let mut update = connection.prepare_cached(
        "UPDATE replays SET state = 'stopping', end_reason = ?2 WHERE id = ?1 AND state IN ('selecting', 'running')
         RETURNING actor",
    )?;
    let actor: Option<String> = update.query_row((replay, reason), |row| row.get(0)).optional()?;
    let Some(actor) = actor else { return Ok(false) };
    let result = json!({"state": "stopping", "reason": reason});
    let by = by.unwrap_or(&actor);
    note(connection, (by, at), JournalAction::Replay, (&json!({"replay": replay}), &result))?;
    Ok(true)
}

fn give_back(connection: &Connection, replay: i64, limit: usize, at: Timestamp) -> rusqlite::Result<bool> {
    let mut select = connection.prepare_cached(
        "SELECT letter_id FROM replay_letters WHERE replay_id = ?1 AND state = 'selected' ORDER BY letter_id LIMIT ?2",
    )?;
    let ids = select.query_map(params![replay, i64::try_from(limit).unwrap_or(i64::MAX)], |row| row.get(0))?;
    let ids: Vec<i64> = ids.collect::<rusqlite::Result<_>>()?;
    for id in &ids {
        if set_progress(connection, (replay, *id), "selected", LetterProgress::Returned, None, at)? {
            open_again(connection, *id)?;
        }
    }
    Ok(ids.len() == limit)
}

fn finish(connection: &Connection, replay: i64, at: Timestamp) -> rusqlite::Result<bool> {
    let mut update = connection.prepare_cached(
        "UPDATE replays SET state = iif(state = 'stopping', 'stopped', 'finished'), ended_at = ?2, selection = NULL,
                owner = NULL, leased_until = NULL
         WHERE id = ?1 AND state IN ('running', 'stopping') RETURNING actor, state",
    )?;
    let ended: Option<(String, String)> =
        update.query_row((replay, at.as_millisecond()), |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((actor, state)) = ended else { return Ok(false) };
    if state == "finished" {
        connection
            .prepare_cached(
                "UPDATE replay_letters SET state = 'unknown', changed_at = ?2
                 WHERE replay_id = ?1 AND state IN ('publishing', 'published', 'retrying')",
            )?
            .execute((replay, at.as_millisecond()))?;
    }
    let mut select =
        connection.prepare_cached("SELECT state, count(*) FROM replay_letters WHERE replay_id = ?1 GROUP BY state")?;
    let counts =
        select.query_map([replay], |row| Ok((row.get::<_, String>(0)?, Value::from(row.get::<_, i64>(1)?))))?;
    let counts: serde_json::Map<String, Value> = counts.collect::<rusqlite::Result<_>>()?;
    let result = json!({"state": state, "letters": counts});
    note(connection, (&actor, at), JournalAction::Replay, (&json!({"replay": replay}), &result))?;
    Ok(true)
}
