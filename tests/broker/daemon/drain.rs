//! Shutdown: no order is lost or processed twice, no attempt is used up, and the process always exits.

use std::time::{Duration, Instant};

use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{LedgerReader, TestEnv, order, wait_until};

const ORDERS: u64 = 2000;

fn assert_no_attempt_used_up(env: &TestEnv<'_>, ledger: &LedgerReader) {
    assert_eq!(ledger.rows("SELECT * FROM attempts"), [""; 0]);
    for queue in ["failed_order_queue", "order_queue.retry.300ms", "dead_letter_queue"] {
        assert_eq!(env.raw().depth(queue), 0, "{queue}");
    }
}

#[test]
fn a_drain_under_load_loses_no_order_and_processes_none_twice() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    // The process is stopped until all are published, so that it cannot finish before.
    orderd.signal("STOP");
    let ids = (0..ORDERS).map(|n| ("order.normal.created".to_owned(), order(&format!("ord-{n}"))));
    env.raw().publish_all("orders", ids);
    orderd.signal("CONT");
    let ledger = env.ledger();
    wait_until("some are processed", || ledger.processed() >= 50);
    let begun = Instant::now();
    assert_eq!(orderd.stop(), 0);
    assert!(begun.elapsed() < Duration::from_secs(30), "longer than drain_timeout");

    let (processed, left) = (ledger.processed(), u64::from(env.raw().depth("order_queue")));
    assert!(processed < ORDERS, "all were processed before the signal, so nothing was drained");
    assert_eq!(processed + left, ORDERS);
    assert_eq!(ledger.number("SELECT count(*) FROM orders"), processed, "none is unfinished");
    let notified = u64::from(env.raw().depth("notification_queue")) + orderd.final_count("notification", "completed");
    assert_eq!(notified, processed);
    assert_no_attempt_used_up(&env, &ledger);

    let mut again = env.start();
    ledger.await_settled(ORDERS);
    assert_eq!(again.stop(), 0);
    for run in [&orderd, &again] {
        for consumer in ["order", "notification", "analytics"] {
            assert_eq!(run.final_count(consumer, "duplicates"), 0, "{consumer}");
        }
    }
    assert_no_attempt_used_up(&env, &ledger);
}

#[test]
fn hanging_handlers_delay_neither_a_second_signal_nor_the_end_of_the_drain() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("consumers.order.faults.hang", "1.0").set("consumers.order.timeout", "10min");
    let mut orderd = env.start();
    let mut raw = env.raw();
    for n in 0..20 {
        raw.publish_to("orders", "order.normal.created", &Properties::persistent(), &order(&format!("ord-{n}")));
    }
    wait_until("they hang", || orderd.log_lines("Processing Order").len() == 20);
    orderd.signal("TERM");
    wait_until("it drains", || orderd.has_logged("draining; a second signal aborts"));
    let begun = Instant::now();
    orderd.signal("INT");
    assert_eq!(orderd.wait_for_exit(), 0);
    assert!(begun.elapsed() < Duration::from_secs(15), "drain_timeout is 30 s");
    assert_eq!(raw.depth("order_queue"), 20);

    let env = env.set("shutdown.drain_timeout", "1s");
    let mut orderd = env.start();
    wait_until("they hang again", || orderd.log_lines("Processing Order").len() == 20);
    assert_eq!(orderd.stop(), 0);
    assert!(orderd.has_logged("the drain took too long; aborting"));
    assert_eq!(raw.depth("order_queue"), 20);
    let ledger = env.ledger();
    assert_eq!(ledger.number("SELECT count(*) FROM orders"), 0);
    assert_no_attempt_used_up(&env, &ledger);
}
