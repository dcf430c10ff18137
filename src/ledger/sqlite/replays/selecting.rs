//! Begins replays, and claims their letters.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{note, note_letters};
use crate::ledger::dead_letters::LetterState;
use crate::ledger::journal::{JournalAction, content_hash};
use crate::ledger::replays::{
    BeginAnswer, LetterProgress, LetterSelection, MAX_ACTIVE_REPLAYS, MAX_CAUSES, MAYBE_DUPLICATE, NewReplay, ToSelect,
};

/// Bytes of a key's hash.
const KEY_BYTES: usize = 16;

/// What the journal says of a selection: nothing that `orderd erase` may have to remove.
fn journaled(selection: &LetterSelection) -> Value {
    match selection {
        LetterSelection::Ids(ids) => json!({"ids": ids}),
        LetterSelection::Filter { filter, up_to } => {
            let mut filter = filter.clone();
            for secret in [&mut filter.customer, &mut filter.text] {
                *secret = secret.as_deref().map(content_hash);
            }
            json!({"filter": filter, "up_to": up_to})
        }
    }
}

/// `None`: too many have not ended.
pub(super) fn begin(connection: &Connection, replay: &NewReplay) -> rusqlite::Result<Option<BeginAnswer>> {
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
pub(super) fn claim(
    connection: &Connection,
    replay: i64,
    owner: &str,
    at: Timestamp,
    until: Timestamp,
) -> rusqlite::Result<bool> {
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
pub(super) fn select(
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
        let state: Option<String> = connection
            .prepare_cached("SELECT state FROM stored_dead_letters WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        // A filter finds open ones, but somebody may have changed this one since.
        let code = match state {
            Some(state) if state == LetterState::Open.as_str() => MAYBE_DUPLICATE.to_owned(),
            Some(state) => state,
            None => "missing".to_owned(),
        };
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
