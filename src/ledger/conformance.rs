//! What every ledger must do, whatever it stores to: one function to run against each implementation.
//!
//! It knows the trait alone. It must never look into a store, nor need an empty one twice: each rule uses ids
//! of its own.

use futures_util::future::join_all;
use jiff::Timestamp;
use rust_decimal::Decimal;

use super::Recorded::{Conflict, Duplicate, New, Unfinished};
use super::{Ledger, LedgerEntry, NewAnalytics, NewAttempt, NewDeadLetter, NewNotification, NewOrder, Recorded};
use crate::domain::{OrderId, Sale};

/// Runs every rule against one empty ledger.
pub(crate) async fn conforms(ledger: &dyn Ledger) {
    an_order_is_new_then_unfinished_and_once_finished_a_duplicate(ledger).await;
    an_order_of_other_content_is_a_conflict_finished_or_not(ledger).await;
    a_price_is_compared_as_a_number(ledger).await;
    an_order_that_was_never_accepted_cannot_be_finished(ledger).await;
    looking_an_event_up_records_nothing(ledger).await;
    an_event_is_new_once_for_its_kind(ledger).await;
    an_attempt_is_known_by_message_consumer_and_retry_count(ledger).await;
    a_dead_letter_is_known_by_message_and_consumer_and_records_its_attempt(ledger).await;
    of_concurrent_equal_entries_exactly_one_is_new(ledger).await;
}

pub(crate) fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(milliseconds).unwrap()
}

pub(crate) fn order(id: &str) -> NewOrder {
    NewOrder {
        id: OrderId::new(id).unwrap(),
        consumer: "order".into(),
        product: "Laptop".to_owned(),
        quantity: 3,
        price: Decimal::from(400),
        total: Decimal::from(1_200),
        currency: "EUR".parse().unwrap(),
        priority: false,
        customer_id: Some("7".to_owned()),
        placed_at: Some(at(1_000)),
        at: at(2_000),
    }
}

pub(crate) fn accept(order: NewOrder) -> LedgerEntry {
    LedgerEntry::AcceptOrder(Box::new(order))
}

pub(crate) fn finish(id: &str) -> LedgerEntry {
    LedgerEntry::FinishOrder { id: OrderId::new(id).unwrap(), at: at(3_000) }
}

pub(crate) fn look_up(id: &str) -> LedgerEntry {
    LedgerEntry::LookUpNotification { id: id.to_owned() }
}

pub(crate) fn notification(id: &str) -> LedgerEntry {
    let channel = "email".to_owned();
    LedgerEntry::Notification(Box::new(NewNotification { id: id.to_owned(), order_id: None, channel, at: at(4_000) }))
}

pub(crate) fn analytics(id: &str, sale: Option<Sale>) -> LedgerEntry {
    let name = "processed".to_owned();
    LedgerEntry::Analytics(Box::new(NewAnalytics { id: id.to_owned(), order_id: None, name, sale, at: at(5_000) }))
}

pub(crate) fn sale(product: &str, total: Decimal, at: Timestamp) -> Sale {
    Sale { product: product.to_owned(), quantity: 3, total, currency: "EUR".parse().unwrap(), at }
}

pub(crate) fn attempt(identity: &str, consumer: &str, retry_count: u32) -> NewAttempt {
    NewAttempt {
        identity: identity.to_owned(),
        consumer: consumer.to_owned(),
        retry_count,
        kind: "transient",
        code: "stock_unreachable".to_owned(),
        reason: "the stock service did not answer".to_owned(),
        failed_at: at(6_000),
        delay: Some("10s".to_owned()),
    }
}

pub(crate) fn dead_letter(attempt: NewAttempt) -> LedgerEntry {
    LedgerEntry::DeadLetter(Box::new(NewDeadLetter {
        attempt: NewAttempt { delay: None, ..attempt },
        reason: "retries_exhausted",
        origin_queue: Some("order_queue".to_owned()),
        at: at(7_000),
    }))
}

async fn answer(ledger: &dyn Ledger, entry: LedgerEntry) -> Recorded {
    ledger.record(entry).await.unwrap()
}

async fn an_order_is_new_then_unfinished_and_once_finished_a_duplicate(ledger: &dyn Ledger) {
    assert_eq!(answer(ledger, accept(order("life"))).await, New);
    assert_eq!(answer(ledger, accept(order("life"))).await, Unfinished);
    assert_eq!(answer(ledger, finish("life")).await, New);
    assert_eq!(answer(ledger, accept(order("life"))).await, Duplicate);
    assert_eq!(answer(ledger, finish("life")).await, Duplicate);
}

async fn an_order_of_other_content_is_a_conflict_finished_or_not(ledger: &dyn Ledger) {
    let id = "conflict";
    let others = [
        NewOrder { product: "Phone".to_owned(), ..order(id) },
        NewOrder { quantity: 4, ..order(id) },
        NewOrder { price: Decimal::from(401), ..order(id) },
        NewOrder { currency: "USD".parse().unwrap(), ..order(id) },
        NewOrder { customer_id: Some("8".to_owned()), ..order(id) },
        NewOrder { customer_id: None, ..order(id) },
    ];
    answer(ledger, accept(order(id))).await;
    for other in &others {
        assert_eq!(answer(ledger, accept(other.clone())).await, Conflict, "{other:?}");
    }
    // Neither the time nor the way of taking it is content.
    let again = NewOrder { consumer: "priority".into(), priority: true, placed_at: None, at: at(9), ..order(id) };
    assert_eq!(answer(ledger, accept(again)).await, Unfinished);
    answer(ledger, finish(id)).await;
    for other in others {
        assert_eq!(answer(ledger, accept(other)).await, Conflict);
    }
}

async fn a_price_is_compared_as_a_number(ledger: &dyn Ledger) {
    answer(ledger, accept(order("price"))).await;
    let written_otherwise = NewOrder { price: "400.00".parse().unwrap(), ..order("price") };
    assert_eq!(answer(ledger, accept(written_otherwise)).await, Unfinished);
}

async fn an_order_that_was_never_accepted_cannot_be_finished(ledger: &dyn Ledger) {
    assert!(ledger.record(finish("never")).await.is_err());
    assert_eq!(answer(ledger, accept(order("never"))).await, New);
}

async fn looking_an_event_up_records_nothing(ledger: &dyn Ledger) {
    assert_eq!(answer(ledger, look_up("looked-up")).await, New);
    assert_eq!(answer(ledger, look_up("looked-up")).await, New);
    assert_eq!(answer(ledger, notification("looked-up")).await, New);
    assert_eq!(answer(ledger, look_up("looked-up")).await, Duplicate);
}

async fn an_event_is_new_once_for_its_kind(ledger: &dyn Ledger) {
    assert_eq!(answer(ledger, notification("event-1")).await, New);
    assert_eq!(answer(ledger, notification("event-1")).await, Duplicate);
    // Two producers may choose the same message id for different things.
    assert_eq!(answer(ledger, analytics("event-1", None)).await, New);
    assert_eq!(answer(ledger, analytics("event-1", None)).await, Duplicate);
    let sold = || analytics("event-2", Some(sale("Laptop", Decimal::ONE, at(0))));
    assert_eq!(answer(ledger, sold()).await, New);
    assert_eq!(answer(ledger, sold()).await, Duplicate);
    assert_eq!(answer(ledger, look_up("event-2")).await, New);
}

async fn an_attempt_is_known_by_message_consumer_and_retry_count(ledger: &dyn Ledger) {
    for (identity, consumer, retry_count) in
        [("a", "order", 0), ("a", "order", 1), ("a", "priority", 0), ("b", "order", 0)]
    {
        let entry = || LedgerEntry::Attempt(Box::new(attempt(identity, consumer, retry_count)));
        assert_eq!(answer(ledger, entry()).await, New);
        assert_eq!(answer(ledger, entry()).await, Duplicate);
    }
}

async fn a_dead_letter_is_known_by_message_and_consumer_and_records_its_attempt(ledger: &dyn Ledger) {
    assert_eq!(answer(ledger, dead_letter(attempt("dead_lettered", "order", 3))).await, New);
    assert_eq!(answer(ledger, dead_letter(attempt("dead_lettered", "order", 4))).await, Duplicate);
    assert_eq!(answer(ledger, dead_letter(attempt("dead_lettered", "priority", 3))).await, New);
    assert_eq!(answer(ledger, LedgerEntry::Attempt(Box::new(attempt("dead_lettered", "order", 3)))).await, Duplicate);
}

async fn of_concurrent_equal_entries_exactly_one_is_new(ledger: &dyn Ledger) {
    let entries: [&dyn Fn() -> LedgerEntry; 5] = [
        &|| accept(order("crowd")),
        &|| notification("crowd-1"),
        &|| analytics("crowd-2", Some(sale("Laptop", Decimal::ONE, at(0)))),
        &|| LedgerEntry::Attempt(Box::new(attempt("crowd", "order", 0))),
        &|| dead_letter(attempt("crowd", "order", 1)),
    ];
    for entry in entries {
        let answers = join_all((0..50).map(|_| ledger.record(entry()))).await;
        assert_eq!(answers.into_iter().filter(|answer| matches!(answer, Ok(New))).count(), 1, "{:?}", entry());
    }
}
