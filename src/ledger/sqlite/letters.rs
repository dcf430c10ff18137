//! Stores messages from the dead letter queues, within the open transaction.
//!
//! It owns how a message is recognized that is delivered again. It never changes a message that is stored.

use jiff::SignedDuration;
use rusqlite::{Connection, OptionalExtension, params};

use super::letter_changes::describe;
use super::replay_outcomes;
use super::step_texts::securely;
use crate::ledger::dead_letters::{
    EndedParsing, Identification, LetterOrigin, LetterSource, LetterState, NewStoredLetter, StoreAnswer,
};

/// How far the record of a dead-lettering and the broker's time of it, in whole seconds of its own clock, may be apart.
const RECORDED_WITHIN: SignedDuration = SignedDuration::from_mins(10);

/// Stores a message, unless it is stored already.
pub(super) fn store(connection: &Connection, letter: &NewStoredLetter) -> rusqlite::Result<StoreAnswer> {
    end_parsing(connection, &letter.fingerprint)?;
    if let Some(id) = find(connection, letter)? {
        return Ok(StoreAnswer::Duplicate(id));
    }
    if let Some(id) = came_back_before(connection, letter)? {
        return Ok(StoreAnswer::Duplicate(id));
    }
    let recorded = recorded_failure(connection, letter)?;
    // orderd has not decided on a copy that reached no consumer.
    let by_orderd =
        letter.source == LetterSource::DeadLetterQueue && (letter.origin == LetterOrigin::Orderd || recorded.is_some());
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
    if let Some(key) = &letter.replay_key {
        replay_outcomes::came_back(connection, key, (id, by_orderd), letter.at)?;
    }
    Ok(StoreAnswer::Stored(id))
}

/// The stored message that a replayed one has become, if that is not closed: a replay that was published twice may fail twice.
fn came_back_before(connection: &Connection, letter: &NewStoredLetter) -> rusqlite::Result<Option<i64>> {
    let Some(key) = &letter.replay_key else { return Ok(None) };
    let mut select = connection.prepare_cached(
        "SELECT letters.id FROM replay_letters AS replayed JOIN stored_dead_letters AS letters ON letters.id = came_back_as
         WHERE replayed.key = ?1 AND letters.state IN ('open', 'held', 'replaying')",
    )?;
    select.query_row([key], |row| row.get(0)).optional()
}

/// The stored message that this one certainly is. One that is replayed, discarded or erased is none: its sender may have published
/// it again.
fn find(connection: &Connection, letter: &NewStoredLetter) -> rusqlite::Result<Option<i64>> {
    match letter.identification {
        Identification::Unidentified => Ok(None),
        Identification::ById => connection
            .prepare_cached(
                "SELECT id FROM stored_dead_letters WHERE fingerprint = ?1 AND state IN ('open', 'held', 'replaying')
                 ORDER BY id DESC LIMIT 1",
            )?
            .query_row([letter.fingerprint], |row| row.get(0))
            .optional(),
    }
}

/// The stored message that this one may be: another subscription may have stored it, and lost the ack. It is not known, because
/// another message with the same content may be the one that was acked.
fn possible_original(connection: &Connection, letter: &NewStoredLetter) -> rusqlite::Result<Option<i64>> {
    if !letter.redelivered {
        return Ok(None);
    }
    connection
        .prepare_cached(
            "SELECT id FROM stored_dead_letters WHERE fingerprint = ?1 AND session <> ?2 ORDER BY id DESC LIMIT 1",
        )?
        .query_row((letter.fingerprint, &letter.session), |row| row.get(0))
        .optional()
}

/// How long it is remembered that a reading has not ended. A message that does not come back until then is never read again.
const READING_KEPT_DAYS: u32 = 90;

/// Records that this process is about to read a message's body. Returns whether another process has begun to, and has neither
/// ended that nor stored the message.
pub(super) fn begin_parsing(connection: &Connection, fingerprint: &[u8; 32], process: &str) -> rusqlite::Result<bool> {
    let began: Option<String> = connection
        .prepare_cached("SELECT process FROM letter_readings WHERE fingerprint = ?1")?
        .query_row([fingerprint], |row| row.get(0))
        .optional()?;
    if let Some(began) = began {
        return Ok(began != process);
    }
    let forgotten = format!("DELETE FROM letter_readings WHERE began_at < unixepoch() - {READING_KEPT_DAYS} * 86400");
    connection.prepare_cached(&forgotten)?.execute([])?;
    connection
        .prepare_cached("INSERT INTO letter_readings (fingerprint, process, began_at) VALUES (?1, ?2, unixepoch())")?
        .execute((fingerprint, process))?;
    Ok(false)
}

/// The body has been read.
pub(super) fn end_parsing(connection: &Connection, fingerprint: &[u8; 32]) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM letter_readings WHERE fingerprint = ?1")?.execute([fingerprint]).map(drop)
}

/// What marks a message that this version is reading again.
fn reparsed_by(version: &str) -> String {
    format!("{version}+")
}

/// Chooses a message whose reading has ended another version, and records that this version is about to read it. `None` if there is
/// none, or if this version has begun to read one and not ended that.
pub(super) fn begin_reparsing(connection: &Connection, version: &str) -> rusqlite::Result<Option<i64>> {
    connection
        .prepare_cached(
            "UPDATE stored_dead_letters SET unread_by = ?2 WHERE id =
                 (SELECT id FROM stored_dead_letters
                  WHERE unread_by IS NOT NULL AND unread_by NOT IN (?1, ?2) AND erased_at IS NULL ORDER BY id LIMIT 1)
             AND NOT EXISTS (SELECT 1 FROM stored_dead_letters WHERE unread_by = ?2) RETURNING id",
        )?
        .query_row((version, reparsed_by(version)), |row| row.get(0))
        .optional()
}

/// Records what such a message says, unless it was edited or erased meanwhile.
pub(super) fn end_reparsing(connection: &Connection, ended: &EndedParsing) -> rusqlite::Result<()> {
    let EndedParsing { letter, version, found } = ended;
    let left = connection
        .prepare_cached(
            "UPDATE stored_dead_letters SET unread_by = ?3 WHERE id = ?1 AND unread_by = ?2 RETURNING erased_at IS NOT NULL",
        )?
        .query_row((letter, reparsed_by(version), version), |row| row.get(0))
        .optional()?;
    match found {
        Some(found) if left == Some(false) => {
            describe(connection, *letter, &found.order, found.identity.as_deref(), &found.search)
        }
        Some(_) | None => Ok(()),
    }
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
/// ledger has, if it was recorded just before. An older record is about an earlier failure of the message.
fn recorded_failure(connection: &Connection, letter: &NewStoredLetter) -> rusqlite::Result<Option<RecordedFailure>> {
    let (Some(identity), Some(died_at)) = (&letter.identity, letter.died_at) else { return Ok(None) };
    let (died_at, recorded_within) = (died_at.as_millisecond(), RECORDED_WITHIN.as_secs() * 1_000);
    let mut select = connection.prepare_cached(
        "SELECT consumer, reason, retry_count, failure_kind, failure_code, failure_reason, origin_queue, failed_at
         FROM dead_letters WHERE identity = ?1 AND (consumer = ?2 OR ?2 = '') AND abs(dead_lettered_at - ?3) <= ?4
         ORDER BY dead_lettered_at DESC LIMIT 1",
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
    select.query_row((identity, &letter.consumer, died_at, recorded_within), read).optional()
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
    let broker_reason = (letter.origin == LetterOrigin::Broker).then_some(&letter.reason);
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let (total, currency) = letter.order.total.as_ref().map(|(total, currency)| (total, currency)).unzip();
    let mut insert = connection.prepare_cached(
        "INSERT INTO stored_dead_letters
             (state, source, origin, reason, broker_reason, code, failure_kind, failure_reason, consumer, retry_count, identity, order_id,
              customer_id, product, products, total, currency, origin_queue, exchange, routing_key, message_id, user_id,
              bytes, failed_at, collected_at, fingerprint, session, maybe_duplicate_of, unread_by)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23,
                 ?24, ?25, ?26, ?27, ?28, ?29)",
    )?;
    insert.execute(params![
        LetterState::Open.as_str(),
        letter.source.as_str(),
        letter.origin.as_str(),
        reason,
        broker_reason,
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
        possible_original(connection, letter)?,
        letter.unparsed.then_some(env!("CARGO_PKG_VERSION")),
    ])?;
    Ok(connection.last_insert_rowid())
}

/// The bytes of a message's bodies, of all revisions: SQL, found without reading them.
pub(super) const CONTENT_BYTES: &str =
    "(SELECT coalesce(sum(length(body)), 0) FROM stored_contents WHERE letter_id = stored_dead_letters.id)";

/// Messages removed in one transaction.
const PRUNED_LETTERS: usize = 32;
/// And the bytes of their bodies: those, and one more. Each page of a body is read and overwritten.
const PRUNED_BYTES: i64 = 8 << 20;

/// Removes one batch of messages that were replayed or discarded before `before`, in milliseconds since 1970, and returns how many, and whether
/// there is more to remove. What they contained is overwritten, since `orderd erase` finds nothing that is removed.
pub(super) fn prune(connection: &Connection, before: i64) -> rusqlite::Result<(usize, bool)> {
    let mut ids: Vec<i64> = Vec::new();
    {
        let sql = format!(
            "SELECT id, {CONTENT_BYTES} FROM stored_dead_letters WHERE closed_at < ?1
             AND NOT EXISTS (SELECT 1 FROM replay_letters JOIN replays ON replays.id = replay_id
                             WHERE letter_id = stored_dead_letters.id AND replays.state NOT IN ('finished', 'stopped'))
             ORDER BY closed_at LIMIT {PRUNED_LETTERS}"
        );
        let mut select = connection.prepare(&sql)?;
        let (mut rows, mut bytes) = (select.query([before])?, 0);
        while let Some(row) = rows.next()? {
            ids.push(row.get(0)?);
            bytes += row.get::<_, i64>(1)?;
            if bytes >= PRUNED_BYTES {
                break;
            }
        }
    }
    let replays = prune_replays(connection, before)?;
    if ids.is_empty() {
        return Ok((0, replays > 0));
    }
    securely(connection, || {
        for (table, key) in [
            ("stored_contents", "letter_id"),
            ("stored_products", "letter_id"),
            ("stored_texts", "letter_id"),
            ("former_orders", "letter_id"),
            ("replay_letters", "letter_id"),
            ("stored_dead_letters", "id"),
        ] {
            let mut remove = connection.prepare(&format!("DELETE FROM {table} WHERE {key} = ?1"))?;
            for id in &ids {
                remove.execute([id])?;
            }
        }
        Ok((ids.len(), true))
    })
}

/// Rows of replays removed in one transaction.
const PRUNED_REPLAY_ROWS: usize = 256;

/// Removes what is left of replays that ended before `before`: what was not published, as the letters may be open for ever, and the
/// replays of whose letters nothing is left. Returns how many rows that were.
fn prune_replays(connection: &Connection, before: i64) -> rusqlite::Result<usize> {
    let mut rows = connection.execute(
        &format!(
            "DELETE FROM replay_letters WHERE (replay_id, letter_id) IN
                 (SELECT replay_id, letter_id FROM replays CROSS JOIN replay_letters
                  ON replay_id = replays.id AND replay_letters.state IN ('skipped', 'returned')
                  WHERE replays.ended_at < ?1 LIMIT {PRUNED_REPLAY_ROWS})"
        ),
        [before],
    )?;
    let nothing_left = "NOT EXISTS (SELECT 1 FROM replay_letters WHERE replay_id = replays.id)";
    let counts = format!(
        "DELETE FROM replay_counts WHERE replay_id IN (SELECT id FROM replays WHERE ended_at < ?1 AND {nothing_left})"
    );
    rows += connection.execute(&counts, [before])?;
    rows += connection.execute(&format!("DELETE FROM replays WHERE ended_at < ?1 AND {nothing_left}"), [before])?;
    Ok(rows)
}
