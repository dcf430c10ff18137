//! Claims and records of runs, within the writer's open transaction.
//!
//! `step_runs::transition` decides; this reads and writes the rows. Its statements are prepared when they are first used, so
//! that a ledger without steps does without them.

use jiff::Timestamp;
use rusqlite::types::{Type, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{cancellation, step_texts};
use crate::domain::{CANCELLATION_SUFFIX, OrderId};
use crate::ledger::entry::{OtherOrder, Recorded};
use crate::ledger::step_runs::{
    self, CallOutcome, ClaimAnswer, ClaimEffect, ClaimPurpose, EndedCall, Erasure, RecordedStep, RunClaim, RunFailure,
    RunKey, RunOrder, RunRecord, RunRecorded, RunState, StepAction, StepCallEntry, StepRun, StepStatus, StoredRun,
};

/// Carries out a claim. If a statement fails, the whole transaction does.
pub(super) fn claim(connection: &Connection, claim: &RunClaim) -> rusqlite::Result<ClaimAnswer> {
    let stored = read_run(connection, &claim.key)?;
    let order = match claim.purpose {
        // A claim for work is preceded by the order's acceptance.
        ClaimPurpose::Work { .. } => RunOrder::Open,
        ClaimPurpose::Failure { .. } | ClaimPurpose::Cancellation { .. } => read_order(connection, &claim.key)?,
    };
    let effect = step_runs::claim(stored.as_ref(), claim, order);
    let run = match (effect, stored) {
        (ClaimEffect::ClaimedByAnother { until }, _) => return Ok(ClaimAnswer::ClaimedByAnother { until }),
        (ClaimEffect::Conflict, _) => return Ok(ClaimAnswer::NotAccepted(Recorded::Conflict(OtherOrder::InProgress))),
        (ClaimEffect::OtherQueue { queue }, stored) => {
            // The order was accepted again with the claim.
            if let Some(order) =
                order_id(&claim.key).filter(|_| stored.is_some_and(|run| run.dead_lettered_at.is_some()))
            {
                cancellation::fail(connection, &order)?;
            }
            return Ok(ClaimAnswer::OtherQueue { queue });
        }
        (ClaimEffect::NotConcerned, _) | (ClaimEffect::Unchanged, None) => return Ok(ClaimAnswer::NotConcerned),
        (ClaimEffect::Unchanged, Some(stored)) => stored,
        (ClaimEffect::Begin(run), _) => {
            write_run(connection, &claim.key, &run)?;
            if let ClaimPurpose::Work { first: Some(first), .. } = &claim.purpose {
                write_call(connection, &claim.key, run.round, first, claim.at)?;
            }
            run
        }
        (ClaimEffect::Continue(run), stored) => {
            write_run(connection, &claim.key, &run)?;
            if stored.is_some_and(|stored| stored.round < run.round) {
                begin_round(connection, &claim.key)?;
            }
            run
        }
    };
    Ok(ClaimAnswer::Granted(Box::new(StepRun {
        fence: run.fence,
        round: run.round,
        state: run.state,
        failure: run.failure,
        steps: read_steps(connection, &claim.key)?,
    })))
}

/// Carries out a record. If a statement fails, the whole transaction does.
pub(super) fn record(connection: &Connection, record: &RunRecord) -> rusqlite::Result<RunRecorded> {
    let Some(mut run) = read_run(connection, &record.key)? else { return Ok(RunRecorded::Stale) };
    let recorded = step_runs::record(&mut run, record, read_order(connection, &record.key)?);
    if recorded == RunRecorded::Stale {
        return Ok(recorded);
    }
    write_run(connection, &record.key, &run)?;
    if let Some(ended) = &record.ended {
        write_outcome(connection, &record.key, ended, record.at)?;
    }
    if let Some(next) = record.next.as_ref().filter(|_| recorded == RunRecorded::Recorded) {
        write_call(connection, &record.key, run.round, next, record.at)?;
    }
    if recorded == RunRecorded::Recorded {
        ended(connection, record, &run)?;
    }
    if run.erasure == Some(Erasure::Requested) {
        step_texts::erase_requested(connection, &record.key)?;
    }
    Ok(recorded)
}

/// The order that a run is of.
fn order_id(key: &RunKey) -> Option<OrderId> {
    OrderId::new(&*key.identity).filter(|_| key.scope.is_empty())
}

/// What the end of a run means for its order and its dead letters.
fn ended(connection: &Connection, record: &RunRecord, run: &StoredRun) -> rusqlite::Result<()> {
    if let Some(order) = order_id(&record.key).filter(|_| record.dead_lettered) {
        // Also if its content cannot be compared, because it is read in another way now.
        cancellation::fail(connection, &order)?;
    }
    if record.state == Some(RunState::Undone)
        && let Some(failure) = &run.failure
    {
        dead_letters_undone(connection, &record.key, &run.queue, failure)?;
    }
    Ok(())
}

/// All is undone, so no dead letter of the message, or of its order's cancellation, says any more that something is left to undo. The
/// consumer may have had another name when the run began, so the dead letter may have the run's queue instead.
fn dead_letters_undone(
    connection: &Connection,
    key: &RunKey,
    queue: &str,
    failure: &RunFailure,
) -> rusqlite::Result<()> {
    let mut update = connection.prepare_cached(
        "UPDATE dead_letters SET reason = ?4, failure_kind = ?5, failure_code = ?6, failure_reason = ?7
         WHERE identity IN (?1, ?2) AND (?3 IN ('', consumer) OR origin_queue = ?8) AND reason = 'undo_failed'",
    )?;
    let cancellation = [&*key.identity, CANCELLATION_SUFFIX].concat();
    let RunFailure { kind, code, reason, dead_letter_reason, .. } = failure;
    update.execute((&key.identity, cancellation, &key.scope, dead_letter_reason, kind, code, reason, queue))?;
    Ok(())
}

fn read_run(connection: &Connection, key: &RunKey) -> rusqlite::Result<Option<StoredRun>> {
    let mut select = connection.prepare_cached(
        "SELECT state, round, fence, owner, leased_until, message_hash, failure_kind, failure_code, failure_reason,
                dead_letter_reason, retries, failed_at, undo_from, started_at, finished_at, dead_lettered_at, erasure, queue,
                replayed_at
         FROM step_runs WHERE scope = ?1 AND identity = ?2",
    )?;
    let read = |row: &Row<'_>| {
        let failure = match row.get::<_, Option<String>>(6)? {
            None => None,
            Some(kind) => Some(RunFailure {
                kind,
                code: row.get(7)?,
                reason: row.get(8)?,
                dead_letter_reason: row.get(9)?,
                retries: row.get(10)?,
                failed_at: time(row.get(11)?),
                undo_from: time(row.get(12)?),
            }),
        };
        let owner: String = row.get(3)?;
        let optional_time = |column| row.get::<_, Option<i64>>(column).map(|at| at.map(time));
        Ok(StoredRun {
            state: named(row, 0, RunState::ALL, RunState::as_str)?,
            round: row.get(1)?,
            fence: row.get(2)?,
            owner: owner.into(),
            leased_until: optional_time(4)?,
            queue: row.get::<_, String>(17)?.into(),
            message: row.get(5)?,
            failure,
            started_at: time(row.get(13)?),
            finished_at: optional_time(14)?,
            dead_lettered_at: optional_time(15)?,
            replayed_at: optional_time(18)?,
            erasure: optional_named(row, 16, Erasure::ALL, Erasure::as_str)?,
        })
    };
    select.query_row((&key.scope, &key.identity), read).optional()
}

fn write_run(connection: &Connection, key: &RunKey, run: &StoredRun) -> rusqlite::Result<()> {
    let mut upsert = connection.prepare_cached(
        "INSERT INTO step_runs (scope, identity, state, round, fence, owner, leased_until, message_hash, failure_kind,
                                failure_code, failure_reason, dead_letter_reason, retries, failed_at, undo_from, started_at,
                                finished_at, dead_lettered_at, erasure, queue, replayed_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20,
                 ?21)
         ON CONFLICT (scope, identity) DO UPDATE SET
            state = excluded.state, round = excluded.round, fence = excluded.fence, owner = excluded.owner,
            leased_until = excluded.leased_until, queue = excluded.queue,
            message_hash = excluded.message_hash, failure_kind = excluded.failure_kind,
            failure_code = excluded.failure_code, failure_reason = excluded.failure_reason,
            dead_letter_reason = excluded.dead_letter_reason, retries = excluded.retries, failed_at = excluded.failed_at,
            undo_from = excluded.undo_from, finished_at = excluded.finished_at,
            dead_lettered_at = excluded.dead_lettered_at, replayed_at = excluded.replayed_at, erasure = excluded.erasure",
    )?;
    let failure = run.failure.as_ref();
    upsert.execute(params![
        key.scope,
        key.identity,
        run.state.as_str(),
        run.round,
        run.fence,
        &*run.owner,
        run.leased_until.map(Timestamp::as_millisecond),
        run.message,
        failure.map(|failure| &failure.kind),
        failure.map(|failure| &failure.code),
        failure.map(|failure| &failure.reason),
        failure.map(|failure| &failure.dead_letter_reason),
        failure.map(|failure| failure.retries),
        failure.map(|failure| failure.failed_at.as_millisecond()),
        failure.map(|failure| failure.undo_from.as_millisecond()),
        run.started_at.as_millisecond(),
        run.finished_at.map(Timestamp::as_millisecond),
        run.dead_lettered_at.map(Timestamp::as_millisecond),
        run.erasure.map(Erasure::as_str),
        &*run.queue,
        run.replayed_at.map(Timestamp::as_millisecond),
    ])?;
    Ok(())
}

fn read_order(connection: &Connection, key: &RunKey) -> rusqlite::Result<RunOrder> {
    if !key.scope.is_empty() {
        return Ok(RunOrder::Open);
    }
    let mut select = connection.prepare_cached("SELECT status FROM orders WHERE id = ?1")?;
    let order = select.query_row([&key.identity], |row| {
        Ok(match row.get_ref(0)?.as_str()? {
            "processed" => RunOrder::Processed,
            "cancelled" => RunOrder::Cancelled,
            _ => RunOrder::Open,
        })
    });
    Ok(order.optional()?.unwrap_or(RunOrder::Open))
}

/// The state of an order's steps, if any were called.
pub(super) fn state(connection: &Connection, order: &OrderId) -> rusqlite::Result<Option<RunState>> {
    let mut select = connection.prepare_cached("SELECT state FROM step_runs WHERE scope = '' AND identity = ?1")?;
    select.query_row([order.as_str()], |row| named(row, 0, RunState::ALL, RunState::as_str)).optional()
}

/// The steps of the current round.
fn read_steps(connection: &Connection, key: &RunKey) -> rusqlite::Result<Vec<RecordedStep>> {
    let mut select = connection.prepare_cached(
        "SELECT step, action, round, position, undoable, status, attempts, first_retry, uncertain, result
         FROM steps WHERE scope = ?1 AND identity = ?2 AND is_current = 1 ORDER BY position, step, action",
    )?;
    let read = |row: &Row<'_>| {
        Ok(RecordedStep {
            step: row.get(0)?,
            action: named(row, 1, [StepAction::Do, StepAction::Undo], StepAction::as_str)?,
            round: row.get(2)?,
            position: row.get(3)?,
            undoable: row.get(4)?,
            status: named(row, 5, StepStatus::ALL, StepStatus::as_str)?,
            attempts: row.get(6)?,
            first_retry: row.get(7)?,
            uncertain: row.get(8)?,
            result: row.get(9)?,
        })
    };
    select.query_map((&key.scope, &key.identity), read)?.collect()
}

/// Keeps only the steps that stay as they are.
fn begin_round(connection: &Connection, key: &RunKey) -> rusqlite::Result<()> {
    let steps = read_steps(connection, key)?;
    let mut update = connection.prepare_cached(
        "UPDATE steps SET is_current = 0 WHERE scope = ?1 AND identity = ?2 AND step = ?3 AND is_current = 1",
    )?;
    for RecordedStep { step, .. } in steps.iter().filter(|recorded| step_runs::begins_anew(&recorded.step, &steps)) {
        update.execute((&key.scope, &key.identity, step))?;
    }
    Ok(())
}

/// Records a call that is about to be made. If it is not recorded how the one before it ended, that one may have had its effect.
fn write_call(
    connection: &Connection,
    key: &RunKey,
    round: u32,
    call: &StepCallEntry,
    at: Timestamp,
) -> rusqlite::Result<()> {
    let at = at.as_millisecond();
    let mut update = connection.prepare_cached(
        "UPDATE steps SET uncertain = (uncertain OR status = 'called'), status = 'called', attempts = attempts + 1,
                called_at = ?5, position = ?6, undoable = (undoable OR ?7)
         WHERE scope = ?1 AND identity = ?2 AND step = ?3 AND action = ?4 AND is_current = 1",
    )?;
    let RunKey { scope, identity } = key;
    let (position, undoable) = (call.position, call.undoable);
    if update.execute((scope, identity, &call.step, call.action.as_str(), at, position, undoable))? > 0 {
        return Ok(());
    }
    let mut insert = connection.prepare_cached(
        "INSERT INTO steps (scope, identity, step, action, round, is_current, position, undoable, status, attempts,
                            first_retry, uncertain, started_at, called_at)
         VALUES (?1, ?2, ?3, ?4, ?5, 1, ?6, ?7, 'called', 1, ?8, 0, ?9, ?9)",
    )?;
    insert.execute(params![
        scope,
        identity,
        call.step,
        call.action.as_str(),
        round,
        position,
        undoable,
        call.retries,
        at,
    ])?;
    Ok(())
}

fn write_outcome(connection: &Connection, key: &RunKey, ended: &EndedCall, at: Timestamp) -> rusqlite::Result<()> {
    let (status, result, failure, uncertain) = match &ended.outcome {
        CallOutcome::Done { result } => (StepStatus::Done, Some(result), None, false),
        CallOutcome::Failed { kind, code, reason, uncertain } => {
            (StepStatus::Failed, None, Some((*kind, code, reason)), *uncertain)
        }
    };
    let mut update = connection.prepare_cached(
        "UPDATE steps SET status = ?5, result = ?6, failure_kind = ?7, failure_code = ?8, failure_reason = ?9,
                uncertain = (uncertain OR ?10), finished_at = ?11
         WHERE scope = ?1 AND identity = ?2 AND step = ?3 AND action = ?4 AND is_current = 1",
    )?;
    update.execute(params![
        key.scope,
        key.identity,
        ended.step,
        ended.action.as_str(),
        status.as_str(),
        result,
        failure.map(|(kind, ..)| kind),
        failure.map(|(_, code, _)| code),
        failure.map(|(.., reason)| reason),
        uncertain,
        at.as_millisecond(),
    ])?;
    Ok(())
}

fn optional_named<T: Copy, const N: usize>(
    row: &Row<'_>,
    column: usize,
    values: [T; N],
    name: impl Fn(T) -> &'static str,
) -> rusqlite::Result<Option<T>> {
    if row.get_ref(column)? == ValueRef::Null { Ok(None) } else { named(row, column, values, name).map(Some) }
}

/// A column that holds the name of one of these values.
fn named<T: Copy, const N: usize>(
    row: &Row<'_>,
    column: usize,
    values: [T; N],
    name: impl Fn(T) -> &'static str,
) -> rusqlite::Result<T> {
    let text = row.get_ref(column)?.as_str()?;
    let found = values.into_iter().find(|value| name(*value) == text);
    found.ok_or_else(|| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, format!("unknown {text:?}").into())
    })
}

/// A time from the file. Another program may have written a number that is out of range; it becomes `Timestamp::MIN`.
fn time(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MIN)
}
