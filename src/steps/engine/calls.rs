//! Makes a recorded call, publishes the events of its answer, and records its failure.
//!
//! It never retries a call: its failure is the message's.

use jiff::Timestamp;
use tokio::time::timeout;
use tracing::error;

use super::super::engine_step::EngineStep;
use super::super::events;
use super::super::plan::idempotency_key;
use super::super::request::body;
use super::super::run_error::RunError;
use super::super::service::{FailureCause, StepAnswer, StepCall, StepFailure};
use super::{RecordedCall, RunChange, RunWork};
use crate::ledger::{CallOutcome, RunRecord, RunRecorded, StepAction};
use crate::message::PublishError;
use crate::metrics::CallEnd;
use crate::recovery::{Failure, FailureKind};

impl RunWork<'_> {
    /// Makes a recorded call and publishes the events of its answer. Returns its result. A failure is recorded.
    pub(super) async fn call(&self, index: usize, action: StepAction, call: RecordedCall) -> Result<String, RunError> {
        let step = &self.engine.steps[index];
        let (permit, admission) = self.permit(index, action, call).await?;
        let recorded = self.run.steps.iter().find(|found| *found.step == *step.name && found.action == StepAction::Do);
        let round = recorded.map_or(self.run.round, |recorded| recorded.round);
        let key = idempotency_key(self.input.key, &step.name, action, round);
        let guard = self.access.counters.called(&step.name, action);
        let answer = self.call_service(step, action, &key).await;
        permit.ended(answer.as_ref().err());
        drop(admission);
        let result = match answer {
            Ok(answer) => {
                let published = match self.publish_events(step, &key, &answer).await {
                    // If the order was cancelled meanwhile, its undo needs the result. If the claim is lost, this is refused too.
                    Err(RunError::Lost) => {
                        let done = CallOutcome::Done { result: answer.result.get().to_owned() };
                        self.record(Some(self.ended(index, action, done)), RunChange::default()).await?;
                        return Err(RunError::Lost);
                    }
                    published => published?,
                };
                let published = if action == StepAction::Undo { leave_out(&key, published) } else { published };
                published.map(|()| answer.result.get().to_owned())
            }
            Err(failure) => Err(failure),
        };
        match result {
            Ok(result) => {
                guard.ended(CallEnd::Done);
                Ok(result)
            }
            Err(failure) => {
                let is_final = matches!(failure.failure.kind, FailureKind::Permanent | FailureKind::Malformed);
                guard.ended(if is_final { CallEnd::Refused } else { CallEnd::Failed });
                Err(self.failed(index, action, failure).await)
            }
        }
    }

    async fn call_service(&self, step: &EngineStep, action: StepAction, key: &str) -> Result<StepAnswer, StepFailure> {
        let service = match (action, &step.undo) {
            (StepAction::Do, _) | (StepAction::Undo, None) => &step.service,
            (StepAction::Undo, Some((undo, _))) => undo,
        };
        let failure = self.run.failure.as_ref().filter(|_| action == StepAction::Undo);
        let body = body(&self.input, &self.run.steps, failure);
        let limit = step.timeout(action);
        let call = StepCall { idempotency_key: key, body: &body, trace: self.input.trace, timeout: limit };
        timeout(limit, service.call(call)).await.unwrap_or_else(|_| {
            let reason = format!("no answer of {} within {limit:?}", shown(&step.name, action));
            Err(StepFailure::new(Failure::new(FailureKind::TimedOut, "step_timeout", reason), FailureCause::Unanswered))
        })
    }

    /// The inner error is the step's.
    async fn publish_events(
        &self,
        step: &EngineStep,
        key: &str,
        answer: &StepAnswer,
    ) -> Result<Result<(), StepFailure>, RunError> {
        if answer.events.is_empty() {
            return Ok(Ok(()));
        }
        let failure = |code, reason: String| {
            let failure = Failure::new(FailureKind::Permanent, code, reason);
            Ok(Err(StepFailure::new(failure, FailureCause::Unanswered)))
        };
        let not_allowed = answer
            .events
            .iter()
            .find(|event| !step.settings.may_emit(&event.routing_key) || events::is_reserved(&event.routing_key));
        if let Some(event) = not_allowed {
            let reason = format!("step {:?} may not emit {:?}: see its key emits", step.name, event.routing_key);
            return failure("event_not_allowed", reason);
        }
        let events = events::publications(&answer.events, key, &self.input, self.access.names);
        match self.publish_claimed(events).await? {
            Ok(()) => Ok(Ok(())),
            Err(PublishError::Closed) => Err(RunError::PublisherClosed),
            Err(error @ PublishError::Unroutable { .. }) => failure("event_unroutable", crate::chain::chain(&error)),
            Err(error) => failure("cannot_publish", crate::chain::chain(&error)),
        }
    }

    /// Records a failure, which ends the claim, and makes it the message's.
    async fn failed(&self, index: usize, action: StepAction, failed: StepFailure) -> RunError {
        let StepFailure { failure, retry_after, cause } = failed;
        let step = &self.engine.steps[index];
        let outcome = CallOutcome::Failed {
            kind: failure.kind.as_str(),
            code: failure.code.clone(),
            reason: failure.reason.clone(),
            uncertain: cause == FailureCause::Unanswered,
        };
        let at = Timestamp::now();
        let record = RunRecord {
            key: self.input.key.clone(),
            fence: self.run.fence,
            at,
            until: None,
            ended: Some(self.ended(index, action, outcome)),
            next: None,
            state: None,
            failure: None,
            dead_lettered: false,
        };
        match self.access.ledger.record_run(record).await {
            Ok(RunRecorded::Recorded) => {}
            Ok(RunRecorded::Stale | RunRecorded::Cancelled) => return RunError::Lost,
            Err(error) => return error.into(),
        }
        let reason = format!("{}: {}", shown(&step.name, action), failure.reason);
        let retry_after = retry_after.map(|wanted| wanted.min(step.settings.retry_after_max));
        RunError::Failed(Failure::new(failure.kind, failure.code, reason).with_retry_after(retry_after))
    }
}

/// The service has undone its step, so the undo is done, whatever becomes of the events that it asks for: to call it again, or to
/// leave it to a person, would be wrong. The events stay in the recorded result.
fn leave_out(idempotency_key: &str, published: Result<(), StepFailure>) -> Result<(), StepFailure> {
    if let Err(StepFailure { failure: Failure { code, reason, .. }, .. }) = published {
        error!(idempotency_key, code, reason, "cannot publish the events of an undo, which is done; they are left out");
    }
    Ok(())
}

/// A step or its undo, for display.
fn shown(step: &str, action: StepAction) -> String {
    match action {
        StepAction::Do => format!("step {step:?}"),
        StepAction::Undo => format!("the undo of step {step:?}"),
    }
}
