//! Every way an order can fail, and what becomes of it.
//!
//! One shop has a consumer for each way, made by configuration alone.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::Node;
use crate::support::raw::Raw;
use crate::support::raw::properties::{Field, Properties};
use crate::support::shop::{Book, Shop, order, until};

/// A consumer of `order.<name>.*` with these settings over the defaults.
fn with_consumer<'a>(shop: Shop<'a>, name: &str, settings: &[(&str, &str)]) -> Shop<'a> {
    let shop = shop
        .set(&format!("queues.{name}_queue.bindings"), &format!("order.{name}.*"))
        .set(&format!("consumers.{name}.queue"), &format!("{name}_queue"))
        .set(&format!("consumers.{name}.handler"), "order")
        .set(&format!("consumers.{name}.retry.delays"), "200ms");
    settings.iter().fold(shop, |shop, (key, value)| shop.set(&format!("consumers.{name}.{key}"), value))
}

fn attempts(book: &Book, identity: &str) -> Vec<String> {
    let columns = "retry_count, failure_kind, failure_code, delay";
    book.rows(&format!("SELECT {columns} FROM attempts WHERE identity = '{identity}' ORDER BY retry_count"))
}

fn dead_lettered(book: &Book, identity: &str) -> Vec<String> {
    let columns = "consumer, reason, retry_count, failure_kind, failure_code, origin_queue";
    book.rows(&format!("SELECT {columns} FROM dead_letters WHERE identity = '{identity}'"))
}

fn is_processed(book: &Book, id: &str) -> bool {
    book.number(&format!("SELECT count(*) FROM orders WHERE id = '{id}' AND status = 'processed'")) == 1
}

fn send(raw: &mut Raw, key: &str, id: &str) {
    raw.send_to("orders", key, &Properties::persistent(), &order(id));
}

#[test]
fn each_failure_is_retried_or_dead_lettered_as_its_kind_and_its_consumer_demand() {
    let node = Node::shared();
    let shop = Shop::new(&node);
    let shop = with_consumer(shop, "flaky", &[("faults.transient", "1.0")]);
    let shop = with_consumer(shop, "panicky", &[("faults.panic", "1.0")]);
    let shop = with_consumer(shop, "hanging", &[("faults.hang", "1.0"), ("timeout", "300ms")]);
    let shop = with_consumer(shop, "slow", &[("faults.transient", "1.0"), ("retry.delays", "1h")]);
    let shop = with_consumer(shop, "hopeless", &[("faults.transient", "1.0"), ("retry.delays", "[]")]);
    let shop = with_consumer(shop, "refusing", &[("faults.permanent", "1.0")]);
    let mut orderd = shop.open();
    let mut raw = shop.raw();
    let book = shop.book();
    let persistent = Properties::persistent();

    for kind in ["flaky", "panicky", "hanging", "slow", "hopeless", "refusing"] {
        send(&mut raw, &format!("order.{kind}.created"), kind);
    }
    let forged = persistent.clone().header("x-retry-count", Field::Long(7));
    raw.send_to("orders", "order.slow.created", &forged, &order("forger"));
    raw.send_to("orders", "order.normal.created", &persistent.clone().text("message_id", "m-1"), b"{not json");
    raw.send_to("orders", "order.normal.created", &persistent, br#"{"id":"bad","product":"x","quantity":0,"price":1}"#);
    let named = persistent.clone().text("message_id", "stray");
    raw.send_to("orders", "order.failed.by.hand", &named, &order("stray"));
    raw.send_to("orders", "order.failed.order", &failed_two_days_ago(), &order("old"));
    send(&mut raw, "oder.normal.created", "typo");

    for id in ["flaky", "panicky", "hanging"] {
        until(&format!("{id} is processed"), || is_processed(&book, id));
    }
    assert_eq!(attempts(&book, "flaky"), ["0|transient|injected_transient|200ms"]);
    assert_eq!(attempts(&book, "panicky"), ["0|panicked|panicked|200ms"]);
    assert_eq!(attempts(&book, "hanging"), ["0|timed_out|deadline_exceeded|200ms"]);

    for (id, expected) in [
        ("m-1", "order|malformed|0|malformed|invalid_order|order_queue"),
        ("bad", "order|permanent|0|permanent|invalid_quantity|order_queue"),
        ("refusing", "refusing|permanent|0|permanent|injected_permanent|refusing_queue"),
        ("hopeless", "hopeless|retries_exhausted|0|transient|injected_transient|hopeless_queue"),
        ("old", "order|too_old|0|transient|busy|order_queue"),
        ("stray", "unknown|no_origin|0|permanent|unknown_failure|-"),
    ] {
        until(&format!("{id} is dead-lettered"), || !dead_lettered(&book, id).is_empty());
        assert_eq!(dead_lettered(&book, id), [expected]);
        assert!(!is_processed(&book, id), "{id}");
    }
    let mut reasons: Vec<_> = raw.drain("dead_letter_queue").iter().map(told_reason).collect();
    reasons.sort();
    assert_eq!(reasons, ["malformed", "no_origin", "permanent", "permanent", "retries_exhausted", "too_old"]);

    until("both wait for their retry", || raw.depth("slow_queue.retry.1h") == 2);
    for waiting in raw.drain("slow_queue.retry.1h") {
        let headers = waiting.properties().headers;
        assert_eq!(headers["x-retry-count"], Field::Long(1), "{}", waiting.text());
        assert_eq!(headers["x-origin-queue"].text(), "slow_queue");
    }
    assert_eq!(raw.drain("unrouted_queue").iter().map(|got| got.body.clone()).collect::<Vec<_>>(), [order("typo")]);
    assert_eq!(orderd.stop(), 0);
    assert_eq!(orderd.counts("panicky", "restarts"), 0, "a panic costs a delivery, no worker");
}

fn told_reason(dead_lettered: &crate::support::raw::Got) -> String {
    dead_lettered.properties().headers["x-dead-letter-reason"].text().to_owned()
}

/// What a failure in `order_queue` looks like whose retries took longer than `max_age`.
fn failed_two_days_ago() -> Properties {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let text = |value: &str| Field::Text(value.to_owned());
    Properties::persistent()
        .header("x-origin-queue", text("order_queue"))
        .header("x-failure-kind", text("transient"))
        .header("x-failure-code", text("busy"))
        .header("x-first-failed-at", Field::Time(now - 2 * 24 * 3600))
}

#[test]
fn a_retry_returns_to_the_one_queue_it_failed_in() {
    let node = Node::shared();
    let shop = with_consumer(Shop::new(&node), "left", &[("faults.transient", "1.0")]);
    let shop = with_consumer(shop, "right", &[]);
    let both = "order.both.*";
    let shop = shop.set("queues.left_queue.bindings", both).set("queues.right_queue.bindings", both);
    let mut orderd = shop.open();
    let book = shop.book();
    for n in 0..10 {
        send(&mut shop.raw(), "order.both.created", &format!("ord-{n}"));
    }
    until("all retries are over", || orderd.lines("Processing Order").len() == 40);
    book.await_settled(10);
    assert_eq!(orderd.stop(), 0);
    // Left: a first and an immediate attempt of each in one delivery, and the delayed retry in another.
    assert_eq!((orderd.counts("left", "deliveries"), orderd.counts("right", "deliveries")), (20, 10));
    assert_eq!(orderd.counts("failed", "retried"), 10);
}

#[test]
fn an_order_that_hits_the_delivery_limit_is_retried_once_and_then_dead_lettered() {
    let node = Node::shared();
    let shop = Shop::new(&node).set("consumers.order.retry.delays", "5s,5s,5s");
    assert_eq!(shop.open().stop(), 0);
    let mut raw = shop.raw();
    send(&mut raw, "order.normal.created", "innocent");
    send(&mut raw, "order.normal.created", "killer");
    exhaust(&mut raw, "innocent");
    exhaust(&mut raw, "killer");
    until("both have failed", || raw.depth("failed_order_queue") == 2);

    let mut orderd = shop.open();
    let book = shop.book();
    until("both are to be retried", || book.number("SELECT count(*) FROM attempts") == 2);
    assert_eq!(orderd.stop(), 0);
    for id in ["innocent", "killer"] {
        assert_eq!(attempts(&book, id), ["0|delivery_limit|delivery_limit|5s"]);
        assert!(!is_processed(&book, id));
    }
    until("both are back", || raw.depth("order_queue") == 2);
    exhaust(&mut raw, "killer");
    until("the killer has failed again", || raw.depth("failed_order_queue") == 1);

    let mut orderd = shop.open();
    until("the killer is dead-lettered", || !dead_lettered(&book, "killer").is_empty());
    until("the innocent is processed", || is_processed(&book, "innocent"));
    assert_eq!(dead_lettered(&book, "killer"), ["order|delivery_limit|1|delivery_limit|delivery_limit|order_queue"]);
    let got = raw.get("dead_letter_queue").unwrap();
    assert_eq!(got.body, order("killer"));
    let headers = got.properties().headers;
    assert_eq!(headers["x-origin-routing-key"].text(), "order.normal.created");
    assert_eq!(headers["x-retry-count"], Field::Long(1));
    assert!(!headers.contains_key("x-death"));
    assert!(!is_processed(&book, "killer"));
    assert_eq!(orderd.stop(), 0);
}

/// Rejects an order until the broker has had enough of it, holding back what is before it.
fn exhaust(raw: &mut Raw, id: &str) {
    let (body, mut rejected) = (order(id), 0);
    let mut held = Vec::new();
    until(&format!("{id} is past its delivery limit"), || {
        match raw.hold("order_queue") {
            Some((tag, got)) if got.body == body => {
                raw.reject(tag);
                rejected += 1;
            }
            Some((tag, _)) => held.push(tag),
            None => {}
        }
        rejected > 20
    });
    held.iter().for_each(|tag| raw.reject(*tag));
}
