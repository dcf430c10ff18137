//! Runs: all steps of one message, as the ledger records them, and the claims by which only one instance works on a run.
//!
//! ```text
//! claim ─► granted, with a fencing number and everything recorded ─► record, record, … (each with that number) ─► released
//!       ─► held by another instance until its lease ends
//! ```
//! A record with a number that is not the latest is refused: another instance has claimed the run since. A lease is longer than
//! the call that it covers, and each record renews it.
//!
//! It never calls a step and never decides which one is next.

mod transition;

use std::sync::Arc;

use jiff::Timestamp;

use super::entry::{NewOrder, Recorded};

pub(super) use transition::{ClaimEffect, Erasure, RunOrder, StoredRun, begins_anew, claim, record};

/// SHA-256 of a message: of its body, and of all that decides how the body is read.
pub type MessageHash = [u8; 32];

/// The message for which a run is claimed. A failure is that of the run's own message only if both are the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunMessage {
    /// The queue that it was delivered from.
    pub queue: Arc<str>,
    /// What it is.
    pub hash: MessageHash,
}

/// Identifies a run.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunKey {
    /// Empty for orders, whatever their consumer; else the consumer's name.
    pub scope: String,
    /// The order's id, else the message's identity.
    pub identity: String,
}

/// The exclusive right to work on a run is asked for.
#[derive(Debug, Clone)]
pub struct RunClaim {
    /// The run.
    pub key: RunKey,
    /// What for.
    pub purpose: ClaimPurpose,
    /// Who asks: one process. A claim of the same owner is taken over at once, since a process never works on a run twice at the
    /// same time. Only while an order whose steps are done is being finished, a claim for a failed message waits for it.
    pub owner: Arc<str>,
    /// When it asks.
    pub at: Timestamp,
    /// Until when the run is claimed, unless a record renews or ends it.
    pub until: Timestamp,
    /// The order to accept in the same transaction. The run is claimed only if it is new or unfinished.
    pub order: Option<Box<NewOrder>>,
}

/// What a run is claimed for.
#[derive(Debug, Clone)]
pub enum ClaimPurpose {
    /// To call steps. A run that is not known begins.
    Work {
        /// The message that is processed.
        message: RunMessage,
        /// Whether the message was published anew. If it was dead-lettered before, its run begins anew.
        is_new: bool,
        /// When it was replayed, if it says so. It counts like a new one if it was dead-lettered before that.
        replayed_at: Option<Timestamp>,
        /// Whether the run of an order is also claimed if the consumer of another queue has called its steps, because that queue has
        /// no consumer any more.
        takes_over: bool,
        /// The call to record if the run begins with this claim.
        first: Option<StepCallEntry>,
    },
    /// To decide what becomes of a failed message. Only a run that is known can be claimed.
    Failure {
        /// The message that failed.
        message: RunMessage,
        /// When it failed.
        failed_at: Timestamp,
        /// The round in which it has claimed the run, if that is known. Its failure says nothing about a later round.
        round: Option<u32>,
    },
    /// To undo the steps of an order that the ledger has as cancelled. Only a run that is known can be claimed.
    Cancellation {
        /// The cancellation.
        message: MessageHash,
        /// Its delayed retries so far.
        retries: u32,
    },
}

/// The ledger's answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimAnswer {
    /// The run is claimed.
    Granted(Box<StepRun>),
    /// Another instance works on it.
    ClaimedByAnother {
        /// When its lease ends, unless it renews it.
        until: Timestamp,
    },
    /// Of a claim for a failed message or a cancellation: there is no such run, or it is that of another message, or its message has succeeded.
    NotConcerned,
    /// The order is a duplicate or a conflict, so its run is not claimed. `Conflict` also of a message that is no order: the run is
    /// that of another message with this identity.
    NotAccepted(Recorded),
    /// Of a claim for work on an order: the consumer of another queue has called its steps, and they are not all done. Only that
    /// consumer's configuration says what continues and what undoes them.
    OtherQueue {
        /// That queue.
        queue: Arc<str>,
    },
}

/// A claimed run: everything that is recorded about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRun {
    /// The fencing number for records.
    pub fence: i64,
    /// 1, and one more for each time the run began anew.
    pub round: u32,
    /// Where it is.
    pub state: RunState,
    /// Why it is undone; `None` unless it is.
    pub failure: Option<RunFailure>,
    /// The steps, in the order of their position; of each, the undo after the step itself. Without those of earlier rounds that
    /// begin anew.
    pub steps: Vec<RecordedStep>,
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Its steps are being done.
    Running,
    /// All its steps are done.
    Done,
    /// Its steps are being undone.
    Undoing,
    /// All that was to be undone is.
    Undone,
    /// An undo has failed for good.
    UndoFailed,
}

impl RunState {
    /// Every state.
    pub const ALL: [RunState; 5] =
        [RunState::Running, RunState::Done, RunState::Undoing, RunState::Undone, RunState::UndoFailed];

    /// Its name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            RunState::Running => "running",
            RunState::Done => "done",
            RunState::Undoing => "undoing",
            RunState::Undone => "undone",
            RunState::UndoFailed => "undo_failed",
        }
    }

    /// What a consumer without steps is answered that receives the order of such a run, which it knows already.
    pub(super) fn answer(self) -> Recorded {
        match self {
            RunState::Running => Recorded::InProgress,
            // Only its events are missing.
            RunState::Done => Recorded::Unfinished,
            RunState::Undoing | RunState::Undone | RunState::UndoFailed => Recorded::Undone,
        }
    }

    /// Whether nobody needs the results of its steps any more: neither the steps that follow, nor an undo, nor the person who has
    /// to undo by hand what could not be undone. `order_open`: it is the run of an order that is neither processed nor given up.
    pub fn has_ended(self, order_open: bool) -> bool {
        match self {
            RunState::Running | RunState::Undoing | RunState::UndoFailed => false,
            // The order's events may be refused, and then its steps are undone.
            RunState::Done => !order_open,
            RunState::Undone => true,
        }
    }
}

/// Why a run is undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFailure {
    /// The name of the failure's [`crate::recovery::FailureKind`].
    pub kind: String,
    /// The failure's stable code.
    pub code: String,
    /// The failure's text.
    pub reason: String,
    /// The value of `x-dead-letter-reason`.
    pub dead_letter_reason: String,
    /// Delayed retries before it failed for good.
    pub retries: u32,
    /// When it failed.
    pub failed_at: Timestamp,
    /// When it was decided to undo it.
    pub undo_from: Timestamp,
}

/// What is called: a step, or its undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StepAction {
    /// The step itself.
    Do,
    /// Its undo.
    Undo,
}

impl StepAction {
    /// Its name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            StepAction::Do => "do",
            StepAction::Undo => "undo",
        }
    }
}

/// How far a step, or an undo, is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepStatus {
    /// It was called, and it is not recorded how the call ended.
    Called,
    /// It is done.
    Done,
    /// Its last call failed.
    Failed,
}

impl StepStatus {
    /// Every status.
    pub const ALL: [StepStatus; 3] = [StepStatus::Called, StepStatus::Done, StepStatus::Failed];

    /// Its name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            StepStatus::Called => "called",
            StepStatus::Done => "done",
            StepStatus::Failed => "failed",
        }
    }
}

/// A step, or an undo, that was called at least once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedStep {
    /// The step's name.
    pub step: String,
    /// Whether this is the step or its undo.
    pub action: StepAction,
    /// The round in which it was first called.
    pub round: u32,
    /// The step's place in the sequence in which the run's steps were last called, from 0.
    pub position: u32,
    /// Whether the step had an undo when it was called.
    pub undoable: bool,
    /// How far it is.
    pub status: StepStatus,
    /// Calls so far.
    pub attempts: u32,
    /// The message's delayed retries before the first call.
    pub first_retry: u32,
    /// Whether a call that did not succeed may have had its effect nevertheless.
    pub uncertain: bool,
    /// Its result, JSON, once it is done.
    pub result: Option<String>,
}

impl RecordedStep {
    /// Whether the step may have had its effect.
    pub fn may_have_effect(&self) -> bool {
        self.uncertain || self.status != StepStatus::Failed
    }
}

/// Something to record about a claimed run, in one transaction.
#[derive(Debug, Clone)]
pub struct RunRecord {
    /// The run.
    pub key: RunKey,
    /// The fencing number of the claim.
    pub fence: i64,
    /// When it happened.
    pub at: Timestamp,
    /// Until when the run stays claimed; `None` ends the claim.
    pub until: Option<Timestamp>,
    /// How the last call ended.
    pub ended: Option<EndedCall>,
    /// The call that is made next.
    pub next: Option<StepCallEntry>,
    /// The run's new state.
    pub state: Option<RunState>,
    /// Why it is undone from now on.
    pub failure: Option<RunFailure>,
    /// Whether the message is dead-lettered now. If the run's message comes back after that, it was replayed.
    pub dead_lettered: bool,
}

/// A call that is made once this is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepCallEntry {
    /// The step's name.
    pub step: String,
    /// Whether the step or its undo is called.
    pub action: StepAction,
    /// The step's place in the sequence in which the run's steps were last called, from 0.
    pub position: u32,
    /// Whether the step has an undo.
    pub undoable: bool,
    /// The message's delayed retries so far.
    pub retries: u32,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndedCall {
    /// The step's name.
    pub step: String,
    /// Whether the step or its undo was called.
    pub action: StepAction,
    /// The result or the failure.
    pub outcome: CallOutcome,
}

/// The result or the failure of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallOutcome {
    /// It succeeded.
    Done {
        /// Its result, JSON.
        result: String,
    },
    /// It failed.
    Failed {
        /// The name of the failure's [`crate::recovery::FailureKind`].
        kind: &'static str,
        /// The failure's stable code.
        code: String,
        /// The failure's text.
        reason: String,
        /// Whether it may have had its effect nevertheless.
        uncertain: bool,
    },
}

/// The ledger's answer to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunRecorded {
    /// It is recorded.
    Recorded,
    /// Nothing was recorded: another instance has claimed the run since.
    Stale,
    /// The order was cancelled. Only the end of the last call was recorded: no step may be called. The claim has ended; one that was only
    /// to be renewed ends within seconds, or with the end of the call.
    Cancelled,
}

impl RunClaim {
    /// About how much memory it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let first = match &self.purpose {
            ClaimPurpose::Work { first, .. } => first.as_ref().map_or(0, |first| first.step.len()),
            ClaimPurpose::Failure { .. } | ClaimPurpose::Cancellation { .. } => 0,
        };
        size_of::<Self>() + self.key.bytes() + first + self.order.as_ref().map_or(0, |order| order.bytes())
    }
}

impl RunRecord {
    /// About how much memory it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let ended = self.ended.as_ref().map_or(0, |ended| match &ended.outcome {
            CallOutcome::Done { result } => result.len(),
            CallOutcome::Failed { code, reason, .. } => code.len() + reason.len(),
        });
        let failure = self.failure.as_ref().map_or(0, |failure| failure.code.len() + failure.reason.len());
        size_of::<Self>() + self.key.bytes() + ended + failure
    }
}

impl RunKey {
    fn bytes(&self) -> usize {
        self.scope.len() + self.identity.len()
    }
}
