//! Many orders at once: priority orders overtake normal ones, and another program locks the ledger.

use rusqlite::Connection;

use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{TestEnv, order, wait_until};

const BACKLOG: u32 = 20_000;

#[test]
fn a_priority_order_does_not_wait_behind_a_backlog_of_normal_ones() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("consumers.order.workers", "1").set("consumers.order.prefetch", "1");
    let mut orderd = env.start();
    let flood = (0..BACKLOG).map(|n| ("order.normal.created".to_owned(), order(&format!("ord-{n}"))));
    env.raw().publish_all("orders", flood);
    let ledger = env.ledger();
    let normal = || ledger.number("SELECT count(*) FROM orders WHERE priority = 0");
    let before = normal();
    assert!(before > 0, "normal orders are not being processed: nothing to wait behind");
    let mut raw = env.raw();
    let urgent = br#"{"id":"urgent","product":"Laptop","quantity":1,"price":1,"priority":true}"#;
    raw.publish_to("orders", "order.priority.created", &Properties::persistent(), urgent);
    wait_until("the priority order is processed", || {
        ledger.number("SELECT count(*) FROM orders WHERE id = 'urgent' AND status = 'processed'") == 1
    });
    let overtaken = u64::from(raw.depth("order_queue"));
    assert!(overtaken > u64::from(BACKLOG) / 2, "only {overtaken} normal orders were still waiting");
    wait_until("normal orders are still processed", || normal() > before);
    orderd.kill();
}

#[test]
fn orders_survive_a_ledger_that_another_program_has_locked() {
    const ORDERS: u64 = 50;
    let node = Node::shared();
    let env = TestEnv::new(&node).set("consumers.order.retry.delays", "500ms,1s,5s,10s");
    let mut orderd = env.start();
    let mut other = Connection::open(env.ledger_directory().join("orderd.db")).unwrap();
    other.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let lock = other.transaction_with_behavior(rusqlite::TransactionBehavior::Exclusive).unwrap();
    let orders = (0..ORDERS).map(|n| ("order.normal.created".to_owned(), order(&format!("ord-{n}"))));
    env.raw().publish_all("orders", orders);
    wait_until("the outage is noticed", || {
        orderd
            .log_lines("the ledger cannot record; orderd waits and takes no new messages")
            .iter()
            .any(|line| line["cause"] == "locked")
    });
    lock.rollback().unwrap();
    let ledger = env.ledger();
    ledger.await_settled(ORDERS);
    assert_eq!(ledger.number("SELECT count(*) FROM attempts"), 0, "an outage is no order's failure");
    assert_eq!(env.raw().depth("dead_letter_queue"), 0);
    assert_eq!(orderd.stop(), 0);
}
