//! Stores messages from the dead letter queues, within the open transaction.
//!
//! It owns how a message is recognized that is delivered again. It never changes a message that is stored.

use rusqlite::{Connection, OptionalExtension, params};

use crate::ledger::dead_letters::{Identification, LetterOrigin, LetterState, NewStoredLetter, StoreAnswer};

/// Stores a message, unless it is stored already.
pub(super) fn store(connection: &Connection, letter: &NewStoredLetter) -> rusqlite::Result<StoreAnswer> {
    if let Some(id) = find(connection, letter)? {
        return Ok(StoreAnswer::Duplicate(id));
    }
    begin_session(connection, letter)?;
    let recorded = recorded_failure(connection, letter)?;
    let id = insert(connection, letter, recorded)?;
    let mut content = connection.prepare_cached(
        "INSERT INTO stored_contents (letter_id, revision, properties, headers, body) VALUES (?1, 0, ?2, ?3, ?4)",
    )?;
    content.execute((id, &letter.properties, &letter.headers, &letter.body[..]))?;
    let mut product = connection
        .prepare_cached("INSERT INTO stored_products (product, letter_id) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?;
    for name in &letter.order.products {
        product.execute((name, id))?;
    }
    connection
        .prepare_cached("INSERT INTO stored_texts (letter_id, text) VALUES (?1, ?2)")?
        .execute((id, &letter.search))?;
    Ok(StoreAnswer::Stored(id))
}

/// The stored message that this one is.
fn find(connection: &Connection, letter: &NewStoredLetter) -> rusqlite::Result<Option<i64>> {
    match letter.identification {
        Identification::New => Ok(None),
        // One that is replayed or discarded may fail again, or be published again by its sender, and then is a case of its own;
        // unless its ack did not reach the broker.
        Identification::ById => connection
            .prepare_cached(
                "SELECT id FROM stored_dead_letters WHERE fingerprint = ?1
                 AND (state IN ('open', 'held', 'replaying')
                      OR session IN (SELECT session FROM collecting_sessions WHERE session <> ?2))
                 ORDER BY id DESC LIMIT 1",
            )?
            .query_row((letter.fingerprint, &letter.session), |row| row.get(0))
            .optional(),
        Identification::Redelivered => {
            let mut select = connection.prepare_cached(
                "SELECT id FROM stored_dead_letters WHERE fingerprint = ?1
                 AND session IN (SELECT session FROM collecting_sessions WHERE session <> ?2) LIMIT 2",
            )?;
            let found = select.query_map((letter.fingerprint, &letter.session), |row| row.get(0))?;
            let found: Vec<i64> = found.collect::<rusqlite::Result<_>>()?;
            let [id] = found[..] else { return Ok(None) };
            // It is not the same as a further one.
            begin_session(connection, letter)?;
            connection
                .prepare_cached("UPDATE stored_dead_letters SET session = ?2 WHERE id = ?1")?
                .execute((id, &letter.session))?;
            Ok(Some(id))
        }
    }
}

fn begin_session(connection: &Connection, letter: &NewStoredLetter) -> rusqlite::Result<()> {
    let mut begin = connection
        .prepare_cached("INSERT INTO collecting_sessions (session, began_at) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?;
    begin.execute((&letter.session, letter.at.as_millisecond())).map(drop)
}

/// The subscription has ended cleanly.
pub(super) fn end_session(connection: &Connection, session: &str) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM collecting_sessions WHERE session = ?1")?.execute([session]).map(drop)
}

/// What the ledger has recorded about a dead-lettering.
struct RecordedFailure {
    consumer: String,
    reason: String,
    retries: u32,
    kind: String,
    code: String,
    text: String,
    origin_queue: Option<String>,
    failed_at: i64,
}

/// A message that the broker itself dead-letters, because orderd could not publish a copy, has no header that says why. The
/// ledger has.
fn recorded_failure(connection: &Connection, letter: &NewStoredLetter) -> rusqlite::Result<Option<RecordedFailure>> {
    let Some(identity) = letter.identity.as_deref().filter(|_| letter.origin == LetterOrigin::Broker) else {
        return Ok(None);
    };
    let mut select = connection.prepare_cached(
        "SELECT consumer, reason, retry_count, failure_kind, failure_code, failure_reason, origin_queue, failed_at
         FROM dead_letters WHERE identity = ?1 AND (consumer = ?2 OR ?2 = '') ORDER BY dead_lettered_at DESC LIMIT 1",
    )?;
    let read = |row: &rusqlite::Row<'_>| {
        Ok(RecordedFailure {
            consumer: row.get(0)?,
            reason: row.get(1)?,
            retries: row.get(2)?,
            kind: row.get(3)?,
            code: row.get(4)?,
            text: row.get(5)?,
            origin_queue: row.get(6)?,
            failed_at: row.get(7)?,
        })
    };
    select.query_row((identity, &letter.consumer), read).optional()
}

fn insert(
    connection: &Connection,
    letter: &NewStoredLetter,
    recorded: Option<RecordedFailure>,
) -> rusqlite::Result<i64> {
    let RecordedFailure { consumer, reason, retries, kind, code, text, origin_queue, failed_at } = match recorded {
        Some(recorded) => recorded,
        None => RecordedFailure {
            consumer: letter.consumer.clone(),
            reason: letter.reason.clone(),
            retries: letter.retries,
            kind: letter.failure_kind.clone().unwrap_or_default(),
            code: letter.code.clone(),
            text: letter.failure_reason.clone().unwrap_or_default(),
            origin_queue: letter.origin_queue.clone(),
            failed_at: letter.failed_at.as_millisecond(),
        },
    };
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let (total, currency) = letter.order.total.as_ref().map(|(total, currency)| (total, currency)).unzip();
    let mut insert = connection.prepare_cached(
        "INSERT INTO stored_dead_letters
             (state, source, origin, reason, code, failure_kind, failure_reason, consumer, retry_count, identity, order_id,
              customer_id, product, products, total, currency, origin_queue, exchange, routing_key, message_id, user_id,
              bytes, failed_at, collected_at, fingerprint, session)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23,
                 ?24, ?25, ?26)",
    )?;
    insert.execute(params![
        LetterState::Open.as_str(),
        letter.source.as_str(),
        letter.origin.as_str(),
        reason,
        code,
        given(kind),
        given(text),
        consumer,
        retries,
        letter.identity,
        letter.order.id,
        letter.order.customer_id,
        letter.order.products.first(),
        i64::try_from(letter.order.products.len()).unwrap_or(i64::MAX),
        total,
        currency,
        origin_queue,
        letter.exchange,
        letter.routing_key,
        letter.message_id,
        letter.user_id,
        i64::try_from(letter.body.len()).unwrap_or(i64::MAX),
        failed_at,
        letter.at.as_millisecond(),
        letter.fingerprint,
        letter.session,
    ])?;
    Ok(connection.last_insert_rowid())
}

/// Removes one batch of messages that were replayed or discarded before `before`, in milliseconds since 1970, and returns how many.
pub(super) fn prune(connection: &Connection, before: i64, limit: i64) -> rusqlite::Result<usize> {
    let mut select =
        connection.prepare("SELECT id FROM stored_dead_letters WHERE closed_at < ?1 ORDER BY closed_at LIMIT ?2")?;
    let ids: Vec<i64> = select.query_map((before, limit), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for table in ["stored_contents", "stored_products", "stored_texts"] {
        let mut remove = connection.prepare(&format!("DELETE FROM {table} WHERE letter_id = ?1"))?;
        for id in &ids {
            remove.execute([id])?;
        }
    }
    let mut remove = connection.prepare("DELETE FROM stored_dead_letters WHERE id = ?1")?;
    for id in &ids {
        remove.execute([id])?;
    }
    // What a session has stored is recognized for as long as a broker may deliver it again.
    connection.execute("DELETE FROM collecting_sessions WHERE began_at < ?1", [before])?;
    Ok(ids.len())
}
