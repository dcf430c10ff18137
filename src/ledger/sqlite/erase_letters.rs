//! Erases the contents of stored dead letters. The rows stay, as discarded ones, so that counts still add up.

use jiff::Timestamp;
use rusqlite::Connection;

use crate::ledger::dead_letters::LetterState;
use crate::ledger::erase::ERASED;

/// Whose dead letters are erased.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    /// Those that are this order, or are about it.
    Order(&'a str),
    /// Those with this identity.
    Identity(&'a str),
}

/// Erases them, and returns how many had a content. One that is being published again is left: its copy has the content too. `customer`: not those of which it is known that they are another customer's.
pub(super) fn erase(connection: &Connection, subject: Subject<'_>, customer: Option<&str>) -> rusqlite::Result<usize> {
    let (column, value) = match subject {
        Subject::Order(order) => ("order_id", order),
        Subject::Identity(identity) => ("identity", identity),
    };
    let sql = format!(
        "SELECT id FROM stored_dead_letters WHERE {column} = ?1 AND (?2 IS NULL OR customer_id IS NULL OR customer_id = ?2)
         AND erased_at IS NULL AND state <> 'replaying'"
    );
    let mut select = connection.prepare_cached(&sql)?;
    let found = select.query_map((value, customer), |row| row.get(0))?;
    let found: Vec<i64> = found.collect::<rusqlite::Result<_>>()?;
    for id in &found {
        erase_one(connection, *id)?;
    }
    Ok(found.len())
}

/// Which order it was, and why it failed, are still known.
fn erase_one(connection: &Connection, id: i64) -> rusqlite::Result<()> {
    let mut content = connection.prepare_cached(
        "UPDATE stored_contents SET properties = '{}', headers = '{}', body = x'' WHERE letter_id = ?1 AND revision = 0",
    )?;
    content.execute([id])?;
    connection.prepare_cached("DELETE FROM stored_contents WHERE letter_id = ?1 AND revision > 0")?.execute([id])?;
    connection.prepare_cached("DELETE FROM stored_texts WHERE letter_id = ?1")?.execute([id])?;
    let mut letter = connection.prepare_cached(
        "UPDATE stored_dead_letters
         SET customer_id = NULL, failure_reason = iif(failure_reason IS NULL, NULL, ?2), note = ?2, state = ?3,
             closed_at = coalesce(closed_at, ?4), bytes = 0, erased_at = ?4
         WHERE id = ?1",
    )?;
    let discarded = LetterState::Discarded.as_str();
    letter.execute((id, ERASED, discarded, Timestamp::now().as_millisecond())).map(drop)
}
