//! What the admin API calls: checks a request, records it, and reports what came of it.
//!
//! It never publishes.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;

use super::executor::Replayer;
use super::recorded::{read_replay, read_replay_letters, read_replays};
use super::requests::{ListedReplay, ReplayLetters, ReplayReport, ReplayRequest};
use crate::ledger::{
    BeginAnswer, DeadLetterFilter, LedgerError, LetterOperation, LetterProgress, LetterSelection, LetterState,
    MAX_ACTIVE_REPLAYS, MAX_SELECTED_IDS, NewReplay, OpenError, OperationAnswer, ReplayOptions,
};

/// The most letters a second.
const MAX_RATE: u32 = 1_000;
/// Letters that are read at a time.
pub(super) const PAGE: usize = 500;
/// How long one request looks at letters, or changes them, before it answers how far it is.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(4);

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
        self.refuse_if_nothing_can_be_replayed(&request).await?;
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
        if let LetterSelection::Filter { filter, .. } = &request.selection {
            only_states(filter, &[LetterState::Open])?;
        }
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
        let report = read_replay(&*self.0.deps.ledger, id, Timestamp::now()).await?;
        let report = report.ok_or_else(|| ActionError::Missing(format!("replay {id}")))?;
        Ok(ReplayReport { waiting: self.0.waits_for(id), ..report })
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
        let letters = read_replay_letters(&*self.0.deps.ledger, id, progress, after, limit).await?;
        letters.ok_or_else(|| ActionError::Missing(format!("replay {id}")))
    }

    /// The latest replays, the last one first.
    ///
    /// # Errors
    /// [`ActionError`].
    pub async fn replays(&self) -> Result<Vec<ListedReplay>, ActionError> {
        let replays = read_replays(&*self.0.deps.ledger, Timestamp::now()).await?.into_iter();
        Ok(replays.map(|listed| ListedReplay { waiting: self.0.waits_for(listed.replay.id), ..listed }).collect())
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
        let answer = self.0.deps.ledger.carry_out(change).await?;
        self.0.acted();
        Ok(answer)
    }
}

/// Refuses a filter that asks for a state that the action cannot be applied to.
pub(super) fn only_states(filter: &DeadLetterFilter, possible: &[LetterState]) -> Result<(), ActionError> {
    let Some(state) = filter.states.iter().find(|state| !possible.contains(state)) else { return Ok(()) };
    let possible: Vec<&str> = possible.iter().map(|state| state.as_str()).collect();
    let (state, possible) = (state.as_str(), possible.join(", "));
    Err(ActionError::Invalid(format!("states: this is not for dead letters that are {state}; possible: {possible}")))
}

pub(super) fn check_selection(selection: &LetterSelection) -> Result<(), ActionError> {
    match selection {
        LetterSelection::Ids(ids) if ids.is_empty() || ids.len() > MAX_SELECTED_IDS => {
            Err(ActionError::Invalid(format!("ids: must be 1 to {MAX_SELECTED_IDS} numbers, are {}", ids.len())))
        }
        LetterSelection::Ids(ids) => match ids.iter().find(|id| **id < 1) {
            Some(id) => Err(ActionError::Invalid(format!("ids: numbers begin with 1, one is {id}"))),
            None => Ok(()),
        },
        LetterSelection::Filter { .. } => Ok(()),
    }
}
