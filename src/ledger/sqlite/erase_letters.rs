//! Erases the contents of stored dead letters. The rows stay, as discarded ones, so that counts still add up.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, ToSql, TransactionBehavior};
use serde_json::json;

use super::letter_changes::is_abandoned;
use super::{journal, letters::CONTENT_BYTES};
use crate::ledger::dead_letters::LetterState;
use crate::ledger::erase::ERASED;
use crate::ledger::journal::{JournalAction, JournalHead, NewJournalEntry};

/// Bodies in one transaction, during which a daemon records nothing, in bytes: those, and one more.
const BATCH_BYTES: i64 = 8 << 20;
/// Dead letters in one transaction.
const BATCH_LETTERS: usize = 256;

/// Whose dead letters are erased.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    /// Those that are this order, or are about it.
    Order(&'a str),
    /// Those with this identity.
    Identity(&'a str),
    /// The one with this number.
    Letter(i64),
}

/// What is to be erased, by number.
#[derive(Debug, Default)]
pub(super) struct FoundLetters {
    /// Those that can be erased now.
    pub erasable: BTreeSet<i64>,
    /// Those that are being published again: their copies have the content too.
    pub replaying: BTreeSet<i64>,
}

impl FoundLetters {
    /// Adds those of a subject. `customer`: not those of which it is known that they are another customer's.
    pub fn add(
        &mut self,
        connection: &Connection,
        subject: Subject<'_>,
        customer: Option<&str>,
    ) -> rusqlite::Result<()> {
        let (condition, value): (&str, &dyn ToSql) = match subject {
            // The contents before an edit may name another order.
            Subject::Order(ref order) => (
                "(order_id = ?1 AND (?2 IS NULL OR customer_id IS NULL OR customer_id = ?2)
                  OR id IN (SELECT letter_id FROM former_orders WHERE order_id = ?1 AND order_id <> ''
                            AND (?2 IS NULL OR former_orders.customer_id IN ('', ?2))))",
                order,
            ),
            Subject::Identity(ref identity) => {
                ("identity = ?1 AND (?2 IS NULL OR customer_id IS NULL OR customer_id = ?2)", identity)
            }
            Subject::Letter(ref id) => ("id = ?1 AND ?2 IS NULL", id),
        };
        let sql =
            format!("SELECT id, state = 'replaying' FROM stored_dead_letters WHERE {condition} AND erased_at IS NULL");
        let mut select = connection.prepare_cached(&sql)?;
        let found = select.query_map((value, customer), |row| Ok((row.get(0)?, row.get(1)?)))?;
        for letter in found {
            let (id, is_replaying) = letter?;
            let is_replaying = is_replaying && !is_abandoned(connection, id, Timestamp::now())?;
            if is_replaying { &mut self.replaying } else { &mut self.erasable }.insert(id);
        }
        Ok(())
    }
}

/// How many have a content, and no order that is known, so that no order leads to them; `of_customers`: no customer that is known, so that
/// no customer does.
pub(super) fn count_unattributed(connection: &Connection, of_customers: bool) -> rusqlite::Result<usize> {
    let sql = match of_customers {
        false => "SELECT count(*) FROM stored_dead_letters WHERE order_id IS NULL AND erased_at IS NULL",
        true => {
            "SELECT count(*) FROM stored_dead_letters AS letters WHERE customer_id IS NULL AND erased_at IS NULL
             AND NOT EXISTS (SELECT 1 FROM orders WHERE orders.id = letters.order_id AND orders.customer_id IS NOT NULL)"
        }
    };
    connection.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|count| usize::try_from(count).unwrap_or(0))
}

/// What became of letters that could be erased when they were found.
#[derive(Debug, Default)]
pub(super) struct ErasedLetters {
    /// How many had a content, and have none any more.
    pub erased: usize,
    /// Those that a replay has selected since.
    pub replaying: BTreeSet<i64>,
    /// The last entry in the journal; `None` if nothing was erased.
    pub journal: Option<JournalHead>,
}

/// Whether a letter was erased.
enum LetterErasure {
    /// Its content had so many bytes.
    Erased(i64),
    /// It is erased already, or removed.
    Nothing,
    /// It is being published again.
    Replaying,
}

/// Erases them in small transactions. Each has an entry of `actor` in the journal.
pub(super) fn erase(connection: &mut Connection, ids: &BTreeSet<i64>, actor: &str) -> rusqlite::Result<ErasedLetters> {
    let (mut all, mut left) = (ErasedLetters::default(), ids.iter().peekable());
    while left.peek().is_some() {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let (mut bytes, mut batch) = (0, Vec::new());
        for id in left.by_ref().take(BATCH_LETTERS) {
            match erase_one(&transaction, *id)? {
                LetterErasure::Erased(content) => {
                    batch.push(*id);
                    bytes += content;
                }
                LetterErasure::Nothing => {}
                LetterErasure::Replaying => {
                    all.replaying.insert(*id);
                }
            }
            if bytes >= BATCH_BYTES {
                break;
            }
        }
        if !batch.is_empty() {
            let (subject, result) = (json!({ "dead_letters": batch }), json!({ "dead_letters": batch.len() }));
            let entry = NewJournalEntry::new(Timestamp::now(), actor, JournalAction::Erase, &subject, &result);
            all.journal = Some(journal::append(&transaction, &entry)?);
        }
        transaction.commit()?;
        journal::log_committed();
        all.erased += batch.len();
    }
    Ok(all)
}

/// Which order it was, and why it failed, are still known.
fn erase_one(connection: &Connection, id: i64) -> rusqlite::Result<LetterErasure> {
    let sql = format!(
        "SELECT {CONTENT_BYTES}, state = 'replaying' FROM stored_dead_letters WHERE id = ?1 AND erased_at IS NULL"
    );
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let found: Option<(i64, bool)> = connection.prepare_cached(&sql)?.query_row([id], read).optional()?;
    let Some((bytes, is_replaying)) = found else { return Ok(LetterErasure::Nothing) };
    if is_replaying && !is_abandoned(connection, id, Timestamp::now())? {
        return Ok(LetterErasure::Replaying);
    }
    let mut content = connection.prepare_cached(
        "UPDATE stored_contents SET properties = '{}', headers = '{}', body = x'' WHERE letter_id = ?1 AND revision = 0",
    )?;
    content.execute([id])?;
    connection.prepare_cached("DELETE FROM stored_contents WHERE letter_id = ?1 AND revision > 0")?.execute([id])?;
    for table in ["stored_texts", "stored_products", "former_orders"] {
        connection.prepare_cached(&format!("DELETE FROM {table} WHERE letter_id = ?1"))?.execute([id])?;
    }
    let mut letter = connection.prepare_cached(
        "UPDATE stored_dead_letters
         SET customer_id = NULL, product = NULL, failure_reason = iif(failure_reason IS NULL, NULL, ?2), note = ?2, state = iif(state = 'replayed', state, ?3),
             closed_at = coalesce(closed_at, ?4), bytes = 0, erased_at = ?4
         WHERE id = ?1",
    )?;
    let discarded = LetterState::Discarded.as_str();
    letter.execute((id, ERASED, discarded, Timestamp::now().as_millisecond()))?;
    Ok(LetterErasure::Erased(bytes))
}
