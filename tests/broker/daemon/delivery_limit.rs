//! Orders that kill the daemon at each delivery.

use crate::support::Node;
use crate::support::test_env::{OrderdProcess, TestEnv, order, wait_until};

fn orders(prefix: &'static str, count: u64) -> impl Iterator<Item = (String, Vec<u8>)> {
    (0..count).map(move |n| ("order.normal.created".to_owned(), order(&format!("{prefix}-{n}"))))
}

/// Kills the daemon with each delivery until it has processed one at a time.
fn kill_until_safe_mode(killing: &TestEnv<'_>) {
    let is_safe = |orderd: &OrderdProcess| {
        orderd.has_logged("safe mode: one delivery at a time, because deliveries keep being redelivered")
    };
    for _ in 0..20 {
        let mut orderd = killing.spawn();
        wait_until("an order is processed", || orderd.has_logged("Processing Order"));
        let is_safe = is_safe(&orderd);
        orderd.kill();
        if is_safe {
            return;
        }
    }
    panic!("orders that were redelivered so often are not processed one at a time");
}

#[test]
fn orders_that_kill_the_daemon_are_processed_one_at_a_time_until_they_do_not_any_more() {
    let node = Node::shared();
    let killing = TestEnv::new(&node).set("consumers.order.faults.hang", "1.0");
    assert_eq!(killing.start().stop(), 0);
    killing.raw().publish_all("orders", orders("ord", 5));
    kill_until_safe_mode(&killing);
    let repaired = killing.set("consumers.order.faults.hang", "0.0");
    let mut orderd = repaired.start();
    repaired.raw().publish_all("orders", orders("later", 25));
    wait_until("the end of safe mode is logged", || {
        orderd.has_logged("safe mode ended: deliveries are processed concurrently again")
    });
    repaired.ledger().await_settled(30);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn orders_that_kill_the_daemon_are_removed_by_the_delivery_limit_and_none_is_lost() {
    let node = Node::shared();
    let killing =
        TestEnv::new(&node).set("consumers.order.faults.hang", "1.0").set("consumers.order.retry.delays", "2s,2s");
    assert_eq!(killing.start().stop(), 0);
    killing.raw().publish_all("orders", orders("ord", 5));
    let ledger = killing.ledger();
    let removed = || ledger.number("SELECT count(*) FROM attempts WHERE failure_kind = 'delivery_limit'");
    let mut kills = 0;
    while removed() == 0 {
        // Each kill uses up at least one of the 20 deliveries of some order.
        assert!(kills < 100, "no order has reached the delivery limit");
        let mut orderd = killing.spawn();
        wait_until("an order is processed", || orderd.has_logged("Processing Order") || removed() > 0);
        orderd.kill();
        kills += 1;
    }
    assert!(kills > 3, "removed after only {kills} kills");
    let repaired = killing.set("consumers.order.faults.hang", "0.0");
    let mut orderd = repaired.start();
    ledger.await_settled(5);
    assert_eq!(ledger.rows("SELECT DISTINCT failure_kind FROM attempts"), ["delivery_limit"], "a crash is no attempt");
    assert_eq!(repaired.raw().depth("dead_letter_queue"), 0);
    assert_eq!(orderd.stop(), 0);
}
