//! The part of a trace that the dead letters of an order say: when each was dead-lettered, also before a replay, and when it was published
//! again.
//!
//! The table `dead_letters` has only the last time; the store has a row for each.

use jiff::{SignedDuration, Timestamp};
use rusqlite::{Connection, Row};

use super::columns::{named, time, timestamp};
use crate::ledger::dead_letters::LetterProgress;
use crate::ledger::trace::{TraceEvent, TraceStep, TracedMessage};

/// The latest stored dead letters of an order that are traced, and their latest replays.
const MAX_LETTERS: usize = 1_000;
/// If a dead letter was taken out of its queue within this time after its failure, which is known to the second, that is when it was
/// dead-lettered.
const COLLECTED_WITHIN: SignedDuration = SignedDuration::from_secs(2);

/// A stored dead letter of an order.
pub(super) struct TracedLetter {
    id: i64,
    identity: Option<String>,
    consumer: String,
    failed_at: Timestamp,
    collected_at: Timestamp,
    reason: String,
    retries: i64,
    code: String,
    origin_queue: Option<String>,
    /// When the message was published in the replay after which it was dead-lettered as this one.
    replayed_at: Option<Timestamp>,
    /// orderd or the broker has dead-lettered it.
    is_dead_lettered: bool,
    /// It was edited to another order, so that its replays are those of that one.
    is_edited: bool,
}

impl TracedLetter {
    fn dead_lettered(&self) -> TraceEvent {
        TraceEvent::DeadLettered {
            consumer: self.consumer.clone(),
            reason: self.reason.clone(),
            retries: self.retries,
            code: self.code.clone(),
            origin_queue: self.origin_queue.clone(),
            letter: Some(self.id),
        }
    }

    /// When it was dead-lettered, as far as it is known. A message whose steps a replay has undone is dead-lettered for its first failure,
    /// which was before the replay.
    fn dead_lettered_at(&self) -> Timestamp {
        let is_near = self.collected_at.duration_since(self.failed_at) <= COLLECTED_WITHIN;
        let failed_before = self.replayed_at.is_some_and(|replayed_at| self.failed_at < replayed_at);
        if is_near || failed_before { self.collected_at } else { self.failed_at }
    }
}

/// The stored dead letters of an order, the latest first.
pub(super) fn of_order(snapshot: &Connection, order: &str) -> rusqlite::Result<Vec<TracedLetter>> {
    let mut select = snapshot.prepare(&format!(
        "SELECT id, identity, consumer, failed_at, collected_at, reason, retry_count, code, origin_queue,
                source = 'dead_letter_queue' AND origin <> 'others', order_id IS NOT ?1,
                (SELECT max(marked_at) FROM replay_letters WHERE came_back_as = stored_dead_letters.id)
         FROM stored_dead_letters
         WHERE id IN (SELECT id FROM stored_dead_letters WHERE order_id = ?1
                      UNION ALL SELECT id FROM stored_dead_letters WHERE former_order_id = ?1)
         ORDER BY id DESC LIMIT {MAX_LETTERS}"
    ))?;
    let letters = select.query_map([order], |row| {
        Ok(TracedLetter {
            id: row.get(0)?,
            identity: row.get(1)?,
            consumer: row.get(2)?,
            failed_at: time(row, 3)?,
            collected_at: time(row, 4)?,
            reason: row.get(5)?,
            retries: row.get(6)?,
            code: row.get(7)?,
            origin_queue: row.get(8)?,
            is_dead_lettered: row.get(9)?,
            is_edited: row.get(10)?,
            replayed_at: row.get::<_, Option<i64>>(11)?.map(timestamp),
        })
    })?;
    letters.collect()
}

/// Adds what the dead letters of one message say to its steps, among which are those of `dead_letters`, with the times of the failures.
pub(super) fn add(
    snapshot: &Connection,
    (message, identity): (TracedMessage, &str),
    letters: &[TracedLetter],
    recorded: Vec<(Timestamp, TraceStep)>,
    steps: &mut Vec<TraceStep>,
) -> rusqlite::Result<()> {
    // One that says nothing about itself is about the order, and only an order can be edited to another one.
    let is_meant = |letter: &&TracedLetter| match &letter.identity {
        Some(found) if !letter.is_edited => found == identity,
        Some(_) | None => message == TracedMessage::Order,
    };
    let letters: Vec<&TracedLetter> = letters.iter().filter(is_meant).collect();
    let mut others: Vec<&TracedLetter> = letters.iter().copied().filter(|letter| letter.is_dead_lettered).collect();
    let mut recorded = recorded;
    for (failed_at, step) in &mut recorded {
        let TraceEvent::DeadLettered { consumer, .. } = &step.event else { continue };
        let is_same =
            |other: &&TracedLetter| other.consumer == *consumer && other.failed_at.as_second() == failed_at.as_second();
        // The latest, if there are several of one second.
        if let Some(index) = others.iter().position(is_same) {
            // Once a failed undo is done after all, the record has the first failure. The letter still says why it was dead-lettered.
            step.event = others.remove(index).dead_lettered();
        }
    }
    for other in others.iter().rev() {
        steps.push(TraceStep { at: other.dead_lettered_at(), message, event: other.dead_lettered() });
    }
    steps.extend(recorded.into_iter().map(|(_, step)| step));
    for letter in letters.iter().rev().filter(|letter| !letter.is_edited) {
        read_replays(snapshot, letter, message, steps)?;
    }
    Ok(())
}

/// When a letter was published again.
fn read_replays(
    snapshot: &Connection,
    letter: &TracedLetter,
    message: TracedMessage,
    steps: &mut Vec<TraceStep>,
) -> rusqlite::Result<()> {
    let mut select = snapshot.prepare_cached(
        "SELECT marked_at, replay_id, replays.actor, replay_letters.state, code, came_back_as
         FROM replay_letters JOIN replays ON replays.id = replay_id
         WHERE letter_id = ?1 AND marked_at IS NOT NULL ORDER BY replay_id DESC LIMIT 100",
    )?;
    let consumer = Some(&letter.consumer).filter(|consumer| !consumer.is_empty());
    let read = |row: &Row<'_>| {
        let event = TraceEvent::Replayed {
            replay: row.get(1)?,
            by: row.get(2)?,
            letter: letter.id,
            consumer: consumer.cloned(),
            outcome: named(row, 3, LetterProgress::parse)?,
            code: row.get(4)?,
            came_back_as: row.get(5)?,
        };
        Ok(TraceStep { at: timestamp(row.get(0)?), message, event })
    };
    for step in select.query_map([letter.id], read)? {
        steps.push(step?);
    }
    Ok(())
}
