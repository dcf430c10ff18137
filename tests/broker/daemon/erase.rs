//! `orderd erase` while the daemon runs, and the event files it rewrites.

use std::fs;

use serde_json::{Value, json};

use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{TestEnv, wait_until};

const ORDER: &[u8] = br#"{"id":"ord-1","product":"Laptop","quantity":3,"price":"400.00","currency":"EUR","customer_id":"c-7","email":"ada@example.com","address":"1 Example Street"}"#;

/// The event files, joined.
fn events(env: &TestEnv<'_>) -> String {
    let files = fs::read_dir(env.ledger_directory()).unwrap().map(|entry| entry.unwrap().path());
    let events = files.filter(|path| path.extension().is_some_and(|suffix| suffix == "jsonl"));
    events.map(|path| fs::read_to_string(path).unwrap()).collect()
}

fn erase(env: &TestEnv<'_>, arguments: &[&str]) -> (i32, Value) {
    let mut command = env.command(&[&["erase", "--format", "json"], arguments].concat());
    (command.wait_for_exit(), serde_json::from_str(&command.stdout()).unwrap_or(Value::Null))
}

#[test]
fn an_erased_customer_is_in_no_file_while_the_daemon_runs_on() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    raw.publish_to("orders", "order.normal.created", &Properties::persistent(), ORDER);
    ledger.await_settled(1);
    assert!(events(&env).contains("ada@example.com") && events(&env).contains("Example Street"));
    let sales = ledger.rows("SELECT * FROM sales");

    let (code, report) = erase(&env, &["--customer", "c-7", "--dry-run"]);
    assert_eq!((code, &report["orders"], &report["dry_run"]), (0, &json!(["ord-1"]), &json!(true)));
    assert!(events(&env).contains("ada@example.com"), "a dry run changes nothing");
    let (code, report) = erase(&env, &["--customer", "c-7"]);
    assert_eq!((code, &report["ledger"]["customer_ids"]), (0, &json!(1)), "{report}");
    assert_eq!(report["event_files"].as_array().map(Vec::len), Some(2), "{report}");
    let text = events(&env);
    assert!(!["ada@example.com", "Example Street", "c-7"].iter().any(|data| text.contains(data)), "{text}");
    assert_eq!(ledger.rows("SELECT customer_id FROM orders"), ["[erased]"]);
    assert_eq!(ledger.rows("SELECT * FROM sales"), sales);

    // The same order again is a duplicate, and the daemon writes to the new files.
    raw.publish_to("orders", "order.normal.created", &Properties::persistent(), ORDER);
    raw.publish_to(
        "orders",
        "order.normal.created",
        &Properties::persistent(),
        &crate::support::test_env::order("ord-2"),
    );
    ledger.await_settled(2);
    wait_until("the copy is recognized", || orderd.status()["consumers"]["order"]["duplicates"] == 1);
    assert_eq!(events(&env).lines().count(), 4);
    assert_eq!(erase(&env, &["--customer", "c-7"]).0, 1, "nothing is left");
    assert_eq!(erase(&env, &["--order", "ord-1"]).0, 0);
    assert_eq!(erase(&env, &["--order", "ord-1", "--customer", "c-7"]).0, 64);
    assert_eq!(orderd.stop(), 0);
}
