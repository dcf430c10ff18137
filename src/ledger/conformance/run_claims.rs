//! Claims of runs: whose failure counts, and what ends a claim.

use super::rules;
use super::step_runs::{charge, decide, failed_run, granted, key, message, record_of, recorded, work};
use crate::ledger::conformance::{accept, at, order};
use crate::ledger::{
    ClaimAnswer, ClaimPurpose, Ledger, OtherOrder, Recorded, RunClaim, RunKey, RunMessage, RunRecord, RunState,
};

/// In milliseconds.
const DAY: i64 = 86_400_000;

rules! {
    a_failure_counts_only_if_it_is_that_of_the_message_that_called_steps_last,
    a_failure_of_an_earlier_round_undoes_nothing_of_the_present_one,
    another_message_with_the_identity_of_a_run_is_a_conflict_unless_that_one_was_dead_lettered,
    a_lease_that_is_longer_than_any_call_has_ended,
    an_order_whose_steps_are_called_is_not_accepted_without_them,
    only_the_queue_whose_consumer_has_called_the_steps_of_an_order_continues_them,
    the_mark_of_a_replay_which_all_its_copies_keep_counts_once,
    a_replay_after_the_clock_was_set_back_begins_anew_what_was_undone,
    a_second_replay_after_the_clock_was_set_back_begins_anew_what_was_undone,
    an_order_has_failed_once_the_message_that_called_its_steps_is_dead_lettered,
}

async fn a_failure_counts_only_if_it_is_that_of_the_message_that_called_steps_last(ledger: &dyn Ledger) {
    let key = key("o-5");
    granted(ledger, work(&key, "a", 0, Some(charge()))).await;
    let failed = |message| RunClaim {
        purpose: ClaimPurpose::Failure { message, failed_at: at(10), round: Some(1) },
        ..decide(&key, "a", 10)
    };
    for other in
        [RunMessage { hash: [8; 32], ..message() }, RunMessage { queue: "priority_order_queue".into(), ..message() }]
    {
        assert_eq!(ledger.claim_run(failed(other)).await.unwrap(), ClaimAnswer::NotConcerned);
    }
    assert_eq!(granted(ledger, failed(message())).await.state, RunState::Running);
}

async fn a_failure_of_an_earlier_round_undoes_nothing_of_the_present_one(ledger: &dyn Ledger) {
    let key = key("o-6");
    failed_run(ledger, &key).await;
    let run = granted(ledger, work(&key, "a", 11, None)).await;
    let undone = RunRecord { state: Some(RunState::Undone), dead_lettered: true, ..record_of(&key, run.fence, 30) };
    recorded(ledger, undone).await;
    assert_eq!(granted(ledger, work(&key, "a", 31, None)).await.round, 2);
    for (round, counts) in [(Some(1), false), (Some(2), true), (None, true)] {
        let purpose = ClaimPurpose::Failure { message: message(), failed_at: at(9), round };
        let answer = ledger.claim_run(RunClaim { purpose, ..decide(&key, "a", 40) }).await.unwrap();
        assert_eq!(matches!(answer, ClaimAnswer::Granted(_)), counts, "{answer:?}");
    }
}

async fn another_message_with_the_identity_of_a_run_is_a_conflict_unless_that_one_was_dead_lettered(
    ledger: &dyn Ledger,
) {
    let key = RunKey { scope: "invoices".to_owned(), identity: "m-2".to_owned() };
    let other = |millis| {
        let message = RunMessage { hash: [8; 32], ..message() };
        let purpose = ClaimPurpose::Work { message, is_new: true, replayed_at: None, takes_over: false, first: None };
        RunClaim { purpose, ..work(&key, "a", millis, None) }
    };
    let conflict = ClaimAnswer::NotAccepted(Recorded::Conflict(OtherOrder::InProgress));
    granted(ledger, work(&key, "a", 0, Some(charge()))).await;
    assert_eq!(ledger.claim_run(other(1)).await.unwrap(), conflict);
    recorded(ledger, RunRecord { state: Some(RunState::Done), ..record_of(&key, 1, 2) }).await;
    assert_eq!(ledger.claim_run(other(3)).await.unwrap(), conflict);
    // A person has changed the dead letter.
    let key = RunKey { identity: "m-3".to_owned(), ..key.clone() };
    granted(ledger, work(&key, "a", 0, Some(charge()))).await;
    recorded(ledger, RunRecord { state: Some(RunState::Undone), dead_lettered: true, ..record_of(&key, 1, 2) }).await;
    let replayed = RunClaim { key: key.clone(), ..other(3) };
    assert_eq!(granted(ledger, replayed).await.round, 2);
    assert_eq!(ledger.claim_run(work(&key, "a", 4, None)).await.unwrap(), conflict);
}

async fn a_lease_that_is_longer_than_any_call_has_ended(ledger: &dyn Ledger) {
    let key = key("o-7");
    granted(ledger, work(&key, "a", DAY, Some(charge()))).await;
    // The clock was set back by a day.
    assert_eq!(granted(ledger, work(&key, "b", 0, None)).await.fence, 2);
    assert!(matches!(ledger.claim_run(work(&key, "a", 99, None)).await.unwrap(), ClaimAnswer::ClaimedByAnother { .. }));
}

async fn an_order_whose_steps_are_called_is_not_accepted_without_them(ledger: &dyn Ledger) {
    let key = key("o-9");
    let claim = RunClaim { order: Some(Box::new(order("o-9"))), ..work(&key, "a", 0, Some(charge())) };
    granted(ledger, claim).await;
    assert_eq!(ledger.record(accept(order("o-9"))).await.unwrap(), Recorded::InProgress);
    recorded(ledger, RunRecord { state: Some(RunState::Done), ..record_of(&key, 1, 10) }).await;
    assert_eq!(ledger.record(accept(order("o-9"))).await.unwrap(), Recorded::Unfinished);
}

async fn only_the_queue_whose_consumer_has_called_the_steps_of_an_order_continues_them(ledger: &dyn Ledger) {
    let key = key("o-10");
    let from = |queue: &str, is_new, takes_over, millis| {
        let message = RunMessage { queue: queue.into(), ..message() };
        let purpose = ClaimPurpose::Work { message, is_new, replayed_at: None, takes_over, first: Some(charge()) };
        RunClaim { purpose, order: Some(Box::new(order("o-10"))), ..work(&key, "a", millis, None) }
    };
    let status = async || ledger.trace("o-10").await.unwrap().order.unwrap().status;
    let refused = ClaimAnswer::OtherQueue { queue: "order_queue".into() };
    granted(ledger, from("order_queue", true, false, 0)).await;
    // A lease of another process is waited for first: the order may be processed then.
    let other_process = RunClaim { owner: "b".into(), ..from("priority_order_queue", true, false, 1) };
    assert!(matches!(ledger.claim_run(other_process).await.unwrap(), ClaimAnswer::ClaimedByAnother { .. }));
    for (millis, state, dead_lettered, expected) in [
        (10, RunState::Running, false, "accepted"),
        (20, RunState::Undoing, false, "accepted"),
        (30, RunState::UndoFailed, true, "failed"),
    ] {
        let fence = granted(ledger, decide(&key, "a", millis)).await.fence;
        recorded(ledger, RunRecord { state: Some(state), dead_lettered, ..record_of(&key, fence, millis) }).await;
        let answer = ledger.claim_run(from("priority_order_queue", true, false, millis + 1)).await.unwrap();
        assert_eq!((answer, &*status().await), (refused.clone(), expected), "{state:?}");
        // Its own failure still counts.
        granted(ledger, decide(&key, "a", millis + 2)).await;
    }
    // All is undone, so any consumer may begin anew; but not for a message that was delivered before.
    let fence = granted(ledger, decide(&key, "a", 40)).await.fence;
    recorded(ledger, RunRecord { state: Some(RunState::Undone), dead_lettered: true, ..record_of(&key, fence, 40) })
        .await;
    assert_eq!(ledger.claim_run(from("priority_order_queue", false, false, 41)).await.unwrap(), refused);
    let run = granted(ledger, from("priority_order_queue", true, false, 42)).await;
    assert_eq!((run.round, run.state, &*status().await), (2, RunState::Running, "accepted"));
    assert!(matches!(
        ledger.claim_run(from("order_queue", true, false, 43)).await.unwrap(),
        ClaimAnswer::OtherQueue { .. }
    ));
    // The queue has no consumer any more.
    let fence = granted(ledger, from("order_queue", true, true, 44)).await.fence;
    // No call is left to make.
    recorded(ledger, RunRecord { state: Some(RunState::Done), ..record_of(&key, fence, 45) }).await;
    assert_eq!(granted(ledger, from("priority_order_queue", true, false, 46)).await.state, RunState::Done);
}

async fn the_mark_of_a_replay_which_all_its_copies_keep_counts_once(ledger: &dyn Ledger) {
    let key = key("o-11");
    let undone = |fence, millis| RunRecord {
        state: Some(RunState::Undone),
        dead_lettered: true,
        ..record_of(&key, fence, millis)
    };
    granted(ledger, work(&key, "a", 0, Some(charge()))).await;
    recorded(ledger, undone(1, 2)).await;
    // All within the second of the dead letter, and with a clock that is ahead.
    for (mark, round, state) in [
        (0, 2, RunState::Running),
        (0, 2, RunState::Undone),
        (1_000, 3, RunState::Running),
        (1_000, 3, RunState::Undone),
    ] {
        let replayed_at = Some(at(mark));
        let purpose =
            ClaimPurpose::Work { message: message(), is_new: false, replayed_at, takes_over: false, first: None };
        let run = granted(ledger, RunClaim { purpose, ..work(&key, "a", 3, None) }).await;
        assert_eq!((run.round, run.state), (round, state), "{mark}");
        recorded(ledger, undone(run.fence, 4)).await;
    }
}

async fn a_replay_after_the_clock_was_set_back_begins_anew_what_was_undone(ledger: &dyn Ledger) {
    assert_begins_anew_after_clock_change(ledger, None).await;
}

async fn a_second_replay_after_the_clock_was_set_back_begins_anew_what_was_undone(ledger: &dyn Ledger) {
    assert_begins_anew_after_clock_change(ledger, Some(DAY)).await;
}

/// `first_mark`: of a replay before the clock was set back by a day.
async fn assert_begins_anew_after_clock_change(ledger: &dyn Ledger, first_mark: Option<i64>) {
    let key = key("o-12");
    let undone = |fence, millis| RunRecord {
        state: Some(RunState::Undone),
        dead_lettered: true,
        ..record_of(&key, fence, millis)
    };
    let replayed = |mark: Option<i64>, millis| {
        let replayed_at = mark.map(at);
        let purpose =
            ClaimPurpose::Work { message: message(), is_new: false, replayed_at, takes_over: false, first: None };
        RunClaim { purpose, ..work(&key, "a", millis, None) }
    };
    granted(ledger, work(&key, "a", DAY, Some(charge()))).await;
    let run = granted(ledger, replayed(first_mark, DAY + 1)).await;
    recorded(ledger, undone(run.fence, DAY + 2)).await;
    // A mark is later than the one before.
    let mark = Some(first_mark.map_or(3, |mark| mark + 1_000));
    let run = granted(ledger, replayed(mark, 3)).await;
    assert_eq!((run.round, run.state), (2, RunState::Running));
    recorded(ledger, undone(run.fence, 4)).await;
    let run = granted(ledger, replayed(mark, 5)).await;
    assert_eq!((run.round, run.state), (2, RunState::Undone), "a mark counts once");
}

async fn an_order_has_failed_once_the_message_that_called_its_steps_is_dead_lettered(ledger: &dyn Ledger) {
    let key = key("o-8");
    let claim = RunClaim { order: Some(Box::new(order("o-8"))), ..work(&key, "a", 0, Some(charge())) };
    granted(ledger, claim.clone()).await;
    let status = async || ledger.trace("o-8").await.unwrap().order.unwrap().status;
    let undone = RunRecord { state: Some(RunState::Undone), ..record_of(&key, 1, 2) };
    recorded(ledger, undone.clone()).await;
    assert_eq!(status().await, "accepted");
    recorded(ledger, RunRecord { dead_lettered: true, ..undone }).await;
    assert_eq!(status().await, "failed");
    granted(ledger, RunClaim { at: at(3), ..claim }).await;
    assert_eq!(status().await, "accepted");
}
