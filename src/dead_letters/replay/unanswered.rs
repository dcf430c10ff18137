//! Letters that were handed to the publisher, and that the broker has not answered yet. It records nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use tokio::time::{Instant, timeout_at};

use super::waiting::{WaitCause, Waiting};
use crate::message::Unpublished;

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
pub(super) struct Answer {
    pub queue: String,
    pub letters: Vec<HandedLetter>,
    /// When they were handed over.
    pub handed_at: Instant,
    pub result: Result<(), Unpublished>,
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
        self.answers.push(async move { Answer { queue, letters, handed_at: since, result: publishing.await } }.boxed());
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
    pub async fn next(&mut self, handed_after: Instant, deadline: Instant) -> Option<Answer> {
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
