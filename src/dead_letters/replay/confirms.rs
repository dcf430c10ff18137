//! Awaits the broker's answers to letters that were handed to the publisher, and records them.
//!
//! It never waits long. A queue whose broker does not confirm must not keep the others, or the stop of a replay, waiting.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::error;

use super::executor::{ReplayError, Replayer, claimed};
use super::pace::{OUTCOME_TIME, Pace, Refusal};
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
        let Answer { queue, letters, handed_at, result } = answer;
        let failures: BTreeMap<usize, PublishError> =
            result.err().map_or_else(BTreeMap::new, |unpublished| unpublished.failures.into_iter().collect());
        let mut invalid = Vec::new();
        for (index, error) in &failures {
            match error {
                PublishError::Closed => {
                    pace.may_be_published(&letters);
                    return Err(ReplayError::Closed);
                }
                PublishError::Invalid { .. } => invalid.push(letters[*index]),
                PublishError::Unroutable { .. } | PublishError::Nacked { .. } | PublishError::Refused { .. } => {}
            }
        }
        if !invalid.is_empty() {
            let left_out = pace.left_out(&invalid, "cannot_publish");
            // Nothing is known of the others: they are published again.
            pace.may_be_published(&letters);
            return self.leave_out(replay, left_out).await;
        }
        let refused: Vec<HandedLetter> = failures.keys().map(|index| letters[*index]).collect();
        let accepted: Vec<HandedLetter> = letters.into_iter().filter(|letter| !refused.contains(letter)).collect();
        if !accepted.is_empty() {
            pace.accepted(&queue, &accepted);
            let accepted = accepted.iter().map(|letter| letter.id).collect();
            let at = Timestamp::now();
            let due = at.saturating_add(OUTCOME_TIME).unwrap_or(Timestamp::MAX);
            self.change(LetterOperation::Published { replay: claimed(replay), letters: accepted, at, due }).await?;
        }
        let Some(error) = failures.values().next() else { return Ok(()) };
        // A queue that is full may have room again.
        let lasts = failures.values().any(|error| !matches!(error, PublishError::Nacked { .. }));
        let refusal = Refusal { queue: &queue, error: error.to_string(), lasts, handed_at, letters: &refused };
        let Some(left_out) = pace.refused(refusal) else { return Ok(()) };
        self.leave_out(replay, left_out).await?;
        // The letters of each cause are refused for themselves, and the replay stops once.
        if self.stop_for(replay, "refused", Some(error.to_string())).await? {
            error!(replay, queue, %error, "a replay stops: the broker does not accept its dead letters");
        }
        Ok(())
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
