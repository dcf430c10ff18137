//! Every way in which an order can fail, and what happens to it.
//!
//! One test environment has a consumer for each way, made by configuration alone.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::Node;
use crate::support::raw_client::RawClient;
use crate::support::raw_client::properties::{Field, Properties};
use crate::support::test_env::{LedgerReader, TestEnv, order, wait_until};

/// Adds a consumer of `order.<name>.*` with these settings.
fn with_consumer<'a>(env: TestEnv<'a>, name: &str, settings: &[(&str, &str)]) -> TestEnv<'a> {
    let env = env
        .set(&format!("queues.{name}_queue.bindings"), &format!("order.{name}.*"))
        .set(&format!("consumers.{name}.queue"), &format!("{name}_queue"))
        .set(&format!("consumers.{name}.handler"), "order")
        .set(&format!("consumers.{name}.retry.delays"), "200ms");
    settings.iter().fold(env, |env, (key, value)| env.set(&format!("consumers.{name}.{key}"), value))
}

fn attempts(ledger: &LedgerReader, identity: &str) -> Vec<String> {
    let columns = "retry_count, failure_kind, failure_code, delay";
    ledger.rows(&format!("SELECT {columns} FROM attempts WHERE identity = '{identity}' ORDER BY retry_count"))
}

fn dead_lettered(ledger: &LedgerReader, identity: &str) -> Vec<String> {
    let columns = "consumer, reason, retry_count, failure_kind, failure_code, origin_queue";
    ledger.rows(&format!("SELECT {columns} FROM dead_letters WHERE identity = '{identity}'"))
}

fn is_processed(ledger: &LedgerReader, id: &str) -> bool {
    ledger.number(&format!("SELECT count(*) FROM orders WHERE id = '{id}' AND status = 'processed'")) == 1
}

fn send(raw: &mut RawClient, key: &str, id: &str) {
    raw.publish_to("orders", key, &Properties::persistent(), &order(id));
}

#[test]
fn the_failure_kind_and_the_consumers_policy_decide_whether_an_order_is_retried_or_dead_lettered() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let env = with_consumer(env, "flaky", &[("faults.transient", "1.0")]);
    let env = with_consumer(env, "panicky", &[("faults.panic", "1.0")]);
    let env = with_consumer(env, "hanging", &[("faults.hang", "1.0"), ("timeout", "300ms")]);
    let env = with_consumer(env, "slow", &[("faults.transient", "1.0"), ("retry.delays", "1h")]);
    let env = with_consumer(env, "hopeless", &[("faults.transient", "1.0"), ("retry.delays", "[]")]);
    let env = with_consumer(env, "refusing", &[("faults.permanent", "1.0")]);
    let mut orderd = env.start();
    let mut raw = env.raw();
    let ledger = env.ledger();
    let persistent = Properties::persistent();

    for kind in ["flaky", "panicky", "hanging", "slow", "hopeless", "refusing"] {
        send(&mut raw, &format!("order.{kind}.created"), kind);
    }
    let forged = persistent.clone().header("x-retry-count", Field::Long(7));
    raw.publish_to("orders", "order.slow.created", &forged, &order("forger"));
    raw.publish_to("orders", "order.normal.created", &persistent.clone().text("message_id", "m-1"), b"{not json");
    raw.publish_to(
        "orders",
        "order.normal.created",
        &persistent,
        br#"{"id":"bad","product":"x","quantity":0,"price":1}"#,
    );
    let named = persistent.clone().text("message_id", "stray");
    raw.publish_to("orders", "order.failed.by.hand", &named, &order("stray"));
    raw.publish_to("orders", "order.failed.order", &failed_two_days_ago(), &order("old"));
    send(&mut raw, "oder.normal.created", "typo");

    for id in ["flaky", "panicky", "hanging"] {
        wait_until(&format!("{id} is processed"), || is_processed(&ledger, id));
    }
    assert_eq!(attempts(&ledger, "flaky"), ["0|transient|injected_transient|200ms"]);
    assert_eq!(attempts(&ledger, "panicky"), ["0|panicked|panicked|200ms"]);
    assert_eq!(attempts(&ledger, "hanging"), ["0|timed_out|deadline_exceeded|200ms"]);

    for (id, expected) in [
        ("m-1/unverified", "order|malformed|0|malformed|invalid_order|order_queue"),
        ("bad", "order|permanent|0|permanent|invalid_quantity|order_queue"),
        ("refusing", "refusing|permanent|0|permanent|injected_permanent|refusing_queue"),
        ("hopeless", "hopeless|retries_exhausted|0|transient|injected_transient|hopeless_queue"),
        ("old", "order|too_old|0|transient|busy|order_queue"),
        ("stray/unverified", "unknown|no_origin|0|permanent|unknown_failure|-"),
    ] {
        wait_until(&format!("{id} is dead-lettered"), || !dead_lettered(&ledger, id).is_empty());
        assert_eq!(dead_lettered(&ledger, id), [expected]);
        assert!(!is_processed(&ledger, id), "{id}");
    }
    let mut reasons: Vec<_> = raw.drain("dead_letter_queue").iter().map(told_reason).collect();
    reasons.sort();
    assert_eq!(reasons, ["malformed", "no_origin", "permanent", "permanent", "retries_exhausted", "too_old"]);

    wait_until("both wait for their retry", || raw.depth("slow_queue.retry.1h") == 2);
    for waiting in raw.drain("slow_queue.retry.1h") {
        let headers = waiting.properties().headers;
        assert_eq!(headers["x-retry-count"], Field::Long(1), "{}", waiting.text());
        assert_eq!(headers["x-origin-queue"].text(), "slow_queue");
    }
    assert_eq!(raw.drain("unrouted_queue").iter().map(|got| got.body.clone()).collect::<Vec<_>>(), [order("typo")]);
    assert_eq!(orderd.stop(), 0);
    assert_eq!(orderd.final_count("panicky", "restarts"), 0, "a panic costs one delivery and no worker");
}

fn told_reason(dead_lettered: &crate::support::raw_client::ReceivedMessage) -> String {
    dead_lettered.properties().headers["x-dead-letter-reason"].text().to_owned()
}

/// The properties of a message that failed in `order_queue` longer than `max_age` ago.
fn failed_two_days_ago() -> Properties {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let text = |value: &str| Field::Text(value.to_owned());
    // Only orderd's own user is believed.
    Properties::persistent()
        .text("user_id", "guest")
        .header("x-origin-queue", text("order_queue"))
        .header("x-failure-kind", text("transient"))
        .header("x-failure-code", text("busy"))
        .header("x-first-failed-at", Field::Time(now - 2 * 24 * 3600))
}

#[test]
fn a_retry_returns_to_the_one_queue_it_failed_in() {
    let node = Node::shared();
    let env = with_consumer(TestEnv::new(&node), "left", &[("faults.transient", "1.0")]);
    let env = with_consumer(env, "right", &[]);
    let both = "order.both.*";
    let env = env.set("queues.left_queue.bindings", both).set("queues.right_queue.bindings", both);
    let mut orderd = env.start();
    let ledger = env.ledger();
    for n in 0..10 {
        send(&mut env.raw(), "order.both.created", &format!("ord-{n}"));
    }
    wait_until("all retries are over", || orderd.log_lines("Processing Order").len() == 40);
    ledger.await_settled(10);
    assert_eq!(orderd.stop(), 0);
    // Left: the first attempt and the immediate retry are one delivery, the delayed retry is another.
    assert_eq!((orderd.final_count("left", "deliveries"), orderd.final_count("right", "deliveries")), (20, 10));
    assert_eq!(orderd.final_count("failed", "retried"), 10);
}

#[test]
fn an_order_that_hits_the_delivery_limit_is_retried_once_and_then_dead_lettered() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("consumers.order.retry.delays", "5s,5s,5s");
    assert_eq!(env.start().stop(), 0);
    let mut raw = env.raw();
    send(&mut raw, "order.normal.created", "innocent");
    send(&mut raw, "order.normal.created", "killer");
    exhaust(&mut raw, "innocent");
    exhaust(&mut raw, "killer");
    wait_until("both are in the failed-order queue", || raw.depth("failed_order_queue") == 2);

    let mut orderd = env.start();
    let ledger = env.ledger();
    wait_until("both are to be retried", || ledger.number("SELECT count(*) FROM attempts") == 2);
    assert_eq!(orderd.stop(), 0);
    for id in ["innocent", "killer"] {
        assert_eq!(attempts(&ledger, id), ["0|delivery_limit|delivery_limit|5s"]);
        assert!(!is_processed(&ledger, id));
    }
    wait_until("both have returned to their queue", || raw.depth("order_queue") == 2);
    exhaust(&mut raw, "killer");
    wait_until("the killer has failed again", || raw.depth("failed_order_queue") == 1);

    let mut orderd = env.start();
    wait_until("the killer is dead-lettered", || !dead_lettered(&ledger, "killer").is_empty());
    wait_until("the innocent is processed", || is_processed(&ledger, "innocent"));
    assert_eq!(dead_lettered(&ledger, "killer"), ["order|delivery_limit|1|delivery_limit|delivery_limit|order_queue"]);
    let got = raw.get("dead_letter_queue").unwrap();
    assert_eq!(got.body, order("killer"));
    let headers = got.properties().headers;
    assert_eq!(headers["x-origin-routing-key"].text(), "order.normal.created");
    assert_eq!(headers["x-retry-count"], Field::Long(1));
    assert!(!headers.contains_key("x-death"));
    assert!(!is_processed(&ledger, "killer"));
    assert_eq!(orderd.stop(), 0);
}

/// Rejects an order until it reaches the delivery limit. Orders before it in the queue are held back until then.
fn exhaust(raw: &mut RawClient, id: &str) {
    let (body, mut rejected) = (order(id), 0);
    let mut held = Vec::new();
    wait_until(&format!("{id} is past its delivery limit"), || {
        match raw.get_unacked("order_queue") {
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

#[test]
fn forty_orders_that_fail_alike_are_five_lines_and_a_count_and_each_is_in_the_ledger() {
    const ORDERS: u64 = 40;
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    let malformed = (0..ORDERS).map(|n| ("order.normal.created".to_owned(), format!("not an order {n}").into_bytes()));
    env.raw().publish_all("orders", malformed);
    let ledger = env.ledger();
    wait_until("each is in the ledger", || ledger.number("SELECT count(*) FROM dead_letters") == ORDERS);
    assert_eq!(orderd.stop(), 0);
    for message in ["Order Failed", "[Failed] dead-lettered in the dead letter queue"] {
        let lines = orderd.log_lines(message);
        let (single, shown): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line["level"] == "DEBUG");
        let counted: u64 = shown.iter().map(|line| line["repeated"].as_u64().unwrap_or(1)).sum();
        assert_eq!((single.len(), counted), (ORDERS as usize - 5, ORDERS), "{message}");
        // One more for each minute that this took.
        assert!(shown.len() < 10, "{message}: {shown:?}");
    }
}
