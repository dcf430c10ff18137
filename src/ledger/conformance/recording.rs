//! Recording: the answers to each kind of entry, when it is new, repeated or concurrent.

use futures_util::future::join_all;
use rust_decimal::Decimal;

use super::rules;
use crate::domain::{Charges, Item};
use crate::ledger::OtherOrder;
use crate::ledger::Recorded::{Conflict, Duplicate, New, Unfinished};
use crate::ledger::conformance::{
    accept, analytics, at, attempt, dead_letter, finish, look_up, notification, of_product, order, sale, with_charges,
    with_items,
};
use crate::ledger::trace::TraceEvent;
use crate::ledger::{Ledger, LedgerEntry, NewAttempt, NewDeadLetter, NewOrder, Recorded};

rules! {
    an_order_is_new_then_unfinished_and_once_finished_a_duplicate,
    an_order_with_other_content_is_a_conflict_whether_processed_or_not,
    an_order_with_several_lines_is_compared_line_by_line,
    prices_are_compared_as_numbers,
    an_order_that_was_never_accepted_cannot_be_finished,
    looking_up_a_notification_records_nothing,
    a_claimed_notification_is_held_until_it_is_recorded_released_or_its_lease_ends,
    an_event_is_identified_by_its_id_and_kind,
    an_attempt_is_identified_by_message_consumer_and_retry_count,
    an_attempt_after_a_replay_is_another_attempt,
    a_dead_letter_is_identified_by_message_and_consumer_and_records_its_attempt,
    exactly_one_of_many_concurrent_equal_entries_is_new,
    a_dead_letter_that_failed_again_later_replaces_the_earlier_one,
    of_two_decisions_about_one_failure_the_later_one_is_recorded,
    a_retry_removes_no_dead_letter_of_another_message_that_failed_in_the_same_second,
}

async fn answer(ledger: &dyn Ledger, entry: LedgerEntry) -> Recorded {
    ledger.record(entry).await.unwrap()
}

async fn an_order_is_new_then_unfinished_and_once_finished_a_duplicate(ledger: &dyn Ledger) {
    assert_eq!(answer(ledger, accept(order("o-1"))).await, New);
    assert_eq!(answer(ledger, accept(order("o-1"))).await, Unfinished);
    assert_eq!(answer(ledger, finish("o-1")).await, New);
    assert_eq!(answer(ledger, accept(order("o-1"))).await, Duplicate);
    assert_eq!(answer(ledger, finish("o-1")).await, Duplicate);
}

async fn an_order_with_other_content_is_a_conflict_whether_processed_or_not(ledger: &dyn Ledger) {
    let id = "conflict";
    let others = [
        of_product(id, "Phone"),
        with_items(order(id), [line("Laptop", 4, "400")]),
        with_items(order(id), [line("Laptop", 3, "401")]),
        with_items(order(id), [line("Laptop", 3, "400"), line("Laptop", 3, "400")]),
        with_items(order(id), [line("Laptop", 1, "400"), line("Laptop", 2, "400")]),
        with_charges(order(id), shipping("4.90"), "EUR"),
        with_charges(order(id), Charges::default(), "USD"),
        NewOrder { customer_id: Some("8".to_owned()), ..order(id) },
        NewOrder { customer_id: None, ..order(id) },
    ];
    answer(ledger, accept(order(id))).await;
    for other in &others {
        assert_eq!(answer(ledger, accept(other.clone())).await, Conflict(OtherOrder::InProgress), "{other:?}");
    }
    // Times, consumer and priority are not content.
    let redelivered = NewOrder { consumer: "priority".into(), priority: true, placed_at: None, at: at(9), ..order(id) };
    assert_eq!(answer(ledger, accept(redelivered)).await, Unfinished);
    answer(ledger, finish(id)).await;
    for other in others {
        assert_eq!(answer(ledger, accept(other)).await, Conflict(OtherOrder::Finished));
    }
}

async fn an_order_with_several_lines_is_compared_line_by_line(ledger: &dyn Ledger) {
    let lines = || vec![line("Pen", 2, "1.20"), line("Ink", 1, "3"), line("Pen", 1, "1")];
    let cart = |lines: Vec<Item>| accept(with_items(order("cart"), lines));
    assert_eq!(answer(ledger, cart(lines())).await, New);
    assert_eq!(
        answer(ledger, cart(vec![line("Pen", 2, "1.2"), line("Ink", 1, "3.00"), line("Pen", 1, "1")])).await,
        Unfinished
    );
    let changed = |change: fn(&mut Vec<Item>)| {
        let mut lines = lines();
        change(&mut lines);
        lines
    };
    let others = [
        changed(|lines| lines.swap(0, 1)),
        changed(|lines| drop(lines.pop())),
        changed(|lines| lines.push(line("Cap", 1, "0"))),
        changed(|lines| lines[1] = line("Inks", 1, "3")),
        changed(|lines| (lines[0], lines[2]) = (line("Pen", 1, "1.20"), line("Pen", 2, "1"))),
        vec![line("Pen", 4, "1.60")],
    ];
    for other in &others {
        assert_eq!(answer(ledger, cart(other.clone())).await, Conflict(OtherOrder::InProgress), "{other:?}");
    }
    assert_eq!(answer(ledger, finish("cart")).await, New);
    assert_eq!(answer(ledger, cart(lines())).await, Duplicate);
    assert_eq!(answer(ledger, cart(others[0].clone())).await, Conflict(OtherOrder::Finished));
    let trace = ledger.trace("cart").await.unwrap().order.unwrap();
    let shown: Vec<_> = trace
        .items
        .iter()
        .map(|item| format!("{} {} {} {}", item.product, item.quantity, item.price, item.total))
        .collect();
    assert_eq!(shown, ["Pen 2 1.20 2.40", "Ink 1 3 3", "Pen 1 1 1"]);
    assert_eq!((trace.quantity, trace.total.to_string().as_str()), (4, "6.40"));
}

fn line(product: &str, quantity: i64, price: &str) -> Item {
    Item::new(product, quantity, price.parse().unwrap())
}

fn shipping(amount: &str) -> Charges {
    Charges { shipping: Some(amount.parse().unwrap()), ..Charges::default() }
}

async fn prices_are_compared_as_numbers(ledger: &dyn Ledger) {
    answer(ledger, accept(order("price"))).await;
    let same_price = with_items(order("price"), [line("Laptop", 3, "400.00")]);
    assert_eq!(answer(ledger, accept(same_price)).await, Unfinished);
    let free = with_charges(order("price"), shipping("0.00"), "EUR");
    assert_eq!(answer(ledger, accept(free)).await, Unfinished, "free shipping is no other content");
}

async fn an_order_that_was_never_accepted_cannot_be_finished(ledger: &dyn Ledger) {
    assert!(ledger.record(finish("never")).await.is_err());
    assert_eq!(answer(ledger, accept(order("never"))).await, New);
}

async fn looking_up_a_notification_records_nothing(ledger: &dyn Ledger) {
    assert_eq!(answer(ledger, look_up("looked-up")).await, New);
    assert_eq!(answer(ledger, look_up("looked-up")).await, New);
    assert_eq!(answer(ledger, notification("looked-up")).await, New);
    assert_eq!(answer(ledger, look_up("looked-up")).await, Duplicate);
}

async fn a_claimed_notification_is_held_until_it_is_recorded_released_or_its_lease_ends(ledger: &dyn Ledger) {
    let claim = |owner: &str, second: i64| LedgerEntry::ClaimNotification {
        id: "claimed".to_owned(),
        owner: owner.into(),
        at: at(second),
        until: at(second + 10),
    };
    let release = |owner: &str| LedgerEntry::ReleaseNotification {
        id: "claimed".to_owned(),
        owner: owner.into(),
        failed: Vec::new(),
    };
    assert_eq!(answer(ledger, claim("a", 0)).await, New);
    assert_eq!(answer(ledger, claim("b", 9)).await, Recorded::Held);
    assert_eq!(answer(ledger, claim("a", 9)).await, New, "it is renewed");
    assert_eq!(answer(ledger, claim("b", 18)).await, Recorded::Held);
    assert_eq!(answer(ledger, release("b")).await, Duplicate);
    assert_eq!(answer(ledger, release("a")).await, New);
    assert_eq!(answer(ledger, claim("b", 18)).await, New);
    assert_eq!(answer(ledger, claim("a", 28)).await, New, "the lease has ended");
    assert_eq!(answer(ledger, notification("claimed")).await, New);
    assert_eq!(answer(ledger, release("a")).await, Duplicate);
    assert_eq!(answer(ledger, claim("b", 28)).await, Duplicate);
}

async fn an_event_is_identified_by_its_id_and_kind(ledger: &dyn Ledger) {
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

async fn an_attempt_is_identified_by_message_consumer_and_retry_count(ledger: &dyn Ledger) {
    for (identity, consumer, retry_count) in
        [("a", "order", 0), ("a", "order", 1), ("a", "priority", 0), ("b", "order", 0)]
    {
        let entry = || LedgerEntry::Attempt(Box::new(attempt(identity, consumer, retry_count)));
        assert_eq!(answer(ledger, entry()).await, New);
        assert_eq!(answer(ledger, entry()).await, Duplicate);
    }
}

async fn an_attempt_after_a_replay_is_another_attempt(ledger: &dyn Ledger) {
    let replay = |key: &str| Some(key.to_owned());
    let after = |replay| NewAttempt { replay, failed_at: at(9_000), ..attempt("o-1", "order", 0) };
    assert_eq!(answer(ledger, LedgerEntry::Attempt(Box::new(attempt("o-1", "order", 0)))).await, New);
    for key in ["1-ab", "2-cd"] {
        let entry = || LedgerEntry::Attempt(Box::new(after(replay(key))));
        assert_eq!(answer(ledger, entry()).await, New, "{key}");
        assert_eq!(answer(ledger, entry()).await, Duplicate, "{key}");
    }
    assert_eq!(ledger.totals().await.unwrap().retried, 3);
    let trace = ledger.trace("o-1").await.unwrap();
    let failed = trace.steps.iter().filter(|step| matches!(step.event, TraceEvent::Failed { .. }));
    assert_eq!(failed.map(|step| step.at).collect::<Vec<_>>(), [at(6_000), at(9_000), at(9_000)]);
    // The same failure of another message, in the same second, leaves the dead letter from before the replay.
    assert_eq!(answer(ledger, dead_letter(attempt("o-2", "order", 0))).await, New);
    let replayed = NewAttempt { replay: replay("3-ef"), ..attempt("o-2", "order", 0) };
    assert_eq!(answer(ledger, LedgerEntry::Attempt(Box::new(replayed.clone()))).await, New);
    assert_eq!(ledger.totals().await.unwrap().dead_letters.values().sum::<u64>(), 1);
    // Dead-lettered again within that second, it is another failure, and its retry takes back that one.
    assert_eq!(answer(ledger, dead_letter(replayed.clone())).await, New);
    assert_eq!(answer(ledger, LedgerEntry::Attempt(Box::new(replayed))).await, New);
    assert!(ledger.totals().await.unwrap().dead_letters.is_empty());
}

async fn a_dead_letter_is_identified_by_message_and_consumer_and_records_its_attempt(ledger: &dyn Ledger) {
    assert_eq!(answer(ledger, dead_letter(attempt("dead_lettered", "order", 3))).await, New);
    assert_eq!(answer(ledger, dead_letter(attempt("dead_lettered", "order", 4))).await, Duplicate);
    assert_eq!(answer(ledger, dead_letter(attempt("dead_lettered", "priority", 3))).await, New);
    assert_eq!(answer(ledger, dead_letter(attempt("dead_lettered", "order", 3))).await, Duplicate);
}

async fn of_two_decisions_about_one_failure_the_later_one_is_recorded(ledger: &dyn Ledger) {
    let failed = || attempt("decided", "order", 2);
    let retried = async || answer(ledger, LedgerEntry::Attempt(Box::new(failed()))).await;
    let counts = async || {
        let totals = ledger.totals().await.unwrap();
        (totals.retried, totals.dead_letters.values().sum::<u64>())
    };
    let (retries, dead_letters) = counts().await;
    assert_eq!(retried().await, New);
    // The copy for the retry was not published before the message became too old, or a reload changed the policy.
    assert_eq!(answer(ledger, dead_letter(failed())).await, New);
    assert_eq!(counts().await, (retries, dead_letters + 1));
    assert_eq!((retried().await, retried().await), (New, Duplicate));
    assert_eq!(counts().await, (retries + 1, dead_letters));
    // Another failure of the message leaves the dead letter of the earlier one, whose message may still be in the queue.
    assert_eq!(answer(ledger, dead_letter(failed())).await, New);
    let later = NewAttempt { failed_at: at(6_100), ..failed() };
    assert_eq!(answer(ledger, LedgerEntry::Attempt(Box::new(later))).await, Duplicate);
    assert_eq!(counts().await, (retries, dead_letters + 1));
}

async fn exactly_one_of_many_concurrent_equal_entries_is_new(ledger: &dyn Ledger) {
    let entries: [&dyn Fn() -> LedgerEntry; 5] = [
        &|| accept(order("concurrent")),
        &|| notification("concurrent-1"),
        &|| analytics("concurrent-2", Some(sale("Laptop", Decimal::ONE, at(0)))),
        &|| LedgerEntry::Attempt(Box::new(attempt("concurrent", "order", 0))),
        &|| dead_letter(attempt("concurrent", "order", 1)),
    ];
    for entry in entries {
        let answers = join_all((0..50).map(|_| ledger.record(entry()))).await;
        assert_eq!(answers.into_iter().filter(|answer| matches!(answer, Ok(New))).count(), 1, "{:?}", entry());
    }
}

async fn a_dead_letter_that_failed_again_later_replaces_the_earlier_one(ledger: &dyn Ledger) {
    let dead_letter = |failed_at, reason| {
        let attempt = NewAttempt { failed_at: at(failed_at), delay: None, ..attempt("o-1", "order", 3) };
        let letter = NewDeadLetter { attempt, order: None, reason, origin_queue: None, at: at(7_000) };
        LedgerEntry::DeadLetter(Box::new(letter))
    };
    assert_eq!(answer(ledger, dead_letter(6_000, "permanent")).await, New);
    assert_eq!(answer(ledger, dead_letter(6_500, "too_old")).await, New);
    assert_eq!(answer(ledger, dead_letter(6_400, "malformed")).await, Duplicate);
    let totals = ledger.totals().await.unwrap();
    assert_eq!(totals.dead_letters, [("too_old".to_owned(), 1)].into());
}

async fn a_retry_removes_no_dead_letter_of_another_message_that_failed_in_the_same_second(ledger: &dyn Ledger) {
    let failed = |code: &str| NewAttempt { code: code.to_owned(), ..attempt("o-1", "order", 0) };
    answer(ledger, dead_letter(failed("unsupported_event"))).await;
    answer(ledger, LedgerEntry::Attempt(Box::new(failed("http_503")))).await;
    assert_eq!(ledger.totals().await.unwrap().dead_letters.values().sum::<u64>(), 1);
}
