//! Stops a replay in the file, while a daemon uses it or not: for the case that none answers.
//!
//! It publishes nothing: what may be on its way already is left to a daemon.

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::{FILE_NAME, journal, open, replay_queries, replays};
use crate::ledger::error::OpenError;
use crate::ledger::journal::JournalHead;
use crate::ledger::replays::{HalfPublished, RecordedStop};

/// How long to wait for a lock. A daemon holds it for one commit.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Letters that are given back in one transaction, during which a daemon records nothing.
const BATCH: usize = 100;

/// Stops a replay, and gives back what it has not published. `None` if there is none with this number.
pub(in crate::ledger) fn stop_replay(
    directory: &Path,
    id: i64,
    actor: &str,
    half_published: HalfPublished,
) -> Result<Option<RecordedStop>, OpenError> {
    if replay_queries::replay(directory, id, Timestamp::now())?.is_none() {
        return Ok(None);
    }
    let stopped = stop(directory, id, actor, half_published);
    let journal = stopped.map_err(|error| open::error(directory, error))?;
    let replay = replay_queries::replay(directory, id, Timestamp::now())?;
    Ok(replay.map(|replay| RecordedStop { replay, journal }))
}

/// The last entry in the journal, if anything was changed.
fn stop(
    directory: &Path,
    id: i64,
    actor: &str,
    half_published: HalfPublished,
) -> rusqlite::Result<Option<JournalHead>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(directory.join(FILE_NAME), flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "synchronous", "full")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let now = Timestamp::now();
    let is_first = replays::begin_stopping(&transaction, id, Some(actor), ("requested", None), now)?;
    match half_published {
        HalfPublished::GiveUp if !is_first => {
            replays::give_up_half_published(&transaction, id, actor, now).map(drop)?
        }
        HalfPublished::GiveUp | HalfPublished::Keep => {}
    }
    transaction.commit()?;
    let mut journal = journal::log_committed();
    loop {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let has_more = replays::end_stopped(&transaction, id, BATCH, Timestamp::now())?;
        transaction.commit()?;
        journal = journal::log_committed().or(journal);
        if !has_more {
            return Ok(journal);
        }
    }
}
