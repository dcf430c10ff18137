//! What the steps of runs have said, which may contain personal data: results, and texts of failures. Erases them, once a run has
//! ended.
//!
//! It never removes a row, and never changes what is done, undone or left to be done.

use rusqlite::Connection;

use crate::ledger::erase::ERASED;
use crate::ledger::step_runs::{RunKey, RunState};

/// Erases the results and texts of a run, whatever state it is in. Returns how many rows had any.
pub(super) fn erase(connection: &Connection, RunKey { scope, identity }: &RunKey) -> rusqlite::Result<usize> {
    let mut steps = connection.prepare_cached(
        "UPDATE steps SET result = iif(result IS NULL, NULL, json_quote(?3)),
                          failure_reason = iif(failure_reason IS NULL, NULL, ?3)
         WHERE scope = ?1 AND identity = ?2 AND (result <> json_quote(?3) OR failure_reason <> ?3)",
    )?;
    let mut run = connection.prepare_cached(
        "UPDATE step_runs SET failure_reason = ?3 WHERE scope = ?1 AND identity = ?2 AND failure_reason <> ?3",
    )?;
    Ok(steps.execute((scope, identity, ERASED))? + run.execute((scope, identity, ERASED))?)
}

/// Erases what was to be erased once the run has ended, if it has.
pub(super) fn erase_requested(connection: &Connection, key: &RunKey) -> rusqlite::Result<()> {
    let mut select = connection
        .prepare_cached("SELECT 1 FROM step_runs WHERE scope = ?1 AND identity = ?2 AND erasure = 'requested'")?;
    if !select.exists((&key.scope, &key.identity))? || !state(connection, key)?.is_some_and(|(_, ended)| ended) {
        return Ok(());
    }
    securely(connection, || {
        erase(connection, key)?;
        set_erasure(connection, key, Some("done"))
    })
}

pub(super) const ANY_REQUESTED: &str = "SELECT 1 FROM step_runs WHERE erasure = 'requested' LIMIT 1";

/// Whether any run waits for its end to be erased. Only `orderd erase`, another process, can change that from no to yes.
pub(super) fn any_requested(connection: &Connection) -> rusqlite::Result<bool> {
    connection.prepare_cached(ANY_REQUESTED)?.exists([])
}

/// The run's state, and whether nobody needs its results any more; `None` if there is no such run.
pub(super) fn state(connection: &Connection, key: &RunKey) -> rusqlite::Result<Option<(RunState, bool)>> {
    let mut select = connection.prepare_cached(
        "SELECT state, scope = '' AND EXISTS (SELECT 1 FROM orders WHERE id = ?2 AND
                             (status = 'accepted' OR status = 'cancelled' AND cancellation_finished_at IS NULL))
         FROM step_runs WHERE scope = ?1 AND identity = ?2",
    )?;
    let mut rows = select.query((&key.scope, &key.identity))?;
    let Some(row) = rows.next()? else { return Ok(None) };
    let (name, order_open): (String, bool) = (row.get(0)?, row.get(1)?);
    let found = RunState::ALL.into_iter().find(|state| state.as_str() == name);
    // A state that this version does not know is not known to have ended.
    let state = found.unwrap_or(RunState::Running);
    Ok(Some((state, state.has_ended(order_open))))
}

/// Sets the column `erasure`.
pub(super) fn set_erasure(connection: &Connection, key: &RunKey, erasure: Option<&str>) -> rusqlite::Result<()> {
    let mut update = connection
        .prepare_cached("UPDATE step_runs SET erasure = ?3 WHERE scope = ?1 AND identity = ?2 AND erasure IS NOT ?3")?;
    update.execute((&key.scope, &key.identity, erasure)).map(drop)
}

/// Does something with the writer's connection while SQLite overwrites whole pages too that are no longer used.
pub(super) fn securely<T>(
    connection: &Connection,
    action: impl FnOnce() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let set = |how: &str| connection.pragma_update_and_check(None, "secure_delete", how, |_| Ok(()));
    set("on")?;
    let result = action();
    set("fast")?;
    result
}
