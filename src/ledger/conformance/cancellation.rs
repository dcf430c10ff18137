//! Cancelled orders: what is prevented, what is subtracted and when, and who decides when two are at work.

use jiff::Timestamp;
use rust_decimal::Decimal;

use super::rules;
use crate::domain::{Charges, Item, OrderId, Sale};
use crate::ledger::conformance::step_runs::{done, failure, message};
use crate::ledger::conformance::{accept, at, attempt, finish, order, with_charges, with_items};
use crate::ledger::report::{GroupBy, PointInTime, Report, ReportQuery};
use crate::ledger::trace::{MessageState, TraceEvent, TracedMessage};
use crate::ledger::{
    CancelAnswer, CancelledOrder, ClaimAnswer, ClaimPurpose, Ledger, LedgerEntry, NewAnalytics, NewAttempt,
    NewCancellation, NewDeadLetter, NewOrder, OrderCounts, OtherOrder, Recorded, RunClaim, RunKey, RunRecord,
    RunRecorded, RunState, StepAction, StepCallEntry,
};

rules! {
    an_order_that_was_cancelled_before_it_arrived_is_prevented,
    an_accepted_order_that_is_cancelled_is_not_processed,
    a_processed_order_is_subtracted_in_the_period_of_its_cancellation,
    an_order_cancelled_while_it_is_announced_counts_as_processed_and_cancelled,
    the_sale_of_a_cancelled_order_is_subtracted_whenever_its_event_is_recorded,
    a_failed_order_is_accepted_again_when_it_is_replayed_unless_it_was_cancelled,
    another_order_with_the_id_of_a_cancelled_one_is_a_conflict,
    a_conflict_says_how_far_the_other_order_is,
    no_dead_letter_says_that_something_is_left_to_undo_once_all_is_undone,
    an_order_whose_steps_are_done_counts_as_announced_even_if_a_copy_of_it_is_dead_lettered,
    a_dead_letter_prevents_or_fails_only_the_order_that_has_its_content,
    a_cancellation_waits_for_a_worker_and_stops_it_before_the_next_call,
    a_cancellation_undoes_steps_that_are_done_at_once_and_continues_an_undo_that_failed,
    retention_removes_what_was_cancelled_long_ago_and_no_cancellation_that_is_not_complete,
}

const MINUTE: i64 = 60_000;

fn id(text: &str) -> OrderId {
    OrderId::new(text).unwrap()
}

async fn answer(ledger: &dyn Ledger, entry: LedgerEntry) -> Recorded {
    ledger.record(entry).await.unwrap()
}

async fn cancel(ledger: &dyn Ledger, order: &str, at: Timestamp) -> CancelAnswer {
    ledger.cancel_order(NewCancellation { id: id(order), consumer: "order".into(), at }).await.unwrap()
}

async fn cancelled(ledger: &dyn Ledger, order: &str, at: Timestamp) -> CancelledOrder {
    match cancel(ledger, order, at).await {
        CancelAnswer::Cancelled(order) => *order,
        other => panic!("{other:?}"),
    }
}

async fn complete(ledger: &dyn Ledger, order: &str, at: Timestamp) -> Recorded {
    answer(ledger, LedgerEntry::FinishCancellation { id: id(order), at }).await
}

fn dead_letter(id: &str) -> LedgerEntry {
    dead_letter_of(order(id), 3)
}

/// The dead letter of a message that is this order.
fn dead_letter_of(order: NewOrder, retries: u32) -> LedgerEntry {
    let attempt = NewAttempt { failed_at: order.at, ..attempt(order.id.as_str(), "order", retries) };
    let order = Some(Box::new(order));
    LedgerEntry::DeadLetter(Box::new(NewDeadLetter {
        attempt,
        order,
        reason: "permanent",
        origin_queue: None,
        at: at(7_000),
    }))
}

async fn counts(ledger: &dyn Ledger) -> OrderCounts {
    ledger.totals().await.unwrap().orders["order"]
}

async fn minute(ledger: &dyn Ledger, minute: i64, by: GroupBy) -> Report {
    let from = PointInTime::At(at(minute * MINUTE));
    let query = ReportQuery { since: from, until: PointInTime::At(at((minute + 1) * MINUTE)), by };
    ledger.report(query, at(100 * MINUTE)).await.unwrap()
}

/// `key orders quantity revenue shipping total` of each row of the only currency.
async fn rows(ledger: &dyn Ledger, number: i64, by: GroupBy) -> Vec<String> {
    let report = minute(ledger, number, by).await;
    let rows = report.currencies.iter().flat_map(|currency| &currency.rows);
    let shown = rows.map(|row| {
        let figures = row.figures;
        let rest = row.charges.zip(row.total);
        let rest = rest.map_or_else(String::new, |(charges, total)| format!(" {} {total}", charges.shipping));
        format!("{} {} {} {}{rest}", row.key, figures.orders, figures.quantity, figures.revenue)
    });
    shown.collect()
}

async fn an_order_that_was_cancelled_before_it_arrived_is_prevented(ledger: &dyn Ledger) {
    assert!(matches!(cancel(ledger, "o", at(1_000)).await, CancelAnswer::Kept));
    assert!(matches!(cancel(ledger, "o", at(1_500)).await, CancelAnswer::Duplicate));
    let trace = ledger.trace("o").await.unwrap();
    assert!(trace.order.is_none() && !trace.is_empty());
    assert_eq!(trace.message_states(at(2_000)), [(TracedMessage::Order, MessageState::Cancelled { since: at(1_000) })]);
    let lines = [Item::new("Pen", 2, Decimal::ONE), Item::new("Ink", 1, Decimal::TEN)];
    for _ in 0..2 {
        let entry = accept(NewOrder { at: at(MINUTE), ..with_items(order("o"), lines.clone()) });
        assert_eq!(answer(ledger, entry).await, Recorded::Cancelled);
    }
    assert!(matches!(cancel(ledger, "o", at(MINUTE)).await, CancelAnswer::Duplicate));
    let trace = ledger.trace("o").await.unwrap();
    let traced = trace.order.unwrap();
    assert_eq!((&*traced.status, traced.items.len(), traced.quantity), ("cancelled", 2, 3));
    let events: Vec<_> = trace.steps.iter().map(|step| (step.at, step.event.clone())).collect();
    assert_eq!(events, [(at(1_000), TraceEvent::Cancelled), (at(MINUTE), TraceEvent::Prevented)]);
    assert_eq!(rows(ledger, 1, GroupBy::Status).await, ["prevented 1 3 12 0 12"]);
    assert_eq!(counts(ledger).await, OrderCounts { cancelled: 1, ..OrderCounts::default() });
    assert!(minute(ledger, 1, GroupBy::Day).await.currencies[0].rows.is_empty());
}

async fn an_accepted_order_that_is_cancelled_is_not_processed(ledger: &dyn Ledger) {
    answer(ledger, accept(order("o"))).await;
    let first = cancelled(ledger, "o", at(MINUTE)).await;
    // Without steps, its events may be being published.
    assert!(first.was_announced && first.steps_queue.is_none());
    let CancelledOrder { order: stored, at: moment, .. } = cancelled(ledger, "o", at(2 * MINUTE)).await;
    assert_eq!((moment, stored.amounts, &stored.items), (at(MINUTE), order("o").amounts, &order("o").items));
    let contact = |order: &NewOrder| [&order.customer_id, &order.email, &order.phone, &order.locale].map(Clone::clone);
    assert_eq!(contact(&stored), contact(&order("o")));
    assert_eq!(answer(ledger, accept(order("o"))).await, Recorded::Cancelled);
    assert_eq!(
        (complete(ledger, "o", at(0)).await, complete(ledger, "o", at(0)).await),
        (Recorded::New, Recorded::Duplicate)
    );
    assert!(matches!(cancel(ledger, "o", at(0)).await, CancelAnswer::Duplicate));
    assert_eq!(rows(ledger, 1, GroupBy::Status).await, ["prevented 1 3 1200 0 1200"]);
    assert_eq!(answer(ledger, dead_letter("o")).await, Recorded::Cancelled);
    assert!(ledger.totals().await.unwrap().dead_letters.is_empty());
}

async fn a_processed_order_is_subtracted_in_the_period_of_its_cancellation(ledger: &dyn Ledger) {
    let charges = Charges { shipping: Some("4.90".parse().unwrap()), ..Charges::default() };
    for name in ["a", "b"] {
        answer(ledger, accept(with_charges(order(name), charges, "EUR"))).await;
        answer(ledger, finish(name)).await;
    }
    assert!(cancelled(ledger, "a", at(5 * MINUTE)).await.was_announced);
    cancelled(ledger, "a", at(6 * MINUTE)).await;
    let both = ["accepted 2 6 2400 9.80 2409.80", "processed 2 6 2400 9.80 2409.80"];
    assert_eq!(rows(ledger, 0, GroupBy::Status).await, both);
    let status = ["processed -1 -3 -1200 -4.90 -1204.90", "cancelled 1 3 1200 4.90 1204.90"];
    assert_eq!(rows(ledger, 5, GroupBy::Status).await, status);
    assert_eq!(rows(ledger, 5, GroupBy::Priority).await, ["normal -1 -3 -1200 -4.90 -1204.90"]);
    assert!(minute(ledger, 6, GroupBy::Day).await.currencies.is_empty());
    assert_eq!(counts(ledger).await, OrderCounts { processed: 1, cancelled: 1, ..OrderCounts::default() });
    // A redelivery of the order itself.
    assert_eq!(answer(ledger, accept(with_charges(order("a"), charges, "EUR"))).await, Recorded::Duplicate);
    assert_eq!(answer(ledger, finish("a")).await, Recorded::Duplicate);
    let states = ledger.trace("a").await.unwrap().message_states(at(9 * MINUTE));
    assert_eq!(states[0], (TracedMessage::Order, MessageState::Cancelled { since: at(5 * MINUTE) }));
    // A cancellation whose undo was retried is done once it is complete.
    let retried = NewAttempt {
        delay: Some("10s".to_owned()),
        failed_at: at(6 * MINUTE),
        ..attempt("a/cancellation", "order", 0)
    };
    answer(ledger, LedgerEntry::Attempt(Box::new(retried))).await;
    assert_eq!(complete(ledger, "a", at(8 * MINUTE)).await, Recorded::New);
    let states = ledger.trace("a").await.unwrap().message_states(at(9 * MINUTE));
    let done = MessageState::Done { since: at(8 * MINUTE) };
    assert!(states.contains(&(TracedMessage::Cancellation, done)), "{states:?}");
}

async fn an_order_cancelled_while_it_is_announced_counts_as_processed_and_cancelled(ledger: &dyn Ledger) {
    answer(ledger, accept(order("o"))).await;
    cancelled(ledger, "o", at(MINUTE)).await;
    for expected in [Recorded::Cancelled, Recorded::Duplicate] {
        let finished = LedgerEntry::FinishOrder { id: id("o"), at: at(2 * MINUTE) };
        assert_eq!(answer(ledger, finished).await, expected);
    }
    assert_eq!(rows(ledger, 1, GroupBy::Status).await, ["processed -1 -3 -1200 0 -1200", "cancelled 1 3 1200 0 1200"]);
    assert_eq!(rows(ledger, 2, GroupBy::Status).await, ["processed 1 3 1200 0 1200"]);
    assert_eq!(answer(ledger, accept(order("o"))).await, Recorded::Duplicate);
    assert_eq!(counts(ledger).await.cancelled, 1);
}

async fn the_sale_of_a_cancelled_order_is_subtracted_whenever_its_event_is_recorded(ledger: &dyn Ledger) {
    let line = |product, quantity, price: &str| Item::new(product, quantity, price.parse().unwrap());
    let items = [line("Pen", 2, "0.60"), line("Ink", 1, "3"), line("Pen", 1, "0.05")];
    let counted = |order: &str| {
        let lines = items.iter().map(|item| (item.product.clone(), item.quantity, item.total));
        let sale = Sale::new(lines, "EUR".parse().unwrap(), at(MINUTE));
        let (id, order_id) = (format!("{order}/analytics/processed"), Some(order.to_owned()));
        let name = "processed".to_owned();
        LedgerEntry::Analytics(Box::new(NewAnalytics { id, order_id, name, sale: Some(sale), at: at(0) }))
    };
    for name in ["a", "b"] {
        answer(ledger, accept(with_items(order(name), items.clone()))).await;
        answer(ledger, finish(name)).await;
    }
    answer(ledger, counted("a")).await;
    cancelled(ledger, "a", at(3 * MINUTE)).await;
    cancelled(ledger, "b", at(3 * MINUTE)).await;
    assert_eq!(rows(ledger, 1, GroupBy::Product).await, ["Ink 1 1 3", "Pen 1 3 1.25"]);
    assert_eq!(rows(ledger, 3, GroupBy::Product).await, ["Pen -1 -3 -1.25", "Ink -1 -1 -3"]);
    for entry in [counted("b"), counted("b"), counted("a")] {
        answer(ledger, entry).await;
        cancelled(ledger, "a", at(4 * MINUTE)).await;
    }
    assert_eq!(rows(ledger, 1, GroupBy::Product).await, ["Ink 2 2 6", "Pen 2 6 2.50"]);
    assert_eq!(rows(ledger, 3, GroupBy::Product).await, ["Pen -2 -6 -2.50", "Ink -2 -2 -6"]);
    assert_eq!(ledger.totals().await.unwrap().revenue["EUR"].total.to_string(), "0.00");
    // What is subtracted by product is what is subtracted of orders.
    assert_eq!(rows(ledger, 3, GroupBy::Day).await, ["1970-01-01 -2 -8 -8.50 0 -8.50"]);
}

async fn a_failed_order_is_accepted_again_when_it_is_replayed_unless_it_was_cancelled(ledger: &dyn Ledger) {
    for name in ["a", "b"] {
        answer(ledger, accept(order(name))).await;
        assert_eq!(answer(ledger, dead_letter(name)).await, Recorded::New);
    }
    assert_eq!(counts(ledger).await, OrderCounts { failed: 2, ..OrderCounts::default() });
    // Their dead letters are of the first minute, as `dead_letter` says.
    let by_status = async || rows(ledger, 0, GroupBy::Status).await;
    assert_eq!(by_status().await, ["accepted 2 6 2400 0 2400", "failed 2 6 2400 0 2400"]);
    let day = minute(ledger, 0, GroupBy::Day).await;
    assert_eq!((day.currencies[0].failed.figures.orders, day.currencies[0].rows.len()), (2, 0));
    assert_eq!(&*ledger.trace("a").await.unwrap().order.unwrap().status, "failed");
    assert_eq!(answer(ledger, accept(order("a"))).await, Recorded::Unfinished);
    assert_eq!(counts(ledger).await, OrderCounts { accepted: 1, failed: 1, ..OrderCounts::default() });
    assert_eq!(by_status().await, ["accepted 2 6 2400 0 2400", "failed 1 3 1200 0 1200"]);
    assert_eq!(answer(ledger, finish("a")).await, Recorded::New);
    assert!(!cancelled(ledger, "b", at(MINUTE)).await.was_announced);
    // Its dead letter may still be in the dead letter queue.
    let states = ledger.trace("b").await.unwrap().message_states(at(2 * MINUTE));
    let expected = [MessageState::Cancelled { since: at(MINUTE) }, MessageState::DeadLettered { since: at(7_000) }];
    assert_eq!(states, expected.map(|state| (TracedMessage::Order, state)));
    assert_eq!(answer(ledger, accept(order("b"))).await, Recorded::Cancelled);
    assert_eq!(counts(ledger).await, OrderCounts { processed: 1, cancelled: 1, ..OrderCounts::default() });
}

async fn another_order_with_the_id_of_a_cancelled_one_is_a_conflict(ledger: &dyn Ledger) {
    answer(ledger, accept(order("o"))).await;
    cancelled(ledger, "o", at(MINUTE)).await;
    let other = NewOrder { customer_id: None, ..order("o") };
    assert_eq!(answer(ledger, accept(other)).await, Recorded::Conflict(OtherOrder::Finished));
}

async fn a_conflict_says_how_far_the_other_order_is(ledger: &dyn Ledger) {
    for name in ["accepted", "processed", "failed", "cancelled", "undone"] {
        answer(ledger, accept(order(name))).await;
    }
    answer(ledger, finish("processed")).await;
    answer(ledger, dead_letter("failed")).await;
    cancelled(ledger, "cancelled", at(MINUTE)).await;
    claimed(ledger, work("undone", "a", 0)).await;
    ledger.record_run(record("undone", 1, 10, Some(RunState::Undoing))).await.unwrap();
    for (name, progress) in [
        ("accepted", OtherOrder::InProgress),
        ("processed", OtherOrder::Finished),
        ("cancelled", OtherOrder::Finished),
        ("failed", OtherOrder::Failed),
        ("undone", OtherOrder::Failed),
    ] {
        let other = NewOrder { customer_id: None, ..order(name) };
        assert_eq!(answer(ledger, accept(other.clone())).await, Recorded::Conflict(progress), "{name}");
        let claim = RunClaim { order: Some(Box::new(other)), ..work(name, "a", 20) };
        assert_eq!(claimed(ledger, claim).await, ClaimAnswer::NotAccepted(Recorded::Conflict(progress)), "{name}");
    }
}

async fn no_dead_letter_says_that_something_is_left_to_undo_once_all_is_undone(ledger: &dyn Ledger) {
    let letters = async || ledger.totals().await.unwrap().dead_letters;
    claimed(ledger, work("o", "a", 0)).await;
    let failed = RunRecord { failure: Some(failure(9)), ..record("o", 1, 10, Some(RunState::UndoFailed)) };
    ledger.record_run(failed).await.unwrap();
    let left = |identity: &str| {
        let attempt = NewAttempt { failed_at: at(5_000), ..attempt(identity, "order", 0) };
        let (reason, order, origin_queue) = ("undo_failed", None, None);
        LedgerEntry::DeadLetter(Box::new(NewDeadLetter { attempt, order, reason, origin_queue, at: at(5_000) }))
    };
    for identity in ["o", "o/cancellation", "another"] {
        assert_eq!(answer(ledger, left(identity)).await, Recorded::New);
    }
    assert_eq!(letters().await, [("undo_failed".to_owned(), 3)].into());
    ledger.record_run(record("o", 1, 20, Some(RunState::Undone))).await.unwrap();
    assert_eq!(letters().await, [("permanent".to_owned(), 2), ("undo_failed".to_owned(), 1)].into());
    let trace = serde_json::to_string(&ledger.trace("o").await.unwrap().steps).unwrap();
    assert!(trace.contains("http_404") && !trace.contains("undo_failed"), "{trace}");
    // The consumer of another message was renamed after its steps were called.
    let key = RunKey { scope: "former".to_owned(), identity: "m".to_owned() };
    let claim = RunClaim { key: key.clone(), order: None, ..work("m", "a", 0) };
    assert!(matches!(claimed(ledger, claim).await, ClaimAnswer::Granted(_)));
    let failed = RunRecord { failure: Some(failure(9)), ..record("m", 1, 10, Some(RunState::UndoFailed)) };
    ledger.record_run(RunRecord { key: key.clone(), ..failed }).await.unwrap();
    for queue in ["order_queue", "other_queue"] {
        let attempt = NewAttempt { failed_at: at(5_000), ..attempt("m", &["of ", queue].concat(), 0) };
        let (reason, order, origin_queue) = ("undo_failed", None, Some(queue.to_owned()));
        let letter = NewDeadLetter { attempt, order, reason, origin_queue, at: at(5_000) };
        assert_eq!(answer(ledger, LedgerEntry::DeadLetter(Box::new(letter))).await, Recorded::New);
    }
    ledger.record_run(RunRecord { key, ..record("m", 1, 20, Some(RunState::Undone)) }).await.unwrap();
    assert_eq!(letters().await, [("permanent".to_owned(), 3), ("undo_failed".to_owned(), 2)].into());
}

async fn an_order_whose_steps_are_done_counts_as_announced_even_if_a_copy_of_it_is_dead_lettered(ledger: &dyn Ledger) {
    for name in ["done", "running"] {
        claimed(ledger, work(name, "a", 0)).await;
    }
    ledger.record_run(record("done", 1, 10, Some(RunState::Done))).await.unwrap();
    for (name, announced) in [("done", true), ("running", false)] {
        answer(ledger, dead_letter(name)).await;
        assert_eq!(cancelled(ledger, name, at(MINUTE)).await.was_announced, announced, "{name}");
    }
}

/// Orders with the id of another one that differ from it in one value each.
fn others(id: &str) -> Vec<NewOrder> {
    let charges = Charges { shipping: Some(Decimal::ONE), ..Charges::default() };
    let lines = [Item::new("Laptop", 2, Decimal::from(400)), Item::new("Laptop", 1, Decimal::from(400))];
    vec![
        NewOrder { customer_id: Some("8".to_owned()), ..order(id) },
        with_charges(order(id), Charges::default(), "USD"),
        with_charges(order(id), charges, "EUR"),
        with_items(order(id), lines),
        with_items(order(id), [Item::new("Laptop", 3, Decimal::from(399))]),
        with_items(order(id), [Item::new("laptop", 3, Decimal::from(400))]),
    ]
}

async fn a_dead_letter_prevents_or_fails_only_the_order_that_has_its_content(ledger: &dyn Ledger) {
    let status = async |id: &str| ledger.trace(id).await.unwrap().order.map(|order| order.status);
    let dead = async || ledger.totals().await.unwrap().dead_letters.values().sum::<u64>();
    answer(ledger, accept(order("cancelled"))).await;
    answer(ledger, accept(order("revoked"))).await;
    answer(ledger, finish("revoked")).await;
    for name in ["cancelled", "revoked"] {
        cancelled(ledger, name, at(MINUTE)).await;
    }
    answer(ledger, accept(order("accepted"))).await;
    cancel(ledger, "unknown", at(MINUTE)).await;
    // The first order that arrives is the one that was cancelled.
    assert_eq!(answer(ledger, dead_letter("unknown")).await, Recorded::Cancelled);
    assert_eq!(counts(ledger).await.cancelled, 3);
    for (found, name) in (1..).zip(["cancelled", "revoked", "unknown", "accepted"]) {
        for (retries, other) in (0..).zip(others(name)) {
            let later = NewOrder { at: at(i64::from(retries) * 10 + 10_000), ..other };
            assert_eq!(answer(ledger, dead_letter_of(later, retries)).await, Recorded::New, "{name} {retries}");
        }
        assert_eq!(dead().await, found, "{name}");
        let same = dead_letter_of(NewOrder { at: at(20_000), email: None, ..order(name) }, 9);
        let (expected, becomes) = match name {
            "accepted" => (Recorded::New, "failed"),
            _ => (Recorded::Cancelled, "cancelled"),
        };
        assert_ne!(status(name).await.as_deref(), Some("failed"), "{name}");
        assert_eq!(answer(ledger, same).await, expected, "{name}");
        assert_eq!((status(name).await.as_deref(), dead().await), (Some(becomes), found), "{name}");
    }
    assert_eq!(answer(ledger, dead_letter("never accepted")).await, Recorded::New);
    assert_eq!(status("never accepted").await, None);
}

fn key(order: &str) -> RunKey {
    RunKey { scope: String::new(), identity: order.to_owned() }
}

fn call(step: &str) -> StepCallEntry {
    StepCallEntry { step: step.to_owned(), action: StepAction::Do, position: 0, undoable: true, retries: 0 }
}

/// A claim at this millisecond, for 100 ms, that accepts the order.
fn work(order_id: &str, owner: &str, millis: i64) -> RunClaim {
    let purpose = ClaimPurpose::Work {
        message: message(),
        is_new: true,
        replayed_at: None,
        takes_over: false,
        first: Some(call("charge")),
    };
    let order = Some(Box::new(order(order_id)));
    RunClaim { key: key(order_id), purpose, owner: owner.into(), at: at(millis), until: at(millis + 100), order }
}

fn undo(order_id: &str, owner: &str, millis: i64) -> RunClaim {
    let purpose = ClaimPurpose::Cancellation { message: [8; 32], retries: 1 };
    RunClaim { purpose, order: None, ..work(order_id, owner, millis) }
}

fn record(order: &str, fence: i64, millis: i64, state: Option<RunState>) -> RunRecord {
    RunRecord {
        key: key(order),
        fence,
        at: at(millis),
        until: Some(at(millis + 1_000)),
        ended: None,
        next: None,
        state,
        failure: None,
        dead_lettered: false,
    }
}

async fn claimed(ledger: &dyn Ledger, claim: RunClaim) -> ClaimAnswer {
    ledger.claim_run(claim).await.unwrap()
}

async fn a_cancellation_waits_for_a_worker_and_stops_it_before_the_next_call(ledger: &dyn Ledger) {
    assert!(matches!(claimed(ledger, work("o", "a", 0)).await, ClaimAnswer::Granted(_)));
    assert!(matches!(claimed(ledger, undo("unknown", "b", 0)).await, ClaimAnswer::NotConcerned));
    let order = cancelled(ledger, "o", at(10)).await;
    assert!(!order.was_announced && order.steps_queue.as_deref() == Some("order_queue"));
    assert_eq!(claimed(ledger, undo("o", "b", 20)).await, ClaimAnswer::ClaimedByAnother { until: at(100) });
    assert_eq!(claimed(ledger, work("o", "c", 20)).await, ClaimAnswer::NotAccepted(Recorded::Cancelled));
    for change in [
        RunRecord { next: Some(call("ship")), ..record("o", 1, 30, None) },
        record("o", 1, 30, Some(RunState::Done)),
        record("o", 1, 30, None),
    ] {
        assert_eq!(ledger.record_run(change).await.unwrap(), RunRecorded::Cancelled);
    }
    // Its last call may have been answered, and its undo needs the result.
    assert!(matches!(claimed(ledger, undo("o", "b", 31)).await, ClaimAnswer::ClaimedByAnother { .. }));
    let result = RunRecord { ended: done("charge", StepAction::Do, "7"), ..record("o", 1, 31, None) };
    assert_eq!(ledger.record_run(result).await.unwrap(), RunRecorded::Cancelled);
    // That has ended the worker's claim.
    let ClaimAnswer::Granted(run) = claimed(ledger, undo("o", "b", 31)).await else { panic!("it is free") };
    assert_eq!((run.state, run.fence, run.steps.len()), (RunState::Undoing, 2, 1));
    assert_eq!(run.steps[0].result.as_deref(), Some("7"));
    assert_eq!(run.failure.map(|failure| (failure.code, failure.retries)), Some(("cancelled".to_owned(), 1)));
    let stale = RunRecord { next: Some(call("ship")), ..record("o", 1, 32, None) };
    assert_eq!(ledger.record_run(stale).await.unwrap(), RunRecorded::Stale);
    let undone = record("o", 2, 33, Some(RunState::Undone));
    assert_eq!(ledger.record_run(undone).await.unwrap(), RunRecorded::Recorded);
    assert_eq!(answer(ledger, accept(super::fixtures::order("o"))).await, Recorded::Cancelled);
}

async fn a_cancellation_undoes_steps_that_are_done_at_once_and_continues_an_undo_that_failed(ledger: &dyn Ledger) {
    claimed(ledger, work("o", "a", 0)).await;
    ledger.record_run(record("o", 1, 10, Some(RunState::Done))).await.unwrap();
    assert!(cancelled(ledger, "o", at(20)).await.was_announced, "a worker may be publishing its events");
    // It calls nothing any more, so nothing has to wait for it.
    let ClaimAnswer::Granted(run) = claimed(ledger, undo("o", "b", 40)).await else { panic!("it is done") };
    assert_eq!((run.state, run.fence), (RunState::Undoing, 2));
    assert_eq!(answer(ledger, finish("o")).await, Recorded::Cancelled);
    ledger.record_run(record("o", 2, 50, Some(RunState::UndoFailed))).await.unwrap();
    let ClaimAnswer::Granted(run) = claimed(ledger, undo("o", "b", 60)).await else { panic!("it is free") };
    assert_eq!((run.state, run.failure.unwrap().undo_from), (RunState::Undoing, at(60)));
}

async fn retention_removes_what_was_cancelled_long_ago_and_no_cancellation_that_is_not_complete(ledger: &dyn Ledger) {
    cancel(ledger, "kept", at(0)).await;
    for name in ["complete", "open"] {
        answer(ledger, accept(NewOrder { at: at(0), ..order(name) })).await;
        cancelled(ledger, name, at(0)).await;
    }
    complete(ledger, "complete", at(MINUTE)).await;
    // Its dead letter may be replayed, and must not be processed then.
    answer(ledger, accept(NewOrder { at: at(0), ..order("failed") })).await;
    answer(ledger, dead_letter("failed")).await;
    cancelled(ledger, "failed", at(0)).await;
    complete(ledger, "failed", at(0)).await;
    assert_eq!(ledger.prune(at(MINUTE)).await.unwrap().orders, 1);
    assert_eq!(ledger.prune(at(2 * MINUTE)).await.unwrap().orders, 1);
    assert!(ledger.trace("kept").await.unwrap().is_empty() && ledger.trace("complete").await.unwrap().is_empty());
    assert!(!ledger.trace("open").await.unwrap().is_empty());
    let replayed = accept(NewOrder { at: at(3 * MINUTE), ..order("failed") });
    assert_eq!(answer(ledger, replayed).await, Recorded::Cancelled);
}
