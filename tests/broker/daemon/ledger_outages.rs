//! Outages of the ledger: no order fails because of one, and nothing is dead-lettered twice.

use rusqlite::Connection;

use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{TestEnv, order, wait_until};

pub(super) const CANNOT_RECORD: &str = "the ledger cannot record; orderd waits and takes no new messages";

#[test]
fn a_locked_ledger_uses_up_no_attempt_and_restarts_during_the_lock_dead_letter_nothing_twice() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    let mut raw = env.raw();
    let program = Connection::open(env.ledger_directory().join("orderd.db")).unwrap();
    program.execute_batch("BEGIN IMMEDIATE").unwrap();
    for n in 0..10 {
        let invalid = format!(r#"{{"id":"invalid-{n}","product":"Laptop","quantity":0,"price":"400.00"}}"#);
        for body in [order(&format!("ord-{n}")), invalid.into_bytes()] {
            raw.publish_to("orders", "order.normal.created", &Properties::persistent(), &body);
        }
    }
    wait_until("it notices the lock", || orderd.has_logged(CANNOT_RECORD));
    let status = orderd.status();
    assert_eq!(status["daemon"]["ledger"]["outage"]["cause"], "locked", "{status}");
    assert_eq!(orderd.stop(), 0, "it neither waits for the lock nor fails because of it");
    for _ in 0..2 {
        let mut waiting = env.spawn();
        wait_until("it waits for the lock", || waiting.has_logged("cannot open the ledger; retrying"));
        assert_eq!(waiting.stop(), 0);
    }
    program.execute_batch("COMMIT").unwrap();
    let mut orderd = env.start();
    let ledger = env.ledger();
    ledger.await_settled(10);
    wait_until("all are dead-lettered", || ledger.number("SELECT count(*) FROM dead_letters") == 10);
    assert_eq!(orderd.stop(), 0);
    assert_eq!(raw.depth("dead_letter_queue"), 10, "each once");
    let reasons = ledger.rows("SELECT DISTINCT reason, retry_count, failure_code FROM dead_letters");
    assert_eq!(reasons, ["permanent|0|invalid_quantity"]);
    assert_eq!(ledger.number("SELECT count(*) FROM attempts WHERE identity LIKE 'ord-%'"), 0);
}
