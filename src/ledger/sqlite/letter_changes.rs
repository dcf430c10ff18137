//! What persons do with single letters, within the open transaction: hold, release, discard, edit.
//!
//! A letter that is being replayed is never changed, unless its replay has ended without an outcome.

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::json;

use super::journal;
use super::order_items::{Compared, SELECT_STORED, compare};
use super::step_texts::securely;
use crate::ledger::dead_letters::{LetterOrder, LetterState};
use crate::ledger::journal::{JournalAction, NewJournalEntry, content_hash};
use crate::ledger::replays::{ChangeAnswer, LetterChange, LetterEdit};

/// Changes letters. The answers are in the order of the numbers.
pub(super) fn change(
    connection: &Connection,
    ids: &[i64],
    (change, states): (&LetterChange, &[LetterState]),
    by: &str,
    at: Timestamp,
) -> rusqlite::Result<Vec<ChangeAnswer>> {
    let answers: Vec<ChangeAnswer> =
        ids.iter().map(|id| change_one(connection, *id, (change, states), at)).collect::<rusqlite::Result<_>>()?;
    let changed = || ids.iter().zip(&answers).filter(|(_, answer)| **answer == ChangeAnswer::Changed);
    let changed: Vec<i64> = changed().map(|(id, _)| *id).collect();
    if !changed.is_empty() {
        let (action, note) = match change {
            LetterChange::Hold { note } => (JournalAction::Hold, Some(note)),
            LetterChange::Release => (JournalAction::Release, None),
            LetterChange::Discard { reason } => (JournalAction::Discard, Some(reason)),
        };
        let subject = json!({"ids": changed, "note_sha256": note.map(content_hash)});
        let result = json!({"changed": changed.len()});
        journal::append(connection, &NewJournalEntry::new(at, by, action, &subject, &result))?;
    }
    Ok(answers)
}

fn change_one(
    connection: &Connection,
    id: i64,
    (change, states): (&LetterChange, &[LetterState]),
    at: Timestamp,
) -> rusqlite::Result<ChangeAnswer> {
    use LetterState::{Discarded, Held, Open, Replayed, Replaying};
    let Some(state) = state(connection, id)? else { return Ok(ChangeAnswer::Missing) };
    // Somebody else may have changed it since a filter found it.
    if !states.is_empty() && !states.contains(&state) {
        return Ok(ChangeAnswer::Refused(state));
    }
    let (next, note, closed_at) = match (change, state) {
        (LetterChange::Hold { note }, Open | Held) => (Held, Some(note), None),
        (LetterChange::Release, Open) | (LetterChange::Discard { .. }, Discarded) => {
            return Ok(ChangeAnswer::Unchanged);
        }
        (LetterChange::Release, Held) => (Open, None, None),
        (LetterChange::Release, Replaying) if is_abandoned(connection, id, at)? => (Open, None, None),
        (LetterChange::Discard { reason }, Open | Held) => (Discarded, Some(reason), Some(at.as_millisecond())),
        (LetterChange::Hold { .. }, Replaying | Replayed | Discarded)
        | (LetterChange::Release, Replaying | Replayed | Discarded)
        | (LetterChange::Discard { .. }, Replaying | Replayed) => return Ok(ChangeAnswer::Refused(state)),
    };
    connection
        .prepare_cached("UPDATE stored_dead_letters SET state = ?2, note = ?3, closed_at = ?4 WHERE id = ?1")?
        .execute(params![id, next.as_str(), note, closed_at])?;
    Ok(ChangeAnswer::Changed)
}

fn state(connection: &Connection, id: i64) -> rusqlite::Result<Option<LetterState>> {
    let text: Option<String> = connection
        .prepare_cached("SELECT state FROM stored_dead_letters WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    Ok(text.and_then(|text| LetterState::parse(&text)))
}

/// Whether its replay has ended, and no outcome was seen in time.
pub(super) fn is_abandoned(connection: &Connection, id: i64, now: Timestamp) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM replay_letters JOIN replays ON replays.id = replay_id
             WHERE letter_id = ?1 AND key IS NOT NULL AND replays.state IN ('finished', 'stopped')
               AND (replay_letters.state = 'unknown' OR replay_letters.state IN ('published', 'retrying') AND due_at < ?2)
               AND replay_id = (SELECT max(replay_id) FROM replay_letters WHERE letter_id = ?1 AND key IS NOT NULL)",
        )?
        .exists((id, now.as_millisecond()))
}

/// SQL: whether a letter has another content than the one that `replayed`, a row of `replay_letters`, has published.
pub(super) const EDITED_SINCE: &str = "EXISTS (SELECT 1 FROM stored_contents
     WHERE stored_contents.letter_id = replayed.letter_id AND stored_contents.revision > replayed.revision)";

/// A letter that was not published is open again, unless an earlier replay of its content has brought an outcome meanwhile.
pub(super) fn open_again(connection: &Connection, id: i64, at: Timestamp) -> rusqlite::Result<()> {
    let has_outcome = format!(
        "EXISTS (SELECT 1 FROM replay_letters AS replayed
                 WHERE replayed.letter_id = stored_dead_letters.id AND replayed.ended_at IS NOT NULL AND NOT {EDITED_SINCE})"
    );
    connection
        .prepare_cached(&format!(
            "UPDATE stored_dead_letters SET state = iif({has_outcome}, 'replayed', 'open'), closed_at = iif({has_outcome}, ?2, NULL)
             WHERE id = ?1 AND state = 'replaying'"
        ))?
        .execute((id, at.as_millisecond()))
        .map(drop)
}

/// Adds a revision, unless the letter was edited meanwhile, or is being replayed or closed.
pub(super) fn edit(connection: &Connection, edit: &LetterEdit) -> rusqlite::Result<ChangeAnswer> {
    let id = edit.letter;
    match state(connection, id)? {
        None => return Ok(ChangeAnswer::Missing),
        Some(LetterState::Open | LetterState::Held) => {}
        Some(state @ (LetterState::Replaying | LetterState::Replayed | LetterState::Discarded)) => {
            return Ok(ChangeAnswer::Refused(state));
        }
    }
    if let Some(order) = &edit.whole_order {
        let mut select = connection.prepare_cached(SELECT_STORED)?;
        let compared = select.query_row([order.id.as_str()], |row| compare(connection, row, order)).optional()?;
        if compared == Some(Compared::Different) {
            return Ok(ChangeAnswer::OtherOrder);
        }
    }
    let (current, body_before) = connection
        .prepare_cached(
            "SELECT revision, body FROM stored_contents WHERE letter_id = ?1 ORDER BY revision DESC LIMIT 1",
        )?
        .query_row([id], |row| Ok((row.get::<_, i64>(0)?, content_hash(row.get_ref(1)?.as_blob()?))))?;
    if current != edit.base {
        return Ok(ChangeAnswer::Outdated);
    }
    connection
        .prepare_cached(
            "INSERT INTO stored_contents (letter_id, revision, properties, headers, body, edited_at, edited_by)
             SELECT letter_id, revision + 1, coalesce(?6, properties), headers, ?3, ?4, ?5 FROM stored_contents
             WHERE letter_id = ?1 AND revision = ?2",
        )?
        .execute(params![id, edit.base, &edit.body[..], edit.at.as_millisecond(), edit.by, edit.properties])?;
    let before: Option<String> = connection
        .prepare_cached("SELECT order_id FROM stored_dead_letters WHERE id = ?1")?
        .query_row([id], |row| row.get(0))?;
    connection
        .prepare_cached("UPDATE stored_dead_letters SET bytes = ?2 WHERE id = ?1")?
        .execute((id, i64::try_from(edit.body.len()).unwrap_or(i64::MAX)))?;
    describe(connection, id, &edit.order, edit.identity.as_deref(), &edit.search)?;
    let subject = json!({"ids": [id]});
    let hashes = json!({"before": body_before, "after": content_hash(&edit.body)});
    let mut result = json!({"revision": edit.base + 1, "body_sha256": hashes});
    if let Some(before) = before.filter(|before| edit.order.id.as_ref() != Some(before)) {
        result["order_id"] = json!({"before": before, "after": edit.order.id});
    }
    let entry = NewJournalEntry::new(edit.at, &edit.by, JournalAction::Edit, &subject, &result);
    journal::append(connection, &entry)?;
    Ok(ChangeAnswer::Changed)
}

/// The letter is found by what it contains, which was read.
pub(super) fn describe(
    connection: &Connection,
    id: i64,
    order: &LetterOrder,
    identity: Option<&str>,
    search: &str,
) -> rusqlite::Result<()> {
    // What is replaced may be about a customer who is erased later.
    securely(connection, || describe_anew(connection, id, order, identity, search))
}

fn describe_anew(
    connection: &Connection,
    id: i64,
    order: &LetterOrder,
    identity: Option<&str>,
    search: &str,
) -> rusqlite::Result<()> {
    // The content before is kept, and erasing the order or the customer that it names must find it.
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO former_orders (letter_id, order_id, customer_id)
             SELECT id, coalesce(order_id, ''), coalesce(customer_id, '') FROM stored_dead_letters
             WHERE id = ?1 AND (order_id IS NOT NULL OR customer_id IS NOT NULL)
               AND (order_id IS NOT ?2 OR customer_id IS NOT ?3)",
        )?
        .execute(params![id, order.id, order.customer_id])?;
    let (total, currency) = order.total.as_ref().map(|(total, currency)| (total, currency)).unzip();
    connection
        .prepare_cached(
            "UPDATE stored_dead_letters SET order_id = ?2, customer_id = ?3, product = ?4, products = ?5, total = ?6,
                    currency = ?7, identity = coalesce(?8, identity), unread_by = NULL,
                    former_order_id = nullif(coalesce(former_order_id, order_id), ?2) WHERE id = ?1",
        )?
        .execute(params![
            id,
            order.id,
            order.customer_id,
            order.products.first(),
            i64::try_from(order.products.len()).unwrap_or(i64::MAX),
            total,
            currency,
            identity,
        ])?;
    connection.prepare_cached("DELETE FROM stored_products WHERE letter_id = ?1")?.execute([id])?;
    let mut product = connection
        .prepare_cached("INSERT INTO stored_products (product, letter_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?;
    for name in &order.products {
        product.execute((name, id))?;
    }
    connection.prepare_cached("UPDATE stored_texts SET text = ?2 WHERE letter_id = ?1")?.execute((id, search)).map(drop)
}
