//! What the admin API calls: checks a request, records it, and reports what came of it.
//!
//! It never publishes.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;

use super::executor::Replayer;
use super::requests::{ListedReplay, ReplayLetters, ReplayReport, ReplayRequest};
use crate::ledger::{
    BeginAnswer, LedgerError, LetterOperation, LetterProgress, LetterSelection, MAX_ACTIVE_REPLAYS, MAX_SELECTED_IDS,
    NewReplay, OpenError, OperationAnswer, ReplayOptions,
};

/// The most letters a second.
const MAX_RATE: u32 = 1_000;
/// Letters that are read at a time.
pub(super) const PAGE: usize = 500;
/// How long one request looks at letters, or changes them, before it answers how far it is.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(4);
/// Replays that are listed.
const MAX_LISTED: usize = 100;
/// Letters that are named in a report, of each kind.
pub(super) const MAX_NAMED: usize = 20;

/// Why a request is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// It makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// There is no such replay or letter.
    #[error("there is no {0}")]
    Missing(String),
    /// What it is about has changed, or does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// What is left of the ledger's disk is for orders.
    #[error("the ledger's disk is nearly full, and what is left is for orders: make room on it, and try again")]
    DiskSpace,
    /// The ledger refused.
    #[error("the ledger cannot record it")]
    Ledger(#[from] LedgerError),
    /// The ledger cannot be read.
    #[error("the ledger cannot be read")]
    Read(#[from] OpenError),
}

/// Where the admin API finds [`LetterActions`], once the daemon runs.
#[derive(Clone, Default)]
pub struct LetterActionsHandle(Arc<OnceLock<LetterActions>>);

impl LetterActionsHandle {
    /// From now on it can be used.
    pub fn open(&self, actions: LetterActions) {
        // Once in the life of a daemon.
        let _ = self.0.set(actions);
    }

    /// What can be done with dead letters; `None` before the daemon runs.
    pub fn get(&self) -> Option<LetterActions> {
        self.0.get().cloned()
    }
}

/// What persons can do. Clones share it.
#[derive(Clone)]
pub struct LetterActions(pub(super) Arc<Replayer>);

impl LetterActions {
    /// Actions on the dead letters that this task replays.
    pub fn new(replayer: Arc<Replayer>) -> Self {
        LetterActions(replayer)
    }

    /// Starts a replay. It is carried out even if nobody waits for it.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn start(&self, request: ReplayRequest, by: String) -> Result<ReplayReport, ActionError> {
        self.check(&request)?;
        let selection = self.bounded(request.selection).await?;
        let new = NewReplay { by, selection, options: request.options, at: Timestamp::now() };
        let OperationAnswer::Begun(BeginAnswer { replay }) = self.change(LetterOperation::Begin(Box::new(new))).await?
        else {
            return Err(ActionError::Conflict(format!(
                "{MAX_ACTIVE_REPLAYS} replays have not ended: wait for one of them, or stop one"
            )));
        };
        self.0.wake();
        self.replay(replay).await
    }

    pub(super) fn check(&self, request: &ReplayRequest) -> Result<(), ActionError> {
        check_selection(&request.selection)?;
        let ReplayOptions { to, rate, stop_at, canary: _ } = &request.options;
        if !(1..=MAX_RATE).contains(rate) {
            return Err(ActionError::Invalid(format!("rate: must be from 1 to {MAX_RATE} a second, is {rate}")));
        }
        if *stop_at > 100 {
            return Err(ActionError::Invalid(format!("stop_at: must be from 0 to 100 percent, is {stop_at}")));
        }
        let consumers = self.0.deps.consumers.borrow();
        match to {
            Some(to) if !consumers.contains_key(to) => {
                let known: Vec<&str> = consumers.keys().map(String::as_str).collect();
                let known = known.join(", ");
                Err(ActionError::Invalid(format!("to: no consumer has the queue {to:?}; queues: {known}")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The selection without what is stored later.
    pub(super) async fn bounded(&self, selection: LetterSelection) -> Result<LetterSelection, ActionError> {
        Ok(match selection {
            LetterSelection::Ids(mut ids) => {
                ids.sort_unstable();
                ids.dedup();
                LetterSelection::Ids(ids)
            }
            LetterSelection::Filter { filter, up_to } => {
                let last = self.0.deps.ledger.last_letter().await?;
                LetterSelection::Filter { filter, up_to: up_to.min(last) }
            }
        })
    }

    /// How far a replay is.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn replay(&self, id: i64) -> Result<ReplayReport, ActionError> {
        let ledger = &self.0.deps.ledger;
        let replay = ledger.replay(id, Timestamp::now()).await?;
        let replay = replay.ok_or_else(|| ActionError::Missing(format!("replay {id}")))?;
        let failed_again = ledger.replay_letters(id, LetterProgress::FailedAgain, None, 0, MAX_NAMED).await?;
        let not_replayed = ledger.replay_letters(id, LetterProgress::Skipped, None, 0, MAX_NAMED).await?;
        Ok(ReplayReport { waiting: self.0.waits_for(id), replay, failed_again, not_replayed })
    }

    /// Letters of a replay, by number, after this one; all, or only those that are so far.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn replay_letters(
        &self,
        id: i64,
        progress: Option<LetterProgress>,
        after: i64,
        limit: usize,
    ) -> Result<ReplayLetters, ActionError> {
        let ledger = &self.0.deps.ledger;
        let replay = ledger.replay(id, Timestamp::now()).await?;
        replay.ok_or_else(|| ActionError::Missing(format!("replay {id}")))?;
        let wanted = LetterProgress::ALL.iter().position(|known| Some(*known) == progress);
        let progress = wanted.map_or(LetterProgress::ALL, |index| &LetterProgress::ALL[index..=index]);
        let mut letters = Vec::new();
        for progress in progress {
            letters.extend(ledger.replay_letters(id, *progress, None, after, limit + 1).await?);
        }
        letters.sort_by_key(|letter| letter.id);
        let has_more = letters.len() > limit;
        letters.truncate(limit);
        Ok(ReplayLetters { next: letters.last().filter(|_| has_more).map(|letter| letter.id), letters })
    }

    /// The latest replays, the last one first.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn replays(&self) -> Result<Vec<ListedReplay>, ActionError> {
        let replays = self.0.deps.ledger.replays(false, MAX_LISTED, Timestamp::now()).await?;
        let listed = replays.into_iter().map(|replay| ListedReplay { waiting: self.0.waits_for(replay.id), replay });
        Ok(listed.collect())
    }

    /// Stops a replay: what is not published is open again. What is published has its outcome still.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn stop(&self, id: i64, by: String) -> Result<ReplayReport, ActionError> {
        let at = Timestamp::now();
        self.change(LetterOperation::Stop { replay: id, by: Some(by), reason: "requested", detail: None, at }).await?;
        self.0.wake();
        self.replay(id).await
    }

    pub(super) async fn change(&self, change: LetterOperation) -> Result<OperationAnswer, ActionError> {
        let takes_room = !matches!(change, LetterOperation::Stop { .. });
        if takes_room && self.0.is_short_of_disk() {
            return Err(ActionError::DiskSpace);
        }
        Ok(self.0.deps.ledger.carry_out(change).await?)
    }
}

pub(super) fn check_selection(selection: &LetterSelection) -> Result<(), ActionError> {
    match selection {
        LetterSelection::Ids(ids) if ids.is_empty() || ids.len() > MAX_SELECTED_IDS => {
            Err(ActionError::Invalid(format!("ids: must be 1 to {MAX_SELECTED_IDS} numbers, are {}", ids.len())))
        }
        LetterSelection::Ids(_) | LetterSelection::Filter { .. } => Ok(()),
    }
}
