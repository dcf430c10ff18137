//! Reads which replays stopped by themselves, for alerts.

use rusqlite::Connection;

use super::trace::timestamp;
use crate::ledger::dead_letters::{MAX_STOPPED_REPLAYS, StoppedReplay};

/// The latest that stopped by themselves.
pub(super) fn latest(connection: &Connection) -> rusqlite::Result<Vec<StoppedReplay>> {
    let mut select = connection.prepare(&format!(
        "SELECT id, end_reason, end_detail, ended_at FROM replays
         WHERE state IN ('stopping', 'stopped') AND end_reason <> 'requested' ORDER BY id DESC LIMIT {MAX_STOPPED_REPLAYS}"
    ))?;
    let stopped = select.query_map([], |row| {
        let at = row.get::<_, Option<i64>>(3)?.map(timestamp);
        Ok(StoppedReplay { id: row.get(0)?, reason: row.get(1)?, detail: row.get(2)?, at })
    })?;
    stopped.collect()
}
