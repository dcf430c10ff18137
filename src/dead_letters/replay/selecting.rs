//! Which letters a replay takes, and the queue of each.
//!
//! It never publishes them.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::executor::{Claim, ReplayError, Replayer, SELECT_BATCH, claimed};
use super::message::target;
use super::pace::Pace;
use crate::ledger::{
    LetterOperation, LetterProgress, LetterSelection, LetterState, OperationAnswer, Replay, ReplayCandidate,
    ReplayGroup, ToSelect,
};

impl Replayer {
    /// Claims the letters of the selection.
    pub(super) async fn select(&self, replay: &Replay, pace: &mut Pace) -> Result<(), ReplayError> {
        let id = replay.id;
        loop {
            let Some((selection, after)) = self.deps.ledger.replay_selection(id).await? else { return Ok(()) };
            let found = self
                .deps
                .ledger
                .replay_candidates(selection.clone(), vec![LetterState::Open], after, SELECT_BATCH)
                .await?;
            let consumers = self.deps.consumers.borrow().clone();
            let to = replay.options.to.as_deref();
            let queue = |candidate: &ReplayCandidate| {
                target(&consumers, to, candidate.origin_queue.as_deref(), Some(&candidate.counted.cause.consumer))
                    .map_or_else(String::new, |(queue, _)| queue.clone())
            };
            let found: BTreeMap<i64, String> = found.iter().map(|candidate| (candidate.id, queue(candidate))).collect();
            let (ids, is_named): (Vec<i64>, bool) = match selection {
                LetterSelection::Ids(ids) => {
                    (ids.into_iter().filter(|id| *id > after).take(SELECT_BATCH).collect(), true)
                }
                LetterSelection::Filter { .. } => (found.keys().copied().collect(), false),
            };
            let queue = |id: &i64| found.get(id).cloned().unwrap_or_default();
            let letters: Vec<ToSelect> =
                ids.iter().map(|letter| ToSelect { letter: *letter, queue: queue(letter) }).collect();
            let is_last = letters.len() < SELECT_BATCH;
            let (replay, at) = (claimed(id), Timestamp::now());
            let selected = self.change(LetterOperation::Select { replay, letters, is_named, is_last, at }).await?;
            if is_last || selected != OperationAnswer::Done(true) || self.claim(id, pace).await? == Claim::Refused {
                self.wake();
                return Ok(());
            }
        }
    }

    /// The consumers may have changed since the letters were selected: finds the queues of those whose queue no consumer has. Whether
    /// there are any.
    pub(super) async fn find_other_queues(&self, replay: &Replay, pace: &mut Pace) -> Result<bool, ReplayError> {
        use LetterProgress::{Publishing, Selected};
        let consumers = self.deps.consumers.borrow().clone();
        let is_without_consumer =
            |group: &&ReplayGroup| !group.queue.is_empty() && !consumers.contains_key(&group.queue);
        let mut any_is_moved = false;
        for group in replay.groups.iter().filter(is_without_consumer) {
            // What the broker is about to confirm has its outcome there.
            let progress: &[LetterProgress] =
                if pace.unanswered.contains(&group.queue) { &[Selected] } else { &[Selected, Publishing] };
            for progress in progress.iter().filter(|progress| group.count(&[**progress]) > 0) {
                let Some(is_moved) = self.move_letters(replay, group, *progress, pace).await? else { return Ok(false) };
                any_is_moved |= is_moved;
            }
        }
        pace.may_have_other_queues = false;
        Ok(any_is_moved)
    }

    /// Moves letters of a group to the queues that they have now. `None` if the replay is not this process's.
    async fn move_letters(
        &self,
        replay: &Replay,
        group: &ReplayGroup,
        progress: LetterProgress,
        pace: &mut Pace,
    ) -> Result<Option<bool>, ReplayError> {
        let consumers = self.deps.consumers.borrow().clone();
        let (mut after, mut any_is_moved) = (0, false);
        loop {
            let queue_and_cause = Some((group.queue.clone(), group.cause.clone()));
            let letters =
                self.deps.ledger.replay_letters(replay.id, progress, queue_and_cause, after, SELECT_BATCH).await?;
            let Some(last) = letters.last() else { return Ok(Some(any_is_moved)) };
            after = last.id;
            let ids = LetterSelection::Ids(letters.iter().map(|letter| letter.id).collect());
            let found = self.deps.ledger.replay_candidates(ids, Vec::new(), 0, SELECT_BATCH).await?;
            let moved = found.iter().filter_map(|candidate| {
                let (to, consumer) = (replay.options.to.as_deref(), Some(&*candidate.counted.cause.consumer));
                let (queue, _) = target(&consumers, to, candidate.origin_queue.as_deref(), consumer)?;
                Some(ToSelect { letter: candidate.id, queue: queue.clone() })
            });
            let moved: Vec<ToSelect> = moved.collect();
            any_is_moved |= !moved.is_empty();
            self.move_to(replay.id, moved).await?;
            if self.claim(replay.id, pace).await? == Claim::Refused {
                return Ok(None);
            }
        }
    }

    /// These letters have another queue than before.
    pub(super) async fn move_to(&self, replay: i64, letters: Vec<ToSelect>) -> Result<(), ReplayError> {
        if letters.is_empty() {
            return Ok(());
        }
        let moving = LetterOperation::Move { replay: claimed(replay), letters, at: Timestamp::now() };
        self.change(moving).await.map(drop)
    }
}
