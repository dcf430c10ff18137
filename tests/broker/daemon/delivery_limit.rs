//! Orders that kill the daemon at each delivery.

use crate::support::Node;
use crate::support::test_env::{TestEnv, order, wait_until};

#[test]
fn orders_that_kill_the_daemon_are_removed_by_the_delivery_limit_and_none_is_lost() {
    let node = Node::shared();
    let killing =
        TestEnv::new(&node).set("consumers.order.faults.hang", "1.0").set("consumers.order.retry.delays", "2s,2s");
    assert_eq!(killing.start().stop(), 0);
    let orders = (0..5).map(|n| ("order.normal.created".to_owned(), order(&format!("ord-{n}"))));
    killing.raw().publish_all("orders", orders);
    let ledger = killing.ledger();
    let removed = || ledger.number("SELECT count(*) FROM attempts WHERE failure_kind = 'delivery_limit'");
    let (mut kills, mut in_safe_mode) = (0, false);
    while removed() == 0 {
        // Each kill uses up at least one of the 20 deliveries of some order.
        assert!(kills < 100, "no order has reached the delivery limit");
        let mut orderd = killing.spawn();
        wait_until("an order is processed", || orderd.has_logged("Processing Order") || removed() > 0);
        in_safe_mode |=
            orderd.has_logged("safe mode: one delivery at a time, because deliveries keep being redelivered");
        orderd.kill();
        kills += 1;
    }
    assert!(kills > 3, "removed after only {kills} kills");
    assert!(in_safe_mode, "an order that was redelivered so often is processed alone");
    let repaired = killing.set("consumers.order.faults.hang", "0.0");
    let mut orderd = repaired.start();
    ledger.await_settled(5);
    let later = (0..25).map(|n| ("order.normal.created".to_owned(), order(&format!("later-{n}"))));
    repaired.raw().publish_all("orders", later);
    wait_until("the end of safe mode is logged", || {
        orderd.has_logged("safe mode ended: deliveries are processed concurrently again")
    });
    ledger.await_settled(30);
    assert_eq!(ledger.rows("SELECT DISTINCT failure_kind FROM attempts"), ["delivery_limit"], "a crash is no attempt");
    assert_eq!(repaired.raw().depth("dead_letter_queue"), 0);
    assert_eq!(orderd.stop(), 0);
}
