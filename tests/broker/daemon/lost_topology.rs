//! Exchanges, queues, bindings and whole virtual hosts that are deleted while orderd runs.

use serde_json::{Value, json};

use crate::support::raw_client::properties::Properties;
use crate::support::step_server::{StepServer, reply};
use crate::support::test_env::{OrderdProcess, TestEnv, order, wait_until};
use crate::support::{Node, Vhost};

const NORMAL: &str = "order.normal.created";

fn delete(vhost: &Vhost<'_>, path: &str) {
    let (status, answer) = vhost.node.management("DELETE", &format!("/{path}"), "");
    assert_eq!(status, 204, "{path}: {answer}");
}

/// Names of exchanges, queues and, as `exchange queue key`, bindings.
fn objects(vhost: &Vhost<'_>) -> Vec<String> {
    let list = |kind: &str| match vhost.node.management("GET", &format!("/{kind}/{}", vhost.name), "") {
        (200, Value::Array(objects)) => objects,
        _ => Vec::new(),
    };
    let text = |object: &Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let named = list("exchanges").into_iter().chain(list("queues")).map(|object| text(&object, "name"));
    let bindings = list("bindings").into_iter().map(|object| {
        format!("{} {} {}", text(&object, "source"), text(&object, "destination"), text(&object, "routing_key"))
    });
    let mut objects: Vec<_> = named.chain(bindings).collect();
    objects.sort();
    objects
}

fn is_ready(orderd: &OrderdProcess) -> bool {
    orderd.status()["checks"].as_array().unwrap().iter().all(|check| check["ok"] == true)
}

/// Kind and subject of each finding.
fn findings(orderd: &OrderdProcess) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let subject = |finding: &Value| {
        let keys = ["queue", "exchange", "policy"];
        keys.iter().map(|key| text(&finding[*key])).find(|name| !name.is_empty()).unwrap_or_default()
    };
    let status = orderd.status();
    let findings = status["broker"]["findings"].as_array().unwrap().iter();
    findings.map(|finding| (text(&finding["kind"]), subject(finding))).collect()
}

/// Publishes an order and waits until it and its events are recorded, which are then as many as `orders`.
fn an_order_is_processed(env: &TestEnv<'_>, orders: u64) {
    env.raw().publish_to("orders", NORMAL, &Properties::persistent(), &order(&format!("ord-{orders}")));
    env.ledger().await_settled(orders);
}

#[test]
fn what_is_deleted_while_orderd_runs_is_declared_again() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("management.poll_every", "200ms");
    let mut orderd = env.start();
    let (vhost, name) = (&env.vhost, &env.vhost.name);
    let complete = objects(vhost);
    let is_complete = || objects(vhost) == complete;

    // The broker cancels the consumer of a deleted queue, so all of this is noticed at once.
    for exchange in ["orders", "orders.retry", "orders.requeue", "orders.dead_letter", "orders.unrouted"] {
        delete(vhost, &format!("exchanges/{name}/{exchange}"));
    }
    for queue in ["order_queue.retry.300ms", "dead_letter_queue", "unrouted_queue", "failed_order_queue", "order_queue"]
    {
        delete(vhost, &format!("queues/{name}/{queue}"));
    }
    wait_until("all is declared again", is_complete);
    an_order_is_processed(&env, 1);
    wait_until("what was declared again is a finding", || {
        let findings = findings(&orderd);
        findings.contains(&("redeclared".to_owned(), "order_queue".to_owned()))
            && findings.contains(&("redeclared".to_owned(), "orders".to_owned()))
    });

    // A binding is not noticed by any connection: a reload declares it again.
    delete(vhost, &format!("bindings/{name}/e/orders/q/notification_queue/order.notification.%2A"));
    delete(vhost, &format!("bindings/{name}/e/orders.requeue/q/order_queue/order_queue"));
    let report = orderd.reload();
    assert_eq!((&report["outcome"], &report["problems"]), (&json!("unchanged"), &json!([])), "{report}");
    assert!(is_complete());

    assert_eq!(node.management("DELETE", &format!("/vhosts/{name}"), "").0, 204);
    wait_until("the loss is noticed", || !is_ready(&orderd));
    assert_eq!(node.management("PUT", &format!("/vhosts/{name}"), "").0, 201);
    let all = r#"{"configure":".*","write":".*","read":".*"}"#;
    node.management("PUT", &format!("/permissions/{name}/guest"), all);
    wait_until("all is declared again", is_complete);
    an_order_is_processed(&env, 2);
    wait_until("orderd is ready", || is_ready(&orderd));
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn what_is_deleted_or_dangerous_is_a_finding_where_an_administrator_declares() {
    let node = Node::shared();
    let mut env = TestEnv::new(&node).set("management.poll_every", "200ms");
    assert_eq!(env.start().stop(), 0);
    env.change("topology.declare", "false");
    let name = &env.vhost.name;
    // Until then, a dangerous policy still belongs to the start, and ends the daemon.
    wait_until("the broker reports the policies of all queues", || {
        let queues = node.management("GET", &format!("/queues/{name}"), "").1;
        queues.as_array().unwrap().iter().all(|queue| !queue["effective_policy_definition"].is_null())
    });
    let mut orderd = env.start();
    wait_until("orderd is ready", || is_ready(&orderd));
    delete(&env.vhost, &format!("exchanges/{name}/orders"));
    env.raw().declare_exchange("orders", "topic", &[]);
    delete(&env.vhost, &format!("exchanges/{name}/orders.retry"));
    delete(&env.vhost, &format!("queues/{name}/notification_queue.retry.300ms"));
    let policy = r#"{"pattern":"^(order|dead_letter)_queue$","definition":{"max-length":9},"apply-to":"queues"}"#;
    assert_eq!(node.management("PUT", &format!("/operator-policies/{name}/limits"), policy).0, 201);

    let expected = [
        ("exchange_missing", "orders.retry"),
        ("exchange_mismatch", "orders"),
        ("queue_missing", "notification_queue.retry.300ms"),
        ("binding_missing", "analytics_queue"),
        ("dangerous_policy", "limits"),
    ];
    let is_found = |(kind, subject): &(&str, &str), found: &[(String, String)]| {
        found.contains(&((*kind).to_owned(), (*subject).to_owned()))
    };
    wait_until("all is found", || {
        let found = findings(&orderd);
        expected.iter().all(|expected| is_found(expected, &found))
    });
    let checks = orderd.status()["checks"].clone();
    let failing: Vec<_> = checks.as_array().unwrap().iter().filter(|check| check["ok"] == false).collect();
    assert!(failing.len() == 1 && failing[0]["name"] == "topology", "{checks}");
    let report = orderd.reload();
    assert_eq!(report["outcome"], "unchanged", "{report}");
    assert!(report["problems"].to_string().contains("orders.retry"), "{report}");
    let mut check = env.command(&["check", "--connect"]);
    assert_eq!(check.wait_for_exit(), 78, "{}", check.output());
    assert!(check.output().contains("orders.retry"), "{}", check.output());
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn an_event_without_a_binding_is_kept_as_unrouted_or_waits_for_the_binding_where_an_administrator_declares() {
    let node = Node::shared();
    let mut env = TestEnv::new(&node).set("management.poll_every", "200ms");
    assert_eq!(env.start().stop(), 0);
    env.change("topology.declare", "false");
    let mut orderd = env.start();
    let (vhost, mut raw) = (&env.vhost, env.raw());
    let name = &vhost.name;
    let notifications = format!("bindings/{name}/e/orders/q/notification_queue/order.notification.%2A");
    // Without the queue of the alternate exchange, the broker returns the event: 312 NO_ROUTE.
    delete(vhost, &notifications);
    delete(vhost, &format!("bindings/{name}/e/orders.unrouted/q/unrouted_queue/~"));
    raw.publish_to("orders", NORMAL, &Properties::persistent(), &order("ord-1"));
    wait_until("the cause is shown", || {
        orderd.status()["consumers"]["order"]["publish_error"].as_str().is_some_and(|error| error.contains("NO_ROUTE"))
    });
    assert_eq!(env.ledger().processed(), 0, "recorded before its event is published");
    raw.bind("notification_queue", "orders", "order.notification.*");
    raw.bind("unrouted_queue", "orders.unrouted", "");
    env.ledger().await_settled(1);

    delete(vhost, &notifications);
    raw.publish_to("orders", NORMAL, &Properties::persistent(), &order("ord-2"));
    wait_until("the order is processed", || env.ledger().processed() == 2);
    wait_until("its event is kept", || raw.depth("unrouted_queue") == 1);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_burst_of_events_for_a_deleted_exchange_is_published_as_soon_as_it_is_declared_again() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("management.poll_every", "off");
    let mut orderd = env.start();
    orderd.signal("STOP");
    let orders = (0..100).map(|n| (NORMAL.to_owned(), order(&format!("ord-{n}"))));
    env.raw().publish_all("orders", orders);
    // No one notices until the events of all orders are published, each of which makes the broker close the channel.
    delete(&env.vhost, &format!("exchanges/{}/orders", env.vhost.name));
    orderd.signal("CONT");
    let begun = std::time::Instant::now();
    env.ledger().await_settled(100);
    // With a wait that grew with each event it took a minute.
    assert!(begun.elapsed() < std::time::Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_eq!(orderd.status()["daemon"]["publisher"]["connections"], 1, "the connection was kept");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn an_event_of_a_step_without_a_queue_fails_its_order_and_does_not_stop_the_consumer() {
    let node = Node::shared();
    let server = StepServer::start();
    server.answer(|call| match (call.body["order"]["id"].as_str(), call.path.as_str()) {
        (Some("plain"), _) => reply("200 OK", "1"),
        // Also the undo, which is done nevertheless.
        _ => reply("200 OK", r#"{"events": [{"routing_key": "shop.labels.new", "body": 1}]}"#),
    });
    let steps = server.steps(&["ship"], ", emits = [\"shop.#\"]");
    let mut env = TestEnv::new(&node).set("consumers.order.steps", &steps);
    assert_eq!(env.start().stop(), 0);
    env.change("topology.declare", "false");
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    raw.publish_to("orders", NORMAL, &Properties::persistent(), &order("kept"));
    wait_until("the order is processed", || ledger.processed() == 1);
    assert_eq!(raw.depth("unrouted_queue"), 1);
    // Without the queue of the alternate exchange, the broker returns the event: 312 NO_ROUTE.
    delete(&env.vhost, &format!("bindings/{}/e/orders.unrouted/q/unrouted_queue/~", env.vhost.name));
    for id in ["lost", "plain"] {
        raw.publish_to("orders", NORMAL, &Properties::persistent(), &order(id));
    }
    let failed = || ledger.rows("SELECT identity, failure_kind, failure_code FROM dead_letters");
    wait_until("the order is dead-lettered", || !failed().is_empty());
    assert_eq!(failed(), ["lost|permanent|event_unroutable"]);
    wait_until("the other order is processed", || ledger.processed() == 2);
    assert_eq!(server.paths("lost"), ["/ship", "/ship/undo"]);
    assert_eq!(ledger.rows("SELECT state FROM step_runs WHERE identity = 'lost'"), ["undone"]);
    assert_eq!(orderd.stop(), 0);
}
