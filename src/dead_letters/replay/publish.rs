//! Publishes the letters of a replay, some at a time: reads them, records that they are about to be published, publishes them, and records
//! that they are.
//!
//! It never decides how many.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::executor::{Claim, LEASE, PUBLISH_BATCH, Pace, Replayer, StepError, claimed};
use super::message::{Prepared, ReplayContext, UNREADABLE};
use crate::ledger::{DeskAnswer, DeskChange, LetterProgress, PublishAnswer, Replay, ToPublish};
use crate::message::{Publication, PublishError};

/// How many bytes the bodies have that are published at a time, without the last.
const PUBLISH_BYTES: usize = 4 << 20;
/// How long after its publication the outcome of a letter is expected, if it is not retried.
const OUTCOME_TIME: SignedDuration = SignedDuration::from_hours(1);
/// The wait after the broker did not accept a letter.
const REFUSED_PAUSE: Duration = Duration::from_secs(10);
/// A letter that so many processes were reading when they ended is not read again: it may be what ends them.
const READ_TRIES: u32 = 2;
/// The wait while the consumer of the next letter does not process anything.
const BLOCKED_PAUSE: Duration = Duration::from_secs(1);

impl Replayer {
    /// Publishes as many letters as the rate allows.
    pub(super) async fn publish_some(&self, replay: &Replay, room: u64, pace: &mut Pace) -> Result<(), StepError> {
        if pace.not_before > Instant::now() {
            return Ok(());
        }
        let mut left = room.min(pace.allowed(replay.options.rate));
        while left > 0 {
            let published = self.publish(replay, &[LetterProgress::Selected], left.min(PUBLISH_BATCH), pace).await?;
            pace.used(published);
            if published == 0 || pace.not_before > Instant::now() {
                break;
            }
            left -= published.min(left);
        }
        Ok(())
    }

    /// Publishes the next letters that are so far, and returns how many it has dealt with; 0 as well if the replay is not this process's.
    pub(super) async fn publish(
        &self,
        replay: &Replay,
        progress: &'static [LetterProgress],
        limit: u64,
        pace: &mut Pace,
    ) -> Result<u64, StepError> {
        if self.claim(replay.id, pace).await? == Claim::Refused {
            return Ok(0);
        }
        let Some(Batch { prepared, skipped }) = self.prepare(replay, progress, limit, pace).await? else {
            return Ok(0);
        };
        if prepared.is_empty() {
            return Ok(skipped);
        }
        let (id, at) = (replay.id, Timestamp::now());
        let letters =
            prepared.iter().map(|letter| ToPublish { letter: letter.id(), order: letter.order.clone() }).collect();
        let begin = DeskChange::BeginPublishing { replay: claimed(id), letters, at };
        let DeskAnswer::Publishing(answers) = self.change(begin).await? else { return Ok(0) };
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
                PublishAnswer::NotSelected => self.skip(id, prepared.id(), "closed").await?,
                PublishAnswer::NotClaimed => return Ok(0),
            }
        }
        self.publish_all(id, letters, publications, pace).await?;
        Ok(skipped + prepared.len() as u64)
    }

    async fn publish_all(
        &self,
        replay: i64,
        mut letters: Vec<i64>,
        publications: Vec<Publication>,
        pace: &mut Pace,
    ) -> Result<(), StepError> {
        if letters.is_empty() {
            return Ok(());
        }
        let mut publishing = self.deps.publisher.publish(publications.into());
        // Without an answer of the broker, the claim is renewed: another process would publish the same.
        let published = loop {
            // Cancel-safe: `publishing` is only borrowed.
            tokio::select! {
                published = &mut publishing => break published,
                () = tokio::time::sleep(LEASE / 4) => drop(self.claim(replay, pace).await?),
            }
        };
        let mut refused = None;
        if let Err(unpublished) = published {
            for (index, error) in unpublished.failures.iter().rev() {
                match error {
                    PublishError::Closed => return Err(StepError::Closed),
                    PublishError::Invalid { .. } => {
                        // Nothing is known of the others: they are published again.
                        return self.skip(replay, letters[*index], "cannot_publish").await;
                    }
                    PublishError::Unroutable { .. } | PublishError::Nacked { .. } | PublishError::Refused { .. } => {
                        refused = Some(error.to_string());
                        letters.remove(*index);
                    }
                }
            }
        }
        let at = Timestamp::now();
        let due = at.saturating_add(OUTCOME_TIME).unwrap_or(Timestamp::MAX);
        self.change(DeskChange::Published { replay, letters, at, due }).await?;
        if refused.is_some() {
            pace.not_before = Instant::now() + REFUSED_PAUSE;
        }
        self.set_waiting(replay, refused);
        Ok(())
    }

    /// Reads the next letters. `None` if the queue of the next one is blocked.
    async fn prepare(
        &self,
        replay: &Replay,
        progress: &'static [LetterProgress],
        limit: u64,
        pace: &mut Pace,
    ) -> Result<Option<Batch>, StepError> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let next = self.deps.ledger.replay_letters(replay.id, progress, limit).await?;
        let (mut batch, mut bytes) = (Batch { prepared: Vec::new(), skipped: 0 }, 0);
        let ids: Vec<i64> = next.iter().map(|letter| letter.id).collect();
        let DeskAnswer::Reading(tries) = self.reading(replay.id, ids.clone(), false).await? else { return Ok(None) };
        let (mut done, mut is_blocked) = (0, false);
        for (letter, tries) in next.into_iter().zip(tries) {
            // Alone: of several, it is not known which one has ended the process.
            if tries > 0 && !batch.prepared.is_empty() {
                break;
            }
            let prepared = if tries >= READ_TRIES { Err(UNREADABLE) } else { self.read(replay, letter.id).await };
            let prepared = match prepared {
                Ok(prepared) => prepared,
                Err(code) => {
                    self.skip(replay.id, letter.id, code).await?;
                    (done, batch.skipped) = (done + 1, batch.skipped + 1);
                    continue;
                }
            };
            if let Some(reason) = (self.deps.blocked)(&prepared.queue) {
                self.set_waiting(replay.id, Some(reason));
                pace.not_before = Instant::now() + BLOCKED_PAUSE;
                is_blocked = batch.prepared.is_empty();
                break;
            }
            (done, bytes) = (done + 1, bytes + prepared.bytes());
            batch.prepared.push(prepared);
            if bytes >= PUBLISH_BYTES || tries > 0 {
                break;
            }
        }
        if done < ids.len() {
            self.reading(replay.id, ids[done..].to_vec(), true).await?;
        }
        Ok(if is_blocked && batch.skipped == 0 { None } else { Some(batch) })
    }

    async fn reading(&self, replay: i64, letters: Vec<i64>, has_ended: bool) -> Result<DeskAnswer, StepError> {
        let replay = claimed(replay);
        self.change(DeskChange::Reading { replay, letters, has_ended, at: Timestamp::now() }).await
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

    async fn skip(&self, replay: i64, letter: i64, code: &'static str) -> Result<(), StepError> {
        let skip = DeskChange::Skip { replay: claimed(replay), letter, code, at: Timestamp::now() };
        self.change(skip).await.map(drop)
    }
}

/// Letters that are about to be published.
struct Batch {
    prepared: Vec<Prepared>,
    /// Those that are left out.
    skipped: u64,
}
