//! Reads what has become of stored dead letters, each by an index.

use rusqlite::{Connection, OptionalExtension, Row};

use super::columns::{named, time, timestamp};
use crate::ledger::dead_letters::{LetterProgress, LetterReplay, LetterRevision};

/// The latest replays of one letter that are shown.
const MAX_REPLAYS: usize = 100;

const REPLAYS: &str = "SELECT replay_id, replays.actor, coalesce(marked_at, changed_at), replay_letters.state, code,
        replay_letters.ended_at, came_back_as
    FROM replay_letters JOIN replays ON replays.id = replay_id WHERE letter_id = ?1";

/// The replays of a letter, the oldest first.
pub(super) fn replays(snapshot: &Connection, letter: i64) -> rusqlite::Result<Vec<LetterReplay>> {
    let sql = format!("{REPLAYS} ORDER BY replay_id DESC LIMIT {MAX_REPLAYS}");
    let mut select = snapshot.prepare_cached(&sql)?;
    let mut replays: Vec<_> = select.query_map([letter], read_replay)?.collect::<rusqlite::Result<_>>()?;
    replays.reverse();
    Ok(replays)
}

/// The replay that counts: the last one, but for those in which the letter was not published.
pub(super) fn last_replay(snapshot: &Connection, letter: i64) -> rusqlite::Result<Option<LetterReplay>> {
    let sql = format!("{REPLAYS} ORDER BY replay_letters.state IN ('skipped', 'returned'), replay_id DESC LIMIT 1");
    snapshot.prepare_cached(&sql)?.query_row([letter], read_replay).optional()
}

/// The letter that has become this one in a replay.
pub(super) fn came_back_from(snapshot: &Connection, letter: i64) -> rusqlite::Result<Option<i64>> {
    snapshot
        .prepare_cached("SELECT letter_id FROM replay_letters WHERE came_back_as = ?1 LIMIT 1")?
        .query_row([letter], |row| row.get(0))
        .optional()
}

/// The contents that persons have given to a letter, the oldest first.
pub(super) fn revisions(snapshot: &Connection, letter: i64) -> rusqlite::Result<Vec<LetterRevision>> {
    let mut select = snapshot.prepare_cached(
        "SELECT revision, edited_at, edited_by FROM stored_contents WHERE letter_id = ?1 AND revision > 0
         ORDER BY revision",
    )?;
    let revisions = select.query_map([letter], |row| {
        Ok(LetterRevision { revision: row.get(0)?, at: row.get::<_, Option<i64>>(1)?.map(timestamp), by: row.get(2)? })
    })?;
    revisions.collect()
}

fn read_replay(row: &Row<'_>) -> rusqlite::Result<LetterReplay> {
    Ok(LetterReplay {
        replay: row.get(0)?,
        by: row.get(1)?,
        at: time(row, 2)?,
        outcome: named(row, 3, LetterProgress::parse)?,
        code: row.get(4)?,
        ended_at: row.get::<_, Option<i64>>(5)?.map(timestamp),
        came_back_as: row.get(6)?,
    })
}
