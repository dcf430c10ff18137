//! Records replays, within the open transaction: which letters they claim, and how far they are.
//!
//! A letter changes its state only from the state that is expected, so of two who want it only one gets it. It never publishes, and
//! never decides on the pace.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::journal;
use super::letter_changes::{self, open_again};
use super::order_items::{Compared, SELECT_STORED, compare};
use super::trace::timestamp;
use crate::ledger::entry::NewOrder;
use crate::ledger::journal::{JournalAction, NewJournalEntry, text_hash};
use crate::ledger::replays::{
    BeginAnswer, ClaimedReplay, LetterOperation, LetterProgress, LetterSelection, MAX_ACTIVE_REPLAYS, MAX_CAUSES,
    MAYBE_DUPLICATE, NewReplay, OperationAnswer, PublishAnswer, ToPublish, ToSelect,
};

/// The most letters of one state whose numbers the journal has at the end of a replay.
const MAX_NOTED_LETTERS: usize = 1_000;
/// Bytes of a key's hash.
const KEY_BYTES: usize = 16;

/// Carries out a change. If a statement fails, the whole transaction does. What only the process may do that carries a replay out is not
/// done for another one.
pub(super) fn change(connection: &Connection, change: &LetterOperation) -> rusqlite::Result<OperationAnswer> {
    Ok(match change {
        LetterOperation::Begin(replay) => {
            begin(connection, replay)?.map_or(OperationAnswer::TooManyReplays, OperationAnswer::Begun)
        }
        LetterOperation::Claim { replay, owner, at, until } => {
            OperationAnswer::Done(claim(connection, *replay, owner, *at, *until)?)
        }
        LetterOperation::Select { replay, letters, is_named, is_last, at } => {
            let is_selecting = state_of(connection, replay, *at)?.as_deref() == Some("selecting");
            if is_selecting {
                select(connection, replay.id, letters, (*is_named, *is_last), *at)?;
            }
            OperationAnswer::Done(is_selecting)
        }
        LetterOperation::Reading { replay, letters, has_ended, at } => {
            let is_claimed = state_of(connection, replay, *at)?.is_some();
            let reader = Some(&*replay.owner).filter(|_| !has_ended);
            let tries = letters.iter().filter(|_| is_claimed);
            let tries = tries.map(|letter| reading(connection, (replay.id, *letter), reader));
            OperationAnswer::Reading(tries.collect::<rusqlite::Result<_>>()?)
        }
        LetterOperation::BeginPublishing { replay, letters, at } => {
            let state = state_of(connection, replay, *at)?;
            // What was not begun when a replay is stopped is given back.
            let from = match state.as_deref() {
                Some("running") => "selected",
                Some("stopping") => "publishing",
                Some(_) | None => {
                    return Ok(OperationAnswer::Publishing(vec![PublishAnswer::NotClaimed; letters.len()]));
                }
            };
            let answers = letters.iter().map(|letter| begin_publishing(connection, replay.id, letter, from, *at));
            let answers: Vec<PublishAnswer> = answers.collect::<rusqlite::Result<_>>()?;
            let closed = letters.iter().zip(&answers).filter(|(_, answer)| **answer == PublishAnswer::Closed);
            let closed: Vec<i64> = closed.map(|(letter, _)| letter.letter).collect();
            note_letters(connection, (replay.id, *at), JournalAction::Discard, (&closed, "order_closed"))?;
            OperationAnswer::Publishing(answers)
        }
        LetterOperation::Published { replay, letters, at, due } => {
            published(connection, *replay, letters, *at, *due)?;
            OperationAnswer::Done(true)
        }
        LetterOperation::Skip { replay, letter, code, at } => {
            let is_claimed = state_of(connection, replay, *at)?.is_some();
            OperationAnswer::Done(is_claimed && skip(connection, (replay.id, *letter), code, *at)?)
        }
        LetterOperation::Stop { replay, by, reason, detail, at } => {
            OperationAnswer::Done(stop(connection, *replay, by.as_deref(), (reason, detail.as_deref()), *at)?)
        }
        LetterOperation::GiveBack { replay, limit, at } => {
            let is_claimed = state_of(connection, replay, *at)?.is_some();
            OperationAnswer::More(is_claimed && give_back(connection, replay.id, *limit, *at)?)
        }
        LetterOperation::Finish { replay, at } => {
            let is_claimed = state_of(connection, replay, *at)?.is_some();
            OperationAnswer::Done(is_claimed && finish(connection, replay.id, *at)?)
        }
        LetterOperation::Letters { ids, change, by, at } => {
            OperationAnswer::Letters(letter_changes::change(connection, ids, change, by, *at)?)
        }
        LetterOperation::Edit(edit) => OperationAnswer::Letters(vec![letter_changes::edit(connection, edit)?]),
    })
}

/// The state of a replay, if this process has claimed it.
fn state_of(connection: &Connection, replay: &ClaimedReplay, at: Timestamp) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached("SELECT state FROM replays WHERE id = ?1 AND owner = ?2 AND leased_until > ?3")?
        .query_row((replay.id, &replay.owner, at.as_millisecond()), |row| row.get(0))
        .optional()
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

pub(super) fn note(
    connection: &Connection,
    (by, at): (&str, Timestamp),
    action: JournalAction,
    (subject, result): (&Value, &Value),
) -> rusqlite::Result<()> {
    journal::append(connection, &NewJournalEntry::new(at, by, action, subject, result)).map(drop)
}

/// Records what a replay has done with letters, by the person who has started it.
fn note_letters(
    connection: &Connection,
    (replay, at): (i64, Timestamp),
    action: JournalAction,
    (letters, result): (&[i64], &str),
) -> rusqlite::Result<()> {
    if letters.is_empty() {
        return Ok(());
    }
    let actor: String =
        connection.prepare_cached("SELECT actor FROM replays WHERE id = ?1")?.query_row([replay], |row| row.get(0))?;
    let (subject, result) = (json!({"replay": replay, "ids": letters}), json!({result: letters.len()}));
    note(connection, (&actor, at), action, (&subject, &result))
}

/// `None`: too many have not ended.
fn begin(connection: &Connection, replay: &NewReplay) -> rusqlite::Result<Option<BeginAnswer>> {
    let active: i64 = connection
        .prepare_cached("SELECT count(*) FROM replays WHERE state IN ('selecting', 'running', 'stopping')")?
        .query_row([], |row| row.get(0))?;
    if usize::try_from(active).unwrap_or(0) >= MAX_ACTIVE_REPLAYS {
        return Ok(None);
    }
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
    Ok(Some(BeginAnswer { replay: id }))
}

/// A lease that seems to last longer than this was written before the clock was set back.
const MAX_LEASE_MILLIS: i64 = 60_000;

/// One process carries all replays out, since they share the queues' consumers and what is in flight there.
fn claim(connection: &Connection, replay: i64, owner: &str, at: Timestamp, until: Timestamp) -> rusqlite::Result<bool> {
    let mut update = connection.prepare_cached(
        "UPDATE replays SET owner = ?2, leased_until = ?4 WHERE id = ?1 AND state IN ('selecting', 'running', 'stopping')
         AND NOT EXISTS (SELECT 1 FROM replays AS claimed
                         WHERE claimed.state IN ('selecting', 'running', 'stopping') AND claimed.owner <> ?2
                           AND claimed.leased_until > ?3 AND claimed.leased_until <= ?3 + ?5)",
    )?;
    let (at, until) = (at.as_millisecond(), until.as_millisecond());
    Ok(update.execute((replay, owner, at, until, MAX_LEASE_MILLIS))? == 1)
}

/// Claims letters of the selection.
fn select(
    connection: &Connection,
    replay: i64,
    letters: &[ToSelect],
    (is_named, is_last): (bool, bool),
    at: Timestamp,
) -> rusqlite::Result<()> {
    let token =
        connection.prepare_cached("SELECT token FROM replays WHERE id = ?1")?.query_row([replay], |row| row.get(0))?;
    let mut causes: BTreeSet<String> = connection
        .prepare_cached("SELECT DISTINCT cause FROM replay_counts WHERE replay_id = ?1")?
        .query_map([replay], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    let mut selected = Vec::new();
    for letter in letters {
        if select_one(connection, (replay, &token), (letter, &mut causes), is_named, at)? {
            selected.push(letter.letter);
        }
    }
    note_letters(connection, (replay, at), JournalAction::Replay, (&selected, "selected"))?;
    connection
        .prepare_cached("UPDATE replays SET selected_to = coalesce(?2, selected_to), state = ?3 WHERE id = ?1")?
        .execute((replay, letters.last().map(|letter| letter.letter), if is_last { "running" } else { "selecting" }))
        .map(drop)
}

/// A process is about to read a letter, or has read it. Returns how many others have ended while they were reading it.
fn reading(connection: &Connection, (replay, letter): (i64, i64), reader: Option<&str>) -> rusqlite::Result<u32> {
    let tries = connection
        .prepare_cached(
            "UPDATE replay_letters SET tries = tries + (reader IS NOT NULL AND ?3 IS NOT NULL AND reader <> ?3), reader = ?3
             WHERE replay_id = ?1 AND letter_id = ?2 AND state IN ('selected', 'publishing') RETURNING tries",
        )?
        .query_row((replay, letter, reader), |row| row.get(0))
        .optional()?;
    Ok(tries.unwrap_or(0))
}

/// Whether the letter is the replay's now.
fn select_one(
    connection: &Connection,
    (replay, token): (i64, &[u8; KEY_BYTES]),
    (letter, causes): (&ToSelect, &mut BTreeSet<String>),
    is_named: bool,
    at: Timestamp,
) -> rusqlite::Result<bool> {
    let id = letter.letter;
    let claimed = connection
        .prepare_cached(
            "UPDATE stored_dead_letters SET state = 'replaying'
             WHERE id = ?1 AND state = 'open' AND (?2 OR maybe_duplicate_of IS NULL) RETURNING fingerprint, code",
        )?
        .query_row((id, is_named), |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))
        .optional()?;
    let mut insert = connection.prepare_cached(
        "INSERT INTO replay_letters (replay_id, letter_id, key, state, code, changed_at, queue, cause)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (replay_id, letter_id) DO NOTHING",
    )?;
    let at = at.as_millisecond();
    let Some((fingerprint, mut cause)) = claimed else {
        // A filter finds open ones only.
        let state: Option<String> = connection
            .prepare_cached("SELECT state FROM stored_dead_letters WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        let code = if is_named { state.unwrap_or_else(|| "missing".to_owned()) } else { MAYBE_DUPLICATE.to_owned() };
        insert.execute((replay, id, None::<&str>, LetterProgress::Skipped.as_str(), Some(code), at, "", ""))?;
        return Ok(false);
    };
    let key = key(connection, replay, token, &fingerprint)?;
    if !causes.contains(&cause) && causes.len() >= MAX_CAUSES {
        cause.clear();
    }
    let selected = LetterProgress::Selected.as_str();
    insert.execute((replay, id, key, selected, None::<&str>, at, &letter.queue, &cause))?;
    causes.insert(cause);
    Ok(true)
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
    from: &str,
    at: Timestamp,
) -> rusqlite::Result<PublishAnswer> {
    let letter = to_publish.letter;
    let found = connection
        .prepare_cached(
            "SELECT key, fingerprint FROM replay_letters JOIN stored_dead_letters ON id = letter_id
             WHERE replay_id = ?1 AND letter_id = ?2 AND replay_letters.state IN (?3, 'publishing')
               AND stored_dead_letters.state = 'replaying'",
        )?
        .query_row((replay, letter, from), |row| Ok((row.get(0)?, row.get(1)?)))
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
    let marked_at = connection
        .prepare_cached(
            "UPDATE replay_letters SET marked_at = coalesce(marked_at, ?3), queue = ?4, tries = 0, reader = NULL
             WHERE replay_id = ?1 AND letter_id = ?2
             RETURNING marked_at",
        )?
        .query_row((replay, letter, at.as_millisecond(), &to_publish.queue), |row| row.get(0))?;
    Ok(PublishAnswer::Publish { key, fingerprint, marked_at: timestamp(marked_at) })
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
    if set_progress(connection, of, "selected", LetterProgress::Skipped, Some(code), at)? {
        open_again(connection, of.1)?;
        return Ok(true);
    }
    // It may be on its way.
    set_progress(connection, of, "publishing", LetterProgress::Unknown, Some(code), at)
}

pub(super) fn stop(
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
    let Some(actor) = actor else {
        return if by.is_some() { give_up_half_published(connection, replay, at) } else { Ok(false) };
    };
    let result = json!({"state": "stopping", "reason": reason});
    let by = by.unwrap_or(&actor);
    note(connection, (by, at), JournalAction::Replay, (&json!({"replay": replay}), &result))?;
    Ok(true)
}

/// A person stops a replay again that is stopping, and cannot publish what may be on its way already.
fn give_up_half_published(connection: &Connection, replay: i64, at: Timestamp) -> rusqlite::Result<bool> {
    let mut update = connection.prepare_cached(
        "UPDATE replay_letters SET state = 'unknown', changed_at = ?2 WHERE replay_id = ?1 AND state = 'publishing'
         AND EXISTS (SELECT 1 FROM replays WHERE id = ?1 AND state = 'stopping') RETURNING letter_id",
    )?;
    let given_up = update.query_map((replay, at.as_millisecond()), |row| row.get(0))?;
    let given_up: Vec<i64> = given_up.collect::<rusqlite::Result<_>>()?;
    note_letters(connection, (replay, at), JournalAction::Replay, (&given_up, "unknown"))?;
    Ok(!given_up.is_empty())
}

fn give_back(connection: &Connection, replay: i64, limit: usize, at: Timestamp) -> rusqlite::Result<bool> {
    let mut select = connection
        .prepare_cached("SELECT letter_id FROM replay_letters WHERE replay_id = ?1 AND state = 'selected' LIMIT ?2")?;
    let ids = select.query_map(params![replay, i64::try_from(limit).unwrap_or(i64::MAX)], |row| row.get(0))?;
    let ids: Vec<i64> = ids.collect::<rusqlite::Result<_>>()?;
    for id in &ids {
        if set_progress(connection, (replay, *id), "selected", LetterProgress::Returned, None, at)? {
            open_again(connection, *id)?;
        }
    }
    Ok(ids.len() == limit)
}

/// Gives back some letters of a stopped replay, and ends it once nothing is left that may be on its way. Whether there is more to do.
pub(super) fn end_stopped(connection: &Connection, replay: i64, limit: usize, at: Timestamp) -> rusqlite::Result<bool> {
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
    let mut select = connection.prepare_cached(
        "SELECT state, sum(letters) FROM replay_counts WHERE replay_id = ?1 AND letters > 0 GROUP BY state",
    )?;
    let counts =
        select.query_map([replay], |row| Ok((row.get::<_, String>(0)?, Value::from(row.get::<_, i64>(1)?))))?;
    let counts: serde_json::Map<String, Value> = counts.collect::<rusqlite::Result<_>>()?;
    let mut result = json!({"state": state, "letters": counts});
    for progress in [LetterProgress::FailedAgain, LetterProgress::Unknown] {
        let sql = format!(
            "SELECT letter_id FROM replay_letters WHERE replay_id = ?1 AND state = ?2 LIMIT {MAX_NOTED_LETTERS}"
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
