//! Records replays, within the open transaction: which letters they claim, and how far they are.
//!
//! A letter changes its state only from the state that is expected, so of two who want it only one gets it. It never publishes, and
//! never decides on the pace.

mod ending;
mod publishing;
mod selecting;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension};
use serde_json::{Value, json};

pub(super) use self::ending::{begin_stopping, end_stopped, give_up_half_published};
use self::ending::{finish, give_back, stop};
use self::publishing::{begin_publishing, begin_reading, end_reading, move_to, published, skip};
use self::selecting::{begin, claim, select};
use super::{journal, letter_changes};
use crate::ledger::journal::{JournalAction, NewJournalEntry};
use crate::ledger::replays::{
    ClaimedReplay, LetterOperation, LetterProgress, OperationAnswer, PublishAnswer, ReplayState,
};

/// Carries out an operation. If a statement fails, the whole transaction does. What only the process may do that carries a replay out is not
/// done for another one.
pub(super) fn carry_out(connection: &Connection, operation: &LetterOperation) -> rusqlite::Result<OperationAnswer> {
    Ok(match operation {
        LetterOperation::Begin(replay) => {
            begin(connection, replay)?.map_or(OperationAnswer::TooManyReplays, OperationAnswer::Begun)
        }
        LetterOperation::Claim { replay, owner, at, until } => {
            OperationAnswer::Done(claim(connection, *replay, owner, *at, *until)?)
        }
        LetterOperation::Select { replay, letters, is_named, is_last, at } => {
            let is_selecting = state_of(connection, replay, *at)? == Some(ReplayState::Selecting);
            if is_selecting {
                select(connection, replay.id, letters, (*is_named, *is_last), *at)?;
            }
            OperationAnswer::Done(is_selecting)
        }
        LetterOperation::Reading { replay, letters, has_ended, at } => {
            let is_claimed = state_of(connection, replay, *at)?.is_some();
            OperationAnswer::Reading(match (is_claimed, has_ended) {
                (false, _) => Vec::new(),
                (true, false) => begin_reading(connection, replay.id, letters, &replay.owner)?,
                (true, true) => end_reading(connection, replay.id, letters)?,
            })
        }
        LetterOperation::BeginPublishing { replay, letters, limit, at } => {
            let state = state_of(connection, replay, *at)?;
            // What was not begun when a replay is stopped is given back.
            let from = match state {
                Some(ReplayState::Running) => LetterProgress::Selected,
                Some(ReplayState::Stopping) => LetterProgress::Publishing,
                Some(ReplayState::Selecting | ReplayState::Finished | ReplayState::Stopped) | None => {
                    return Ok(OperationAnswer::Publishing(vec![PublishAnswer::NotClaimed; letters.len()]));
                }
            };
            let mut answers = Vec::with_capacity(letters.len());
            for letter in letters {
                let is_published = |answer: &&PublishAnswer| matches!(answer, PublishAnswer::Publish { .. });
                let has_room = answers.iter().filter(is_published).count() < *limit;
                answers.push(begin_publishing(connection, replay.id, letter, (from, has_room), *at)?);
            }
            let closed = letters.iter().zip(&answers).filter(|(_, answer)| **answer == PublishAnswer::Closed);
            let closed: Vec<i64> = closed.map(|(letter, _)| letter.letter).collect();
            note_letters(connection, (replay.id, *at), JournalAction::Discard, (&closed, "order_closed"))?;
            OperationAnswer::Publishing(answers)
        }
        LetterOperation::Published { replay, letters, at, due } => {
            let is_claimed = state_of(connection, replay, *at)?.is_some();
            if is_claimed {
                published(connection, replay.id, letters, *at, *due)?;
            }
            OperationAnswer::Done(is_claimed)
        }
        LetterOperation::Move { replay, letters, at } => {
            let is_claimed = state_of(connection, replay, *at)?.is_some();
            for letter in letters.iter().filter(|_| is_claimed) {
                move_to(connection, (replay.id, letter.letter), &letter.queue)?;
            }
            OperationAnswer::Done(is_claimed)
        }
        LetterOperation::Skip { replay, letters, at } => {
            let is_claimed = state_of(connection, replay, *at)?.is_some();
            for letter in letters.iter().filter(|_| is_claimed) {
                skip(connection, replay.id, letter, *at)?;
            }
            OperationAnswer::Done(is_claimed)
        }
        LetterOperation::Stop { replay, by, reason, detail, at } => {
            OperationAnswer::Done(stop(connection, *replay, by.as_deref(), (reason, detail.as_deref()), *at)?)
        }
        LetterOperation::GiveBack { replay, limit, at } => {
            let is_claimed = state_of(connection, replay, *at)?.is_some();
            OperationAnswer::More(is_claimed && give_back(connection, replay.id, *limit, *at)?)
        }
        LetterOperation::Finish { replay, at } => {
            let is_claimed = state_of(connection, replay, *at)?.is_some();
            OperationAnswer::Done(is_claimed && finish(connection, replay.id, *at)?)
        }
        LetterOperation::Letters { ids, change, states, by, at } => {
            OperationAnswer::Letters(letter_changes::change(connection, ids, (change, states), by, *at)?)
        }
        LetterOperation::Edit(edit) => OperationAnswer::Letters(vec![letter_changes::edit(connection, edit)?]),
    })
}

/// The state of a replay, if this process has claimed it.
fn state_of(connection: &Connection, replay: &ClaimedReplay, at: Timestamp) -> rusqlite::Result<Option<ReplayState>> {
    let state = connection
        .prepare_cached("SELECT state FROM replays WHERE id = ?1 AND owner = ?2 AND leased_until > ?3")?
        .query_row((replay.id, &replay.owner, at.as_millisecond()), |row| row.get::<_, String>(0))
        .optional()?;
    Ok(state.and_then(|state| ReplayState::parse(&state)))
}

pub(super) fn note(
    connection: &Connection,
    (by, at): (&str, Timestamp),
    action: JournalAction,
    (subject, result): (&Value, &Value),
) -> rusqlite::Result<()> {
    journal::append(connection, &NewJournalEntry::new(at, by, action, subject, result)).map(drop)
}

/// Records what a replay has done with letters, by the person who has started it.
fn note_letters(
    connection: &Connection,
    (replay, at): (i64, Timestamp),
    action: JournalAction,
    (letters, result): (&[i64], &str),
) -> rusqlite::Result<()> {
    if letters.is_empty() {
        return Ok(());
    }
    let actor: String =
        connection.prepare_cached("SELECT actor FROM replays WHERE id = ?1")?.query_row([replay], |row| row.get(0))?;
    let (subject, result) = (json!({"replay": replay, "ids": letters}), json!({result: letters.len()}));
    note(connection, (&actor, at), action, (&subject, &result))
}

/// Whether the letter was in the state `from`.
fn set_progress(
    connection: &Connection,
    (replay, letter): (i64, i64),
    from: LetterProgress,
    progress: LetterProgress,
    code: Option<&str>,
    at: Timestamp,
) -> rusqlite::Result<bool> {
    let mut update = connection.prepare_cached(
        "UPDATE replay_letters SET state = ?4, code = ?5, changed_at = ?6
         WHERE replay_id = ?1 AND letter_id = ?2 AND state = ?3",
    )?;
    Ok(update.execute((replay, letter, from.as_str(), progress.as_str(), code, at.as_millisecond()))? == 1)
}
