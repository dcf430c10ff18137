//! The runs of the ledger in memory, for tests.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::entry::{OtherOrder, Recorded};
use super::erase::ERASED;
use super::step_runs::{
    self, CallOutcome, ClaimAnswer, ClaimEffect, ClaimPurpose, Erasure, RecordedStep, RunClaim, RunFailure, RunKey,
    RunOrder, RunRecord, RunRecorded, RunState, StepAction, StepCallEntry, StepRun, StepStatus, StoredRun,
};
use super::trace::{TraceEvent, TraceStep, TracedMessage};

/// All runs.
#[derive(Debug, Default)]
pub(super) struct MemoryRuns(BTreeMap<RunKey, MemoryRun>);

#[derive(Debug)]
struct MemoryRun {
    stored: StoredRun,
    /// Of the current round.
    steps: Vec<RecordedStep>,
    /// Of each step and action: the last call, its end, and the code and text of the last failure.
    calls: BTreeMap<(String, StepAction), MemoryCall>,
}

#[derive(Debug)]
struct MemoryCall {
    called_at: Timestamp,
    ended_at: Option<Timestamp>,
    failure: Option<(String, String)>,
}

impl MemoryRuns {
    pub(super) fn claim(&mut self, claim: &RunClaim, order: RunOrder) -> ClaimAnswer {
        let effect = step_runs::claim(self.0.get(&claim.key).map(|run| &run.stored), claim, order);
        match effect {
            ClaimEffect::ClaimedByAnother { until } => return ClaimAnswer::ClaimedByAnother { until },
            ClaimEffect::NotConcerned => return ClaimAnswer::NotConcerned,
            ClaimEffect::Conflict => return ClaimAnswer::NotAccepted(Recorded::Conflict(OtherOrder::InProgress)),
            ClaimEffect::OtherQueue { queue } => return ClaimAnswer::OtherQueue { queue },
            ClaimEffect::Unchanged => {}
            ClaimEffect::Begin(stored) => {
                let mut run = MemoryRun { stored, steps: Vec::new(), calls: BTreeMap::new() };
                if let ClaimPurpose::Work { first: Some(first), .. } = &claim.purpose {
                    run.call(first, claim.at);
                }
                self.0.insert(claim.key.clone(), run);
            }
            ClaimEffect::Continue(stored) => {
                let run = self.0.get_mut(&claim.key).expect("it continues");
                if run.stored.round < stored.round {
                    let steps = run.steps.clone();
                    run.steps.retain(|recorded| !step_runs::begins_anew(&recorded.step, &steps));
                }
                run.stored = stored;
            }
        }
        let MemoryRun { stored, steps, .. } = &self.0[&claim.key];
        ClaimAnswer::Granted(Box::new(StepRun {
            fence: stored.fence,
            round: stored.round,
            state: stored.state,
            failure: stored.failure.clone(),
            steps: steps.clone(),
        }))
    }

    pub(super) fn record(&mut self, record: &RunRecord, order: RunOrder) -> RunRecorded {
        let Some(run) = self.0.get_mut(&record.key) else { return RunRecorded::Stale };
        let recorded = step_runs::record(&mut run.stored, record, order);
        if recorded == RunRecorded::Stale {
            return recorded;
        }
        if let Some(ended) = &record.ended {
            if let Some(call) = run.calls.get_mut(&(ended.step.clone(), ended.action)) {
                call.ended_at = Some(record.at);
                call.failure = match &ended.outcome {
                    CallOutcome::Done { .. } => None,
                    CallOutcome::Failed { code, reason, .. } => Some((code.clone(), reason.clone())),
                };
            }
            for step in run.steps.iter_mut().filter(|step| (&step.step, step.action) == (&ended.step, ended.action)) {
                match &ended.outcome {
                    CallOutcome::Done { result } => {
                        (step.status, step.result) = (StepStatus::Done, Some(result.clone()));
                    }
                    CallOutcome::Failed { uncertain, .. } => {
                        (step.status, step.uncertain) = (StepStatus::Failed, step.uncertain || *uncertain);
                    }
                }
            }
        }
        if recorded == RunRecorded::Recorded {
            record.next.iter().for_each(|next| run.call(next, record.at));
        }
        recorded
    }

    /// The state of an order's run.
    pub(super) fn state(&self, order: &str) -> Option<RunState> {
        let key = RunKey { scope: String::new(), identity: order.to_owned() };
        self.0.get(&key).map(|run| run.stored.state)
    }

    /// Whether the message was dead-lettered and its run has not begun anew since.
    pub(super) fn is_dead_lettered(&self, key: &RunKey) -> bool {
        self.0.get(key).is_some_and(|run| run.stored.dead_lettered_at.is_some())
    }

    /// The queue of the consumer that has called an order's steps.
    pub(super) fn queue(&self, order: &str) -> Option<String> {
        let key = RunKey { scope: String::new(), identity: order.to_owned() };
        self.0.get(&key).map(|run| run.stored.queue.to_string())
    }

    /// Why a message's steps are undone, and the queue of the consumer that has called them.
    pub(super) fn failure(&self, key: &RunKey) -> Option<(&RunFailure, &str)> {
        let stored = &self.0.get(key)?.stored;
        Some((stored.failure.as_ref()?, &*stored.queue))
    }

    /// Whether an order's steps are being undone or were.
    pub(super) fn is_undone(&self, order: &str) -> bool {
        matches!(self.state(order), Some(RunState::Undoing | RunState::Undone | RunState::UndoFailed))
    }

    /// The calls for an order's steps.
    pub(super) fn trace(&self, order: &str) -> Vec<TraceStep> {
        let key = RunKey { scope: String::new(), identity: order.to_owned() };
        let Some(run) = self.0.get(&key) else { return Vec::new() };
        let event = |step: &RecordedStep| {
            let call = &run.calls[&(step.step.clone(), step.action)];
            let event = TraceEvent::StepCalled {
                name: step.step.clone(),
                action: step.action.as_str().to_owned(),
                round: step.round.into(),
                status: step.status.as_str().to_owned(),
                attempts: step.attempts.into(),
                duration_ms: call.ended_at.map(|at| at.as_millisecond() - call.called_at.as_millisecond()),
                result: step.result.as_deref().and_then(|result| serde_json::from_str(result).ok()),
                code: call.failure.as_ref().map(|(code, _)| code.clone()),
                reason: call.failure.as_ref().map(|(_, reason)| reason.clone()),
            };
            TraceStep { at: call.ended_at.unwrap_or(call.called_at), message: TracedMessage::Order, event }
        };
        run.steps.iter().map(event).collect()
    }

    /// Removes what retention removes, and erases what the steps of old dead letters have said. Returns the numbers of runs.
    /// `has_order`: whether the run's order has a row.
    pub(super) fn prune(&mut self, before: Timestamp, has_order: impl Fn(&RunKey) -> bool) -> (usize, usize) {
        let (count, mut erased) = (self.0.len(), 0);
        self.0.retain(|key, run| {
            let StoredRun { state, finished_at, dead_lettered_at, erasure, .. } = &run.stored;
            let is_old = finished_at.is_some_and(|finished_at| dead_lettered_at.unwrap_or(finished_at) < before);
            let is_dead_letter = dead_lettered_at.is_some();
            if is_old && is_dead_letter && *state == RunState::Undone && *erasure != Some(Erasure::Done) {
                erased += 1;
                run.erase();
            }
            !is_old || is_dead_letter || has_order(key)
        });
        (count - self.0.len(), erased)
    }
}

impl MemoryRun {
    fn erase(&mut self) {
        self.stored.erasure = Some(Erasure::Done);
        self.stored.failure.iter_mut().for_each(|failure| failure.reason = ERASED.to_owned());
        self.steps
            .iter_mut()
            .filter_map(|step| step.result.as_mut())
            .for_each(|result| *result = format!("\"{ERASED}\""));
        self.calls
            .values_mut()
            .filter_map(|call| call.failure.as_mut())
            .for_each(|(_, reason)| *reason = ERASED.to_owned());
    }

    fn call(&mut self, call: &StepCallEntry, at: Timestamp) {
        let key = (call.step.clone(), call.action);
        let failure = self.calls.remove(&key).and_then(|call| call.failure);
        self.calls.insert(key, MemoryCall { called_at: at, ended_at: None, failure });
        let found = self.steps.iter_mut().find(|step| (&step.step, step.action) == (&call.step, call.action));
        if let Some(step) = found {
            step.uncertain |= step.status == StepStatus::Called;
            (step.status, step.attempts) = (StepStatus::Called, step.attempts + 1);
            step.position = call.position;
            step.undoable |= call.undoable;
            return self.sort();
        }
        self.steps.push(RecordedStep {
            step: call.step.clone(),
            action: call.action,
            round: self.stored.round,
            position: call.position,
            undoable: call.undoable,
            status: StepStatus::Called,
            attempts: 1,
            first_retry: call.retries,
            uncertain: false,
            result: None,
        });
        self.sort();
    }

    fn sort(&mut self) {
        let order = |step: &RecordedStep| (step.position, step.step.clone(), step.action == StepAction::Undo);
        self.steps.sort_by_key(order);
    }
}
