//! What the admin API calls: checks a request, records it, and reports what came of it.
//!
//! It never publishes.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;
use utoipa::ToSchema;

use super::edit::{EditError, edited};
use super::executor::Replayer;
use super::message::{NO_QUEUE, target};
use super::waiting::QueueAccess;
use crate::chain::chain;
use crate::ledger::{
    BeginAnswer, ChangeAnswer, DeskAnswer, DeskChange, LedgerError, LetterChange, LetterEdit, LetterProgress,
    LetterSelection, LetterState, MAX_ACTIVE_REPLAYS, MAX_SELECTED_IDS, MAYBE_DUPLICATE, NewReplay, OpenError, Replay,
    ReplayLetter, ReplayOptions,
};

/// The most letters a second.
const MAX_RATE: u32 = 1_000;
/// Letters that are read at a time.
const PAGE: usize = 500;
/// Letters that are changed in one transaction, so that orders never wait long for it.
const CHANGED_AT_ONCE: usize = 100;
/// Replays that are listed.
const MAX_LISTED: usize = 100;
/// Letters that failed again and are named in a report.
const MAX_NAMED: usize = 20;
/// The longest note or reason, in bytes.
const MAX_NOTE_BYTES: usize = 1_024;

/// Why a request is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
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

/// A replay is asked for.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// Which letters.
    pub selection: LetterSelection,
    /// How.
    #[serde(default)]
    pub options: ReplayOptions,
    /// Only says what would happen.
    #[serde(default)]
    pub dry_run: bool,
}

/// What a replay would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplayPlan {
    /// The number of the last letter that is meant.
    pub up_to: i64,
    /// How many letters would be published, by queue.
    pub queues: BTreeMap<String, u64>,
    /// How many would not, by the reason.
    pub skipped: BTreeMap<String, u64>,
    /// Queues to which nothing is published now, and why.
    pub waiting: BTreeMap<String, String>,
}

/// How far a replay is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplayReport {
    /// The replay.
    #[serde(flatten)]
    pub replay: Replay,
    /// Why it waits, if it does.
    pub waiting: Option<String>,
    /// Some of its letters that failed again.
    pub failed_again: Vec<ReplayLetter>,
}

/// Something is to be done with letters.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LetterRequest {
    /// Which letters.
    pub selection: LetterSelection,
    /// Why; not for a release.
    #[serde(default)]
    pub note: String,
}

/// What was done with letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default, ToSchema)]
pub struct ChangedLetters {
    /// How many were changed.
    pub changed: u64,
    /// How many were so before.
    pub unchanged: u64,
    /// Those that were not changed, and why: `missing`, or their state.
    #[schema(value_type = BTreeMap<String, String>)]
    pub refused: BTreeMap<i64, String>,
}

/// A letter was edited.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EditRequest {
    /// The revision that was edited.
    pub revision: i64,
    /// The new body, in Base64.
    pub body_base64: String,
}

/// The desk, once the daemon runs.
#[derive(Clone, Default)]
pub struct DeskHandle(Arc<OnceLock<Desk>>);

impl DeskHandle {
    /// From now on it can be used.
    pub fn open(&self, desk: Desk) {
        // Once in the life of a daemon.
        let _ = self.0.set(desk);
    }

    /// The desk; `None` before the daemon runs.
    pub fn get(&self) -> Option<Desk> {
        self.0.get().cloned()
    }
}

/// What persons can do. Clones share it.
#[derive(Clone)]
pub struct Desk(Arc<Replayer>);

impl Desk {
    /// The desk of the letters that this task replays.
    pub fn new(replayer: Arc<Replayer>) -> Self {
        Desk(replayer)
    }

    /// Says what a replay would do now. The order of a letter is compared with the ledger exactly only when it is about to be
    /// published.
    ///
    /// # Errors
    /// [`DeskError`].
    pub async fn plan(&self, request: &ReplayRequest) -> Result<ReplayPlan, DeskError> {
        self.check(request)?;
        let ledger = &self.0.deps.ledger;
        let selection = self.bounded(request.selection.clone()).await?;
        let up_to = match &selection {
            LetterSelection::Ids(ids) => ids.iter().copied().max().unwrap_or(0),
            LetterSelection::Filter { up_to, .. } => *up_to,
        };
        let mut plan =
            ReplayPlan { up_to, queues: BTreeMap::new(), skipped: BTreeMap::new(), waiting: BTreeMap::new() };
        let consumers = self.0.deps.consumers.borrow().clone();
        let (mut after, mut found) = (0, 0);
        loop {
            const OPEN: &[LetterState] = &[LetterState::Open];
            let page = ledger.replay_candidates(selection.clone(), OPEN, after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            found += page.len();
            for candidate in &page {
                let to = request.options.to.as_deref();
                let queue = target(&consumers, to, candidate.origin_queue.as_deref(), Some(&candidate.consumer));
                let is_named = matches!(selection, LetterSelection::Ids(_));
                let skipped = match (candidate.state, candidate.order_status.as_deref(), &queue) {
                    (LetterState::Open, ..) if candidate.maybe_duplicate && !is_named => Some(MAYBE_DUPLICATE),
                    (LetterState::Open, Some("processed"), _) => Some("order_processed"),
                    (LetterState::Open, Some("cancelled"), _) => Some("order_cancelled"),
                    (LetterState::Open, _, None) => Some(NO_QUEUE),
                    (LetterState::Open, _, Some(_)) => None,
                    (state, ..) => Some(state.as_str()),
                };
                match (skipped, queue) {
                    (Some(code), _) => *plan.skipped.entry(code.to_owned()).or_default() += 1,
                    (None, Some((queue, _))) => *plan.queues.entry(queue.clone()).or_default() += 1,
                    (None, None) => {}
                }
            }
        }
        if let LetterSelection::Ids(ids) = &selection
            && ids.len() > found
        {
            plan.skipped.insert("missing".to_owned(), (ids.len() - found) as u64);
        }
        let closed = |queue: &String| match (self.0.deps.access)(queue) {
            QueueAccess::Closed(waiting) => Some((queue.clone(), waiting.text)),
            QueueAccess::Open | QueueAccess::Trial(_) => None,
        };
        plan.waiting = plan.queues.keys().filter_map(closed).collect();
        Ok(plan)
    }

    /// Starts a replay. It is carried out even if nobody waits for it.
    ///
    /// # Errors
    /// [`DeskError`].
    pub async fn start(&self, request: ReplayRequest, by: String) -> Result<ReplayReport, DeskError> {
        self.check(&request)?;
        let selection = self.bounded(request.selection).await?;
        let new = NewReplay { by, selection, options: request.options, at: Timestamp::now() };
        let DeskAnswer::Begun(BeginAnswer { replay }) = self.change(DeskChange::Begin(Box::new(new))).await? else {
            return Err(DeskError::Conflict(format!(
                "{MAX_ACTIVE_REPLAYS} replays have not ended: wait for one of them, or stop one"
            )));
        };
        self.0.wake();
        self.replay(replay).await
    }

    fn check(&self, request: &ReplayRequest) -> Result<(), DeskError> {
        check_selection(&request.selection)?;
        let ReplayOptions { to, rate, stop_at, canary: _ } = &request.options;
        if !(1..=MAX_RATE).contains(rate) {
            return Err(DeskError::Invalid(format!("rate: must be from 1 to {MAX_RATE} a second, is {rate}")));
        }
        if !(0.0..=1.0).contains(stop_at) {
            return Err(DeskError::Invalid(format!("stop_at: must be a share from 0 to 1, is {stop_at}")));
        }
        let consumers = self.0.deps.consumers.borrow();
        match to {
            Some(to) if !consumers.contains_key(to) => {
                let known: Vec<&str> = consumers.keys().map(String::as_str).collect();
                let known = known.join(", ");
                Err(DeskError::Invalid(format!("to: no consumer has the queue {to:?}; queues: {known}")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The selection without what is stored later.
    async fn bounded(&self, selection: LetterSelection) -> Result<LetterSelection, DeskError> {
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
    /// [`DeskError`].
    pub async fn replay(&self, id: i64) -> Result<ReplayReport, DeskError> {
        let ledger = &self.0.deps.ledger;
        let replay = ledger.replay(id, Timestamp::now()).await?;
        let replay = replay.ok_or_else(|| DeskError::Missing(format!("replay {id}")))?;
        let failed_again = ledger.replay_letters(id, LetterProgress::FailedAgain, None, MAX_NAMED).await?;
        Ok(ReplayReport { waiting: self.0.waits_for(id), replay, failed_again })
    }

    /// The latest replays, the last one first.
    ///
    /// # Errors
    /// [`DeskError`].
    pub async fn replays(&self) -> Result<Vec<Replay>, DeskError> {
        Ok(self.0.deps.ledger.replays(false, MAX_LISTED, Timestamp::now()).await?)
    }

    /// Stops a replay: what is not published is open again. What is published has its outcome still.
    ///
    /// # Errors
    /// [`DeskError`].
    pub async fn stop(&self, id: i64, by: String) -> Result<ReplayReport, DeskError> {
        let at = Timestamp::now();
        self.change(DeskChange::Stop { replay: id, by: Some(by), reason: "requested", detail: None, at }).await?;
        self.0.wake();
        self.replay(id).await
    }

    /// Changes letters, one page after the other.
    ///
    /// # Errors
    /// [`DeskError`]. Some letters may be changed by then.
    pub async fn change_letters(
        &self,
        selection: LetterSelection,
        change: LetterChange,
        by: String,
    ) -> Result<ChangedLetters, DeskError> {
        check_selection(&selection)?;
        let (note, states): (_, &'static [LetterState]) = match &change {
            LetterChange::Hold { note } => (Some(note), &[LetterState::Open]),
            // Those whose replay goes on are left as they are.
            LetterChange::Release => (None, &[LetterState::Held, LetterState::Replaying]),
            LetterChange::Discard { reason } => (Some(reason), &[LetterState::Open, LetterState::Held]),
        };
        if let Some(note) = note
            && !(1..=MAX_NOTE_BYTES).contains(&note.trim().len())
        {
            return Err(DeskError::Invalid(format!("a note or reason of 1 to {MAX_NOTE_BYTES} bytes is needed")));
        }
        let mut changed = ChangedLetters::default();
        match self.bounded(selection).await? {
            LetterSelection::Ids(ids) => {
                for ids in ids.chunks(CHANGED_AT_ONCE) {
                    self.change_some(ids.to_vec(), &change, &by, &mut changed).await?;
                }
            }
            selection @ LetterSelection::Filter { .. } => {
                let mut after = 0;
                loop {
                    let page = self.0.deps.ledger.replay_candidates(selection.clone(), states, after, PAGE).await?;
                    let Some(last) = page.last() else { break };
                    after = last.id;
                    for page in page.chunks(CHANGED_AT_ONCE) {
                        let ids = page.iter().map(|candidate| candidate.id).collect();
                        self.change_some(ids, &change, &by, &mut changed).await?;
                    }
                }
            }
        }
        Ok(changed)
    }

    async fn change_some(
        &self,
        ids: Vec<i64>,
        change: &LetterChange,
        by: &str,
        changed: &mut ChangedLetters,
    ) -> Result<(), DeskError> {
        let (change, by, at) = (change.clone(), by.to_owned(), Timestamp::now());
        let DeskAnswer::Letters(answers) =
            self.change(DeskChange::Letters { ids: ids.clone(), change, by, at }).await?
        else {
            unreachable!("a change of letters has an answer for each")
        };
        for (id, answer) in ids.into_iter().zip(answers) {
            match answer {
                ChangeAnswer::Changed => changed.changed += 1,
                ChangeAnswer::Unchanged => changed.unchanged += 1,
                ChangeAnswer::Missing => drop(changed.refused.insert(id, "missing".to_owned())),
                ChangeAnswer::OtherOrder | ChangeAnswer::Outdated => {
                    drop(changed.refused.insert(id, "edited".to_owned()))
                }
                ChangeAnswer::Refused(state) => drop(changed.refused.insert(id, state.as_str().to_owned())),
            }
        }
        Ok(())
    }

    /// Replaces the body of a letter, if its consumer can read the new one. The former bodies are kept.
    ///
    /// # Errors
    /// [`DeskError`].
    pub async fn edit(&self, id: i64, revision: i64, body: Vec<u8>, by: String) -> Result<(), DeskError> {
        let detail = self.0.deps.ledger.dead_letter(id).await?;
        let detail = detail.ok_or_else(|| DeskError::Missing(format!("dead letter {id}")))?;
        let max_body = self.0.deps.max_body;
        let consumers = self.0.deps.consumers.borrow().clone();
        // It may be large once it is decompressed.
        let reading = spawn_blocking(move || edited(detail, body, &consumers, max_body)).await;
        let edited = match reading {
            Ok(Ok(edited)) => edited,
            Ok(Err(error @ (EditError::TooLarge | EditError::Unreadable | EditError::Format(_)))) => {
                return Err(DeskError::Invalid(chain(&error)));
            }
            Err(died) => return Err(DeskError::Invalid(format!("the body cannot be read: {died}"))),
        };
        let edit = LetterEdit {
            letter: id,
            base: revision,
            body: edited.body,
            order: edited.order,
            identity: edited.identity,
            search: edited.search,
            whole_order: edited.whole,
            by,
            at: Timestamp::now(),
        };
        match self.change(DeskChange::Edit(Box::new(edit))).await? {
            DeskAnswer::Letters(answers) => match answers.first() {
                Some(ChangeAnswer::Changed | ChangeAnswer::Unchanged) => Ok(()),
                Some(ChangeAnswer::Outdated) => {
                    Err(DeskError::Conflict(format!("dead letter {id} was edited meanwhile; edit it again")))
                }
                Some(ChangeAnswer::OtherOrder) => Err(DeskError::Conflict(format!(
                    "the order of dead letter {id} was accepted before it failed, and another content would be refused (id_conflict): \
                     publish the corrected order under another id, and discard the dead letter"
                ))),
                Some(ChangeAnswer::Refused(state)) => {
                    let state = state.as_str();
                    Err(DeskError::Conflict(format!(
                        "dead letter {id} is {state}; only open and held ones can be edited"
                    )))
                }
                Some(ChangeAnswer::Missing) | None => Err(DeskError::Missing(format!("dead letter {id}"))),
            },
            _ => unreachable!("an edit has an answer for its letter"),
        }
    }

    async fn change(&self, change: DeskChange) -> Result<DeskAnswer, DeskError> {
        let takes_room = !matches!(change, DeskChange::Stop { .. });
        if takes_room && self.0.is_short_of_disk() {
            return Err(DeskError::DiskSpace);
        }
        Ok(self.0.deps.ledger.change_desk(change).await?)
    }
}

fn check_selection(selection: &LetterSelection) -> Result<(), DeskError> {
    match selection {
        LetterSelection::Ids(ids) if ids.is_empty() || ids.len() > MAX_SELECTED_IDS => {
            Err(DeskError::Invalid(format!("ids: must be 1 to {MAX_SELECTED_IDS} numbers, are {}", ids.len())))
        }
        LetterSelection::Ids(_) | LetterSelection::Filter { .. } => Ok(()),
    }
}
