//! The output of `orderd report` and `orderd trace` for known orders, while the daemon runs and after.

use serde_json::{Value, json};

use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{TestEnv, order, wait_until};

/// The output of a command, which must exit with this code.
fn output(env: &TestEnv<'_>, arguments: &[&str], exit_code: i32) -> String {
    let mut command = env.command(arguments);
    assert_eq!(command.wait_for_exit(), exit_code, "{arguments:?}: {}", command.output());
    command.output()
}

fn json(env: &TestEnv<'_>, arguments: &[&str], code: i32) -> Value {
    let output = output(env, &[arguments, &["--format", "json"]].concat(), code);
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"))
}

fn rows(env: &TestEnv<'_>, by: &str) -> Value {
    let report = json(env, &["report", "--since", "1h", "--by", by], 0);
    let rows = |block: &Value| block["rows"].as_array().unwrap().clone();
    let rows = report["currencies"].as_array().unwrap().iter().flat_map(rows);
    let row = |row: Value| json!([row["key"], row["orders"], row["quantity"], row["revenue"]]);
    rows.map(row).collect()
}

/// One text such as `order accepted` for each step.
fn steps(trace: &Value) -> Vec<String> {
    let step = |step: &Value| format!("{} {}", step["message"].as_str().unwrap(), step["step"].as_str().unwrap());
    trace["steps"].as_array().unwrap().iter().map(step).collect()
}

#[test]
fn reports_and_traces_show_known_orders_exactly() {
    let node = Node::shared();
    let env = TestEnv::new(&node)
        .set("queues.slow_queue.bindings", "order.slow.*")
        .set("consumers.slow.queue", "slow_queue")
        .set("consumers.slow.handler", "order")
        .set("consumers.slow.retry.delays", "1h")
        .set("consumers.slow.faults.transient", "1.0")
        .set("queues.flaky_queue.bindings", "order.flaky.*")
        .set("consumers.flaky.queue", "flaky_queue")
        .set("consumers.flaky.handler", "order")
        .set("consumers.flaky.retry.delays", "300ms")
        .set("consumers.flaky.faults.transient", "1.0");
    assert!(output(&env, &["report"], 78).contains("there is no ledger"));
    assert!(output(&env, &["trace", "ord-1"], 78).contains("there is no ledger"));

    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    let mut send = |key: &str, body: &[u8]| raw.publish_to("orders", key, &Properties::persistent(), body);
    for n in 0..20 {
        send("order.normal.created", &order(&format!("ord-{n}")));
    }
    let urgent = br#"{"id":"p-1","product":"Mouse","quantity":7,"price":"19.99","currency":"EUR","priority":true}"#;
    send("order.priority.created", urgent);
    send("order.normal.created", br#"{"id":"usd","product":"Mouse","quantity":1,"price":"0.005","currency":"USD"}"#);
    send("order.normal.created", br#"{"id":"bad","product":"x","quantity":0,"price":1}"#);
    send("order.slow.created", &order("slow"));
    send("order.flaky.created", &order("flaky"));
    ledger.await_settled(23);
    wait_until("one is dead-lettered and one waits", || {
        ledger.number("SELECT (SELECT count(*) FROM dead_letters) + (SELECT count(*) FROM attempts)") == 4
    });
    wait_until("the failed analytics event is recorded", || {
        ledger.number("SELECT count(*) FROM events WHERE name = 'failed'") == 1
    });

    let expected = json!([["Laptop", 21, 63, "25200.00"], ["Mouse", 1, 7, "139.93"], ["Mouse", 1, 1, "0.005"]]);
    assert_eq!(rows(&env, "product"), expected);
    assert_eq!(
        rows(&env, "priority"),
        json!([["normal", 21, 63, "25200.00"], ["urgent", 1, 7, "139.93"], ["normal", 1, 1, "0.005"],])
    );
    assert_eq!(
        rows(&env, "status"),
        json!([
            ["accepted", 22, 70, "25339.93"],
            ["processed", 22, 70, "25339.93"],
            ["accepted", 1, 1, "0.005"],
            ["processed", 1, 1, "0.005"],
        ])
    );
    let report = json(&env, &["report", "--since", "1h"], 0);
    let dead_lettered = &report["dead_lettered"][0];
    assert_eq!((&dead_lettered["reason"], &dead_lettered["messages"]), (&json!("permanent"), &json!(1)), "{report}");
    let text = output(&env, &["report", "--since", "1h", "--by", "product"], 0);
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("PRODUCT ORDERS PIECES REVENUE Laptop 21 63 25200.00 ██████"), "{text}");
    let csv = output(&env, &["report", "--since", "1h", "--by", "product", "--format", "csv"], 0);
    let lines = ["product,currency,orders,quantity,revenue", "Laptop,EUR,21,63,25200.00", "Mouse,EUR,1,7,139.93"];
    assert_eq!(csv.lines().take(3).collect::<Vec<_>>(), lines);
    assert!(output(&env, &["report", "--since", "soon"], 64).contains("must be a time such as"));
    assert!(output(&env, &["report", "--since", "1h", "--until", "2h"], 64).contains("before it begins"));

    let plain = json(&env, &["trace", "ord-3"], 0);
    // One event may be handled before the other is confirmed, and so before the order is processed.
    let done = ["order accepted", "analytics counted", "notification notified", "order processed"];
    let mut found = steps(&plain);
    found[1..].sort();
    assert_eq!(found, done);
    assert_eq!(plain["order"]["total"], "1200.00");
    assert!(plain["places"].as_array().unwrap().iter().all(|place| place["state"] == "done"), "{plain}");

    let retried = json(&env, &["trace", "flaky"], 0);
    assert!(steps(&retried).contains(&"order failed".to_owned()), "{retried}");
    assert_eq!(retried["places"][0]["state"], "done");

    let bad = json(&env, &["trace", "bad"], 0);
    let mut found = steps(&bad);
    found[1..].sort();
    assert_eq!(found, ["order failed", "analytics_failed counted", "order dead_lettered"]);
    assert_eq!(bad["places"][0]["state"], "dead_lettered");
    assert_eq!(bad["places"][0]["queues"][0]["name"], "dead_letter_queue");

    // The management plugin counts every few seconds.
    wait_until("the broker reports the queue depth", || {
        json(&env, &["trace", "slow"], 0)["places"][0]["queues"][0]["ready"] == 1
    });
    let slow = json(&env, &["trace", "slow"], 0);
    let place = &slow["places"][0];
    assert_eq!((&place["state"], &place["queues"][0]["name"]), (&json!("waiting"), &json!("slow_queue.retry.1h")));
    let text = output(&env, &["trace", "slow"], 0);
    assert!(text.contains("first attempt failed in consumer slow: transient injected_transient"), "{text}");
    assert!(text.contains("in slow_queue.retry.1h (about 1 ready, 0 in flight), retry due at"), "{text}");

    let unknown = output(&env, &["trace", "nobody"], 1);
    assert!(unknown.contains("not in the ledger") && unknown.contains("order_queue"), "{unknown}");
    assert_eq!(orderd.stop(), 0);
    assert_eq!(rows(&env, "product"), expected, "while no daemon runs");
    assert_eq!(raw.depth("slow_queue.retry.1h"), 1, "a trace moves no message");
}

#[test]
fn a_trace_needs_no_broker() {
    let node = Node::shared();
    let env =
        TestEnv::new(&node).set("consumers.order.faults.transient", "1.0").set("consumers.order.retry.delays", "1h");
    let mut orderd = env.start();
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    let ledger = env.ledger();
    wait_until("the order waits for its retry", || ledger.number("SELECT count(*) FROM attempts") == 1);
    assert_eq!(orderd.stop(), 0);
    let env = env.set("management.url", "http://127.0.0.1:1");
    let trace = json(&env, &["trace", "ord-1"], 0);
    assert_eq!(trace["places"][0]["state"], "waiting");
    assert!(trace["broker_error"].as_str().unwrap().contains("cannot reach the management API"), "{trace}");
    let text = output(&env, &["trace", "ord-1"], 0);
    assert!(text.contains("in order_queue.retry.1h, retry due at"), "{text}");
    assert!(text.contains("queue depths unknown"), "{text}");
}
