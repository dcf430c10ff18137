//! Orders that take the whole daemon down with them, again and again.

use crate::support::Node;
use crate::support::test_env::{TestEnv, order, wait_until};

#[test]
fn orders_that_kill_the_daemon_are_removed_by_the_delivery_limit_and_none_is_lost() {
    let node = Node::shared();
    let deadly =
        TestEnv::new(&node).set("consumers.order.faults.hang", "1.0").set("consumers.order.retry.delays", "2s,2s");
    assert_eq!(deadly.start().stop(), 0);
    let orders = (0..5).map(|n| ("order.normal.created".to_owned(), order(&format!("ord-{n}"))));
    deadly.raw().publish_all("orders", orders);
    let ledger = deadly.ledger();
    let taken_out = || ledger.number("SELECT count(*) FROM attempts WHERE failure_kind = 'delivery_limit'");
    let (mut kills, mut careful) = (0, false);
    while taken_out() == 0 {
        // Each costs at least one of the 20 deliveries of some order.
        assert!(kills < 100, "still not taken out");
        let mut orderd = deadly.spawn();
        wait_until("an order strikes", || orderd.has_logged("Processing Order") || taken_out() > 0);
        careful |= orderd.has_logged("safe mode: one delivery at a time, because deliveries keep being redelivered");
        orderd.kill();
        kills += 1;
    }
    assert!(kills > 3, "taken out after only {kills} kills");
    assert!(careful, "one that came back so often is worked on alone");
    let harmless = deadly.set("consumers.order.faults.hang", "0.0");
    let mut orderd = harmless.start();
    ledger.await_settled(5);
    assert_eq!(ledger.rows("SELECT DISTINCT failure_kind FROM attempts"), ["delivery_limit"], "a crash is no attempt");
    assert_eq!(harmless.raw().depth("dead_letter_queue"), 0);
    assert_eq!(orderd.stop(), 0);
}
