//! Publishes the letters of a replay, some at a time: reads them, records that they are about to be published, publishes them, and records
//! that they are.
//!
//! It never decides how many.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use tokio::task::spawn_blocking;
use tracing::error;

use super::decide::GroupBatch;
use super::executor::{Claim, LEASE, Queues, ReplayError, Replayer, claimed};
use super::message::{Prepared, ReplayContext, UNREADABLE};
use super::pace::Pace;
use crate::ledger::{LetterOperation, LetterProgress, OperationAnswer, PublishAnswer, Replay, ToPublish};
use crate::message::{Publication, PublishError};

/// Letters that are published at a time.
const PUBLISH_BATCH: u64 = 32;
/// How many bytes the bodies have that are published at a time, without the last.
const PUBLISH_BYTES: usize = 4 << 20;
/// How long after its publication the outcome of a letter is expected, if it is not retried.
const OUTCOME_TIME: SignedDuration = SignedDuration::from_hours(1);
/// A letter that so many processes were reading when they ended is not read again: it may be what ends them.
const READ_TRIES: u32 = 2;

impl Replayer {
    /// Publishes the letters of these groups, as many as the rate allows, some of each queue at a time.
    pub(super) async fn publish_groups(
        &self,
        replay: &Replay,
        mut groups: Vec<GroupBatch>,
        pace: &mut Pace,
        queues: &mut Queues<'_>,
    ) -> Result<(), ReplayError> {
        let mut allowed = pace.bucket.allowed(replay.options.rate);
        loop {
            if self.claim(replay.id, pace).await? == Claim::Refused {
                return Ok(());
            }
            let mut batch = Batch::default();
            for group in &mut groups {
                let is_new = group.progress == LetterProgress::Selected;
                let of_rate = if is_new { allowed.min(queues.rates.allowed(&group.queue)) } else { u64::MAX };
                let limit = group.room.min(of_rate).min(batch.room());
                if limit == 0 || pace.refusal(&group.queue).is_some() {
                    continue;
                }
                let Some(dealt_with) = self.prepare(replay, group, limit, &mut batch).await? else { return Ok(()) };
                group.room -= dealt_with;
                if is_new {
                    pace.bucket.used(dealt_with);
                    queues.rates.used(&group.queue, dealt_with);
                    queues.traffic.published(group, dealt_with);
                    allowed -= dealt_with;
                }
            }
            if batch.prepared.is_empty() {
                return Ok(());
            }
            self.publish_batch(replay, batch.prepared, pace).await?;
        }
    }

    async fn publish_batch(
        &self,
        replay: &Replay,
        prepared: Vec<Prepared>,
        pace: &mut Pace,
    ) -> Result<(), ReplayError> {
        let (id, at) = (replay.id, Timestamp::now());
        let to_publish = |letter: &Prepared| {
            let (queue, order) = (letter.queue.clone(), letter.order.clone());
            ToPublish { letter: letter.id(), queue, order }
        };
        let letters = prepared.iter().map(to_publish).collect();
        let begin = LetterOperation::BeginPublishing { replay: claimed(id), letters, at };
        let OperationAnswer::Publishing(answers) = self.change(begin).await? else { return Ok(()) };
        let consumers = self.deps.consumers.borrow().clone();
        let context = self.deps.read(&consumers);
        let (mut letters, mut publications): (Vec<i64>, Vec<Publication>) = (Vec::new(), Vec::new());
        for (prepared, answer) in prepared.iter().zip(answers) {
            match answer {
                PublishAnswer::Publish { key, fingerprint, marked_at } => {
                    letters.push(prepared.id());
                    publications.push(prepared.publication(&key, &fingerprint, &context, marked_at));
                }
                PublishAnswer::Closed => {}
                PublishAnswer::NotSelected => self.skip(id, prepared.id(), "resolved").await?,
                PublishAnswer::NotClaimed => return Ok(()),
            }
        }
        self.publish_all(id, letters, publications.into(), pace).await
    }

    async fn publish_all(
        &self,
        replay: i64,
        mut letters: Vec<i64>,
        publications: Arc<[Publication]>,
        pace: &mut Pace,
    ) -> Result<(), ReplayError> {
        if letters.is_empty() {
            return Ok(());
        }
        let mut publishing = self.deps.publisher.publish(Arc::clone(&publications));
        // Without an answer of the broker, the claim is renewed: another process would publish the same.
        let published = loop {
            // Cancel-safe: `publishing` is only borrowed.
            tokio::select! {
                published = &mut publishing => break published,
                () = tokio::time::sleep(LEASE / 4) => drop(self.claim(replay, pace).await?),
            }
        };
        let mut refused: Vec<(i64, usize, PublishError)> = Vec::new();
        if let Err(unpublished) = published {
            let mut failures = unpublished.failures;
            failures.sort_by_key(|(index, _)| Reverse(*index));
            for (index, error) in failures {
                match error {
                    PublishError::Closed => return Err(ReplayError::Closed),
                    PublishError::Invalid { .. } => {
                        // Nothing is known of the others: they are published again.
                        return self.skip(replay, letters[index], "cannot_publish").await;
                    }
                    PublishError::Unroutable { .. } | PublishError::Nacked { .. } | PublishError::Refused { .. } => {
                        refused.push((letters.remove(index), index, error));
                    }
                }
            }
        }
        let is_refused = |index: usize| refused.iter().any(|(_, refused, _)| *refused == index);
        for (_, accepted) in publications.iter().enumerate().filter(|(index, _)| !is_refused(*index)) {
            pace.accepted(&accepted.routing_key);
        }
        let at = Timestamp::now();
        let due = at.saturating_add(OUTCOME_TIME).unwrap_or(Timestamp::MAX);
        self.change(LetterOperation::Published { replay, letters, at, due }).await?;
        self.handle_refused(replay, refused, &publications, pace).await
    }

    /// Nothing more is published to a queue that the broker refuses, for a while. Too often: the replay stops. It is not known whether
    /// the broker has accepted the letters before it refused them, as when it has not confirmed them and the connection was lost.
    async fn handle_refused(
        &self,
        replay: i64,
        refused: Vec<(i64, usize, PublishError)>,
        publications: &[Publication],
        pace: &mut Pace,
    ) -> Result<(), ReplayError> {
        let Some((_, index, error)) = refused.first() else { return Ok(()) };
        let (queue, text) = (&publications[*index].routing_key, error.to_string());
        // A queue that is full may have room again.
        let lasts = !matches!(error, PublishError::Nacked { .. });
        if !pace.refused(queue, text.clone(), lasts) {
            return Ok(());
        }
        for (letter, _, _) in &refused {
            self.skip(replay, *letter, "refused").await?;
        }
        error!(replay, error = %text, "a replay stops: the broker does not accept its dead letters");
        self.stop_for(replay, "refused", Some(text)).await
    }

    /// Reads the next letters of a group, and returns how many it has dealt with. `None` if the replay is not this process's.
    async fn prepare(
        &self,
        replay: &Replay,
        group: &GroupBatch,
        limit: u64,
        batch: &mut Batch,
    ) -> Result<Option<u64>, ReplayError> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let queue_and_cause = (group.queue.clone(), group.cause.clone());
        let next = self.deps.ledger.replay_letters(replay.id, group.progress, Some(queue_and_cause), 0, limit).await?;
        let ids: Vec<i64> = next.iter().map(|letter| letter.id).collect();
        let OperationAnswer::Reading(tries) = self.reading(replay.id, ids.clone(), false).await? else {
            return Ok(None);
        };
        let mut done = 0;
        for (letter, tries) in next.into_iter().zip(tries) {
            // Alone: of several, it is not known which one has ended the process.
            if tries > 0 && !batch.prepared.is_empty() {
                break;
            }
            let prepared = if tries >= READ_TRIES { Err(UNREADABLE) } else { self.read(replay, letter.id).await };
            done += 1;
            match prepared {
                Ok(prepared) => {
                    batch.bytes += prepared.bytes();
                    batch.is_full = batch.bytes >= PUBLISH_BYTES || tries > 0;
                    batch.prepared.push(prepared);
                }
                Err(code) => self.skip(replay.id, letter.id, code).await?,
            }
            if batch.is_full {
                break;
            }
        }
        if done < ids.len() {
            self.reading(replay.id, ids[done..].to_vec(), true).await?;
        }
        Ok(Some(done as u64))
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
        let (users, names, max_body) = (Arc::clone(&self.deps.users), Arc::clone(&self.deps.names), self.deps.max_body);
        let reading = spawn_blocking(move || {
            let context = ReplayContext { consumers: &consumers, users: &users, names: &names, max_body };
            Prepared::new(detail, to.as_deref(), &context, now)
        });
        reading.await.unwrap_or(Err(UNREADABLE))
    }

    async fn skip(&self, replay: i64, letter: i64, code: &'static str) -> Result<(), ReplayError> {
        let skip = LetterOperation::Skip { replay: claimed(replay), letter, code, at: Timestamp::now() };
        self.change(skip).await.map(drop)
    }
}

/// Letters that are about to be published.
#[derive(Default)]
struct Batch {
    prepared: Vec<Prepared>,
    bytes: usize,
    is_full: bool,
}

impl Batch {
    /// How many more there may be.
    fn room(&self) -> u64 {
        if self.is_full { 0 } else { PUBLISH_BATCH.saturating_sub(self.prepared.len() as u64) }
    }
}
