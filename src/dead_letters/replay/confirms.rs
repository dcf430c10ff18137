//! Letters that were handed to the publisher: awaits the broker's answers, and records them.
//!
//! It never waits long. A queue whose broker does not confirm must not keep the others, or the stop of a replay, waiting.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};
use tracing::error;

use super::executor::{ReplayError, Replayer, claimed};
use super::pace::{OUTCOME_TIME, Pace};
use super::waiting::{WaitCause, Waiting};
use crate::ledger::{LeftOutLetter, LetterOperation};
use crate::message::{PublishError, Unpublished};

/// How long the answers to what was just handed over are awaited. Then the next replay has its turn.
const CONFIRM_TIME: Duration = Duration::from_millis(250);
/// A replay says that the broker does not confirm once it has not done so for this time.
const SLOW_CONFIRM: Duration = Duration::from_secs(2);

/// A letter that was handed to the publisher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HandedLetter {
    pub id: i64,
    /// Whether it was never handed over before. If it is refused, it was certainly not published.
    pub is_first: bool,
}

/// The broker's answer to letters of one queue.
struct Answer {
    queue: String,
    letters: Vec<HandedLetter>,
    result: Result<(), Unpublished>,
}

/// A queue with letters that the broker has not answered yet.
struct UnansweredQueue {
    batches: usize,
    since: Instant,
    /// The same time, for people.
    shown_since: Timestamp,
}

/// The letters of a replay that the broker has not answered yet. To drop it stops the waiting, not the publishing: the letters are
/// published again later.
#[derive(Default)]
pub(super) struct UnansweredLetters {
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
    queues: BTreeMap<String, UnansweredQueue>,
}

impl UnansweredLetters {
    /// Letters of this queue were handed over.
    pub fn add(
        &mut self,
        queue: &str,
        letters: Vec<HandedLetter>,
        publishing: BoxFuture<'static, Result<(), Unpublished>>,
    ) {
        let (since, shown_since) = (Instant::now(), Timestamp::now());
        let of_queue =
            self.queues.entry(queue.to_owned()).or_insert(UnansweredQueue { batches: 0, since, shown_since });
        of_queue.batches += 1;
        let queue = queue.to_owned();
        self.answers.push(async move { Answer { queue, letters, result: publishing.await } }.boxed());
    }

    /// Whether the broker has not answered letters of this queue yet.
    pub fn contains(&self, queue: &str) -> bool {
        self.queues.contains_key(queue)
    }

    /// Why nothing is published to a queue, if its letters have been unanswered for long.
    pub fn waiting(&self, queue: &str) -> Option<Waiting> {
        let unanswered = self.queues.get(queue).filter(|unanswered| unanswered.since.elapsed() >= SLOW_CONFIRM)?;
        let text =
            format!("the broker has not confirmed what was published to {queue} at {:.0}", unanswered.shown_since);
        Some(Waiting { cause: WaitCause::Unconfirmed, text })
    }

    /// The next answer. Those to letters that were handed over after `handed_after` are awaited until `deadline`, others are not.
    async fn next(&mut self, handed_after: Instant, deadline: Instant) -> Option<Answer> {
        let is_awaited = self.queues.values().any(|unanswered| unanswered.since >= handed_after);
        let answer = match is_awaited {
            true => timeout_at(deadline, self.answers.next()).await.ok().flatten()?,
            false => self.answers.next().now_or_never().flatten()?,
        };
        if let Some(unanswered) = self.queues.get_mut(&answer.queue) {
            unanswered.batches -= 1;
            if unanswered.batches == 0 {
                self.queues.remove(&answer.queue);
            }
        }
        Some(answer)
    }
}

impl Replayer {
    /// Records what the broker has answered. The answers to letters that were handed over after `handed_after` are awaited for a moment.
    pub(super) async fn settle(&self, replay: i64, pace: &mut Pace, handed_after: Instant) -> Result<(), ReplayError> {
        let deadline = Instant::now() + CONFIRM_TIME;
        while let Some(answer) = pace.unanswered.next(handed_after, deadline).await {
            self.record_answer(replay, answer, pace).await?;
        }
        Ok(())
    }

    async fn record_answer(&self, replay: i64, answer: Answer, pace: &mut Pace) -> Result<(), ReplayError> {
        let Answer { queue, letters, result } = answer;
        let failures: BTreeMap<usize, PublishError> =
            result.err().map_or_else(BTreeMap::new, |unpublished| unpublished.failures.into_iter().collect());
        for (index, error) in &failures {
            match error {
                PublishError::Closed => return Err(ReplayError::Closed),
                PublishError::Invalid { .. } => {
                    // Nothing is known of the others: they are published again.
                    let HandedLetter { id: letter, is_first: is_unpublished } = letters[*index];
                    let left_out = LeftOutLetter { letter, code: "cannot_publish", is_unpublished };
                    return self.leave_out(replay, vec![left_out]).await;
                }
                PublishError::Unroutable { .. } | PublishError::Nacked { .. } | PublishError::Refused { .. } => {}
            }
        }
        let refused: Vec<HandedLetter> = failures.keys().map(|index| letters[*index]).collect();
        let accepted = letters.iter().filter(|letter| !refused.contains(letter));
        let accepted: Vec<i64> = accepted.map(|letter| letter.id).collect();
        if !accepted.is_empty() {
            pace.accepted(&queue);
            let at = Timestamp::now();
            let due = at.saturating_add(OUTCOME_TIME).unwrap_or(Timestamp::MAX);
            self.change(LetterOperation::Published { replay: claimed(replay), letters: accepted, at, due }).await?;
        }
        let Some(error) = failures.values().next() else { return Ok(()) };
        // A queue that is full may have room again.
        let lasts = failures.values().any(|error| !matches!(error, PublishError::Nacked { .. }));
        match pace.refused(&queue, error.to_string(), lasts, &refused) {
            None => Ok(()),
            Some(left_out) => {
                self.leave_out(replay, left_out).await?;
                error!(replay, queue, %error, "a replay stops: the broker does not accept its dead letters");
                self.stop_for(replay, "refused", Some(error.to_string())).await
            }
        }
    }

    /// These letters are not published, or their outcome is unknown.
    pub(super) async fn leave_out(&self, replay: i64, letters: Vec<LeftOutLetter>) -> Result<(), ReplayError> {
        if letters.is_empty() {
            return Ok(());
        }
        let skip = LetterOperation::Skip { replay: claimed(replay), letters, at: Timestamp::now() };
        self.change(skip).await.map(drop)
    }
}
