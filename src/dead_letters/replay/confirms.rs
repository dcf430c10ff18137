//! Awaits the broker's answers to letters that were handed to the publisher, and records them.
//!
//! It never waits long. A queue whose broker does not confirm must not keep the others, or the stop of a replay, waiting.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::error;

use super::executor::{ReplayError, Replayer, claimed};
use super::pace::{OUTCOME_TIME, Pace};
use super::unanswered::{Answer, HandedLetter};
use crate::ledger::{LeftOutLetter, LetterOperation};
use crate::message::PublishError;

/// How long the answers to what was just handed over are awaited. Then the next replay has its turn.
const CONFIRM_TIME: Duration = Duration::from_millis(250);

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
