//! What is recorded of an order is what its trace says.

use tempfile::TempDir;

use super::*;
use crate::ledger::conformance::{accept, at, attempt, dead_letter, finish, notification, order};
use crate::ledger::{Ledger, LedgerEntry, NewAnalytics, NewAttempt, SqliteLedger};

async fn traced(entries: impl IntoIterator<Item = LedgerEntry>, id: &str) -> Trace {
    let directory = TempDir::new().unwrap();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    for entry in entries {
        ledger.record(entry).await.unwrap();
    }
    read(directory.path(), id).unwrap()
}

/// `2000 order accepted` for each step.
fn told(trace: &Trace) -> Vec<String> {
    let step = |step: &Step| {
        let json = serde_json::to_value(step).unwrap();
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        format!("{} {} {}", step.at.as_millisecond(), text("message"), text("step"))
    };
    trace.steps.iter().map(step).collect()
}

fn failed(retry_count: u32, at_millis: i64) -> LedgerEntry {
    LedgerEntry::Attempt(Box::new(NewAttempt { failed_at: at(at_millis), ..attempt("o-1", "order", retry_count) }))
}

fn counted(id: &str) -> LedgerEntry {
    let (order_id, name) = (Some("o-1".to_owned()), "processed".to_owned());
    LedgerEntry::Analytics(Box::new(NewAnalytics { id: id.to_owned(), order_id, name, sale: None, at: at(5_000) }))
}

#[tokio::test]
async fn a_failure_known_to_the_second_is_not_told_before_its_order() {
    let early = attempt("o-1/analytics/processed", "analytics", 0);
    let early = LedgerEntry::Attempt(Box::new(NewAttempt { failed_at: at(1_000), ..early }));
    let trace = traced([accept(order("o-1")), early], "o-1").await;
    assert_eq!(told(&trace), ["2000 order accepted", "1000 analytics failed"]);
}

#[tokio::test]
async fn another_order_of_the_same_id_is_told_to_be_dead_lettered() {
    let conflict = dead_letter(attempt("o-1", "order", 0));
    let trace = traced([accept(order("o-1")), finish("o-1"), conflict], "o-1").await;
    let places = trace.places(at(100_000));
    let order = places.into_iter().filter(|(subject, _)| *subject == Subject::Order).map(|(_, place)| place);
    assert_eq!(order.collect::<Vec<_>>(), [Place::Done { since: at(3_000) }, Place::DeadLettered { since: at(7_000) }]);
}

#[tokio::test]
async fn failures_of_an_order_with_an_events_identity_are_not_the_events() {
    let order_like_an_event = LedgerEntry::Attempt(Box::new(attempt("o-1/notification/processed", "order", 0)));
    let event = LedgerEntry::Attempt(Box::new(attempt("o-1/notification/processed", "notification", 0)));
    let mut trace = traced([accept(order("o-1")), order_like_an_event, event], "o-1").await;
    assert_eq!(trace.steps.len(), 3);
    trace.keep_failures(|message, consumer| message == Subject::Order || consumer != "order");
    assert_eq!(told(&trace), ["2000 order accepted", "6000 notification failed"]);
}

#[tokio::test]
async fn a_life_is_told_in_the_order_of_its_times() {
    let others = [accept(order("o-10")), notification("o-10/notification/processed"), failed(9, 1)];
    let own = [
        accept(order("o-1")),
        failed(0, 2_500),
        finish("o-1"),
        notification("o-1/notification/processed"),
        counted("o-1/analytics/processed"),
    ];
    let trace = traced(own.into_iter().chain(others.into_iter().take(2)), "o-1").await;
    assert_eq!(
        told(&trace),
        [
            "2000 order accepted",
            "2500 order failed",
            "3000 order processed",
            "4000 notification notified",
            "5000 analytics counted",
        ]
    );
    let order = trace.order.as_ref().unwrap();
    assert_eq!((order.product.as_str(), order.quantity, order.total.to_string().as_str()), ("Laptop", 3, "1200"));
    let done = |subject, since| (subject, Place::Done { since: at(since) });
    assert_eq!(
        trace.places(at(9_000)),
        [done(Subject::Order, 3_000), done(Subject::Notification, 4_000), done(Subject::Analytics, 5_000)]
    );
}

#[tokio::test]
async fn an_order_of_which_nothing_is_recorded_is_unknown() {
    let trace = traced([accept(order("o-10"))], "o-1").await;
    assert!(trace.is_empty());
    assert_eq!(trace.places(at(0)), [(Subject::Order, Place::Unknown)]);
}

#[tokio::test]
async fn an_order_waits_until_its_delay_is_over_and_is_due_from_then_on() {
    let trace = traced([failed(0, 1_000), failed(1, 12_000)], "o-1").await;
    let consumer = || "order".to_owned();
    let waiting =
        Place::Waiting { consumer: consumer(), delay: "10s".to_owned(), since: at(12_000), due_at: at(22_000) };
    assert_eq!(trace.places(at(21_999)), [(Subject::Order, waiting)]);
    assert_eq!(trace.places(at(22_000)), [(Subject::Order, Place::Due { consumer: consumer(), since: at(22_000) })]);
}

#[tokio::test]
async fn a_dead_lettered_order_is_in_the_dead_letter_queue_until_it_is_processed() {
    let dead_lettered = || dead_letter(attempt("o-1", "order", 3));
    let trace = traced([failed(0, 1_000), dead_lettered()], "o-1").await;
    assert_eq!(told(&trace), ["1000 order failed", "6000 order failed", "7000 order dead_lettered"]);
    assert_eq!(trace.places(at(99_000)), [(Subject::Order, Place::DeadLettered { since: at(7_000) })]);
    let replayed = traced([dead_lettered(), accept(order("o-1")), finish("o-1")], "o-1").await;
    assert_eq!(replayed.places(at(99_000))[0], (Subject::Order, Place::Done { since: at(3_000) }));
}

#[tokio::test]
async fn events_that_are_not_recorded_yet_are_under_way() {
    let trace = traced([accept(order("o-1")), finish("o-1"), counted("o-1/analytics/processed")], "o-1").await;
    assert_eq!(trace.places(at(9_000))[1], (Subject::Notification, Place::UnderWay { since: at(3_000) }));
    let unfinished = traced([accept(order("o-1"))], "o-1").await;
    assert_eq!(unfinished.places(at(9_000)), [(Subject::Order, Place::UnderWay { since: at(2_000) })]);
}

#[tokio::test]
async fn a_notification_that_fails_is_traced_with_its_order() {
    let event = "o-1/notification/processed";
    let entry = LedgerEntry::Attempt(Box::new(attempt(event, "notification", 0)));
    let trace = traced([accept(order("o-1")), finish("o-1"), entry], "o-1").await;
    let (subject, place) = &trace.places(at(6_500))[1];
    assert_eq!(*subject, Subject::Notification);
    assert!(matches!(place, Place::Waiting { consumer, .. } if consumer == "notification"), "{place:?}");
}
