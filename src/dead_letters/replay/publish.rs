//! Publishes the letters of a replay, some at a time: reads them, records that they are about to be published, and hands them to the
//! publisher.
//!
//! It never decides how many, and never waits for the broker for long.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::decide::{Admission, GroupBatch};
use super::executor::{Claim, ReplayError, Replayer, claimed};
use super::message::{Prepared, ReplayContext, UNREADABLE};
use super::pace::Pace;
use super::queues::Queues;
use super::unanswered::HandedLetter;
use crate::ledger::{
    LeftOutLetter, LetterOperation, LetterProgress, OperationAnswer, PublishAnswer, Replay, ToPublish, ToSelect,
};
use crate::message::Publication;

/// Letters that are published at a time.
const PUBLISH_BATCH: u64 = 32;
/// How many bytes the bodies have that are published at a time, without the last.
const PUBLISH_BYTES: usize = 4 << 20;
/// How long a replay may publish, or close letters, before another one has its turn.
const MAX_TURN: Duration = Duration::from_secs(1);
/// A letter that so many processes were reading when they ended is not read again: it may be what ends them.
const READ_TRIES: u32 = 2;

impl Replayer {
    /// Publishes the letters of these groups, as many as the rate allows, some of each group at a time. Letters that are closed, left out
    /// or moved to another queue use nothing up.
    pub(super) async fn publish_groups(
        &self,
        replay: &Replay,
        groups: Vec<GroupBatch>,
        pace: &mut Pace,
        queues: &mut Queues<'_>,
    ) -> Result<(), ReplayError> {
        let began = Instant::now();
        // Once nothing of a group was published, as many are read as fit into a batch: what is closed is closed fast.
        let mut turns: Vec<(GroupBatch, bool)> = groups.into_iter().map(|group| (group, false)).collect();
        loop {
            turns.retain(|(group, _)| group.room > 0 && queues.admission(pace, &group.queue) != Admission::None);
            if turns.is_empty() || began.elapsed() >= MAX_TURN || self.claim(replay.id, pace).await? != Claim::Held {
                return Ok(());
            }
            let round = Instant::now();
            for (group, reads_ahead) in &mut turns {
                let Some(turn) = self.publish_some(replay, group, *reads_ahead, (pace, queues)).await? else {
                    return Ok(());
                };
                *reads_ahead = turn.published == 0;
                group.room = if turn.dealt_with == 0 { 0 } else { group.room - turn.published };
            }
            self.settle(replay.id, pace, round).await?;
        }
    }

    /// Publishes the next letters of a group, as many as there is room for. `None` if the replay is not this process's.
    async fn publish_some(
        &self,
        replay: &Replay,
        group: &GroupBatch,
        reads_ahead: bool,
        (pace, queues): (&mut Pace, &mut Queues<'_>),
    ) -> Result<Option<Turn>, ReplayError> {
        let is_new = group.progress == LetterProgress::Selected;
        let room = match is_new {
            true => {
                let of_replay = pace.bucket.allowed(replay.options.rate);
                group.room.min(of_replay).min(queues.rates.allowed(&group.queue))
            }
            false => group.room,
        };
        let room = room.min(PUBLISH_BATCH);
        if room == 0 {
            return Ok(Some(Turn::default()));
        }
        let limit = if reads_ahead { PUBLISH_BATCH } else { room };
        let Some(batch) = self.prepare(replay, group, limit).await? else { return Ok(None) };
        self.leave_out(replay.id, batch.left_out).await?;
        self.move_to(replay.id, batch.moved).await?;
        let Some(published) = self.hand_over(replay.id, batch.prepared, room, (group, pace)).await? else {
            return Ok(None);
        };
        if is_new {
            pace.bucket.used(published);
            queues.rates.used(&group.queue, published);
            queues.traffic.published(group, published);
        }
        Ok(Some(Turn { dealt_with: batch.dealt_with, published }))
    }

    /// Hands letters to the publisher, as many as there is room for, unless their order was processed or cancelled meanwhile. Returns how
    /// many; `None` if the replay is not this process's.
    async fn hand_over(
        &self,
        id: i64,
        prepared: Vec<Prepared>,
        room: u64,
        (group, pace): (&GroupBatch, &mut Pace),
    ) -> Result<Option<u64>, ReplayError> {
        if prepared.is_empty() {
            return Ok(Some(0));
        }
        let to_publish = |letter: &Prepared| ToPublish { letter: letter.id(), order: letter.order.clone() };
        let (letters, limit) = (prepared.iter().map(to_publish).collect(), usize::try_from(room).unwrap_or(usize::MAX));
        let begin = LetterOperation::BeginPublishing { replay: claimed(id), letters, limit, at: Timestamp::now() };
        let OperationAnswer::Publishing(answers) = self.change(begin).await? else { return Ok(None) };
        let (users, names) = (&self.deps.users, &self.deps.names);
        let (mut letters, mut publications, mut left_out) = (Vec::new(), Vec::<Publication>::new(), Vec::new());
        for (prepared, answer) in prepared.iter().zip(answers) {
            match answer {
                PublishAnswer::Publish { key, fingerprint, marked_at, is_first } => {
                    letters.push(HandedLetter { id: prepared.id(), is_first });
                    publications.push(prepared.publication(&key, &fingerprint, (users, names), marked_at));
                }
                PublishAnswer::Closed | PublishAnswer::NoRoom => {}
                PublishAnswer::NotSelected => {
                    left_out.push(LeftOutLetter { letter: prepared.id(), code: "resolved", is_unpublished: false });
                }
                PublishAnswer::NotClaimed => return Ok(None),
            }
        }
        self.leave_out(id, left_out).await?;
        let published = letters.len() as u64;
        if published > 0 {
            let publishing = self.deps.publisher.publish(publications.into());
            pace.unanswered.add(&group.queue, letters, publishing);
        }
        Ok(Some(published))
    }

    /// Reads the next letters of a group. `None` if the replay is not this process's.
    async fn prepare(&self, replay: &Replay, group: &GroupBatch, limit: u64) -> Result<Option<Batch>, ReplayError> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let queue_and_cause = (group.queue.clone(), group.cause.clone());
        let next = self.deps.ledger.replay_letters(replay.id, group.progress, Some(queue_and_cause), 0, limit).await?;
        let ids: Vec<i64> = next.iter().map(|letter| letter.id).collect();
        if ids.is_empty() {
            return Ok(Some(Batch::default()));
        }
        let OperationAnswer::Reading(tries) = self.reading(replay.id, ids.clone(), false).await? else {
            return Ok(None);
        };
        let (mut batch, mut bytes) = (Batch::default(), 0);
        let marked = &ids[..tries.len()];
        for (letter, tries) in next.into_iter().zip(tries) {
            let prepared = if tries >= READ_TRIES { Err(UNREADABLE) } else { self.read(replay, letter.id).await };
            batch.dealt_with += 1;
            match prepared {
                Ok(prepared) if prepared.queue != group.queue => {
                    batch.moved.push(ToSelect { letter: letter.id, queue: prepared.queue });
                }
                Ok(prepared) => {
                    bytes += prepared.bytes();
                    batch.prepared.push(prepared);
                }
                Err(code) => {
                    batch.left_out.push(LeftOutLetter { letter: letter.id, code, is_unpublished: false });
                }
            }
            if bytes >= PUBLISH_BYTES {
                break;
            }
        }
        // Of those that are about to be published, the ledger knows that they were read.
        let read = batch.moved.iter().map(|letter| letter.letter).chain(marked[batch.dealt_with..].iter().copied());
        let read: Vec<i64> = read.collect();
        if !read.is_empty() {
            self.reading(replay.id, read, true).await?;
        }
        Ok(Some(batch))
    }

    async fn reading(&self, replay: i64, letters: Vec<i64>, has_ended: bool) -> Result<OperationAnswer, ReplayError> {
        let replay = claimed(replay);
        self.change(LetterOperation::Reading { replay, letters, has_ended, at: Timestamp::now() }).await
    }

    /// Reads a letter. A body may be large once it is decompressed, and its reader may die of it.
    async fn read(&self, replay: &Replay, letter: i64) -> Result<Prepared, &'static str> {
        let detail = self.deps.ledger.dead_letter(letter).await.map_err(|_| UNREADABLE)?.ok_or("missing")?;
        let (to, now) = (replay.options.to.clone(), Timestamp::now());
        let consumers = self.deps.consumers.borrow().clone();
        let (users, max_body) = (Arc::clone(&self.deps.users), self.deps.max_body);
        let reading = spawn_blocking(move || {
            let context = ReplayContext { consumers: &consumers, users: &users, max_body };
            Prepared::new(detail, to.as_deref(), &context, now)
        });
        reading.await.unwrap_or(Err(UNREADABLE))
    }
}

/// What was done with letters of a group.
#[derive(Default)]
struct Turn {
    dealt_with: usize,
    published: u64,
}

/// Letters that were read.
#[derive(Default)]
struct Batch {
    /// Those that can be published.
    prepared: Vec<Prepared>,
    left_out: Vec<LeftOutLetter>,
    /// Those whose queue is another one now.
    moved: Vec<ToSelect>,
    /// All of these.
    dealt_with: usize,
}
