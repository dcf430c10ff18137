//! What becomes of a failed message whose steps were called: they are undone before it is dead-lettered.
//!
//! ```text
//! failed for good ─► run: undoing ─► back to its queue, whose consumer undoes the steps ─► run: undone ─► dead letter
//!                                      an undo failed ─► retried ─► failed for good ─► run: undo_failed ─► dead letter
//! ```
//! It only decides and records; the handler builds the publications.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::{FailedMessage, FailedSubject};
use crate::handlers::claim::Claims;
use crate::handlers::step_run::{claim_in_process, handler_error, message_hash, message_run, order_run, services};
use crate::ledger::{
    ClaimPurpose, LedgerWriter, RunFailure, RunKey, RunMessage, RunRecord, RunRecorded, RunState, StepAction, StepRun,
};
use crate::message::ExchangeNames;
use crate::pipeline::{HandlerError, HandlerInput, Interruption};
use crate::recovery::{Action, DeadLetterReason, DecisionPoint, Failure, FailureKind, History, RetryPolicy, decide};
use crate::steps::{self, ClaimAttempt, Claimed, left_to_undo};

/// What happens to a failed message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// As `recovery` has decided.
    Act(Action),
    /// It returns to its queue, so that its steps are undone.
    Undo,
    /// It is dead-lettered for another failure than its last one.
    DeadLetter { reason: DeadLetterReason, failure: Failure, retries: u32, failed_at: Timestamp },
}

/// Whether the ledger has to be asked for a run: it is decided to dead-letter the message, or its steps are being undone. Whatever
/// the configuration says now: its steps may have been removed since they were called. A message that nothing proves to have failed
/// changes no run, and one that was not read as a whole only the run that it states.
pub(super) fn concerns_steps(failed: &FailedMessage<'_>, action: Action) -> bool {
    let is_proven = failed.provenance.is_copy && failed.history.origin.is_some();
    let is_known = failed.claimed.is_some() || failed.delivery.message.missing_bytes == 0;
    is_proven && is_known && (failed.history.is_undo || matches!(action, Action::DeadLetter(_)))
}

/// Whether the message returns to its queue once before it is dead-lettered and its steps are undone. The broker has dead-lettered
/// a message that orderd had not published, so only a header says so, and on RabbitMQ 3.10 each producer that may use the routing keys
/// of failures can send that header. What returns is orderd's own copy: if that fails too, or the broker dead-letters it, it is proven.
pub(super) fn needs_proof(failed: &FailedMessage<'_>, action: Action) -> bool {
    let has_steps = failed.consumer.as_ref().is_some_and(|consumer| consumer.has_steps);
    let returns = has_steps && failed.can_copy && failed.history.origin.is_some();
    returns && !failed.provenance.is_copy && matches!(action, Action::DeadLetter(_))
}

/// The keys that the message's run may have. Without a consumer, its id may be of any format: the ledger compares the message too.
fn run_keys(failed: &FailedMessage<'_>, order_ids: impl FnOnce() -> Vec<String>) -> Vec<RunKey> {
    if let Some(claimed) = &failed.claimed {
        return vec![claimed.key.clone()];
    }
    if let FailedSubject::Order { id, .. } | FailedSubject::Cancellation(id) = &failed.subject {
        return vec![order_run(id.as_str())];
    }
    match &failed.consumer {
        Some(consumer) if consumer.format.is_some() => vec![order_run(&failed.identity)],
        Some(consumer) => vec![message_run(&consumer.name, failed.identity.clone())],
        None => {
            let consumer = failed.delivery.routing_key.strip_prefix(ExchangeNames::FAILED_KEY);
            let consumer =
                consumer.map(|key| message_run(&key.trim_start_matches('.').into(), failed.identity.clone()));
            order_ids().iter().map(|id| order_run(id)).chain(consumer).collect()
        }
    }
}

/// Decides with what is recorded about the message's steps, and records the decision.
pub(super) async fn decide_with_run(
    claims: &Claims,
    input: HandlerInput<'_>,
    failed: &FailedMessage<'_>,
    action: Action,
    order_ids: impl FnOnce() -> Vec<String>,
) -> Result<Decision, HandlerError> {
    for key in run_keys(failed, order_ids) {
        if let Some(decision) = decide_with(claims, input, failed, action, key).await? {
            return Ok(decision);
        }
    }
    Ok(Decision::Act(action))
}

/// What one attempt to decide has come to.
enum DecisionAttempt {
    /// `None`: there is no such run, or it has no part in the decision.
    Decided(Option<Decision>),
    /// Another instance works on the run. It is to be tried again after this time.
    Wait(Duration),
}

/// `None`: there is no such run, or it has no part in the decision.
async fn decide_with(
    claims: &Claims,
    input: HandlerInput<'_>,
    failed: &FailedMessage<'_>,
    action: Action,
    key: RunKey,
) -> Result<Option<Decision>, HandlerError> {
    let services = services(input)?;
    let _suspended = input.ledger.suspend_deadline();
    loop {
        let claim = claim_in_process(claims, &key, services).await?;
        match try_to_decide(services.ledger(), failed, action, &key).await? {
            DecisionAttempt::Decided(decision) => return Ok(decision),
            DecisionAttempt::Wait(wait) => {
                // A killed process may have been finishing the order: its lease ends late, or once a worker of this process has
                // finished the order, which needs the claim.
                drop(claim);
                let waited = services.waits().wait_for(sleep(wait)).await;
                waited.ok_or(HandlerError::Interrupted(Interruption::TakenOver))?;
            }
        }
    }
}

async fn try_to_decide(
    ledger: &dyn LedgerWriter,
    failed: &FailedMessage<'_>,
    action: Action,
    key: &RunKey,
) -> Result<DecisionAttempt, HandlerError> {
    // What cannot return to its queue cannot be undone.
    let consumer = failed.consumer.as_ref().filter(|consumer| consumer.has_steps && failed.can_copy);
    let policy = consumer.map(|consumer| &consumer.policy);
    for purpose in claim_purposes(failed, action) {
        let attempt = steps::try_claim(ledger, key, &purpose, None, Duration::ZERO).await.map_err(handler_error)?;
        let run = match attempt {
            ClaimAttempt::Wait(wait) => return Ok(DecisionAttempt::Wait(wait)),
            ClaimAttempt::Answered(Claimed::Run(run, _)) => run,
            ClaimAttempt::Answered(Claimed::NotConcerned | Claimed::NotAccepted(_) | Claimed::OtherQueue(_)) => {
                continue;
            }
        };
        let verdict = judge(&run, &failed.history, action, policy, failed.now);
        let decision = match (verdict, &failed.subject) {
            // What has failed is the announcement of the cancellation.
            (Verdict::Undone, FailedSubject::Cancellation(_)) => Decision::Act(action),
            _ => verdict.decision(&run, &failed.history, action),
        };
        let record = verdict.record(key, &run, failed, action);
        return match ledger.record_run(record).await? {
            RunRecorded::Recorded | RunRecorded::Cancelled => Ok(DecisionAttempt::Decided(Some(decision))),
            RunRecorded::Stale => Err(HandlerError::Interrupted(Interruption::TakenOver)),
        };
    }
    Ok(DecisionAttempt::Decided(None))
}

/// What the run is claimed for: each is tried until one concerns the run.
fn claim_purposes(failed: &FailedMessage<'_>, action: Action) -> impl Iterator<Item = ClaimPurpose> {
    let FailedMessage { delivery, history, claimed, .. } = failed;
    let hash = claimed.as_ref().map_or_else(|| message_hash(&delivery.message), |claimed| claimed.message);
    let queue = history.origin.as_ref().map(|origin| origin.queue.as_str()).unwrap_or_default();
    let failure = ClaimPurpose::Failure {
        message: RunMessage { queue: queue.into(), hash },
        // Without a header that says when it failed, it is the present time, and any copy may have failed earlier.
        failed_at: Some(failed.history.failed_at).filter(|at| *at < failed.now).unwrap_or(Timestamp::MIN),
        round: claimed.as_ref().map(|claimed| claimed.round),
    };
    // The order may be cancelled, and the run still be that of the order: the cancellation failed before it could claim it.
    let is_cancellation = matches!(failed.subject, FailedSubject::Cancellation(_));
    let ends = is_cancellation && matches!(action, Action::DeadLetter(_));
    let cancellation = ends.then_some(ClaimPurpose::Cancellation { message: hash, retries: history.retries });
    [failure].into_iter().chain(cancellation)
}

/// What the run says about the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Nothing: its steps have no part in the decision.
    AsDecided,
    /// Its steps are undone first.
    BeginUndo,
    /// It is dead-lettered, and there is nothing to undo.
    NothingToUndo,
    /// It was decided before that its steps are undone.
    ContinueUndo,
    /// The undo that failed is retried.
    RetryUndo(Action),
    /// The undo has failed for good.
    GiveUp,
    /// Its steps are undone, so it is dead-lettered.
    Undone,
}

/// `policy`: of the consumer's steps; without it, nothing can be undone. Pure.
fn judge(run: &StepRun, history: &History, action: Action, policy: Option<&RetryPolicy>, now: Timestamp) -> Verdict {
    match run.state {
        RunState::Running | RunState::Done => match action {
            Action::DeadLetter(_) if left_to_undo(&run.steps).next().is_none() => Verdict::NothingToUndo,
            Action::DeadLetter(_) if policy.is_none() => Verdict::GiveUp,
            Action::DeadLetter(_) => Verdict::BeginUndo,
            Action::RetryNow | Action::Forward | Action::KeepRetrying | Action::RetryAfter(_) => Verdict::AsDecided,
        },
        // The daemon ended before that was recorded.
        RunState::Undoing if left_to_undo(&run.steps).next().is_none() => Verdict::Undone,
        RunState::Undoing if policy.is_none() => Verdict::GiveUp,
        RunState::Undoing if !history.is_undo => Verdict::ContinueUndo,
        RunState::Undoing => {
            let since_undo = undo_history(run, history);
            match decide(policy, &history.failure, DecisionPoint::FailedOrderQueue(&since_undo), now) {
                retry @ Action::RetryAfter(_) => Verdict::RetryUndo(retry),
                Action::DeadLetter(_) | Action::RetryNow | Action::Forward | Action::KeepRetrying => Verdict::GiveUp,
            }
        }
        RunState::Undone => Verdict::Undone,
        RunState::UndoFailed => Verdict::GiveUp,
    }
}

/// The history of the present undo: each has all the consumer's retries.
fn undo_history(run: &StepRun, history: &History) -> History {
    let present = left_to_undo(&run.steps).next().and_then(|step| {
        run.steps.iter().find(|recorded| recorded.step == step.step && recorded.action == StepAction::Undo)
    });
    let before = present.map_or(history.retries, |undo| undo.first_retry);
    let first_failed_at = run.failure.as_ref().map_or(history.first_failed_at, |failure| failure.undo_from);
    History { retries: history.retries.saturating_sub(before), first_failed_at, ..history.clone() }
}

impl Verdict {
    /// What is recorded; it also ends the claim.
    fn record(self, key: &RunKey, run: &StepRun, failed: &FailedMessage<'_>, action: Action) -> RunRecord {
        let reason = match action {
            Action::DeadLetter(reason) => reason,
            Action::RetryNow | Action::Forward | Action::KeepRetrying | Action::RetryAfter(_) => {
                DeadLetterReason::Permanent
            }
        };
        let failure = || Some(run_failure(&failed.history, reason, failed.now));
        let (state, failure, dead_lettered) = match self {
            Verdict::AsDecided | Verdict::ContinueUndo | Verdict::RetryUndo(_) => (None, None, false),
            Verdict::BeginUndo => (Some(RunState::Undoing), failure(), false),
            Verdict::NothingToUndo => (Some(RunState::Undone), failure(), true),
            Verdict::GiveUp => (Some(RunState::UndoFailed), failure().filter(|_| run.failure.is_none()), true),
            Verdict::Undone => (Some(RunState::Undone).filter(|_| run.state == RunState::Undoing), None, true),
        };
        RunRecord {
            key: key.clone(),
            fence: run.fence,
            at: failed.now,
            until: None,
            ended: None,
            next: None,
            state,
            failure,
            dead_lettered,
        }
    }

    fn decision(self, run: &StepRun, history: &History, action: Action) -> Decision {
        match (self, &run.failure) {
            (Verdict::AsDecided | Verdict::NothingToUndo, _) => Decision::Act(action),
            (Verdict::BeginUndo | Verdict::ContinueUndo, _) => Decision::Undo,
            (Verdict::RetryUndo(retry), _) => Decision::Act(retry),
            (Verdict::GiveUp, original) => Decision::DeadLetter {
                reason: DeadLetterReason::UndoFailed,
                failure: undo_failure(run, history, original.as_ref()),
                retries: original.as_ref().map_or(history.retries, |original| original.retries),
                failed_at: history.failed_at,
            },
            // Before it is undone, the failure is recorded.
            (Verdict::Undone, None) => Decision::Act(action),
            (Verdict::Undone, Some(original)) => Decision::DeadLetter {
                reason: DeadLetterReason::parse(&original.dead_letter_reason).unwrap_or(DeadLetterReason::Permanent),
                failure: original_failure(original),
                retries: original.retries,
                failed_at: original.failed_at,
            },
        }
    }
}

fn run_failure(history: &History, reason: DeadLetterReason, now: Timestamp) -> RunFailure {
    let Failure { kind, code, reason: text, .. } = &history.failure;
    RunFailure {
        kind: kind.as_str().to_owned(),
        code: code.clone(),
        reason: text.clone(),
        dead_letter_reason: reason.as_str().to_owned(),
        retries: history.retries,
        failed_at: history.failed_at,
        undo_from: now,
    }
}

fn original_failure(original: &RunFailure) -> Failure {
    let kind = FailureKind::parse(&original.kind).unwrap_or(FailureKind::Permanent);
    Failure::new(kind, original.code.clone(), original.reason.clone())
}

/// What is left to do comes first, because a long reason is cut.
fn undo_failure(run: &StepRun, history: &History, original: Option<&RunFailure>) -> Failure {
    let left: Vec<&str> = left_to_undo(&run.steps).map(|step| step.step.as_str()).collect();
    let Failure { code, reason, .. } = &history.failure;
    let original = original.filter(|original| original.code != "cancelled").map_or_else(String::new, |original| {
        let half = original.reason.floor_char_boundary(original.reason.len().min(MAX_ORIGINAL_BYTES));
        format!("; the order had failed with {}: {}", original.code, &original.reason[..half])
    });
    let half = reason.floor_char_boundary(reason.len().min(MAX_ORIGINAL_BYTES));
    let reason = format!("left to be undone: {}; {code}: {}{original}", left.join(", "), &reason[..half]);
    Failure::new(FailureKind::Permanent, "undo_failed", reason)
}

/// How much of each reason is kept where two are joined, in bytes.
const MAX_ORIGINAL_BYTES: usize = 300;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ledger::{RecordedStep, StepStatus};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn step(name: &str, position: u32, action: StepAction, status: StepStatus) -> RecordedStep {
        RecordedStep {
            step: name.to_owned(),
            action,
            round: 1,
            position,
            undoable: true,
            status,
            attempts: 1,
            first_retry: 3,
            uncertain: false,
            result: None,
        }
    }

    fn run(state: RunState) -> StepRun {
        let failure = RunFailure {
            kind: "transient".to_owned(),
            code: "http_503".to_owned(),
            reason: "busy".to_owned(),
            dead_letter_reason: "retries_exhausted".to_owned(),
            retries: 3,
            failed_at: at(100),
            undo_from: at(101),
        };
        StepRun {
            fence: 2,
            round: 1,
            state,
            failure: Some(failure),
            steps: vec![
                step("charge", 0, StepAction::Do, StepStatus::Done),
                step("reserve", 1, StepAction::Do, StepStatus::Done),
                step("ship", 2, StepAction::Do, StepStatus::Failed),
            ],
        }
    }

    fn history(is_undo: bool, retries: u32) -> History {
        History {
            origin: None,
            retries,
            first_failed_at: at(-100_000),
            failed_at: at(110),
            failure: Failure::new(FailureKind::Transient, "unreachable", "no connection"),
            hit_delivery_limit_before: false,
            is_undo,
        }
    }

    fn policy() -> RetryPolicy {
        let delays = ["1s", "10s"].map(|delay| delay.parse().unwrap());
        RetryPolicy { immediate: 0, delays: delays.to_vec(), max_age: Duration::from_secs(3600) }
    }

    fn judged(run: &StepRun, history: &History, action: Action) -> Verdict {
        judge(run, history, action, Some(&policy()), at(120))
    }

    #[test]
    fn what_no_configured_step_can_undo_any_more_is_named_in_the_dead_letter() {
        let judged = |run: &StepRun| judge(run, &history(false, 3), DEAD, None, at(120));
        for state in [RunState::Running, RunState::Done, RunState::Undoing, RunState::UndoFailed] {
            assert_eq!(judged(&run(state)), Verdict::GiveUp);
        }
        assert_eq!(judged(&run(RunState::Undone)), Verdict::Undone);
        let Decision::DeadLetter { reason, failure, .. } =
            Verdict::GiveUp.decision(&run(RunState::Running), &history(false, 3), DEAD)
        else {
            panic!("it is dead-lettered")
        };
        assert_eq!(reason, DeadLetterReason::UndoFailed);
        assert!(failure.reason.starts_with("left to be undone: reserve, charge; "), "{}", failure.reason);
    }

    const DEAD: Action = Action::DeadLetter(DeadLetterReason::RetriesExhausted);

    #[test]
    fn a_message_is_dead_lettered_only_after_its_steps_are_undone() {
        let retry = Action::RetryAfter("1s".parse().unwrap());
        let first = history(false, 3);
        assert_eq!(judged(&run(RunState::Running), &first, DEAD), Verdict::BeginUndo);
        assert_eq!(judged(&run(RunState::Running), &first, retry), Verdict::AsDecided);
        assert_eq!(judged(&run(RunState::Done), &first, DEAD), Verdict::BeginUndo);
        let nothing =
            StepRun { steps: vec![step("ship", 0, StepAction::Do, StepStatus::Failed)], ..run(RunState::Running) };
        assert_eq!(judged(&nothing, &first, DEAD), Verdict::NothingToUndo);
        // The daemon ended before the message was back in its queue.
        assert_eq!(judged(&run(RunState::Undoing), &first, DEAD), Verdict::ContinueUndo);
        let undone = run(RunState::Undone);
        assert_eq!(judged(&undone, &history(true, 3), DEAD), Verdict::Undone);
        // The daemon ended after the last undo, before it was recorded that nothing is left.
        let nothing_left = StepRun { state: RunState::Undoing, ..nothing.clone() };
        assert_eq!(judged(&nothing_left, &first, DEAD), Verdict::Undone);
        assert_eq!(judged(&nothing_left, &history(true, 3), DEAD), Verdict::Undone);
        let Decision::DeadLetter { reason, failure, retries, failed_at } =
            Verdict::Undone.decision(&undone, &history(true, 5), DEAD)
        else {
            panic!("it is dead-lettered")
        };
        assert_eq!((reason, retries, failed_at), (DeadLetterReason::RetriesExhausted, 3, at(100)));
        assert_eq!((failure.kind, &*failure.code), (FailureKind::Transient, "http_503"));
    }

    #[test]
    fn each_undo_has_all_retries_and_then_says_what_is_left() {
        let mut undoing = run(RunState::Undoing);
        undoing.steps.push(step("reserve", 1, StepAction::Undo, StepStatus::Failed));
        let retry = |delay: &str| Verdict::RetryUndo(Action::RetryAfter(delay.parse().unwrap()));
        assert_eq!(judged(&undoing, &history(true, 3), DEAD), retry("1s"));
        assert_eq!(judged(&undoing, &history(true, 4), DEAD), retry("10s"));
        assert_eq!(judged(&undoing, &history(true, 5), DEAD), Verdict::GiveUp);
        let mut refused = history(true, 3);
        refused.failure.kind = FailureKind::Permanent;
        assert_eq!(judged(&undoing, &refused, DEAD), Verdict::GiveUp);
        // The next undo begins with all retries.
        undoing.steps[3].status = StepStatus::Done;
        undoing.steps.push(RecordedStep { first_retry: 5, ..step("charge", 0, StepAction::Undo, StepStatus::Failed) });
        assert_eq!(judged(&undoing, &history(true, 5), DEAD), retry("1s"));
        let Decision::DeadLetter { reason, failure, .. } = Verdict::GiveUp.decision(&undoing, &history(true, 7), DEAD)
        else {
            panic!("it is dead-lettered")
        };
        assert_eq!((reason, &*failure.code), (DeadLetterReason::UndoFailed, "undo_failed"));
        assert!(failure.reason.starts_with("left to be undone: charge; unreachable: "), "{}", failure.reason);
        assert!(failure.reason.contains("http_503: busy"), "{}", failure.reason);
        assert_eq!(judged(&run(RunState::UndoFailed), &history(true, 7), DEAD), Verdict::GiveUp);
    }
}
