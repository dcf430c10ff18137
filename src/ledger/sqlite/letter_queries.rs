//! Reads stored dead letters, on a connection of its own, each answer from one snapshot.
//!
//! Contents are read one at a time, and only where they are asked for: one may have many megabytes.

use std::path::Path;

use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter};
use serde_json::Value;

use super::columns::named;
use super::columns::time;
use super::letter_attempts;
use super::letter_history::{self, ReplayLookup};
use super::open::{self, READ_BUSY_TIMEOUT};
use super::order_sums::read_amount;
use super::stopped_replays;
use crate::ledger::dead_letters::{
    Cause, Counted, DeadLetter, DeadLetterContent, DeadLetterDetail, DeadLetterFilter, DeadLetterGroups,
    DeadLetterPage, DeadLetterQuery, GroupBuilder, LetterOrigin, LetterSource, LetterState, UnresolvedBuilder,
    UnresolvedDeadLetters, WholeDeadLetters,
};
use crate::ledger::error::OpenError;

const COLUMNS: &str = "id, state, source, origin, reason, code, failure_kind, failure_reason, consumer, retry_count,
    identity, order_id, customer_id, product, products, total, currency, origin_queue, exchange, routing_key, message_id,
    user_id, bytes, failed_at, collected_at, note, maybe_duplicate_of, erased_at IS NOT NULL, broker_reason,
    unread_by IS NOT NULL, former_order_id";

/// Groups and sums need only these, all of them in one index.
const COUNTED: &str = "id, state, source, reason, consumer, code, currency, total, failed_at,
    iif(source = 'unrouted_queue', routing_key, NULL)";

/// A statement with its values.
struct Statement {
    sql: String,
    values: Vec<SqlValue>,
}

/// Blocks, as do the others.
pub(super) fn page(directory: &Path, query: &DeadLetterQuery) -> Result<DeadLetterPage, OpenError> {
    // One transaction, so one snapshot.
    read(directory, |connection| read_page(&*connection.unchecked_transaction()?, query))
}

/// One content after the other, as long as they have at most `budget` bytes; the first one however large it is.
pub(super) fn whole_page(
    directory: &Path,
    query: &DeadLetterQuery,
    budget: usize,
) -> Result<WholeDeadLetters, OpenError> {
    read(directory, |connection| {
        // One transaction, so one snapshot.
        let snapshot = connection.unchecked_transaction()?;
        let DeadLetterPage { letters, more } = read_page(&snapshot, query)?;
        let (count, mut whole, mut bytes) = (letters.len(), Vec::new(), 0);
        for letter in letters {
            bytes += letter.bytes;
            if bytes > budget as u64 && !whole.is_empty() {
                break;
            }
            let content = read_content(&snapshot, letter.id, None)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            whole.push(read_detail(&snapshot, letter, content)?);
        }
        Ok(WholeDeadLetters { more: more || whole.len() < count, letters: whole })
    })
}

fn read_page(connection: &Connection, query: &DeadLetterQuery) -> rusqlite::Result<DeadLetterPage> {
    let Statement { sql, values } = page_statement(query);
    let mut select = connection.prepare(&sql)?;
    let letters = select.query_map(params_from_iter(values), read_letter)?;
    let mut letters: Vec<_> = letters.collect::<rusqlite::Result<_>>()?;
    let more = letters.len() > query.limit;
    letters.truncate(query.limit);
    let mut replays = ReplayLookup::new(connection, query.filter.replay)?;
    letters.iter_mut().try_for_each(|letter| replays.add_to(letter))?;
    Ok(DeadLetterPage { letters, more })
}

pub(super) fn groups(directory: &Path, filter: &DeadLetterFilter) -> Result<DeadLetterGroups, OpenError> {
    read(directory, |connection| {
        let mut groups = GroupBuilder::default();
        let snapshot = connection.unchecked_transaction()?;
        count(&snapshot, filter, |letter| groups.add(letter))?;
        let mut groups = groups.finish();
        let mut select = snapshot.prepare("SELECT note FROM stored_dead_letters WHERE id = ?1")?;
        for group in &mut groups.groups {
            group.note = select.query_row([group.example], |row| row.get(0))?;
        }
        Ok(groups)
    })
}

pub(super) fn unresolved_letters(directory: &Path) -> Result<UnresolvedDeadLetters, OpenError> {
    read(directory, |connection| {
        let mut sums = UnresolvedBuilder::default();
        let states = LetterState::ALL.iter().copied().filter(|state| !state.is_closed()).collect();
        let filter = DeadLetterFilter { states, ..DeadLetterFilter::default() };
        count(connection, &filter, |letter| sums.add(letter))?;
        Ok(sums.finish(stopped_replays::latest(connection)?))
    })
}

/// With its content in this revision, or the last one. `None`: there is no such letter, or no such revision.
pub(super) fn detail(directory: &Path, id: i64, revision: Option<i64>) -> Result<Option<DeadLetterDetail>, OpenError> {
    read(directory, |connection| {
        // One transaction, so one snapshot.
        let snapshot = connection.unchecked_transaction()?;
        let sql = format!("SELECT {COLUMNS} FROM stored_dead_letters WHERE id = ?1");
        let Some(mut letter) = snapshot.query_row(&sql, [id], read_letter).optional()? else { return Ok(None) };
        let Some(content) = read_content(&snapshot, id, revision)? else { return Ok(None) };
        ReplayLookup::new(&snapshot, None)?.add_to(&mut letter)?;
        read_detail(&snapshot, letter, content).map(Some)
    })
}

/// The length of the body in this revision, or the last one. It is in the row's header, so no body is read.
pub(super) fn bytes(directory: &Path, id: i64, revision: Option<i64>) -> Result<Option<u64>, OpenError> {
    read(directory, |connection| {
        let sql = "SELECT length(body) FROM stored_contents
                   WHERE letter_id = ?1 AND (?2 IS NULL OR revision = ?2) ORDER BY revision DESC LIMIT 1";
        connection.query_row(sql, (id, revision), |row| row.get::<_, i64>(0).map(i64::cast_unsigned)).optional()
    })
}

fn read_detail(
    snapshot: &Connection,
    letter: DeadLetter,
    content: DeadLetterContent,
) -> rusqlite::Result<DeadLetterDetail> {
    let mut products = snapshot.prepare_cached("SELECT product FROM stored_products WHERE letter_id = ?1")?;
    let products = products.query_map([letter.id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let edits = letter_history::revisions(snapshot, letter.id)?;
    let replays = letter_history::replays(snapshot, letter.id)?;
    // What led to an edited letter is recorded about the order that it was.
    let identity = letter.former_order_id.as_ref().or(letter.identity.as_ref());
    let order_id = letter.former_order_id.as_deref().or(letter.order_id.as_deref());
    let (mut attempts, mut deliveries, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    if let (Some(identity), Some(consumer)) = (identity, &letter.consumer) {
        let failed = letter_attempts::failed(snapshot, identity, Some(consumer))?;
        attempts.extend(failed.into_iter().map(|(_, attempt)| attempt));
        let (scope, of) = order_id.map_or((&**consumer, &**identity), |order| ("", order));
        steps = letter_attempts::calls(snapshot, scope, of)?;
        // The order itself may have the id of a notification of another one.
        if order_id != Some(identity) {
            deliveries = letter_attempts::failed_deliveries(snapshot, identity)?;
        }
    }
    Ok(DeadLetterDetail { letter, products, content, edits, replays, attempts, deliveries, steps })
}

fn read<T>(directory: &Path, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, OpenError> {
    let connection = open::for_reading(directory, READ_BUSY_TIMEOUT)?;
    read(&connection).map_err(|error| open::error(directory, error))
}

fn count(connection: &Connection, filter: &DeadLetterFilter, mut add: impl FnMut(Counted)) -> rusqlite::Result<()> {
    let Statement { sql, values } = count_statement(filter);
    let mut select = connection.prepare(&sql)?;
    let mut rows = select.query(params_from_iter(values))?;
    while let Some(row) = rows.next()? {
        let currency: Option<String> = row.get(6)?;
        let total = match currency {
            Some(currency) => Some((currency, read_amount(row, 7)?)),
            None => None,
        };
        let (source, reason) = (named(row, 2, LetterSource::parse)?, row.get(3)?);
        let cause = Cause { source, reason, consumer: row.get(4)?, code: row.get(5)?, routing_key: row.get(9)? };
        let state = named(row, 1, LetterState::parse)?;
        add(Counted { id: row.get(0)?, state, cause, total, failed_at: time(row, 8)? });
    }
    Ok(())
}

/// The letters of a page are found by their numbers first: less has to be sorted then.
fn page_statement(query: &DeadLetterQuery) -> Statement {
    let states = match (query.filter.states.len(), query.after) {
        (0, _) => StateCondition::None,
        (1, None) => StateCondition::Indexed,
        (1, Some(_)) | (2.., _) => StateCondition::ReadInOrder,
    };
    let Statement { sql: mut conditions, mut values } = conditions(&query.filter, states, TextCondition::OfEach);
    let mut bound = |comparison: &str, id: Option<i64>| {
        if let Some(id) = id {
            values.push(SqlValue::Integer(id));
            conditions.push_str(&format!(" AND id {comparison} ?{}", values.len()));
        }
    };
    bound("<", query.before);
    bound(">", query.after);
    let order = if query.after.is_some() { "ASC" } else { "DESC" };
    // One more than asked for shows whether there are more.
    let limit = query.limit.saturating_add(1);
    let sql = format!(
        "SELECT {COLUMNS} FROM stored_dead_letters WHERE id IN
             (SELECT id FROM stored_dead_letters WHERE {conditions} ORDER BY id {order} LIMIT {limit})
         ORDER BY id {order}"
    );
    Statement { sql, values }
}

fn count_statement(filter: &DeadLetterFilter) -> Statement {
    let Statement { sql: conditions, values } = conditions(filter, StateCondition::Indexed, TextCondition::OfAll);
    Statement { sql: format!("SELECT {COUNTED} FROM stored_dead_letters WHERE {conditions}"), values }
}

/// The numbers of letters that a filter finds, by number.
pub(super) fn found_ids(
    connection: &Connection,
    filter: &DeadLetterFilter,
    (after, up_to): (i64, i64),
    limit: usize,
) -> rusqlite::Result<Vec<i64>> {
    let Statement { sql: conditions, mut values } =
        conditions(filter, StateCondition::ReadInOrder, TextCondition::OfEach);
    values.extend([SqlValue::Integer(after), SqlValue::Integer(up_to)]);
    let (first, last) = (values.len() - 1, values.len());
    let sql = format!(
        "SELECT id FROM stored_dead_letters WHERE {conditions} AND id > ?{first} AND id <= ?{last} ORDER BY id LIMIT {limit}"
    );
    let mut select = connection.prepare(&sql)?;
    select.query_map(params_from_iter(values), |row| row.get(0))?.collect()
}

/// How messages in some states are found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StateCondition {
    /// By the indexes that begin with the state. Messages in one state are in the order of their numbers.
    Indexed,
    /// In the order of their numbers: page after page reads each message once, however many there are.
    ReadInOrder,
    /// All states are meant.
    None,
}

/// How a text is searched.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TextCondition {
    /// In each message that the other conditions find, until there are enough.
    OfEach,
    /// In all, in the order in which they are stored, which is faster if all have to be searched.
    OfAll,
}

/// The conditions of a filter, each of which an index can find or a stored value can answer.
fn conditions(filter: &DeadLetterFilter, state_condition: StateCondition, text_condition: TextCondition) -> Statement {
    let DeadLetterFilter {
        states,
        source,
        reason,
        code,
        consumer,
        product,
        customer,
        order,
        since,
        until,
        text,
        min_retries,
        currency,
        min_total,
        routing_key,
        replay,
    } = filter;
    let states = if states.is_empty() { LetterState::ALL } else { states };
    let states: Vec<_> = states.iter().map(|state| format!("'{}'", state.as_str())).collect();
    // A unary plus keeps SQLite from using an index.
    let sql = match state_condition {
        StateCondition::Indexed => format!("state IN ({})", states.join(", ")),
        StateCondition::ReadInOrder => format!("+state IN ({})", states.join(", ")),
        StateCondition::None => "true".to_owned(),
    };
    let mut statement = Statement { sql, values: Vec::new() };
    let mut add = |condition: &str, value: Option<SqlValue>| {
        if let Some(value) = value {
            statement.values.push(value);
            let number = format!("?{}", statement.values.len());
            statement.sql.push_str(" AND ");
            statement.sql.push_str(&condition.replace('?', &number));
        }
    };
    let text_value = |text: &Option<String>| text.clone().map(SqlValue::Text);
    let millis = |at: jiff::Timestamp| SqlValue::Integer(at.as_millisecond());
    add("source = ?", source.map(|source| SqlValue::Text(source.as_str().to_owned())));
    add("reason = ?", text_value(reason));
    add("code = ?", text_value(code));
    add("consumer = ?", text_value(consumer));
    add("id IN (SELECT letter_id FROM stored_products WHERE product = ?)", text_value(product));
    add("customer_id = ?", text_value(customer));
    add(
        "id IN (SELECT id FROM stored_dead_letters WHERE order_id = ?
                UNION ALL SELECT id FROM stored_dead_letters WHERE former_order_id = ?)",
        text_value(order),
    );
    add("routing_key = ?", text_value(routing_key));
    add("retry_count >= ?", min_retries.map(|retries| SqlValue::Integer(retries.into())));
    add("currency = ?", currency.as_ref().map(|currency| SqlValue::Text(currency.to_ascii_uppercase())));
    // Both are rounded alike, so this is exact for equal amounts, and for all that differ within 15 digits.
    add("CAST(total AS REAL) >= CAST(? AS REAL)", min_total.map(|total| SqlValue::Text(total.to_string())));
    add("id IN (SELECT letter_id FROM replay_letters WHERE replay_id = ?)", replay.map(SqlValue::Integer));
    add("failed_at >= ?", since.map(millis));
    add("failed_at < ?", until.map(millis));
    let contains = match text_condition {
        TextCondition::OfEach => {
            "EXISTS (SELECT 1 FROM stored_texts WHERE letter_id = stored_dead_letters.id AND text_contains(text, ?))"
        }
        TextCondition::OfAll => "id IN (SELECT letter_id FROM stored_texts WHERE text_contains(text, ?))",
    };
    add(contains, text.as_ref().map(|text| SqlValue::Text(text.to_lowercase())));
    statement
}

fn read_letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    let currency: Option<String> = row.get(16)?;
    Ok(DeadLetter {
        id: row.get(0)?,
        state: named(row, 1, LetterState::parse)?,
        source: named(row, 2, LetterSource::parse)?,
        origin: named(row, 3, LetterOrigin::parse)?,
        reason: row.get(4)?,
        code: row.get(5)?,
        failure_kind: row.get(6)?,
        failure_reason: row.get(7)?,
        consumer: Some(row.get::<_, String>(8)?).filter(|consumer| !consumer.is_empty()),
        retries: row.get(9)?,
        identity: row.get(10)?,
        order_id: row.get(11)?,
        customer_id: row.get(12)?,
        product: row.get(13)?,
        products: row.get(14)?,
        total: currency.is_some().then(|| read_amount(row, 15)).transpose()?,
        currency,
        origin_queue: row.get(17)?,
        exchange: row.get(18)?,
        routing_key: row.get(19)?,
        message_id: row.get(20)?,
        user_id: row.get(21)?,
        bytes: row.get::<_, i64>(22)?.cast_unsigned(),
        failed_at: time(row, 23)?,
        collected_at: time(row, 24)?,
        note: row.get(25)?,
        maybe_duplicate_of: row.get(26)?,
        erased: row.get(27)?,
        broker_reason: row.get(28)?,
        unparsed: row.get(29)?,
        last_replay: None,
        came_back_from: None,
        former_order_id: row.get(30)?,
    })
}

fn read_content(snapshot: &Connection, id: i64, revision: Option<i64>) -> rusqlite::Result<Option<DeadLetterContent>> {
    let sql = "SELECT revision, properties, headers, body FROM stored_contents
               WHERE letter_id = ?1 AND (?2 IS NULL OR revision = ?2) ORDER BY revision DESC LIMIT 1";
    let content = snapshot.prepare_cached(sql)?.query_row((id, revision), |row| {
        Ok(DeadLetterContent {
            revision: row.get(0)?,
            properties: json(row, 1)?,
            headers: json(row, 2)?,
            body: row.get(3)?,
        })
    });
    content.optional()
}

fn json(row: &Row<'_>, column: usize) -> rusqlite::Result<Value> {
    serde_json::from_str(row.get_ref(column)?.as_str()?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// How SQLite reads a page, and how it reads groups.
    pub fn plans(connection: &Connection, query: &DeadLetterQuery) -> [Vec<String>; 2] {
        [page_statement(query), count_statement(&query.filter)].map(|Statement { sql, values }| {
            let mut explain = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
            let plan = explain.query_map(params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
            plan.map(Result::unwrap).collect()
        })
    }
}
