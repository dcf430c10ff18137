//! Retention, health and closing.

use futures_util::future::join_all;
use jiff::Timestamp;
use rust_decimal::Decimal;

use super::rules;
use crate::domain::OrderId;
use crate::ledger::conformance::{
    accept, analytics, at, attempt, dead_letter, finish, look_up, notification, order, sale,
};
use crate::ledger::report::{GroupBy, PointInTime, ReportQuery};
use crate::ledger::{
    Ledger, LedgerEntry, LedgerError, LedgerState, NewAttempt, NewNotification, NewOrder, NotificationDelivery, Pruned,
    Recorded,
};

const DAY: i64 = 86_400_000;

rules! {
    old_rows_are_removed_and_the_rest_stays,
    unprocessed_orders_and_dead_letters_are_never_removed,
    an_order_is_kept_for_the_retention_after_it_was_processed,
    no_report_changes_when_old_rows_are_removed,
    the_events_of_an_order_are_kept_as_long_as_the_order,
    an_open_ledger_records_and_a_closed_one_does_not,
    closing_answers_queued_entries,
}

/// Removes all that is older, in as many calls as it takes.
async fn prune_all(ledger: &dyn Ledger, before: i64) -> Pruned {
    let mut sum = Pruned::default();
    loop {
        sum.add(ledger.prune(at(before)).await.unwrap());
        if !sum.more {
            return sum;
        }
    }
}

async fn record(ledger: &dyn Ledger, entries: impl IntoIterator<Item = LedgerEntry>) {
    for entry in entries {
        assert_eq!(ledger.record(entry).await.unwrap(), Recorded::New);
    }
}

/// Everything that the daemon records of an order that is processed at one moment.
fn processed(id: &str, moment: Timestamp) -> [LedgerEntry; 4] {
    let event = |topic: &str| format!("{id}/{topic}");
    let notified = NewNotification {
        id: event("notification/processed"),
        order_id: Some(id.to_owned()),
        channel: "email".to_owned(),
        at: moment,
        delivery: NotificationDelivery::default(),
    };
    let mut counted = analytics(&event("analytics/processed"), Some(sale("Laptop", Decimal::from(1_200), moment)));
    if let LedgerEntry::Analytics(event) = &mut counted {
        event.at = moment;
    }
    [
        accept(NewOrder { at: moment, ..order(id) }),
        LedgerEntry::FinishOrder { id: OrderId::new(id).unwrap(), at: moment },
        LedgerEntry::Notification(Box::new(notified)),
        counted,
    ]
}

/// Its sale is subtracted when it is cancelled, whenever its event was recorded.
async fn the_events_of_an_order_are_kept_as_long_as_the_order(ledger: &dyn Ledger) {
    let [accepted, _, notified, _] = processed("late", at(DAY));
    let finished = LedgerEntry::FinishOrder { id: OrderId::new("late").unwrap(), at: at(3 * DAY) };
    record(ledger, [accepted, notified, finished]).await;
    let pruned = prune_all(ledger, 2 * DAY).await;
    assert_eq!((pruned.orders, pruned.events), (0, 0));
    let pruned = prune_all(ledger, 4 * DAY).await;
    assert_eq!((pruned.orders, pruned.events), (1, 1));
}

fn failed(id: &str, moment: Timestamp) -> LedgerEntry {
    LedgerEntry::Attempt(Box::new(NewAttempt { failed_at: moment, ..attempt(id, "order", 0) }))
}

async fn old_rows_are_removed_and_the_rest_stays(ledger: &dyn Ledger) {
    record(ledger, processed("old", at(DAY))).await;
    record(ledger, [failed("old", at(DAY))]).await;
    record(ledger, processed("young", at(3 * DAY))).await;
    record(ledger, [failed("young", at(3 * DAY))]).await;
    let young = ledger.trace("young").await.unwrap();
    let pruned = prune_all(ledger, 2 * DAY).await;
    assert_eq!((pruned.orders, pruned.events, pruned.attempts, pruned.more), (1, 2, 1, false));
    assert!(ledger.trace("old").await.unwrap().is_empty());
    assert_eq!(ledger.trace("young").await.unwrap(), young);
    assert!(ledger.prune(at(2 * DAY)).await.unwrap().is_empty());
    // What was removed is not recognised any more.
    record(ledger, [accept(order("old"))]).await;
}

async fn unprocessed_orders_and_dead_letters_are_never_removed(ledger: &dyn Ledger) {
    record(ledger, [accept(NewOrder { at: at(DAY), ..order("open") }), dead_letter(attempt("bad", "order", 0))]).await;
    let pruned = prune_all(ledger, 2 * DAY).await;
    assert_eq!((pruned.orders, pruned.attempts), (0, 1), "the dead letter's last attempt is an attempt like others");
    let totals = ledger.totals().await.unwrap();
    assert_eq!(totals.orders["order"].accepted, 1);
    assert_eq!(totals.dead_letters["retries_exhausted"], 1);
}

async fn an_order_is_kept_for_the_retention_after_it_was_processed(ledger: &dyn Ledger) {
    record(ledger, [accept(NewOrder { at: at(DAY), ..order("slow") })]).await;
    record(ledger, [LedgerEntry::FinishOrder { id: OrderId::new("slow").unwrap(), at: at(3 * DAY) }]).await;
    assert_eq!(prune_all(ledger, 2 * DAY).await.orders, 0);
    assert_eq!(prune_all(ledger, 4 * DAY).await.orders, 1);
}

async fn no_report_changes_when_old_rows_are_removed(ledger: &dyn Ledger) {
    for n in 0..50 {
        record(ledger, processed(&format!("ord-{n}"), at(n * 7_000_000))).await;
    }
    record(ledger, [notification("other"), dead_letter(attempt("bad", "order", 0))]).await;
    let now = at(50 * 7_000_000);
    let reports = async || {
        let mut reports = Vec::new();
        for by in [GroupBy::Product, GroupBy::Hour, GroupBy::Day, GroupBy::Status, GroupBy::Priority] {
            for (since, until) in [(0, 350_000_000), (10_000_000, 100_000_000), (90_000_000, 349_000_000)] {
                let query = ReportQuery { since: PointInTime::At(at(since)), until: PointInTime::At(at(until)), by };
                reports.push(ledger.report(query, now).await.unwrap());
            }
        }
        reports
    };
    let before = reports().await;
    let pruned = prune_all(ledger, now.as_millisecond() - 49 * 3_600_000).await;
    assert!(pruned.orders > 20, "{pruned:?}");
    assert_eq!(reports().await, before);
    // An old sale whose event arrives late is still added.
    record(ledger, [analytics("late", Some(sale("Laptop", Decimal::ONE, at(0))))]).await;
    let query =
        ReportQuery { since: PointInTime::At(at(0)), until: PointInTime::At(at(3_600_000)), by: GroupBy::Product };
    let first_hour = ledger.report(query, now).await.unwrap();
    assert_eq!(first_hour.currencies[0].rows[0].figures.revenue.to_string(), "1201");
}

async fn an_open_ledger_records_and_a_closed_one_does_not(ledger: &dyn Ledger) {
    assert_eq!(*ledger.state().borrow(), LedgerState::Recording);
    record(ledger, [accept(order("o-1")), finish("o-1")]).await;
    assert!((1..=2).contains(&ledger.commits()));
    tokio::join!(ledger.close(), ledger.close());
    ledger.close().await;
    assert!(*ledger.state().borrow() == LedgerState::Closed);
    assert!(matches!(ledger.record(look_up("x")).await, Err(LedgerError::Closed)));
    assert!(matches!(ledger.prune(at(DAY)).await, Err(LedgerError::Closed)));
    // It can still be read.
    assert!(ledger.trace("o-1").await.unwrap().order.is_some());
}

async fn closing_answers_queued_entries(ledger: &dyn Ledger) {
    let queued: Vec<_> = (0..50).map(|n| ledger.record(accept(order(&format!("ord-{n}"))))).collect();
    ledger.close().await;
    assert!(join_all(queued).await.into_iter().all(|answer| answer.unwrap() == Recorded::New));
}
