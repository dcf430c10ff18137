//! Runs of steps: who may work on one, what a claim hands on, and what a replayed message begins anew.

use jiff::Timestamp;

use super::rules;
use crate::ledger::conformance::{accept, at, finish, order};
use crate::ledger::{
    CallOutcome, ClaimAnswer, ClaimPurpose, EndedCall, Ledger, NewOrder, OtherOrder, Pruned, Recorded, RunClaim,
    RunFailure, RunKey, RunMessage, RunRecord, RunRecorded, RunState, StepAction, StepCallEntry, StepRun, StepStatus,
};

rules! {
    a_run_begins_with_its_first_call_recorded_and_hands_on_what_is_done,
    a_run_that_another_process_has_claimed_is_held_until_its_lease_ends,
    a_record_with_a_former_fencing_number_changes_nothing,
    a_call_whose_end_is_not_recorded_is_uncertain_once_it_is_repeated,
    a_run_that_is_done_is_granted_to_every_worker_and_says_whether_its_order_is_processed,
    a_message_of_steps_that_succeeded_is_never_undone_for_a_stale_copy,
    an_order_whose_steps_are_undone_is_never_processed,
    runs_of_consumers_and_of_orders_are_apart,
    a_replayed_message_begins_anew_what_was_undone_and_nothing_else,
    a_replayed_message_continues_an_undo_that_failed,
    retention_removes_finished_runs_only,
    the_run_of_a_processed_order_is_kept_as_long_as_the_order,
    after_the_retention_a_replayed_dead_letter_still_repeats_no_step_that_is_done,
    what_could_not_be_undone_is_kept_with_its_results,
    retention_erases_the_runs_of_dead_letters_once,
    a_trace_shows_each_call_with_its_duration_and_result,
    an_order_is_accepted_with_its_claim_and_a_conflict_or_duplicate_claims_nothing,
}

/// The message of all claims.
pub(in crate::ledger) fn message() -> RunMessage {
    RunMessage { queue: "order_queue".into(), hash: [7; 32] }
}

pub(in crate::ledger) fn key(identity: &str) -> RunKey {
    RunKey { scope: String::new(), identity: identity.to_owned() }
}

pub(in crate::ledger) fn call(step: &str, action: StepAction, position: u32) -> StepCallEntry {
    StepCallEntry { step: step.to_owned(), action, position, undoable: step != "ship", retries: 0 }
}

pub(in crate::ledger) fn charge() -> StepCallEntry {
    call("charge", StepAction::Do, 0)
}

/// A claim at this millisecond, for 100 ms.
pub(in crate::ledger) fn work(key: &RunKey, owner: &str, millis: i64, first: Option<StepCallEntry>) -> RunClaim {
    let purpose = ClaimPurpose::Work { message: message(), is_new: true, replayed_at: None, takes_over: false, first };
    RunClaim { key: key.clone(), purpose, owner: owner.into(), at: at(millis), until: at(millis + 100), order: None }
}

pub(in crate::ledger) fn decide(key: &RunKey, owner: &str, millis: i64) -> RunClaim {
    let purpose = ClaimPurpose::Failure { message: message(), failed_at: at(millis), round: None };
    RunClaim { purpose, ..work(key, owner, millis, None) }
}

pub(in crate::ledger) async fn granted(ledger: &dyn Ledger, claim: RunClaim) -> StepRun {
    match ledger.claim_run(claim).await.unwrap() {
        ClaimAnswer::Granted(run) => *run,
        other => panic!("{other:?}"),
    }
}

/// A record of this claim that changes nothing and ends the claim.
pub(in crate::ledger) fn record_of(key: &RunKey, fence: i64, millis: i64) -> RunRecord {
    RunRecord {
        key: key.clone(),
        fence,
        at: at(millis),
        until: None,
        ended: None,
        next: None,
        state: None,
        failure: None,
        dead_lettered: false,
    }
}

pub(in crate::ledger) fn done(step: &str, action: StepAction, result: &str) -> Option<EndedCall> {
    Some(EndedCall { step: step.to_owned(), action, outcome: CallOutcome::Done { result: result.to_owned() } })
}

fn failed(step: &str, uncertain: bool) -> Option<EndedCall> {
    let (code, reason) = ("http_503".to_owned(), "busy".to_owned());
    let outcome = CallOutcome::Failed { kind: "transient", code, reason, uncertain };
    Some(EndedCall { step: step.to_owned(), action: StepAction::Do, outcome })
}

pub(in crate::ledger) async fn recorded(ledger: &dyn Ledger, record: RunRecord) {
    assert_eq!(ledger.record_run(record).await.unwrap(), RunRecorded::Recorded);
}

pub(in crate::ledger) fn failure(millis: i64) -> RunFailure {
    RunFailure {
        kind: "permanent".to_owned(),
        code: "http_404".to_owned(),
        reason: "no such address".to_owned(),
        dead_letter_reason: "permanent".to_owned(),
        retries: 2,
        failed_at: at(millis),
        undo_from: at(millis),
    }
}

/// Names, actions, statuses and attempts.
fn steps(run: &StepRun) -> Vec<(&str, StepAction, StepStatus, u32)> {
    run.steps.iter().map(|step| (&*step.step, step.action, step.status, step.attempts)).collect()
}

async fn a_run_begins_with_its_first_call_recorded_and_hands_on_what_is_done(ledger: &dyn Ledger) {
    let key = key("o-1");
    assert_eq!(ledger.claim_run(decide(&key, "a", 0)).await.unwrap(), ClaimAnswer::NotConcerned);
    let run = granted(ledger, work(&key, "a", 0, Some(charge()))).await;
    assert_eq!((run.fence, run.round, run.state), (1, 1, RunState::Running));
    assert_eq!(steps(&run), [("charge", StepAction::Do, StepStatus::Called, 1)]);
    let both = RunRecord {
        until: Some(at(200)),
        ended: done("charge", StepAction::Do, "{\"id\":7}"),
        next: Some(call("ship", StepAction::Do, 1)),
        ..record_of(&key, 1, 50)
    };
    recorded(ledger, both).await;
    recorded(ledger, RunRecord { ended: failed("ship", false), ..record_of(&key, 1, 60) }).await;
    // The claim has ended, so another process gets it at once, and its first call is not recorded: the run has begun.
    let run = granted(ledger, work(&key, "b", 61, Some(charge()))).await;
    assert_eq!(run.fence, 2);
    let expected = [("charge", StepAction::Do, StepStatus::Done, 1), ("ship", StepAction::Do, StepStatus::Failed, 1)];
    assert_eq!(steps(&run), expected);
    assert_eq!(run.steps[0].result.as_deref(), Some("{\"id\":7}"));
    assert_eq!(
        run.steps.iter().map(|step| (step.undoable, step.uncertain)).collect::<Vec<_>>(),
        [(true, false), (false, false)]
    );
}

async fn a_run_that_another_process_has_claimed_is_held_until_its_lease_ends(ledger: &dyn Ledger) {
    let key = key("held");
    granted(ledger, work(&key, "a", 0, Some(charge()))).await;
    for claim in [work(&key, "b", 99, None), decide(&key, "b", 99)] {
        assert_eq!(ledger.claim_run(claim).await.unwrap(), ClaimAnswer::ClaimedByAnother { until: at(100) });
    }
    // A process never works twice on a run, so its former claim is void.
    assert_eq!(granted(ledger, work(&key, "a", 99, None)).await.fence, 2);
    assert_eq!(granted(ledger, work(&key, "b", 199, None)).await.fence, 3);
    recorded(ledger, RunRecord { until: Some(at(500)), ..record_of(&key, 3, 200) }).await;
    let answer = ledger.claim_run(work(&key, "a", 300, None)).await.unwrap();
    assert_eq!(answer, ClaimAnswer::ClaimedByAnother { until: at(500) });
}

async fn a_record_with_a_former_fencing_number_changes_nothing(ledger: &dyn Ledger) {
    let key = key("stale");
    assert_eq!(ledger.record_run(record_of(&key, 1, 0)).await.unwrap(), RunRecorded::Stale);
    granted(ledger, work(&key, "a", 0, Some(charge()))).await;
    let taken = granted(ledger, work(&key, "b", 100, None)).await;
    let late = RunRecord {
        ended: done("charge", StepAction::Do, "1"),
        next: Some(call("ship", StepAction::Do, 1)),
        state: Some(RunState::Done),
        ..record_of(&key, 1, 101)
    };
    assert_eq!(ledger.record_run(late).await.unwrap(), RunRecorded::Stale);
    let run = granted(ledger, work(&key, "b", 102, None)).await;
    assert_eq!((run.state, steps(&run)), (RunState::Running, steps(&taken)));
}

async fn a_call_whose_end_is_not_recorded_is_uncertain_once_it_is_repeated(ledger: &dyn Ledger) {
    let key = key("uncertain");
    granted(ledger, work(&key, "a", 0, Some(charge()))).await;
    recorded(ledger, RunRecord { ended: failed("charge", false), next: Some(charge()), ..record_of(&key, 1, 1) }).await;
    let run = granted(ledger, work(&key, "a", 2, None)).await;
    assert!(!run.steps[0].uncertain && run.steps[0].may_have_effect(), "{run:?}");
    recorded(ledger, RunRecord { next: Some(charge()), ..record_of(&key, run.fence, 3) }).await;
    recorded(ledger, RunRecord { ended: failed("charge", false), ..record_of(&key, run.fence, 4) }).await;
    let run = granted(ledger, work(&key, "a", 5, None)).await;
    assert_eq!(steps(&run), [("charge", StepAction::Do, StepStatus::Failed, 3)]);
    assert!(run.steps[0].uncertain && run.steps[0].may_have_effect(), "{run:?}");
}

async fn a_run_that_is_done_is_granted_to_every_worker_and_says_whether_its_order_is_processed(ledger: &dyn Ledger) {
    let key = key("o-2");
    ledger.record(accept(order("o-2"))).await.unwrap();
    granted(ledger, work(&key, "a", 0, Some(charge()))).await;
    let last = RunRecord {
        until: Some(at(1_000)),
        ended: done("charge", StepAction::Do, "null"),
        state: Some(RunState::Done),
        ..record_of(&key, 1, 10)
    };
    recorded(ledger, last).await;
    let run = granted(ledger, work(&key, "b", 11, None)).await;
    assert_eq!((run.fence, run.state), (1, RunState::Done));
    // Its first worker may be about to finish the order, and the failure is that of another copy, in the same process or not.
    for owner in ["a", "b"] {
        let stale = ClaimPurpose::Failure { message: message(), failed_at: at(10), round: None };
        let stale = RunClaim { purpose: stale, ..decide(&key, owner, 11) };
        assert_eq!(ledger.claim_run(stale).await.unwrap(), ClaimAnswer::ClaimedByAnother { until: at(1_000) });
    }
    let message = RunMessage { hash: [8; 32], ..message() };
    let other = ClaimPurpose::Failure { message, failed_at: at(10), round: None };
    let other = RunClaim { purpose: other, ..decide(&key, "b", 12) };
    assert_eq!(ledger.claim_run(other).await.unwrap(), ClaimAnswer::NotConcerned);
    assert_eq!(ledger.record(finish("o-2")).await.unwrap(), Recorded::New);
    for (owner, millis) in [("a", 20), ("b", 20), ("b", 1_000)] {
        assert_eq!(ledger.claim_run(decide(&key, owner, millis)).await.unwrap(), ClaimAnswer::NotConcerned);
    }
    // The worker of this process could not finish the order.
    let key = self::key("o-4");
    granted(ledger, work(&key, "a", 0, None)).await;
    recorded(ledger, RunRecord { until: Some(at(1_000)), state: Some(RunState::Done), ..record_of(&key, 1, 10) }).await;
    assert_eq!(granted(ledger, decide(&key, "a", 11)).await.state, RunState::Done);
}

async fn a_message_of_steps_that_succeeded_is_never_undone_for_a_stale_copy(ledger: &dyn Ledger) {
    let key = RunKey { scope: "invoices".to_owned(), identity: "m-1".to_owned() };
    granted(ledger, work(&key, "a", 0, Some(charge()))).await;
    assert_eq!(granted(ledger, decide(&key, "a", 1)).await.state, RunState::Running);
    let ended = done("charge", StepAction::Do, "1");
    let last = RunRecord { until: Some(at(1_000)), ended, state: Some(RunState::Done), ..record_of(&key, 2, 10) };
    recorded(ledger, last).await;
    for owner in ["a", "b"] {
        assert_eq!(ledger.claim_run(decide(&key, owner, 20)).await.unwrap(), ClaimAnswer::NotConcerned);
    }
}

async fn an_order_whose_steps_are_undone_is_never_processed(ledger: &dyn Ledger) {
    let states = [RunState::Undoing, RunState::Undone, RunState::UndoFailed];
    for (id, state) in ["u-1", "u-2", "u-3"].into_iter().zip(states) {
        let key = key(id);
        let claim = RunClaim { order: Some(Box::new(order(id))), ..work(&key, "a", 0, Some(charge())) };
        granted(ledger, claim.clone()).await;
        assert_eq!(ledger.record(accept(order(id))).await.unwrap(), Recorded::InProgress);
        recorded(ledger, RunRecord { state: Some(state), ..record_of(&key, 1, 10) }).await;
        assert_eq!(ledger.record(finish(id)).await.unwrap(), Recorded::Undone);
        // Also after another attempt, of which no instance has the order in memory.
        assert_eq!(ledger.record(finish(id)).await.unwrap(), Recorded::Undone);
        assert_eq!(ledger.record(accept(order(id))).await.unwrap(), Recorded::Undone);
        assert_eq!(granted(ledger, claim).await.state, state);
    }
    let processed = ledger.totals().await.unwrap().orders.values().map(|counts| counts.processed).sum::<u64>();
    assert_eq!(processed, 0);
}

async fn runs_of_consumers_and_of_orders_are_apart(ledger: &dyn Ledger) {
    for scope in ["", "invoices", "mails"] {
        let key = RunKey { scope: scope.to_owned(), identity: "same".to_owned() };
        assert_eq!(granted(ledger, work(&key, "a", 0, Some(charge()))).await.fence, 1);
    }
}

/// Charge and reserve are done, ship has failed for good.
pub(in crate::ledger) async fn failed_run(ledger: &dyn Ledger, key: &RunKey) {
    granted(ledger, work(key, "a", 0, Some(charge()))).await;
    let result = |step, next| RunRecord {
        until: Some(at(500)),
        ended: done(step, StepAction::Do, "1"),
        next: Some(next),
        ..record_of(key, 1, 1)
    };
    recorded(ledger, result("charge", call("pack", StepAction::Do, 1))).await;
    recorded(ledger, result("pack", call("ship", StepAction::Do, 2))).await;
    recorded(ledger, RunRecord { ended: failed("ship", false), ..record_of(key, 1, 2) }).await;
    let run = granted(ledger, decide(key, "a", 10)).await;
    let begin =
        RunRecord { state: Some(RunState::Undoing), failure: Some(failure(9)), ..record_of(key, run.fence, 10) };
    recorded(ledger, begin).await;
}

async fn undo(ledger: &dyn Ledger, key: &RunKey, fence: i64, step: &str, position: u32) {
    recorded(ledger, RunRecord { next: Some(call(step, StepAction::Undo, position)), ..record_of(key, fence, 20) })
        .await;
    recorded(ledger, RunRecord { ended: done(step, StepAction::Undo, "null"), ..record_of(key, fence, 21) }).await;
}

async fn a_replayed_message_begins_anew_what_was_undone_and_nothing_else(ledger: &dyn Ledger) {
    let key = key("replayed");
    failed_run(ledger, &key).await;
    let run = granted(ledger, work(&key, "a", 11, None)).await;
    assert_eq!((run.state, run.failure.clone()), (RunState::Undoing, Some(failure(9))));
    undo(ledger, &key, run.fence, "charge", 0).await;
    recorded(ledger, RunRecord { state: Some(RunState::Undone), ..record_of(&key, run.fence, 30) }).await;
    // Not dead-lettered yet, so it is the same delivery again.
    let run = granted(ledger, work(&key, "a", 31, None)).await;
    assert_eq!((run.state, run.round), (RunState::Undone, 1));
    let run = granted(ledger, decide(&key, "a", 32)).await;
    recorded(ledger, RunRecord { dead_lettered: true, ..record_of(&key, run.fence, 33) }).await;
    assert_eq!(granted(ledger, decide(&key, "a", 34)).await.state, RunState::Undone);
    // The broker delivers it again, because the ack of its first delivery was lost.
    let purpose = ClaimPurpose::Work {
        message: message(),
        is_new: false,
        replayed_at: None,
        takes_over: false,
        first: Some(charge()),
    };
    let again = RunClaim { purpose, ..work(&key, "a", 34, None) };
    assert_eq!(granted(ledger, again).await.state, RunState::Undone);
    // Nor does a mark of an earlier replay count, or one that is not true.
    let replayed = |replayed_at| ClaimPurpose::Work {
        message: message(),
        is_new: false,
        replayed_at,
        takes_over: false,
        first: Some(charge()),
    };
    for replayed_at in [-1_000, 61_000].map(|millis| Some(at(millis))) {
        let again = RunClaim { purpose: replayed(replayed_at), ..work(&key, "a", 34, None) };
        assert_eq!(granted(ledger, again).await.state, RunState::Undone);
    }
    // It is delivered a second time before it begins. The mark is in whole seconds.
    let again = RunClaim { purpose: replayed(Some(at(0))), ..work(&key, "a", 35, None) };
    let run = granted(ledger, again).await;
    assert_eq!((run.state, run.round, &run.failure), (RunState::Running, 2, &None));
    assert_eq!(steps(&run), [("pack", StepAction::Do, StepStatus::Done, 1)]);
    recorded(ledger, RunRecord { next: Some(charge()), ..record_of(&key, run.fence, 36) }).await;
    let run = granted(ledger, work(&key, "a", 37, None)).await;
    assert_eq!(
        run.steps.iter().map(|step| (&*step.step, step.round)).collect::<Vec<_>>(),
        [("charge", 2), ("pack", 1)]
    );
}

async fn a_replayed_message_continues_an_undo_that_failed(ledger: &dyn Ledger) {
    let key = key("undo-failed");
    failed_run(ledger, &key).await;
    let run = granted(ledger, work(&key, "a", 11, None)).await;
    undo(ledger, &key, run.fence, "pack", 1).await;
    let run = granted(ledger, decide(&key, "a", 30)).await;
    let give_up =
        RunRecord { state: Some(RunState::UndoFailed), dead_lettered: true, ..record_of(&key, run.fence, 31) };
    recorded(ledger, give_up).await;
    let run = granted(ledger, work(&key, "a", 40, None)).await;
    // Its retries begin anew.
    let expected = RunFailure { undo_from: at(40), ..failure(9) };
    assert_eq!((run.state, run.round, run.failure.clone()), (RunState::Undoing, 1, Some(expected)));
    assert_eq!(run.steps.len(), 4, "{run:?}");
}

async fn retention_removes_finished_runs_only(ledger: &dyn Ledger) {
    let finished = |millis| async move {
        for identity in ["kept", "accepted", "finished"] {
            let key = key(identity);
            if identity == "accepted" {
                ledger.record(accept(order(identity))).await.unwrap();
            }
            let run = granted(ledger, work(&key, "a", millis, Some(charge()))).await;
            let state = (identity != "kept").then_some(RunState::Done);
            recorded(ledger, RunRecord { state, ..record_of(&key, run.fence, millis) }).await;
        }
    };
    finished(0).await;
    let pruned = ledger.prune(at(1_000)).await.unwrap();
    assert_eq!(pruned.step_runs, 1);
    let known = |identity: &'static str, now: Timestamp| async move {
        let claim = RunClaim { at: now, until: now, ..decide(&key(identity), "a", 0) };
        ledger.claim_run(claim).await.unwrap() != ClaimAnswer::NotConcerned
    };
    assert!(known("kept", at(2_000)).await && known("accepted", at(2_000)).await);
    assert!(!known("finished", at(2_000)).await);
}

/// All calls that one pass of retention takes.
async fn prune_all(ledger: &dyn Ledger, before: i64) -> Pruned {
    let mut sum = Pruned::default();
    loop {
        sum.add(ledger.prune(at(before)).await.unwrap());
        if !sum.more {
            return sum;
        }
    }
}

async fn the_run_of_a_processed_order_is_kept_as_long_as_the_order(ledger: &dyn Ledger) {
    let key = key("o-5");
    let claim = RunClaim { order: Some(Box::new(order("o-5"))), ..work(&key, "a", 0, Some(charge())) };
    granted(ledger, claim).await;
    let ended = done("charge", StepAction::Do, "7");
    recorded(ledger, RunRecord { ended, state: Some(RunState::Done), ..record_of(&key, 1, 10) }).await;
    ledger.record(finish("o-5")).await.unwrap();
    // It was processed at 3,000 ms.
    let pruned = prune_all(ledger, 2_000).await;
    assert_eq!((pruned.orders, pruned.step_runs), (0, 0));
    let run = granted(ledger, work(&key, "a", 2_000, None)).await;
    assert_eq!((run.state, run.steps[0].result.as_deref()), (RunState::Done, Some("7")));
    let pruned = prune_all(ledger, 4_000).await;
    assert_eq!((pruned.orders, pruned.step_runs), (1, 1));
    assert_eq!(ledger.claim_run(decide(&key, "a", 4_000)).await.unwrap(), ClaimAnswer::NotConcerned);
}

/// Its message is dead-lettered at 33 ms.
async fn dead_lettered(ledger: &dyn Ledger, key: &RunKey, state: RunState) {
    failed_run(ledger, key).await;
    let run = granted(ledger, work(key, "a", 11, None)).await;
    if state == RunState::Undone {
        undo(ledger, key, run.fence, "charge", 0).await;
    }
    recorded(ledger, RunRecord { state: Some(state), ..record_of(key, run.fence, 30) }).await;
    let run = granted(ledger, decide(key, "a", 32)).await;
    recorded(ledger, RunRecord { dead_lettered: true, ..record_of(key, run.fence, 33) }).await;
}

async fn after_the_retention_a_replayed_dead_letter_still_repeats_no_step_that_is_done(ledger: &dyn Ledger) {
    for (n, scope) in ["", "invoices"].into_iter().enumerate() {
        let key = RunKey { scope: scope.to_owned(), identity: "dead".to_owned() };
        dead_lettered(ledger, &key, RunState::Undone).await;
        assert!(prune_all(ledger, 33).await.is_empty(), "{n}: it is not old yet");
        let pruned = prune_all(ledger, 1_000).await;
        assert_eq!((pruned.step_runs, pruned.erased_runs), (0, 1));
        let run = granted(ledger, decide(&key, "a", 2_000)).await;
        assert_eq!((run.state, &*run.failure.unwrap().reason), (RunState::Undone, "[erased]"));
        recorded(ledger, record_of(&key, run.fence, 2_000)).await;
        let run = granted(ledger, work(&key, "a", 3_000, Some(charge()))).await;
        assert_eq!((run.state, run.round), (RunState::Running, 2), "its idempotency keys are new");
        assert_eq!(steps(&run), [("pack", StepAction::Do, StepStatus::Done, 1)]);
        assert_eq!(run.steps[0].result.as_deref(), Some("\"[erased]\""));
        // What it says from now on is kept again.
        recorded(ledger, RunRecord { next: Some(charge()), ..record_of(&key, run.fence, 3_001) }).await;
        let ended = done("charge", StepAction::Do, "8");
        recorded(ledger, RunRecord { ended, state: Some(RunState::Undone), ..record_of(&key, run.fence, 3_002) }).await;
        let run = granted(ledger, decide(&key, "a", 3_003)).await;
        let result =
            |run: &StepRun| run.steps.iter().find_map(|step| step.result.clone().filter(|_| step.step == "charge"));
        assert_eq!(result(&run).as_deref(), Some("8"));
        recorded(ledger, RunRecord { dead_lettered: true, ..record_of(&key, run.fence, 3_004) }).await;
        assert_eq!(prune_all(ledger, 4_000).await.erased_runs, 1);
        assert_eq!(result(&granted(ledger, decide(&key, "a", 4_000)).await).as_deref(), Some("\"[erased]\""));
    }
}

async fn what_could_not_be_undone_is_kept_with_its_results(ledger: &dyn Ledger) {
    let key = key("stuck");
    dead_lettered(ledger, &key, RunState::UndoFailed).await;
    assert!(prune_all(ledger, 1_000_000).await.is_empty());
    let run = granted(ledger, decide(&key, "a", 2_000_000)).await;
    assert_eq!((run.state, run.failure.clone()), (RunState::UndoFailed, Some(failure(9))));
    assert_eq!(run.steps[0].result.as_deref(), Some("1"));
}

/// However many there are, and in small transactions.
async fn retention_erases_the_runs_of_dead_letters_once(ledger: &dyn Ledger) {
    for n in 0..300 {
        dead_lettered(ledger, &key(&format!("d-{n}")), RunState::Undone).await;
    }
    assert_eq!(prune_all(ledger, 1_000).await.erased_runs, 300);
    assert!(prune_all(ledger, 1_000).await.is_empty());
}

async fn an_order_is_accepted_with_its_claim_and_a_conflict_or_duplicate_claims_nothing(ledger: &dyn Ledger) {
    let key = key("o-3");
    let of = |hash: u8| RunMessage { hash: [hash; 32], ..message() };
    let with = |order: NewOrder, hash, millis| RunClaim {
        purpose: ClaimPurpose::Work {
            message: of(hash),
            is_new: true,
            replayed_at: None,
            takes_over: false,
            first: Some(charge()),
        },
        order: Some(Box::new(order)),
        ..work(&key, "a", millis, None)
    };
    assert_eq!(granted(ledger, with(order("o-3"), 1, 0)).await.fence, 1);
    let other = NewOrder { customer_id: None, ..order("o-3") };
    let conflict = ledger.claim_run(with(other, 2, 1)).await.unwrap();
    assert_eq!(conflict, ClaimAnswer::NotAccepted(Recorded::Conflict(OtherOrder::InProgress)));
    assert_eq!(granted(ledger, with(order("o-3"), 3, 2)).await.fence, 2);
    // The message that works on it now is the one whose failure counts.
    assert_eq!(ledger.claim_run(decide(&key, "a", 2)).await.unwrap(), ClaimAnswer::NotConcerned);
    let failed = ClaimPurpose::Failure { message: of(3), failed_at: at(2), round: None };
    assert_eq!(granted(ledger, RunClaim { purpose: failed, ..decide(&key, "a", 2) }).await.fence, 3);
    ledger.record(finish("o-3")).await.unwrap();
    let duplicate = ledger.claim_run(with(order("o-3"), 4, 3)).await.unwrap();
    assert_eq!(duplicate, ClaimAnswer::NotAccepted(Recorded::Duplicate));
}

async fn a_trace_shows_each_call_with_its_duration_and_result(ledger: &dyn Ledger) {
    let key = key("traced");
    let claim = RunClaim { order: Some(Box::new(order("traced"))), ..work(&key, "a", 3_000, Some(charge())) };
    granted(ledger, claim).await;
    let next = Some(call("ship", StepAction::Do, 1));
    let ended = done("charge", StepAction::Do, "{\"id\":7}");
    recorded(ledger, RunRecord { ended, next, ..record_of(&key, 1, 3_020) }).await;
    recorded(ledger, RunRecord { ended: failed("ship", true), ..record_of(&key, 1, 3_050) }).await;
    recorded(ledger, RunRecord { next: Some(call("ship", StepAction::Do, 1)), ..record_of(&key, 1, 4_000) }).await;
    let trace = ledger.trace("traced").await.unwrap();
    let calls: Vec<serde_json::Value> =
        trace.steps[1..].iter().map(|step| serde_json::to_value(step).unwrap()).collect();
    let of = |call: &serde_json::Value, keys: [&str; 5]| keys.map(|key| call[key].to_string()).join(" ");
    let keys = ["step", "name", "status", "attempts", "duration_ms"];
    assert_eq!(of(&calls[0], keys), r#""called" "charge" "done" 1 20"#);
    assert_eq!(calls[0]["result"], serde_json::json!({"id": 7}));
    assert_eq!(of(&calls[1], keys), r#""called" "ship" "called" 2 null"#);
    assert_eq!(calls[1]["code"], "http_503");
    let states = trace.message_states(at(5_000));
    assert_eq!(format!("{:?}", states[0].1), format!("UnderWay {{ since: {:?} }}", at(2_000)));
}
