//! Reads replays, on a connection of its own, each answer from one snapshot.

use std::collections::BTreeMap;
use std::path::Path;

use jiff::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, OptionalExtension, Row};

use super::letter_changes::is_abandoned;
use super::letter_queries::found_ids;
use super::open::{self, READ_BUSY_TIMEOUT};
use super::order_sums::read_amount;
use super::trace::{time, timestamp};
use crate::ledger::dead_letters::{Cause, Counted, DeadLetterFilter, LetterSource, LetterState};
use crate::ledger::error::OpenError;
use crate::ledger::replays::{
    LetterProgress, LetterSelection, Replay, ReplayCandidate, ReplayGroup, ReplayLetter, ReplayOptions, ReplayState,
};

const COLUMNS: &str = "id, state, actor, options, began_at, ended_at, end_reason, end_detail, stopped_by";

/// A letter without any outcome after this time counts as slow, although an outcome may take longer.
const SLOW_MILLIS: i64 = 60_000;

/// Blocks, as do the others.
pub(super) fn replay(directory: &Path, id: i64, now: Timestamp) -> Result<Option<Replay>, OpenError> {
    read(directory, |connection| {
        let sql = format!("SELECT {COLUMNS} FROM replays WHERE id = ?1");
        let Some(replay) = connection.query_row(&sql, [id], read_replay).optional()? else { return Ok(None) };
        count(connection, replay, now).map(Some)
    })
}

pub(super) fn replays(directory: &Path, active: bool, limit: usize, now: Timestamp) -> Result<Vec<Replay>, OpenError> {
    read(directory, |connection| {
        let condition = match active {
            true => "WHERE state IN ('selecting', 'running', 'stopping') ORDER BY id",
            false => "ORDER BY id DESC",
        };
        let mut select = connection.prepare(&format!("SELECT {COLUMNS} FROM replays {condition} LIMIT {limit}"))?;
        let replays: Vec<Replay> = select.query_map([], read_replay)?.collect::<rusqlite::Result<_>>()?;
        replays.into_iter().map(|replay| count(connection, replay, now)).collect()
    })
}

pub(super) fn letters(
    directory: &Path,
    replay: i64,
    progress: LetterProgress,
    group: Option<(String, String)>,
    after: i64,
    limit: usize,
) -> Result<Vec<ReplayLetter>, OpenError> {
    read(directory, |connection| {
        let of_group = if group.is_some() { "AND queue = ?4 AND cause = ?5" } else { "AND ?4 IS NULL AND ?5 IS NULL" };
        let mut select = connection.prepare(&format!(
            "SELECT letter_id, state, code, came_back_as FROM replay_letters
             WHERE replay_id = ?1 AND state = ?2 {of_group} AND letter_id > ?6 ORDER BY letter_id LIMIT ?3"
        ))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let (queue, cause) = group.unzip();
        let found = select.query_map((replay, progress.as_str(), limit, queue, cause, after), |row| {
            Ok(ReplayLetter {
                id: row.get(0)?,
                progress: named(row, 1, LetterProgress::parse)?,
                code: row.get(2)?,
                came_back_as: row.get(3)?,
            })
        })?;
        found.collect()
    })
}

pub(super) fn candidates(
    directory: &Path,
    selection: LetterSelection,
    states: Vec<LetterState>,
    after: i64,
    limit: usize,
) -> Result<Vec<ReplayCandidate>, OpenError> {
    read(directory, |connection| {
        let ids = match selection {
            LetterSelection::Ids(mut ids) => {
                ids.retain(|id| *id > after);
                ids.sort_unstable();
                ids.dedup();
                ids.truncate(limit);
                ids
            }
            LetterSelection::Filter { filter, up_to } => {
                let filter = DeadLetterFilter { states, ..*filter };
                found_ids(connection, &filter, (after, up_to), limit)?
            }
        };
        let mut select = connection.prepare(
            "SELECT letters.id, letters.state, origin_queue, letters.consumer, orders.status,
                    maybe_duplicate_of IS NOT NULL, source, reason, letters.code, letters.currency, letters.total,
                    letters.failed_at, (SELECT max(replay_id) FROM replay_letters
                                        WHERE letter_id = letters.id AND replay_letters.key IS NOT NULL),
                    iif(source = 'unrouted_queue', routing_key, NULL)
             FROM stored_dead_letters AS letters
             LEFT JOIN orders ON orders.id = letters.identity AND letters.identity = letters.order_id
                             AND letters.code <> 'id_conflict' AND orders.total = letters.total
             WHERE letters.id = ?1",
        )?;
        let mut candidates = Vec::with_capacity(ids.len());
        for id in ids {
            let candidate = select.query_row([id], |row| {
                let state = named(row, 1, LetterState::parse)?;
                Ok(ReplayCandidate {
                    id: row.get(0)?,
                    counted: counted(row, state)?,
                    replay: row.get(12)?,
                    is_abandoned: state == LetterState::Replaying && is_abandoned(connection, id, Timestamp::now())?,
                    state,
                    origin_queue: row.get(2)?,
                    consumer: row.get(3)?,
                    order_status: row.get(4)?,
                    maybe_duplicate: row.get(5)?,
                })
            });
            candidates.extend(candidate.optional()?);
        }
        Ok(candidates)
    })
}

/// A candidate, as far as it is added up.
fn counted(row: &Row<'_>, state: LetterState) -> rusqlite::Result<Counted> {
    let total = match row.get(9)? {
        Some(currency) => Some((currency, read_amount(row, 10)?)),
        None => None,
    };
    let (source, reason) = (named(row, 6, LetterSource::parse)?, row.get(7)?);
    let cause = Cause { source, reason, consumer: row.get(3)?, code: row.get(8)?, routing_key: row.get(13)? };
    Ok(Counted { id: row.get(0)?, state, cause, total, failed_at: time(row, 11)? })
}

pub(super) fn selection(directory: &Path, id: i64) -> Result<Option<(LetterSelection, i64)>, OpenError> {
    read(directory, |connection| {
        let sql = "SELECT selection, selected_to FROM replays WHERE id = ?1 AND selection IS NOT NULL";
        let read = |row: &Row<'_>| {
            let selection = serde_json::from_str(row.get_ref(0)?.as_str()?)
                .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, error.into()))?;
            Ok((selection, row.get(1)?))
        };
        connection.query_row(sql, [id], read).optional()
    })
}

pub(super) fn last_letter(directory: &Path) -> Result<i64, OpenError> {
    read(directory, |connection| {
        connection.query_row("SELECT coalesce(max(id), 0) FROM stored_dead_letters", [], |row| row.get(0))
    })
}

fn read<T>(directory: &Path, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, OpenError> {
    let mut connection = open::for_reading(directory, READ_BUSY_TIMEOUT)?;
    let snapshot = connection.transaction().map_err(|error| open::error(directory, error))?;
    read(&snapshot).map_err(|error| open::error(directory, error))
}

fn read_replay(row: &Row<'_>) -> rusqlite::Result<Replay> {
    let options: ReplayOptions = serde_json::from_str(row.get_ref(3)?.as_str()?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(3, Type::Text, error.into()))?;
    Ok(Replay {
        id: row.get(0)?,
        state: named(row, 1, ReplayState::parse)?,
        by: row.get(2)?,
        options,
        began_at: time(row, 4)?,
        ended_at: row.get::<_, Option<i64>>(5)?.map(timestamp),
        end_reason: row.get(6)?,
        end_detail: row.get(7)?,
        stopped_by: row.get(8)?,
        letters: BTreeMap::new(),
        skipped: BTreeMap::new(),
        overdue: 0,
        slow: 0,
        recent: 0,
        recent_failed: 0,
        groups: Vec::new(),
    })
}

/// Adds up its letters.
fn count(connection: &Connection, mut replay: Replay, now: Timestamp) -> rusqlite::Result<Replay> {
    let mut select = connection.prepare_cached(
        "SELECT queue, cause, state, skip_code, letters FROM replay_counts WHERE replay_id = ?1 AND letters > 0
         ORDER BY queue, cause",
    )?;
    let mut rows = select.query([replay.id])?;
    while let Some(row) = rows.next()? {
        let (queue, cause): (String, String) = (row.get(0)?, row.get(1)?);
        let (progress, letters) = (named(row, 2, LetterProgress::parse)?, count_of(row, 4)?);
        *replay.letters.entry(progress).or_default() += letters;
        if progress == LetterProgress::Skipped {
            *replay.skipped.entry(row.get(3)?).or_default() += letters;
        }
        if replay.groups.last().is_none_or(|last| last.queue != queue || last.cause != cause) {
            replay.groups.push(ReplayGroup { queue, cause, ..ReplayGroup::default() });
        }
        if let Some(group) = replay.groups.last_mut() {
            *group.letters.entry(progress).or_default() += letters;
        }
    }
    if replay.in_flight() > 0 {
        count_late(connection, &mut replay, now)?;
    }
    let mut select = connection.prepare_cached(
        "SELECT count(*), coalesce(sum(state = 'failed_again'), 0) FROM
             (SELECT state FROM replay_letters WHERE replay_id = ?1 AND ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT 100)",
    )?;
    (replay.recent, replay.recent_failed) =
        select.query_row([replay.id], |row| Ok((count_of(row, 0)?, count_of(row, 1)?)))?;
    Ok(replay)
}

/// Published letters whose time for an outcome has passed. Few are in flight at a time.
fn count_late(connection: &Connection, replay: &mut Replay, now: Timestamp) -> rusqlite::Result<()> {
    let mut select = connection.prepare_cached(
        "SELECT queue, cause, sum(due_at < ?2), sum(state = 'published' AND changed_at < ?3) FROM replay_letters
         WHERE replay_id = ?1 AND state IN ('published', 'retrying') GROUP BY queue, cause",
    )?;
    let now = now.as_millisecond();
    let mut rows = select.query((replay.id, now, now.saturating_sub(SLOW_MILLIS)))?;
    while let Some(row) = rows.next()? {
        let (queue, cause): (String, String) = (row.get(0)?, row.get(1)?);
        let overdue = count_of(row, 2)?;
        (replay.overdue, replay.slow) = (replay.overdue + overdue, replay.slow + count_of(row, 3)?);
        let mut groups = replay.groups.iter_mut();
        if let Some(group) = groups.find(|group| group.queue == queue && group.cause == cause) {
            group.overdue = overdue;
        }
    }
    Ok(())
}

fn count_of(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(row.get::<_, i64>(column)?.cast_unsigned())
}

/// A value of an enum. Another program may have written one that does not exist.
fn named<T>(row: &Row<'_>, column: usize, parse: fn(&str) -> Option<T>) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    parse(text).ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, format!("{text:?} is unknown").into())
    })
}
