//! Copies of one message that are under way at the same time.

use std::fs;

use rusqlite::Connection;

use super::ledger_outages::CANNOT_RECORD;
use crate::support::Node;
use crate::support::http::Scrape;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{TestEnv, wait_until};

/// While another program locks the ledger, one copy is in the former handler and waits, and the other one is in the new handler.
/// If the lock lasts so long that orderd stops its intake, there is another attempt.
#[test]
fn of_two_copies_in_the_former_and_in_the_new_handler_during_a_reload_only_one_is_delivered() {
    const ATTEMPTS: usize = 10;
    let node = Node::shared();
    let env = TestEnv::new(&node).set("log.level", "info");
    let events = env.directory.path().join("events");
    let (env, mut file) = env.set("log.directory", events.to_str().unwrap()).set("log.rotation", "never").with_file();
    let mut orderd = env.start();
    let notification = || orderd.status()["consumers"]["notification"].clone();
    let lines = || fs::read_to_string(events.join("notifications.jsonl")).unwrap().lines().count();
    let program = Connection::open(env.ledger_directory().join("orderd.db")).unwrap();
    let mut raw = env.raw();
    let mut publish = |id: &str| {
        let properties = Properties::persistent().text("message_id", id);
        raw.publish_to("orders", "order.notification.email", &properties, b"{}");
    };
    let mut were_under_way_together = false;
    for attempt in 1..=ATTEMPTS {
        let id = format!("notice-{attempt}");
        let outages = || orderd.log_lines(CANNOT_RECORD).len();
        let before = outages();
        program.execute_batch("BEGIN IMMEDIATE").unwrap();
        publish(&id);
        wait_until("the first copy is under way", || notification()["in_flight"] == 1 || outages() > before);
        file.set("consumers.notification.workers", &(attempt % 2 + 1).to_string()).save();
        assert_eq!(orderd.reload()["outcome"], "applied");
        publish(&id);
        wait_until("the second copy is under way", || notification()["in_flight"] == 2 || outages() > before);
        were_under_way_together = notification()["in_flight"] == 2 && notification()["draining"] == 1;
        program.execute_batch("COMMIT").unwrap();
        let scrape = || Scrape::of(orderd.admin_address());
        let counted =
            |outcome| scrape().sum("orderd_settled_total", &[("consumer", "notification"), ("outcome", outcome)]);
        let all = attempt as f64;
        wait_until("both are settled", || (counted("completed"), counted("duplicate")) == (all, all));
        assert_eq!(lines(), attempt, "each notification has one line");
        if were_under_way_together {
            break;
        }
    }
    assert!(were_under_way_together);
    assert_eq!(orderd.stop(), 0);
}
