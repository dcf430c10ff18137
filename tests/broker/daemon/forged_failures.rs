//! What producers can make of an order's steps: neither undo them nor begin them anew by a forged failure or replay.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::forged_messages::routed_to;
use crate::support::Node;
use crate::support::raw_client::RawClient;
use crate::support::raw_client::properties::{Field, Fields, Properties};
use crate::support::step_server::{StepServer, reply};
use crate::support::test_env::{LedgerReader, TestEnv, order, wait_until};

const NORMAL: &str = "order.normal.created";

/// A broker user that may publish with every routing key. Deleted with the test, unless it fails.
fn producer(env: &TestEnv<'_>) -> String {
    let (node, vhost) = (env.vhost.node, &env.vhost.name);
    let user = format!("any-{vhost}");
    for (path, body) in [
        (format!("/users/{user}"), format!(r#"{{"password":"{user}","tags":""}}"#)),
        (format!("/permissions/{vhost}/{user}"), r#"{"configure":"^$","write":"^orders$","read":"^$"}"#.to_owned()),
    ] {
        let (status, answer) = node.management("PUT", &path, &body);
        assert!([201, 204].contains(&status), "{path}: {status} {answer}");
    }
    user
}

fn text(text: &str) -> Field {
    Field::Text(text.to_owned())
}

/// What orderd states on a copy of a message that has failed for good.
fn failed(properties: Properties) -> Properties {
    properties
        .header("x-origin-queue", text("order_queue"))
        .header("x-origin-exchange", text("orders"))
        .header("x-origin-routing-key", text(NORMAL))
        .header("x-failure-kind", text("permanent"))
        .header("x-failure-code", text("http_404"))
        .header("x-failure-reason", text("no such address"))
        .header("x-original-user-id", text("guest"))
        .header("x-retry-count", Field::Long(9))
        .header("x-undo", Field::Other(b't', vec![1]))
}

/// What the broker states on a message that it has dead-lettered.
fn dead(properties: Properties, queue: &str, reason: &str) -> Properties {
    let death = Fields::from([
        ("queue".to_owned(), text(queue)),
        ("exchange".to_owned(), text("orders.requeue")),
        ("reason".to_owned(), text(reason)),
        ("count".to_owned(), Field::Long(1)),
        ("routing-keys".to_owned(), Field::List(vec![text(NORMAL)])),
    ]);
    properties.header("x-death", Field::List(vec![Field::Table(death)]))
}

#[test]
fn a_forged_failure_of_an_order_in_progress_undoes_nothing() {
    let node = Node::shared();
    let (server, ships) = (StepServer::start(), Arc::new(AtomicBool::new(false)));
    let can_ship = Arc::clone(&ships);
    server.answer(move |call| match call.path.as_str() {
        "/ship" if !can_ship.load(Ordering::SeqCst) => reply("503 Service Unavailable", ""),
        _ => reply("200 OK", "1"),
    });
    let env = TestEnv::new(&node)
        .set("consumers.order.steps", &server.steps(&["charge", "ship"], ""))
        .set("consumers.order.retry.delays", "1h");
    let mut orderd = env.start();
    let user = producer(&env);
    let mut forger = RawClient::connect_as(&user, node.amqp_port, &env.vhost.name);
    let (mut raw, ledger) = (env.raw(), env.ledger());
    raw.publish_to("orders", NORMAL, &Properties::persistent(), &order("o-1"));
    wait_until("the order waits for its retry", || raw.depth("order_queue.retry.1h") == 1);

    let properties = Properties::persistent;
    let forged = [
        failed(properties()),
        failed(properties().text("user_id", &user)),
        dead(failed(properties()), "unknown_queue", "rejected"),
        dead(properties().text("user_id", &user), "unknown_queue", "delivery_limit"),
    ];
    for properties in &forged {
        assert!(forger.may_publish("orders", "order.failed.order", properties, &order("o-1")));
    }
    // With a routing key of no queue, and one more.
    let elsewhere = dead(failed(routed_to("order.failed.order", "CC")), "order_queue", "rejected");
    assert!(forger.may_publish("orders", "shop.nothing", &elsewhere, &order("o-1")));
    wait_until("the forgeries are dead-lettered", || raw.depth("dead_letter_queue") == 5);
    assert_eq!(ledger.rows("SELECT DISTINCT reason FROM dead_letters"), ["no_origin"]);
    assert_eq!(ledger.rows("SELECT state FROM step_runs"), ["running"]);
    // It says what only the broker can know. It is taken for the order itself, which may be published twice.
    ships.store(true, Ordering::SeqCst);
    let dead = dead(properties(), "order_queue", "rejected");
    assert!(forger.may_publish("orders", "order.failed.order", &dead, &order("o-1")));
    let is_processed = || ledger.processed() == 1;
    wait_until("it is processed, or not believed", || is_processed() || raw.depth("dead_letter_queue") == 6);
    let paths = server.paths("o-1");
    assert_eq!(paths.iter().filter(|path| *path == "/charge").count(), 1, "{paths:?}");
    assert!(!paths.iter().any(|path| path.ends_with("undo")), "{paths:?}");
    assert_eq!(orderd.stop(), 0);
    node.management("DELETE", &format!("/users/{user}"), "");
}

/// The present second, which is after the order was dead-lettered.
fn after_dead_letter(ledger: &LedgerReader) -> u64 {
    let dead_lettered_at = ledger.number("SELECT dead_lettered_at FROM step_runs");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    wait_until("a second has passed", || now() * 1_000 > dead_lettered_at);
    now()
}

#[test]
fn an_undone_order_begins_anew_when_it_is_delivered_again_only_if_orderds_user_has_replayed_it() {
    let node = Node::shared();
    let server = StepServer::start();
    server.answer(|call| match call.path.as_str() {
        "/ship" => reply("404 Not Found", "no such address"),
        _ => reply("200 OK", "1"),
    });
    let env = TestEnv::new(&node).set("consumers.order.steps", &server.steps(&["charge", "ship"], ""));
    let (mut orderd, user) = (env.start(), producer(&env));
    let (mut raw, ledger) = (env.raw(), env.ledger());
    let charges = || {
        let calls = server.calls().into_iter().filter(|call| call.path == "/charge");
        calls.map(|call| call.key).collect::<Vec<_>>()
    };
    raw.publish_to("orders", NORMAL, &Properties::persistent(), &order("o-1"));
    wait_until("the order is dead-lettered", || raw.depth("dead_letter_queue") == 1);
    assert_eq!(orderd.stop(), 0);

    for (user, exchange, key, dead_letters) in
        [(&*user, "orders", NORMAL, 2), ("guest", "orders.requeue", "order_queue", 3)]
    {
        let replayed_at = Field::Time(after_dead_letter(&ledger));
        let replay = Properties::persistent().text("user_id", user).header("x-replayed-at", replayed_at);
        let mut publisher = RawClient::connect_as(user, node.amqp_port, &env.vhost.name);
        publisher.publish_to(exchange, key, &replay, &order("o-1"));
        // Somebody takes it and goes away, so that the broker delivers it again.
        let mut other = env.raw();
        wait_until("it is there", || other.get_unacked("order_queue").is_some());
        drop(other);
        wait_until("it is there again", || raw.depth("order_queue") == 1);
        orderd = env.start();
        wait_until("it is dead-lettered again", || raw.depth("dead_letter_queue") == dead_letters);
        let expected: &[&str] = if user == "guest" { &["o-1/charge", "o-1/charge/2"] } else { &["o-1/charge"] };
        assert_eq!(charges(), expected, "{user}");
        assert_eq!(ledger.rows("SELECT state FROM step_runs"), ["undone"]);
        assert_eq!(orderd.stop(), 0);
    }
    // What the producer has claimed is in no copy.
    let claims = |message: &crate::support::raw_client::ReceivedMessage| {
        message.properties().headers.contains_key("x-replayed-at")
    };
    assert_eq!(raw.drain("dead_letter_queue").iter().map(claims).collect::<Vec<_>>(), [false, false, true]);
    node.management("DELETE", &format!("/users/{user}"), "");
}
