//! `orderd erase` while the daemon runs, and the event files it rewrites.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::step_server::{StepServer, reply};
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

#[test]
fn what_steps_of_an_order_in_progress_have_answered_is_erased_once_the_order_is_processed() {
    let node = Node::shared();
    let (server, ships) = (StepServer::start(), Arc::new(AtomicBool::new(false)));
    let can_ship = Arc::clone(&ships);
    server.answer(move |call| match call.path.as_str() {
        "/ship" if !can_ship.load(Ordering::SeqCst) => reply("503 Service Unavailable", ""),
        path => reply("200 OK", &format!("{{\"for\": \"ada@example.com\", \"path\": {path:?}}}")),
    });
    let env = TestEnv::new(&node)
        .set("consumers.order.steps", &server.steps(&["charge", "ship"], ""))
        .set("consumers.order.retry.delays", &vec!["1s"; 20].join(","));
    let mut orderd = env.start();
    let ledger = env.ledger();
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), ORDER);
    wait_until("the order cannot be shipped", || server.paths("ord-1").contains(&"/ship".to_owned()));
    let (code, report) = erase(&env, &["--customer", "c-7"]);
    assert_eq!((code, &report["ledger"]["step_texts"]), (0, &json!(0)), "{report}");
    let unfinished = json!([{"consumer": null, "id": "ord-1", "state": "running"}]);
    assert_eq!(report["ledger"]["unfinished"], unfinished);
    assert!(report["not_erased"].to_string().contains("ord-1, which are in progress"), "{report}");
    ships.store(true, Ordering::SeqCst);
    ledger.await_settled(1);
    let shipped = server.calls().into_iter().rfind(|call| call.path == "/ship").unwrap();
    assert_eq!(shipped.body["steps"]["charge"]["for"], "ada@example.com", "the service gets what it needs");
    let erased = ["\"[erased]\"", "\"[erased]\""];
    assert_eq!(ledger.rows("SELECT result FROM steps ORDER BY position"), erased);
    assert_eq!(orderd.stop(), 0);
}
