//! Traces: what was recorded about an order is what its trace shows.

use super::rules;
use crate::ledger::conformance::{accept, at, attempt, dead_letter, finish, notification, order, skipped};
use crate::ledger::trace::{MessageState, Trace, TraceEvent, TraceStep, TracedMessage};
use crate::ledger::{
    FailedDelivery, Ledger, LedgerEntry, NewAnalytics, NewAttempt, NewNotification, NewOrder, NotificationDelivery,
    Recorded,
};

rules! {
    a_failure_recorded_to_the_second_is_not_shown_before_its_order,
    another_order_with_the_same_id_is_shown_as_dead_lettered,
    failures_of_an_order_named_like_an_event_are_not_the_events,
    steps_are_sorted_by_time,
    an_order_that_was_accepted_after_a_replay_is_traced_in_the_order_of_time,
    an_order_without_records_is_unknown,
    an_order_waits_until_its_delay_is_over_and_is_due_from_then_on,
    a_dead_lettered_order_is_in_the_dead_letter_queue_until_it_is_processed,
    events_that_are_not_recorded_yet_are_under_way,
    a_notification_that_fails_is_traced_with_its_order,
    each_attempt_to_deliver_a_notification_is_traced_with_its_provider,
    of_many_attempts_to_deliver_a_notification_the_latest_are_kept,
}

async fn record(ledger: &dyn Ledger, entries: impl IntoIterator<Item = LedgerEntry>) {
    for entry in entries {
        ledger.record(entry).await.unwrap();
    }
}

async fn traced(ledger: &dyn Ledger, entries: impl IntoIterator<Item = LedgerEntry>) -> Trace {
    record(ledger, entries).await;
    ledger.trace("o-1").await.unwrap()
}

/// `2000 order accepted` for each step.
fn steps(trace: &Trace) -> Vec<String> {
    let step = |step: &TraceStep| {
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

async fn a_failure_recorded_to_the_second_is_not_shown_before_its_order(ledger: &dyn Ledger) {
    let early = attempt("o-1/analytics/processed", "analytics", 0);
    let early = LedgerEntry::Attempt(Box::new(NewAttempt { failed_at: at(1_000), ..early }));
    let trace = traced(ledger, [accept(order("o-1")), early]).await;
    assert_eq!(steps(&trace), ["2000 order accepted", "1000 analytics failed"]);
}

async fn an_order_that_was_accepted_after_a_replay_is_traced_in_the_order_of_time(ledger: &dyn Ledger) {
    let replayed = NewOrder { at: at(60_000), ..order("o-1") };
    let failure_counted = NewAnalytics {
        id: "o-1/analytics/failed".to_owned(),
        order_id: Some("o-1".to_owned()),
        name: "failed".to_owned(),
        sale: None,
        at: at(9_000),
    };
    let first = LedgerEntry::Analytics(Box::new(failure_counted));
    let trace = traced(ledger, [failed(0, 8_000), first, accept(replayed)]).await;
    let times: Vec<_> = trace.steps.iter().map(|step| step.at).collect();
    assert_eq!(times, [at(8_000), at(9_000), at(60_000)]);
}

async fn another_order_with_the_same_id_is_shown_as_dead_lettered(ledger: &dyn Ledger) {
    let conflict = dead_letter(attempt("o-1", "order", 0));
    let trace = traced(ledger, [accept(order("o-1")), finish("o-1"), conflict]).await;
    let states = trace.message_states(at(100_000));
    let order = states.into_iter().filter(|(message, _)| *message == TracedMessage::Order).map(|(_, state)| state);
    assert_eq!(
        order.collect::<Vec<_>>(),
        [MessageState::Done { since: at(3_000) }, MessageState::DeadLettered { since: at(7_000) }]
    );
}

async fn failures_of_an_order_named_like_an_event_are_not_the_events(ledger: &dyn Ledger) {
    let order_like_an_event = LedgerEntry::Attempt(Box::new(attempt("o-1/notification/processed", "order", 0)));
    let event = LedgerEntry::Attempt(Box::new(attempt("o-1/notification/processed", "notification", 0)));
    let mut trace = traced(ledger, [accept(order("o-1")), order_like_an_event, event]).await;
    assert_eq!(trace.steps.len(), 3);
    trace.keep_failures(|message, consumer| message == TracedMessage::Order || consumer != "order");
    assert_eq!(steps(&trace), ["2000 order accepted", "6000 notification failed"]);
}

async fn steps_are_sorted_by_time(ledger: &dyn Ledger) {
    let others = [accept(order("o-10")), notification("o-10/notification/processed")];
    let own = [
        accept(order("o-1")),
        failed(0, 2_500),
        finish("o-1"),
        notification("o-1/notification/processed"),
        counted("o-1/analytics/processed"),
        skipped("o-1/notification/cancelled", Some("no_address")),
    ];
    let trace = traced(ledger, own.into_iter().chain(others)).await;
    assert_eq!(
        steps(&trace),
        [
            "2000 order accepted",
            "2500 order failed",
            "3000 order processed",
            "4000 notification notified",
            "4000 notification_cancelled skipped",
            "5000 analytics counted",
        ]
    );
    let order = trace.order.as_ref().unwrap();
    assert_eq!(
        (order.items[0].product.as_str(), order.quantity, order.total.to_string().as_str()),
        ("Laptop", 3, "1200")
    );
    let done = |message, since| (message, MessageState::Done { since: at(since) });
    assert_eq!(
        trace.message_states(at(9_000)),
        [
            done(TracedMessage::Order, 3_000),
            done(TracedMessage::Notification, 4_000),
            done(TracedMessage::Analytics, 5_000),
            done(TracedMessage::NotificationCancelled, 4_000)
        ]
    );
}

async fn an_order_without_records_is_unknown(ledger: &dyn Ledger) {
    let trace = traced(ledger, [accept(order("o-10"))]).await;
    assert!(trace.is_empty());
    assert_eq!(trace.message_states(at(0)), [(TracedMessage::Order, MessageState::Unknown)]);
}

async fn an_order_waits_until_its_delay_is_over_and_is_due_from_then_on(ledger: &dyn Ledger) {
    let trace = traced(ledger, [failed(0, 1_000), failed(1, 12_000)]).await;
    let consumer = || "order".to_owned();
    let waiting =
        MessageState::Waiting { consumer: consumer(), delay: "10s".to_owned(), since: at(12_000), due_at: at(22_000) };
    assert_eq!(trace.message_states(at(21_999)), [(TracedMessage::Order, waiting)]);
    assert_eq!(
        trace.message_states(at(22_000)),
        [(TracedMessage::Order, MessageState::Due { consumer: consumer(), since: at(22_000) })]
    );
}

async fn a_dead_lettered_order_is_in_the_dead_letter_queue_until_it_is_processed(ledger: &dyn Ledger) {
    let dead_lettered = || dead_letter(attempt("o-1", "order", 3));
    let trace = traced(ledger, [failed(0, 1_000), dead_lettered()]).await;
    assert_eq!(steps(&trace), ["1000 order failed", "6000 order failed", "7000 order dead_lettered"]);
    assert_eq!(
        trace.message_states(at(99_000)),
        [(TracedMessage::Order, MessageState::DeadLettered { since: at(7_000) })]
    );
    let replayed = traced(ledger, [dead_lettered(), accept(order("o-1")), finish("o-1")]).await;
    assert_eq!(replayed.message_states(at(99_000))[0], (TracedMessage::Order, MessageState::Done { since: at(3_000) }));
}

async fn events_that_are_not_recorded_yet_are_under_way(ledger: &dyn Ledger) {
    let trace = traced(ledger, [accept(order("o-1")), finish("o-1"), counted("o-1/analytics/processed")]).await;
    assert_eq!(
        trace.message_states(at(9_000))[1],
        (TracedMessage::Notification, MessageState::UnderWay { since: at(3_000) })
    );
    record(ledger, [accept(order("o-2"))]).await;
    let unfinished = ledger.trace("o-2").await.unwrap();
    assert_eq!(
        unfinished.message_states(at(9_000)),
        [(TracedMessage::Order, MessageState::UnderWay { since: at(2_000) })]
    );
}

async fn each_attempt_to_deliver_a_notification_is_traced_with_its_provider(ledger: &dyn Ledger) {
    let id = "o-1/notification/processed".to_owned();
    let failed = |provider: &str, second: i64| FailedDelivery {
        channel: "email".to_owned(),
        provider: provider.to_owned(),
        recipient: Some("a…@example.com".to_owned()),
        kind: "transient",
        code: "smtp_421".to_owned(),
        reason: "421 not now".to_owned(),
        at: at(second),
    };
    let released = LedgerEntry::ReleaseNotification {
        id: id.clone(),
        owner: "a".into(),
        failed: vec![failed("email", 3_100), failed("backup", 3_200)],
    };
    let delivery = NotificationDelivery {
        provider: Some("backup".to_owned()),
        recipient: Some("a…@example.com".to_owned()),
        failed: vec![failed("email", 3_300)],
        not_delivered: None,
    };
    let notified = NewNotification { id, order_id: None, channel: "email".to_owned(), at: at(3_400), delivery };
    let notified = LedgerEntry::Notification(Box::new(notified));
    record(ledger, [accept(order("o-1")), finish("o-1")]).await;
    assert_eq!(ledger.record(released).await.unwrap(), Recorded::Duplicate, "there was no claim");
    let trace = ledger.trace("o-1").await.unwrap();
    let since = at(3_000);
    assert_eq!(trace.message_states(at(4_000))[1], (TracedMessage::Notification, MessageState::UnderWay { since }));
    let trace = traced(ledger, [notified]).await;
    let of_notification = trace.steps.iter().filter(|step| step.message == TracedMessage::Notification);
    let seen: Vec<_> = of_notification
        .map(|step| match &step.event {
            TraceEvent::DeliveryFailed { channel, provider, code, .. } => {
                (step.at, channel.as_str(), provider.as_str(), code.as_str())
            }
            TraceEvent::Notified { channel, provider, recipient } => {
                assert_eq!(recipient.as_deref(), Some("a…@example.com"));
                (step.at, channel.as_str(), provider.as_deref().unwrap(), "")
            }
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        seen,
        [
            (at(3_100), "email", "email", "smtp_421"),
            (at(3_200), "email", "backup", "smtp_421"),
            (at(3_300), "email", "email", "smtp_421"),
            (at(3_400), "email", "backup", "")
        ]
    );
}

async fn of_many_attempts_to_deliver_a_notification_the_latest_are_kept(ledger: &dyn Ledger) {
    let failed = |n: i64| FailedDelivery {
        channel: "email".to_owned(),
        provider: "email".to_owned(),
        recipient: None,
        kind: "transient",
        code: format!("smtp_{n}"),
        reason: "not now".to_owned(),
        at: at(4_000 + n),
    };
    let released = |numbers: std::ops::Range<i64>| LedgerEntry::ReleaseNotification {
        id: "o-1/notification/processed".to_owned(),
        owner: "a".into(),
        failed: numbers.map(failed).collect(),
    };
    let trace = traced(ledger, [released(0..99), released(99..103)]).await;
    let times: Vec<_> = trace.steps.iter().map(|step| step.at.as_millisecond()).collect();
    assert_eq!(times, (4_003..4_103).collect::<Vec<_>>());
}

async fn a_notification_that_fails_is_traced_with_its_order(ledger: &dyn Ledger) {
    let event = "o-1/notification/processed";
    let entry = LedgerEntry::Attempt(Box::new(attempt(event, "notification", 0)));
    let trace = traced(ledger, [accept(order("o-1")), finish("o-1"), entry]).await;
    let (message, state) = &trace.message_states(at(6_500))[1];
    assert_eq!(*message, TracedMessage::Notification);
    assert!(matches!(state, MessageState::Waiting { consumer, .. } if consumer == "notification"), "{state:?}");
}
