//! Reads what has become of stored dead letters, each by an index.

use rusqlite::{Connection, OptionalExtension, Row, Statement};

use super::columns::{named, time, timestamp};
use crate::ledger::dead_letters::{DeadLetter, LetterProgress, LetterReplay, LetterRevision};

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

/// Looks up what has become of letters in replays, with statements that are prepared once for all of them.
pub(super) struct ReplayLookup<'c> {
    of_replay: Option<i64>,
    last_replay: Statement<'c>,
    came_back_from: Statement<'c>,
}

impl<'c> ReplayLookup<'c> {
    /// `of_replay`: the one that is asked for, if one is.
    pub fn new(snapshot: &'c Connection, of_replay: Option<i64>) -> rusqlite::Result<Self> {
        // The one that is asked for, else the last one that has published the letter, else the last one that has not.
        let last = format!(
            "{REPLAYS} ORDER BY replay_id IS NOT ?2, replay_letters.state IN ('skipped', 'returned'), replay_id DESC LIMIT 1"
        );
        Ok(ReplayLookup {
            of_replay,
            last_replay: snapshot.prepare(&last)?,
            came_back_from: snapshot.prepare("SELECT letter_id FROM replay_letters WHERE came_back_as = ?1 LIMIT 1")?,
        })
    }

    /// Adds it to a letter.
    pub fn add_to(&mut self, letter: &mut DeadLetter) -> rusqlite::Result<()> {
        letter.last_replay = self.last_replay.query_row((letter.id, self.of_replay), read_replay).optional()?;
        letter.came_back_from = self.came_back_from.query_row([letter.id], |row| row.get(0)).optional()?;
        Ok(())
    }
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
