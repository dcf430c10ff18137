//! Stops a replay in the file, while a daemon uses it or not: for the case that none answers.
//!
//! It publishes nothing: what may be on its way already is left to a daemon.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::{FILE_NAME, open, replay_queries, replays};
use crate::ledger::error::OpenError;
use crate::ledger::replays::Replay;

/// How long to wait for a lock. A daemon holds it for one commit.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Letters that are given back in one transaction, during which a daemon records nothing.
const BATCH: usize = 100;

/// Stops a replay, and gives back what it has not published. `None` if there is none with this number.
pub(in crate::ledger) fn stop_replay(directory: &Path, id: i64, actor: &str) -> Result<Option<Replay>, OpenError> {
    if replay_queries::replay(directory, id, Timestamp::now())?.is_none() {
        return Ok(None);
    }
    stop(directory, id, actor).map_err(|error| open::error(directory, error))?;
    replay_queries::replay(directory, id, Timestamp::now())
}

fn stop(directory: &Path, id: i64, actor: &str) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(directory.join(FILE_NAME), flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "synchronous", "full")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    replays::stop(&transaction, id, Some(actor), ("requested", None), Timestamp::now())?;
    transaction.commit()?;
    loop {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let has_more = replays::end_stopped(&transaction, id, BATCH, Timestamp::now())?;
        transaction.commit()?;
        if !has_more {
            return Ok(());
        }
    }
}
