//! Carries out the plan of one message's run: records each call before it is made and its end after it, and publishes the events
//! of its answer in between.
//!
//! ```text
//! claim ─► plan ─► attempt recorded ─► call ─► events confirmed ─► result recorded, with the next attempt ─► call ─► … ─► done
//! ```
//! Whatever interrupts it, the next claim of the run continues with the first step that is not done. It never retries a call:
//! its failure is the message's.

mod calls;
mod records;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;

use super::claim::{Claimed, MAX_LEASE_DELAY, claim};
use super::engine_step::{Admission, CallPermit, EngineStep, StepResources};
use super::events::EventPublisher;
use super::plan::{next_step, next_undo};
use super::request::{RunInput, message_json};
use super::run_error::RunError;
use super::settings::StepsSettings;
use crate::gate::Gate;
use crate::ledger::{
    CallOutcome, ClaimPurpose, EndedCall, LedgerWriter, NewOrder, Recorded, RecordedStep, RunState, StepAction,
    StepCallEntry, StepRun, StepStatus,
};
use crate::message::ExchangeNames;
use crate::metrics::StepCounters;
use crate::recovery::{ClaimNote, ClaimedRun, Failure, FailureKind};
use crate::wait_budget::WaitBudget;

/// Calls the steps of one consumer's messages.
pub struct Engine {
    pub(super) steps: Vec<EngineStep>,
}

/// What an engine needs for one message.
#[derive(Clone, Copy)]
pub struct RunAccess<'a> {
    /// Records calls.
    pub ledger: &'a dyn LedgerWriter,
    /// Publishes events of answers.
    pub publisher: &'a dyn EventPublisher,
    /// Counts calls.
    pub counters: &'a StepCounters,
    /// Notes what the message has claimed.
    pub note: &'a ClaimNote,
    /// The names of the exchanges.
    pub names: &'a ExchangeNames,
    /// How long the message may wait for another instance that works on it, and for other calls of its steps.
    pub waits: &'a WaitBudget,
    /// How long the publishing of events may take.
    pub max_hold: Duration,
    /// Whether the consumer of this queue, which has called an order's steps, is not configured any more.
    pub may_take_over: &'a (dyn Fn(&str) -> bool + Send + Sync),
}

/// How a run ended without a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunOutcome {
    /// All steps are done.
    Done,
    /// They had been done before.
    WasDone,
    /// The order is a duplicate or a conflict, and no step was called.
    NotAccepted(Recorded),
}

impl Engine {
    /// Sets up the services of these steps. A command has at most as many children as the consumer has workers.
    pub fn new(consumer: &str, workers: usize, settings: &StepsSettings, resources: &StepResources) -> Self {
        let consumer: Arc<str> = consumer.into();
        let steps = settings.0.iter().map(|step| EngineStep::new(&consumer, workers, step, resources));
        Engine { steps: steps.collect() }
    }

    /// What closes the consumer's intake: a gate for each circuit breaker.
    pub fn gates(&self) -> Vec<Gate> {
        self.steps.iter().filter_map(|step| Some(step.breaker.as_ref()?.gate())).collect()
    }

    /// Calls the steps of a message that are not done, or undoes them if that was decided. `order` is accepted together with
    /// the claim. The future may be dropped at any await, and the run continued by another call.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn run(
        &self,
        input: RunInput<'_>,
        order: Option<Box<NewOrder>>,
        access: RunAccess<'_>,
    ) -> Result<RunOutcome, RunError> {
        let reads_message = self.steps.iter().any(|step| step.settings.when.reads_message());
        let message = if reads_message { message_json(input.text) } else { None };
        let applies = self.applies(&input, message.as_ref());
        // The first call is recorded together with the claim, unless it has to wait for others for long.
        let mut first = match applies.iter().position(|applies| *applies) {
            Some(index) => self.steps[index].early_admission().await.map(|admission| (index, admission)),
            None => None,
        };
        let entry = first.as_ref().map(|(index, _)| self.entry(*index, StepAction::Do, &input, &[]));
        let lease = first.as_ref().map_or(Duration::ZERO, |(index, _)| self.steps[*index].settings.timeout);
        let purpose = |first, takes_over| {
            let RunInput { message, is_new, replayed_at, .. } = input;
            ClaimPurpose::Work { message: message.clone(), is_new, replayed_at, takes_over, first }
        };
        // The run of one that waits for another instance exists, and does not begin with this claim: others may call the step.
        let mut on_wait = || first = None;
        let (ledger, key, order) = (access.ledger, input.key, order.as_deref());
        let mut claimed = claim(ledger, key, purpose(entry, false), order, lease, access.waits, &mut on_wait).await?;
        if let Claimed::OtherQueue(queue) = &claimed
            && (access.may_take_over)(queue)
        {
            claimed = claim(ledger, key, purpose(None, true), order, lease, access.waits, &mut on_wait).await?;
        }
        let (run, leased_at) = match claimed {
            Claimed::Run(run, leased_at) => (*run, leased_at),
            Claimed::NotAccepted(answer) => return Ok(RunOutcome::NotAccepted(answer)),
            Claimed::OtherQueue(_) => return Ok(RunOutcome::NotAccepted(Recorded::InProgress)),
            // Only a claim for a failed message is answered so.
            Claimed::NotConcerned => return Err(RunError::Lost),
        };
        note(&input, &run, access);
        let is_new = run.fence == 1;
        let input_is_order = input.key.scope.is_empty();
        let mut work = RunWork { engine: self, input, access, applies, run };
        match work.run.state {
            RunState::Running => {
                let first =
                    first.filter(|_| is_new).map(|(index, admission)| (index, RecordedCall::Admitted(admission)));
                if first.is_some() && leased_at.elapsed() > MAX_LEASE_DELAY {
                    work.record(None, RunChange { lease: Some(lease), ..RunChange::default() }).await?;
                }
                work.do_steps(first).await.map(|()| RunOutcome::Done)
            }
            // The order is finished by this worker now.
            RunState::Done if input_is_order => {
                work.record(None, work.while_finishing()).await.map(|()| RunOutcome::WasDone)
            }
            RunState::Done => Ok(RunOutcome::WasDone),
            RunState::Undoing => {
                drop(first);
                Err(work.undo_steps().await.err().unwrap_or_else(|| work.ended_before()))
            }
            RunState::Undone | RunState::UndoFailed => Err(work.ended_before()),
        }
    }

    /// Undoes the steps of an order that was cancelled, if any were called. `input` is that of the cancellation, and `input.order`
    /// the order as the ledger has it.
    ///
    /// # Errors
    /// See [`RunError`].
    pub async fn cancel(&self, input: RunInput<'_>, access: RunAccess<'_>) -> Result<(), RunError> {
        let purpose = ClaimPurpose::Cancellation { message: input.message.hash, retries: input.retries };
        let claimed = claim(access.ledger, input.key, purpose, None, Duration::ZERO, access.waits, || {}).await?;
        let Claimed::Run(run, _) = claimed else { return Ok(()) };
        note(&input, &run, access);
        let mut work = RunWork { engine: self, input, access, applies: Vec::new(), run: *run };
        work.undo_steps().await
    }

    /// Whether the condition of each step holds.
    fn applies(&self, input: &RunInput<'_>, message: Option<&Json>) -> Vec<bool> {
        let facts = input.order.map(|order| order.facts);
        self.steps.iter().map(|step| step.settings.when.holds(facts, message)).collect()
    }

    /// What is recorded before a call. Its position is that in the sequence of the last calls, not in the configuration, which a
    /// reload may have changed: steps are undone in the reverse order of their calls.
    fn entry(
        &self,
        index: usize,
        action: StepAction,
        input: &RunInput<'_>,
        recorded: &[RecordedStep],
    ) -> StepCallEntry {
        let step = &self.steps[index];
        let done = recorded.iter().filter(|found| found.action == StepAction::Do);
        let known = done.clone().find(|found| found.step == *step.name).map(|found| found.position);
        let last = done.map(|found| found.position).max();
        let position = match (action, known, last) {
            (StepAction::Undo, Some(known), _) => known,
            (StepAction::Do, Some(known), Some(last)) if known == last => known,
            (StepAction::Do | StepAction::Undo, _, last) => last.map_or(0, |last| last + 1),
        };
        StepCallEntry {
            step: step.settings.name.clone(),
            action,
            position,
            undoable: step.undo.is_some(),
            retries: input.retries,
        }
    }
}

/// If the message fails from now on, its copies state that it has claimed the run.
fn note(input: &RunInput<'_>, run: &StepRun, access: RunAccess<'_>) {
    access.note.set(ClaimedRun { key: input.key.clone(), message: input.message.hash, round: run.round });
}

/// A claimed run, while it is worked on.
struct RunWork<'a> {
    engine: &'a Engine,
    input: RunInput<'a>,
    access: RunAccess<'a>,
    applies: Vec<bool>,
    run: StepRun,
}

/// A call that is recorded and is to be made.
enum RecordedCall {
    /// As soon as others have ended.
    Admitted(Admission),
    /// At once.
    Permitted(CallPermit),
}

/// What one record says besides the call's end.
#[derive(Default)]
struct RunChange {
    next: Option<StepCallEntry>,
    /// The timeout of the next call, or how long the message may still be finished.
    lease: Option<Duration>,
    state: Option<RunState>,
}

impl<'a> RunWork<'a> {
    /// Calls what is not done, in order. `recorded` is the step whose first call is recorded already.
    async fn do_steps(&mut self, mut recorded: Option<(usize, RecordedCall)>) -> Result<(), RunError> {
        let Some(mut index) = self.next() else {
            return self.record(None, self.all_done()).await;
        };
        loop {
            let call = match recorded.take() {
                Some((recorded, call)) if recorded == index => call,
                Some(_) | None => self.record_call(index, StepAction::Do).await?,
            };
            let result = self.call(index, StepAction::Do, call).await?;
            self.set_done(index, StepAction::Do, &result);
            let ended = self.ended(index, StepAction::Do, CallOutcome::Done { result });
            let Some(next) = self.next() else {
                return self.record(Some(ended), self.all_done()).await;
            };
            index = next;
            let step = &self.engine.steps[next];
            let admission = step.admission_now();
            let entry = admission.is_some().then(|| self.entry(next, StepAction::Do));
            let change = RunChange { next: entry, lease: Some(step.settings.timeout), state: None };
            self.record(Some(ended), change).await?;
            recorded = admission.map(|admission| (next, RecordedCall::Admitted(admission)));
        }
    }

    /// Undoes what is not undone, in reverse order.
    async fn undo_steps(&mut self) -> Result<(), RunError> {
        loop {
            let Some(step) = next_undo(&self.run.steps) else {
                let change = RunChange { state: Some(RunState::Undone), ..RunChange::default() };
                return self.record(None, change).await;
            };
            let configured = self.engine.steps.iter().position(|found| *found.name == *step.step);
            let Some(index) = configured.filter(|index| self.engine.steps[*index].undo.is_some()) else {
                let reason = format!("step {:?} has to be undone, but the configuration has no undo for it", step.step);
                return Err(RunError::Failed(Failure::new(FailureKind::Permanent, "undo_not_configured", reason)));
            };
            self.undo(index).await?;
        }
    }

    async fn undo(&mut self, index: usize) -> Result<(), RunError> {
        let call = self.record_call(index, StepAction::Undo).await?;
        let result = self.call(index, StepAction::Undo, call).await?;
        self.set_done(index, StepAction::Undo, &result);
        let ended = self.ended(index, StepAction::Undo, CallOutcome::Done { result });
        let lease = Some(self.engine.steps[index].timeout(StepAction::Undo));
        self.record(Some(ended), RunChange { lease, ..RunChange::default() }).await
    }

    /// The failure of a message whose steps are undone, or cannot be. The failed-order handler replaces it by the original failure,
    /// which the ledger has.
    fn ended_before(&self) -> RunError {
        let original = self.run.failure.as_ref();
        let original = original.map_or_else(String::new, |failure| format!(": {}: {}", failure.code, failure.reason));
        let (code, what) = match self.run.state {
            RunState::UndoFailed => ("undo_failed", "an undo of its steps had failed for good"),
            RunState::Running | RunState::Done | RunState::Undoing | RunState::Undone => {
                ("undone", "its steps were undone")
            }
        };
        RunError::Failed(Failure::new(FailureKind::Permanent, code, format!("{what}{original}")))
    }

    fn next(&self) -> Option<usize> {
        let steps = self.engine.steps.iter().zip(&self.applies);
        next_step(steps.map(|(step, applies)| (&*step.name, *applies)), &self.run.steps)
    }

    /// The run is done. It stays claimed until the message should be finished, so that it is not undone at the same time.
    fn all_done(&self) -> RunChange {
        RunChange { state: Some(RunState::Done), ..self.while_finishing() }
    }

    /// The run stays claimed while the order's own events are published. Only the decision on an earlier failure waits for that.
    fn while_finishing(&self) -> RunChange {
        RunChange { lease: Some(self.access.max_hold), ..RunChange::default() }
    }

    /// Waits until the call may be recorded, and records it. One that has to wait for a service that may be unavailable is recorded
    /// only when it may be made.
    async fn record_call(&mut self, index: usize, action: StepAction) -> Result<RecordedCall, RunError> {
        let step = &self.engine.steps[index];
        let waits = self.access.waits;
        let call = if step.may_be_unavailable() {
            step.permit(waits).await.map(RecordedCall::Permitted)
        } else {
            step.admission(waits).await.map(RecordedCall::Admitted)
        };
        let call = call.ok_or(RunError::WaitedTooLong)?;
        let entry = self.entry(index, action);
        let change = RunChange { next: Some(entry), lease: Some(step.timeout(action)), state: None };
        self.record(None, change).await?;
        Ok(call)
    }

    fn entry(&self, index: usize, action: StepAction) -> StepCallEntry {
        self.engine.entry(index, action, &self.input, &self.run.steps)
    }

    fn ended(&self, index: usize, action: StepAction, outcome: CallOutcome) -> EndedCall {
        EndedCall { step: self.engine.steps[index].settings.name.clone(), action, outcome }
    }

    /// What the ledger has recorded, or is about to.
    fn set_done(&mut self, index: usize, action: StepAction, result: &str) {
        let entry = self.entry(index, action);
        let is_same = |recorded: &RecordedStep| recorded.step == entry.step && recorded.action == action;
        let round = self.run.steps.iter().find(|recorded| is_same(recorded)).map_or(self.run.round, |step| step.round);
        self.run.steps.retain(|recorded| !is_same(recorded));
        self.run.steps.push(RecordedStep {
            step: entry.step,
            action,
            round,
            position: entry.position,
            undoable: entry.undoable,
            status: StepStatus::Done,
            attempts: 1,
            first_retry: entry.retries,
            uncertain: false,
            result: Some(result.to_owned()),
        });
        self.run.steps.sort_by_key(|step| (step.position, step.action));
    }
}
