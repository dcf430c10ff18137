//! What a claim and a record change in a stored run. Pure, so that every ledger decides alike.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::{
    ClaimPurpose, MessageHash, RecordedStep, RunClaim, RunFailure, RunKey, RunMessage, RunRecord, RunRecorded,
    RunState, StepAction, StepStatus,
};

/// The code of the failure of a run that is undone because its order was cancelled.
const CANCELLED: &str = "cancelled";

/// No lease is longer: a call takes at most 15 minutes. One that seems to be was written before the clock was set back.
const MAX_LEASE: SignedDuration = SignedDuration::from_mins(20);

/// How long a worker that is stopped may take to record the result of its last call.
const RESULT_TIME: SignedDuration = SignedDuration::from_secs(5);

/// How far the clock may be ahead with which a replay was marked. What is later was recorded before the clock was set back.
const MAX_SKEW: SignedDuration = SignedDuration::from_mins(1);

/// A run as it is stored, without its steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ledger) struct StoredRun {
    pub state: RunState,
    pub round: u32,
    pub fence: i64,
    pub owner: Arc<str>,
    /// `None`: it is not claimed.
    pub leased_until: Option<Timestamp>,
    /// The queue of the message that claimed it last for work: that of the consumer that has its steps.
    pub queue: Arc<str>,
    /// The message that claimed it last.
    pub message: MessageHash,
    pub failure: Option<RunFailure>,
    pub started_at: Timestamp,
    /// When it became done, undone or `undo_failed`.
    pub finished_at: Option<Timestamp>,
    pub dead_lettered_at: Option<Timestamp>,
    /// The last mark of a replay with which it was claimed. A mark counts once: it stays on all copies of the replay.
    pub replayed_at: Option<Timestamp>,
    /// Whether its results and texts are erased, or will be.
    pub erasure: Option<Erasure>,
}

/// Whether the results and texts of a run are erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ledger) enum Erasure {
    /// As soon as the run has ended.
    Requested,
    /// They are. A run that begins anew has new ones.
    Done,
}

impl Erasure {
    /// Every value.
    pub const ALL: [Erasure; 2] = [Erasure::Requested, Erasure::Done];

    /// Its name in the ledger.
    pub fn as_str(self) -> &'static str {
        match self {
            Erasure::Requested => "requested",
            Erasure::Done => "done",
        }
    }
}

/// What a claim does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ledger) enum ClaimEffect {
    /// The run begins: this is stored, and the claim's first call.
    Begin(StoredRun),
    /// The run continues: this is stored.
    Continue(StoredRun),
    /// Granted, and nothing is stored.
    Unchanged,
    /// Refused.
    ClaimedByAnother { until: Timestamp },
    /// Refused: there is no such run, or it has no part in what becomes of a failed message.
    NotConcerned,
    /// Refused: it is the run of another message with the same identity.
    Conflict,
    /// Refused: the consumer of this queue has called the order's steps.
    OtherQueue { queue: Arc<str> },
}

/// How far the order of a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ledger) enum RunOrder {
    /// It is neither processed nor cancelled, or the run is not that of an order.
    Open,
    Processed,
    Cancelled,
}

/// Decides on a claim of a run.
pub(in crate::ledger) fn claim(stored: Option<&StoredRun>, claim: &RunClaim, order: RunOrder) -> ClaimEffect {
    let Some(stored) = stored else {
        return match &claim.purpose {
            ClaimPurpose::Work { message, .. } => ClaimEffect::Begin(begin(claim, message)),
            ClaimPurpose::Failure { .. } | ClaimPurpose::Cancellation { .. } => ClaimEffect::NotConcerned,
        };
    };
    let is_replayed = stored.is_replayed(claim);
    let has_lease = match &claim.purpose {
        // Orders are compared by their content before.
        ClaimPurpose::Work { message, .. }
            if !claim.key.scope.is_empty() && stored.message != message.hash && !is_replayed =>
        {
            return ClaimEffect::Conflict;
        }
        // No call is left to make, so any worker may finish the message.
        ClaimPurpose::Work { .. } if stored.state == RunState::Done => return ClaimEffect::Unchanged,
        ClaimPurpose::Work { .. } => stored.owner != claim.owner,
        ClaimPurpose::Failure { message, round, .. }
            if stored.has_succeeded(&claim.key, order)
                || (&stored.queue, stored.message) != (&message.queue, message.hash)
                || round.is_some_and(|round| round < stored.round) =>
        {
            return ClaimEffect::NotConcerned;
        }
        // A cancellation that failed may not have reached the ledger.
        ClaimPurpose::Cancellation { .. } if order != RunOrder::Cancelled => return ClaimEffect::NotConcerned,
        // A worker may be publishing the order's events, which are revoked then; but it calls nothing.
        ClaimPurpose::Cancellation { .. } if stored.state == RunState::Done => false,
        ClaimPurpose::Cancellation { .. } => stored.owner != claim.owner,
        ClaimPurpose::Failure { failed_at, .. } => stored.owner != claim.owner || stored.may_be_finishing(*failed_at),
    };
    let longest = claim.at.saturating_add(MAX_LEASE).unwrap_or(Timestamp::MAX);
    match stored.leased_until {
        Some(until) if until > claim.at && until <= longest && has_lease => {
            return ClaimEffect::ClaimedByAnother { until };
        }
        Some(_) | None => {}
    }
    if stored.belongs_to_other_queue(claim, is_replayed) {
        return ClaimEffect::OtherQueue { queue: Arc::clone(&stored.queue) };
    }
    let mut run = StoredRun {
        fence: stored.fence + 1,
        owner: Arc::clone(&claim.owner),
        leased_until: Some(claim.until),
        ..stored.clone()
    };
    match &claim.purpose {
        ClaimPurpose::Cancellation { message, retries } => {
            run.message = *message;
            cancel(&mut run, claim.at, *retries);
        }
        ClaimPurpose::Work { message, .. } => {
            (run.queue, run.message) = (Arc::clone(&message.queue), message.hash);
            run.replayed_at = run.replayed_at.max(replay_mark(claim, stored.replayed_at));
            if is_replayed {
                replay(&mut run, claim.at);
            }
        }
        ClaimPurpose::Failure { .. } => {}
    }
    ClaimEffect::Continue(run)
}

impl StoredRun {
    /// Whether its message has succeeded. An order has only once it is processed.
    fn has_succeeded(&self, key: &RunKey, order: RunOrder) -> bool {
        order == RunOrder::Processed || !key.scope.is_empty() && self.state == RunState::Done
    }

    /// Whether the consumer of another queue than the one that claims it to work on an order must continue or undo its steps: another
    /// consumer may have steps of the same names. Once all is undone and dead-lettered, any consumer may begin anew.
    fn belongs_to_other_queue(&self, claim: &RunClaim, is_replayed: bool) -> bool {
        let ClaimPurpose::Work { message, takes_over: false, .. } = &claim.purpose else { return false };
        let begins_anew = is_replayed && self.state == RunState::Undone;
        claim.key.scope.is_empty() && self.queue != message.queue && !begins_anew
    }

    /// Whether the message that claims it was dead-lettered, and has come back since. A replay is marked in whole seconds.
    fn is_replayed(&self, claim: &RunClaim) -> bool {
        let ClaimPurpose::Work { is_new, .. } = claim.purpose else { return false };
        let mark =
            replay_mark(claim, self.replayed_at).filter(|at| self.replayed_at.is_none_or(|earlier| *at > earlier));
        self.dead_lettered_at.is_some_and(|dead_lettered_at| {
            let is_passed = |mark: Timestamp| dead_lettered_at.as_second() <= mark.as_second();
            is_new || mark.is_some_and(|mark| is_passed(mark) || dead_lettered_at > latest_now(claim))
        })
    }

    /// Whether a worker of the same process may be finishing the order: publishing its events. A failure after the steps were done
    /// is that worker's own.
    fn may_be_finishing(&self, failed_at: Timestamp) -> bool {
        self.state == RunState::Done && self.finished_at.is_none_or(|done_at| failed_at <= done_at)
    }
}

/// When the message that claims a run was replayed, if it says so and that time may be true. Each mark of a message is later than the
/// `earlier` one, which may have been made before the clock was set back.
fn replay_mark(claim: &RunClaim, earlier: Option<Timestamp>) -> Option<Timestamp> {
    let ClaimPurpose::Work { replayed_at, .. } = claim.purpose else { return None };
    let latest = latest_now(claim);
    replayed_at.filter(|at| *at <= latest || earlier.is_some_and(|earlier| earlier > latest))
}

/// The latest time that another clock may show now.
fn latest_now(claim: &RunClaim) -> Timestamp {
    claim.at.saturating_add(MAX_SKEW).unwrap_or(Timestamp::MAX)
}

fn begin(claim: &RunClaim, message: &RunMessage) -> StoredRun {
    StoredRun {
        state: RunState::Running,
        round: 1,
        fence: 1,
        owner: Arc::clone(&claim.owner),
        leased_until: Some(claim.until),
        queue: Arc::clone(&message.queue),
        message: message.hash,
        failure: None,
        started_at: claim.at,
        finished_at: None,
        dead_lettered_at: None,
        replayed_at: replay_mark(claim, None),
        erasure: None,
    }
}

/// The message was dead-lettered and has been replayed. What was undone begins anew; an undo that failed is continued.
fn replay(run: &mut StoredRun, at: Timestamp) {
    (run.dead_lettered_at, run.finished_at) = (None, None);
    run.erasure = run.erasure.filter(|erasure| *erasure == Erasure::Requested);
    match run.state {
        RunState::Undone => {
            (run.state, run.failure) = (RunState::Running, None);
            run.round += 1;
        }
        RunState::UndoFailed => continue_undo(run, at),
        RunState::Running | RunState::Done | RunState::Undoing => {}
    }
}

/// Continues an undo that had failed for good. Its retries begin anew.
fn continue_undo(run: &mut StoredRun, at: Timestamp) {
    run.state = RunState::Undoing;
    if let Some(failure) = &mut run.failure {
        failure.undo_from = at;
    }
}

/// The order was cancelled: its steps are undone. An undo that failed is continued.
fn cancel(run: &mut StoredRun, at: Timestamp, retries: u32) {
    match run.state {
        RunState::Running | RunState::Done => {
            run.failure = Some(RunFailure {
                kind: "permanent".to_owned(),
                code: CANCELLED.to_owned(),
                reason: "the order was cancelled".to_owned(),
                dead_letter_reason: "permanent".to_owned(),
                retries,
                failed_at: at,
                undo_from: at,
            });
        }
        RunState::UndoFailed => continue_undo(run, at),
        RunState::Undoing | RunState::Undone => return,
    }
    // What its undos say is erased too, once they have ended.
    run.erasure = run.erasure.map(|_| Erasure::Requested);
    (run.state, run.finished_at, run.dead_lettered_at) = (RunState::Undoing, None, None);
}

/// Whether a step begins anew when a run begins its next round: it was undone, or it never had an effect. Other steps stay as
/// they are, since calling them with another idempotency key could repeat their effect.
pub(in crate::ledger) fn begins_anew(step: &str, steps: &[RecordedStep]) -> bool {
    let find = |action| steps.iter().find(|recorded| recorded.step == step && recorded.action == action);
    let is_undone = find(StepAction::Undo).is_some_and(|undo| undo.status == StepStatus::Done);
    is_undone || find(StepAction::Do).is_none_or(|step| !step.may_have_effect())
}

/// Applies a record to a stored run, unless it is stale. If the order was cancelled, a worker that calls its steps is stopped: only
/// the end of its last call is recorded.
pub(in crate::ledger) fn record(stored: &mut StoredRun, record: &RunRecord, order: RunOrder) -> RunRecorded {
    if stored.fence != record.fence {
        return RunRecorded::Stale;
    }
    let calls_steps = matches!(stored.state, RunState::Running | RunState::Done)
        && matches!(record.state, None | Some(RunState::Done))
        && record.failure.is_none();
    if order == RunOrder::Cancelled && calls_steps {
        // Of a claim that is only renewed, the result of a call may still have to be recorded: its undo needs it.
        let is_renewal = record.ended.is_none() && record.next.is_none() && record.state.is_none();
        let latest = record.at.saturating_add(RESULT_TIME).unwrap_or(Timestamp::MAX);
        stored.leased_until = record.until.filter(|_| is_renewal).map(|until| until.min(latest));
        return RunRecorded::Cancelled;
    }
    stored.leased_until = record.until;
    if let Some(state) = record.state {
        stored.state = state;
        stored.finished_at = match state {
            RunState::Running | RunState::Undoing => None,
            RunState::Done | RunState::Undone | RunState::UndoFailed => Some(record.at),
        };
    }
    if let Some(failure) = &record.failure {
        stored.failure = Some(failure.clone());
    }
    // A cancelled order is not dead-lettered.
    if record.dead_lettered && order != RunOrder::Cancelled {
        stored.dead_lettered_at = Some(record.at);
    }
    RunRecorded::Recorded
}
