//! The journal: the tables `journal` and `journal_head`, which has one row once there is an entry.

use std::cell::RefCell;

use std::path::Path;

use rusqlite::types::Value as SqlValue;
use rusqlite::{Connection, OptionalExtension, Row, params, params_from_iter};

use super::open::{self, READ_BUSY_TIMEOUT};
use crate::ledger::error::OpenError;
use crate::ledger::journal::{
    ChainVerifier, JournalEntry, JournalFilter, JournalHash, JournalHead, JournalPage, JournalQuery,
    JournalVerification, NewJournalEntry, StoredEntry,
};

const COLUMNS: &str = "seq, at, actor, action, subject, result, previous, hash";

/// Within the open transaction, so that the entry is recorded together with the action. Never fails because somebody has removed or
/// changed entries: that is for `orderd journal verify` to find, and must not stop what is recorded with it.
pub(super) fn append(connection: &Connection, new: &NewJournalEntry) -> rusqlite::Result<JournalHead> {
    let last = connection
        .prepare_cached("SELECT seq, hash FROM journal ORDER BY seq DESC LIMIT 1")?
        .query_row([], read_head)
        .optional()?;
    let recorded = recorded_head(connection)?;
    let head = [recorded, last].into_iter().flatten().max_by_key(|head| head.seq).unwrap_or(JournalHead::EMPTY);
    let entry = StoredEntry::after(head, new);
    let StoredEntry { seq, at, actor, action, subject, result, previous, hash } = &entry;
    let insert = format!("INSERT INTO journal ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)");
    connection.prepare_cached(&insert)?.execute(params![
        seq,
        at,
        actor,
        action,
        subject,
        result,
        previous.as_bytes(),
        hash.as_bytes()
    ])?;
    connection.prepare_cached("DELETE FROM journal_head")?.execute([])?;
    let replace = "INSERT INTO journal_head (seq, hash) VALUES (?1, ?2)";
    connection.prepare_cached(replace)?.execute(params![seq, hash.as_bytes()])?;
    APPENDED.with_borrow_mut(|appended| appended.push(entry.head()));
    Ok(entry.head())
}

thread_local! {
    /// What this thread has appended since its last commit. Only the writer's thread appends much.
    static APPENDED: RefCell<Vec<JournalHead>> = const { RefCell::new(Vec::new()) };
}

/// Logs what is committed now, and returns the last entry of it. The log shows later that the journal was not written anew.
pub(super) fn log_committed() -> Option<JournalHead> {
    let committed = APPENDED.take();
    for JournalHead { seq, hash } in &committed {
        tracing::info!(seq, %hash, "recorded in the journal");
    }
    committed.last().copied()
}

/// What was appended is rolled back.
pub(super) fn forget_uncommitted() {
    APPENDED.take();
}

/// Blocks, as does [`verify`].
pub(super) fn page(directory: &Path, query: &JournalQuery) -> Result<JournalPage, OpenError> {
    read(directory, |connection| {
        let (condition, values) = condition(query);
        let limit = query.limit.saturating_add(1);
        let sql = format!("SELECT {COLUMNS} FROM journal WHERE {condition} ORDER BY seq DESC LIMIT {limit}");
        let mut select = connection.prepare(&sql)?;
        let entries = select.query_map(params_from_iter(values), |row| read_entry(row).map(JournalEntry::from))?;
        Ok(JournalPage::new(entries.collect::<rusqlite::Result<_>>()?, query.limit))
    })
}

/// Reads one entry after the other, from one snapshot.
pub(super) fn verify(directory: &Path, expected: Option<JournalHash>) -> Result<JournalVerification, OpenError> {
    read(directory, |connection| {
        let snapshot = connection.unchecked_transaction()?;
        let mut verifier = ChainVerifier::new(expected);
        let mut select = snapshot.prepare(&format!("SELECT {COLUMNS} FROM journal ORDER BY seq"))?;
        let mut rows = select.query([])?;
        while let Some(row) = rows.next()? {
            verifier.add(&read_entry(row)?);
        }
        Ok(verifier.finish(recorded_head(&snapshot)?))
    })
}

fn condition(query: &JournalQuery) -> (String, Vec<SqlValue>) {
    let JournalQuery { filter: JournalFilter { since, until, actor, action }, before, limit: _ } = query;
    let conditions = [
        ("seq < ?", before.map(SqlValue::from)),
        ("at >= ?", since.map(|since| since.as_millisecond().into())),
        ("at < ?", until.map(|until| until.as_millisecond().into())),
        ("actor = ?", actor.clone().map(SqlValue::from)),
        ("action = ?", action.clone().map(SqlValue::from)),
    ];
    let (texts, values): (Vec<_>, Vec<_>) =
        conditions.into_iter().filter_map(|(text, value)| Some((text, value?))).unzip();
    (["true"].into_iter().chain(texts).collect::<Vec<_>>().join(" AND "), values)
}

fn recorded_head(connection: &Connection) -> rusqlite::Result<Option<JournalHead>> {
    connection.prepare_cached("SELECT seq, hash FROM journal_head LIMIT 1")?.query_row([], read_head).optional()
}

fn read_head(row: &Row<'_>) -> rusqlite::Result<JournalHead> {
    Ok(JournalHead { seq: row.get(0)?, hash: hash(row, 1)? })
}

fn read_entry(row: &Row<'_>) -> rusqlite::Result<StoredEntry> {
    Ok(StoredEntry {
        seq: row.get(0)?,
        at: row.get(1)?,
        actor: row.get(2)?,
        action: row.get(3)?,
        subject: row.get(4)?,
        result: row.get(5)?,
        previous: hash(row, 6)?,
        hash: hash(row, 7)?,
    })
}

fn hash(row: &Row<'_>, column: usize) -> rusqlite::Result<JournalHash> {
    Ok(JournalHash::from_bytes(row.get_ref(column)?.as_blob()?))
}

fn read<T>(directory: &Path, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, OpenError> {
    let connection = open::for_reading(directory, READ_BUSY_TIMEOUT)?;
    read(&connection).map_err(|error| open::error(directory, error))
}
