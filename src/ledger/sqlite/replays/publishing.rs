//! How far the letters of a replay are while they are read and published.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};

use super::set_progress;
use crate::ledger::entry::NewOrder;
use crate::ledger::replays::{LeftOutLetter, LetterProgress, PublishAnswer, ToPublish};
use crate::ledger::sqlite::letter_changes::open_again;
use crate::ledger::sqlite::order_items::{Compared, SELECT_STORED, compare};
use crate::ledger::sqlite::trace::timestamp;

/// A process is about to read letters. Returns for each how many others have ended while they were reading it. One that others were reading
/// is read alone; those that are not read yet are left as they are, so that they do not count as read if the process ends.
pub(super) fn begin_reading(
    connection: &Connection,
    replay: i64,
    letters: &[i64],
    reader: &str,
) -> rusqlite::Result<Vec<u32>> {
    let mut select = connection.prepare_cached(
        "SELECT tries + (reader IS NOT NULL AND reader <> ?3) FROM replay_letters
         WHERE replay_id = ?1 AND letter_id = ?2 AND state IN ('selected', 'publishing')",
    )?;
    let mut update = connection.prepare_cached(
        "UPDATE replay_letters SET tries = ?3, reader = ?4
         WHERE replay_id = ?1 AND letter_id = ?2 AND state IN ('selected', 'publishing')",
    )?;
    let mut answer = Vec::with_capacity(letters.len());
    for letter in letters {
        let tries: Option<u32> = select.query_row((replay, letter, reader), |row| row.get(0)).optional()?;
        let tries = tries.unwrap_or(0);
        if tries > 0 && !answer.is_empty() {
            break;
        }
        update.execute((replay, letter, tries, reader))?;
        answer.push(tries);
        if tries > 0 {
            break;
        }
    }
    Ok(answer)
}

/// A process has read letters, and it has not ended. Returns for each how many others have.
pub(super) fn end_reading(connection: &Connection, replay: i64, letters: &[i64]) -> rusqlite::Result<Vec<u32>> {
    let mut update = connection.prepare_cached(
        "UPDATE replay_letters SET reader = NULL
         WHERE replay_id = ?1 AND letter_id = ?2 AND state IN ('selected', 'publishing') RETURNING tries",
    )?;
    let tries = letters.iter().map(|letter| {
        let tries = update.query_row((replay, letter), |row| row.get(0)).optional()?;
        Ok(tries.unwrap_or(0))
    });
    tries.collect()
}

/// Closes a letter whose order was processed or cancelled meanwhile. Else it is about to be published, if there is room.
pub(super) fn begin_publishing(
    connection: &Connection,
    replay: i64,
    to_publish: &ToPublish,
    (from, has_room): (LetterProgress, bool),
    at: Timestamp,
) -> rusqlite::Result<PublishAnswer> {
    let letter = to_publish.letter;
    let found = connection
        .prepare_cached(
            "SELECT key, fingerprint FROM replay_letters JOIN stored_dead_letters ON id = letter_id
             WHERE replay_id = ?1 AND letter_id = ?2 AND replay_letters.state IN (?3, 'publishing')
               AND stored_dead_letters.state = 'replaying'",
        )?
        .query_row((replay, letter, from.as_str()), |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((key, fingerprint)) = found else { return Ok(PublishAnswer::NotSelected) };
    if let Some((code, note)) =
        to_publish.order.as_ref().map(|order| meanwhile(connection, order)).transpose()?.flatten()
    {
        // One that may have been published has its outcome by the copy.
        let is_new = set_progress(
            connection,
            (replay, letter),
            LetterProgress::Selected,
            LetterProgress::Skipped,
            Some(code),
            at,
        )?;
        if is_new {
            connection
                .prepare_cached(
                    "UPDATE stored_dead_letters SET state = 'discarded', closed_at = ?2, note = ?3 WHERE id = ?1",
                )?
                .execute((letter, at.as_millisecond(), note))?;
            return Ok(PublishAnswer::Closed);
        }
    }
    connection
        .prepare_cached("UPDATE replay_letters SET tries = 0, reader = NULL WHERE replay_id = ?1 AND letter_id = ?2")?
        .execute((replay, letter))?;
    if !has_room {
        return Ok(PublishAnswer::NoRoom);
    }
    let (selected, publishing) = (LetterProgress::Selected, LetterProgress::Publishing);
    let is_first = set_progress(connection, (replay, letter), selected, publishing, None, at)?;
    let marked_at = connection
        .prepare_cached(
            "UPDATE replay_letters SET marked_at = coalesce(marked_at, ?3),
                    revision = coalesce(revision, (SELECT max(revision) FROM stored_contents WHERE letter_id = ?2))
             WHERE replay_id = ?1 AND letter_id = ?2 RETURNING marked_at",
        )?
        .query_row((replay, letter, at.as_millisecond()), |row| row.get(0))?;
    Ok(PublishAnswer::Publish { key, fingerprint, marked_at: timestamp(marked_at), is_first })
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

pub(super) fn published(
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

/// A letter goes to another queue than before.
pub(super) fn move_to(connection: &Connection, (replay, letter): (i64, i64), queue: &str) -> rusqlite::Result<()> {
    let mut update = connection.prepare_cached(
        "UPDATE replay_letters SET queue = ?3
         WHERE replay_id = ?1 AND letter_id = ?2 AND state IN ('selected', 'publishing')",
    )?;
    update.execute((replay, letter, queue)).map(drop)
}

/// A letter is not published: it is open again, unless it may be on its way.
pub(super) fn skip(
    connection: &Connection,
    replay: i64,
    left_out: &LeftOutLetter,
    at: Timestamp,
) -> rusqlite::Result<()> {
    use LetterProgress::{Publishing, Selected, Skipped, Unknown};
    let LeftOutLetter { letter, code, is_unpublished } = *left_out;
    let set = |from, to| set_progress(connection, (replay, letter), from, to, Some(code), at);
    if set(Selected, Skipped)? || is_unpublished && set(Publishing, Skipped)? {
        return open_again(connection, letter, at);
    }
    set(Publishing, Unknown).map(drop)
}
