//! Cancellations: before an order arrives, between its retries and after it was processed, with steps that a real HTTP server
//! performs and undoes; by two instances, and through a crash.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;

use crate::support::Node;
use crate::support::raw_client::RawClient;
use crate::support::raw_client::properties::Properties;
use crate::support::step_server::{StepServer, reply};
use crate::support::test_env::{LedgerReader, OrderdProcess, TestEnv, order, wait_until};

const STEPS: [&str; 2] = ["charge", "ship"];

fn send(raw: &mut RawClient, id: &str) {
    raw.publish_to("orders", "order.normal.created", &Properties::persistent(), &order(id));
}

fn cancel(raw: &mut RawClient, id: &str) {
    let body = format!(r#"{{"id": "{id}", "event": "cancelled"}}"#);
    raw.publish_to("orders", "order.normal.cancelled", &Properties::persistent(), body.as_bytes());
}

fn status(ledger: &LedgerReader, id: &str) -> Vec<String> {
    ledger.rows(&format!("SELECT status FROM orders WHERE id = '{id}'"))
}

fn is_complete(ledger: &LedgerReader, id: &str) -> bool {
    let complete = "status = 'cancelled' AND cancellation_finished_at IS NOT NULL";
    ledger.number(&format!("SELECT count(*) FROM orders WHERE id = '{id}' AND {complete}")) == 1
}

/// The ends of the ids of the events of this order that are recorded.
fn events(ledger: &LedgerReader, id: &str) -> Vec<String> {
    ledger.rows(&format!("SELECT substr(id, length(order_id) + 2) FROM events WHERE order_id = '{id}' ORDER BY 1"))
}

fn dead_letters(ledger: &LedgerReader) -> Vec<String> {
    ledger.rows("SELECT identity, reason FROM dead_letters ORDER BY 1")
}

fn count(orderd: &OrderdProcess, key: &str) -> u64 {
    orderd.status()["consumers"]["order"][key].as_u64().unwrap()
}

/// Of the consumer of failed orders.
fn count_failed(orderd: &OrderdProcess, key: &str) -> u64 {
    orderd.status()["consumers"]["failed"][key].as_u64().unwrap()
}

#[test]
fn a_cancelled_order_is_prevented_undone_or_revoked_wherever_it_is_and_the_sums_are_exact() {
    let node = Node::shared();
    let server = StepServer::start();
    server.answer(|call| match (call.body["order"]["id"].as_str(), call.path.as_str()) {
        (Some("retried"), "/ship") => reply("503 Service Unavailable", ""),
        (Some("refused"), "/ship") => reply("404 Not Found", "no such address"),
        (Some("stuck"), "/charge/undo") => reply("409 Conflict", "paid out already"),
        (_, path) => reply("200 OK", &format!("{{\"done\":{path:?}}}")),
    });
    let env = TestEnv::new(&node)
        .set("consumers.order.steps", &server.steps(&STEPS, ""))
        .set("consumers.order.retry.immediate", "0")
        .set("consumers.order.retry.delays", "3s");
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());

    cancel(&mut raw, "first");
    cancel(&mut raw, "first");
    wait_until("the repeated cancellation is a duplicate", || count(&orderd, "duplicates") == 1);
    assert_eq!((status(&ledger, "first"), count(&orderd, "cancelled")), (vec!["cancelled".to_owned()], 1));
    send(&mut raw, "first");
    wait_until("the order that arrives later is prevented", || count(&orderd, "prevented") == 1);

    for id in ["after", "kept", "retried", "refused", "stuck"] {
        send(&mut raw, id);
    }
    wait_until("one is retried", || ledger.number("SELECT count(*) FROM attempts WHERE identity = 'retried'") == 1);
    cancel(&mut raw, "retried");
    wait_until("its steps are undone", || is_complete(&ledger, "retried"));
    assert_eq!(server.paths("retried")[..3], ["/charge", "/ship", "/ship/undo"]);

    wait_until("one has failed", || dead_letters(&ledger) == ["refused|permanent"]);
    wait_until("the others are processed", || ledger.processed() == 3);
    assert_eq!(status(&ledger, "refused"), ["failed"]);
    // The whole order, with the message's type; and nothing but the id.
    let typed = Properties::persistent().text("type", "order.cancelled");
    raw.publish_to("orders", "order.normal.created", &typed, &order("after"));
    raw.publish_to("orders", "order.normal.created", &typed, br#"{"id": "refused"}"#);
    for id in ["after", "stuck"] {
        cancel(&mut raw, id);
    }
    wait_until("the processed one is undone", || is_complete(&ledger, "after"));
    let mut paths = server.paths("after");
    paths.dedup();
    assert_eq!(paths, ["/charge", "/ship", "/ship/undo", "/charge/undo"]);
    let undo = server.calls().into_iter().find(|call| call.key == "after/charge/undo").unwrap().body;
    assert_eq!((&undo["failure"]["code"], &undo["order"]["total"]), (&"cancelled".into(), &"1200.00".into()));
    let revoked = ["analytics/cancelled", "analytics/processed", "notification/cancelled", "notification/processed"];
    wait_until("the customer is notified", || events(&ledger, "after") == revoked);

    let stuck = ["refused|permanent", "stuck/cancellation|undo_failed"];
    wait_until("the cancellation that cannot be undone is dead-lettered", || dead_letters(&ledger) == stuck);
    wait_until("the failed one is cancelled", || is_complete(&ledger, "refused"));
    send(&mut raw, "refused");
    // Of the order that arrived first, the retried one and the replayed one.
    wait_until("its replay is prevented", || count(&orderd, "prevented") == 3);
    for id in ["first", "retried", "refused", "stuck"] {
        assert_eq!(status(&ledger, id), ["cancelled"], "{id}");
        let expected: &[&str] = match id {
            "stuck" => &["analytics/processed", "notification/processed"],
            "refused" => &["analytics/failed", "notification/cancelled"],
            _ => &["notification/cancelled"],
        };
        wait_until("the customer is notified once, although nothing was announced", || events(&ledger, id) == expected);
    }
    assert!(server.paths("first").is_empty());

    // "kept" is the only order left, whatever is added up.
    let sums = "SELECT sum(processed) - sum(cancelled), sum(processed_goods) - sum(cancelled_goods),
                       sum(processed_total) - sum(cancelled_total), sum(cancelled), sum(prevented)
                FROM order_sums WHERE granularity = 'hour'";
    assert_eq!(ledger.rows(sums), ["1|1200|1200|2|3"]);
    let sales = "SELECT sum(orders), sum(quantity), sum(revenue) FROM sales WHERE granularity = 'day'";
    wait_until("the sales are counted", || ledger.rows(sales) == ["1|3|1200"]);
    let report: Value = {
        let report = env.program(&["report", "--by", "status", "--format", "json"]).output().unwrap();
        serde_json::from_slice(&report.stdout).unwrap()
    };
    let rows = report["currencies"][0]["rows"].as_array().unwrap().iter();
    let rows: Vec<_> = rows.map(|row| format!("{} {}", row["key"].as_str().unwrap(), row["orders"])).collect();
    assert_eq!(rows, ["accepted 5", "processed 1", "cancelled 2", "prevented 3"]);
    assert_eq!(orderd.stop(), 0);
}

/// They fail before the ledger compares them.
#[test]
fn another_order_with_the_id_of_a_cancelled_one_is_kept_when_it_panics_and_the_cancelled_one_is_not() {
    let node = Node::shared();
    let mut env = TestEnv::new(&node).set("consumers.order.retry.delays", "");
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    for id in ["known", "unknown"] {
        if id == "known" {
            send(&mut raw, id);
            wait_until("it is processed", || ledger.processed() == 1);
        }
        cancel(&mut raw, id);
        wait_until("it is cancelled", || is_complete(&ledger, id));
    }
    assert_eq!(orderd.stop(), 0);
    env.change("consumers.order.faults.panic", "1");
    let mut orderd = env.start();
    let other = |id: &str| String::from_utf8(order(id)).unwrap().replace("400.00", "400.01").into_bytes();
    let garbage = |id: &str| format!(r#"{{"id":"{id}","product":7}}"#).into_bytes();
    for (nth, id) in (1..).zip(["known", "unknown"]) {
        send(&mut raw, id);
        wait_until("the cancelled one is prevented", || count_failed(&orderd, "prevented") == u64::from(nth));
        for body in [other(id), garbage(id)] {
            raw.publish_to("orders", "order.normal.created", &Properties::persistent(), &body);
        }
        wait_until("the others are dead-lettered", || raw.depth("dead_letter_queue") == 2 * nth);
    }
    assert_eq!(ledger.rows("SELECT DISTINCT status FROM orders"), ["cancelled"]);
    assert_eq!(count_failed(&orderd, "prevented"), 2);
    assert_eq!(orderd.stop(), 0);
}

/// Two instances process and cancel the same orders at the same time; one is killed in the middle of undoing.
#[test]
fn no_order_is_both_processed_and_cancelled_without_its_steps_being_undone_through_races_and_a_crash() {
    const ORDERS: usize = 24;
    let node = Node::shared();
    let server = StepServer::start();
    let env = TestEnv::new(&node)
        .set("consumers.order.steps", &server.steps(&STEPS, ""))
        .set("consumers.order.workers", "2")
        .set("consumers.order.prefetch", "4");
    let (mut first, mut second) = (env.start(), env.start());
    let consumes =
        |orderd: &OrderdProcess| orderd.log_lines("consuming").iter().any(|line| line["queue"] == "order_queue");
    wait_until("both consume", || consumes(&first) && consumes(&second));
    let (mut raw, ledger) = (env.raw(), env.ledger());
    let id = |n: usize| format!("r{n}");
    for n in 0..ORDERS {
        // Each second one is cancelled right after it is published, every fourth one before.
        if n % 4 == 3 {
            cancel(&mut raw, &id(n));
        }
        send(&mut raw, &id(n));
        if n.is_multiple_of(2) {
            cancel(&mut raw, &id(n));
        }
    }
    wait_until("some are undone", || server.calls().iter().any(|call| call.path.ends_with("/undo")));
    first.kill();
    first = env.start();
    let (all, is_cancelled) = (0..ORDERS, |n: &usize| n.is_multiple_of(2) || n % 4 == 3);
    let cancelled = all.clone().filter(is_cancelled).count() as u64;
    let complete = "SELECT count(*) FROM orders WHERE status = 'cancelled' AND cancellation_finished_at IS NOT NULL";
    wait_until("every cancellation is complete", || ledger.number(complete) == cancelled);
    wait_until("all others are processed", || ledger.processed() == ORDERS as u64 - cancelled);
    let open = "SELECT count(*) FROM step_runs WHERE state NOT IN ('done', 'undone')";
    wait_until("no run is open", || ledger.number(open) == 0);
    assert!(dead_letters(&ledger).is_empty(), "{:?}", dead_letters(&ledger));
    for n in all {
        let paths: BTreeSet<String> = server.paths(&id(n)).into_iter().collect();
        let has = |path: &str| paths.contains(path);
        if is_cancelled(&n) {
            for step in STEPS {
                let (done, undone) = (has(&format!("/{step}")), has(&format!("/{step}/undo")));
                // A call that was recorded before the crash, and not made, is undone as well.
                assert!(!done || undone, "{}: {paths:?}", id(n));
            }
        } else {
            assert_eq!(paths, ["/charge", "/ship"].map(str::to_owned).into(), "{}", id(n));
        }
    }
    // What was announced is revoked, and nothing else; and the customer of each cancelled order is notified of that.
    let of = |name: &str| ledger.number(&format!("SELECT count(*) FROM events WHERE id LIKE '%/{name}'"));
    let kept = ORDERS as u64 - cancelled;
    wait_until("the events are recorded", || {
        of("analytics/processed") == kept + of("analytics/cancelled")
            && of("notification/processed") == of("analytics/processed")
            && of("notification/cancelled") == cancelled
    });
    let net = format!("{kept}|{}|{}", 3 * kept, 1200 * kept);
    let sales = "SELECT sum(orders), sum(quantity), sum(revenue) FROM sales WHERE granularity = 'day'";
    wait_until("the sales are counted", || ledger.rows(sales) == [net.as_str()]);
    let sums = "SELECT sum(processed) - sum(cancelled), sum(processed_quantity) - sum(cancelled_quantity),
                       sum(processed_total) - sum(cancelled_total) FROM order_sums WHERE granularity = 'hour'";
    assert_eq!(ledger.rows(sums), [net]);
    assert_eq!((first.stop(), second.stop()), (0, 0));
}

/// Both consumers have a step of this name, and read other ids from the same documents.
#[test]
fn only_the_consumer_that_called_the_steps_of_an_order_continues_and_undoes_them_whatever_its_format_reads() {
    let node = Node::shared();
    let (own, other, has_stock) = (StepServer::start(), StepServer::start(), Arc::new(AtomicBool::new(false)));
    let in_stock = Arc::clone(&has_stock);
    own.answer(move |call| match &*call.path {
        "/ship" if !in_stock.load(Ordering::SeqCst) => reply("503 Service Unavailable", ""),
        path => reply("200 OK", &format!("{{\"done\":{path:?}}}")),
    });
    let mut env = TestEnv::new(&node)
        .set("consumers.priority.steps", &own.steps(&STEPS, ""))
        .set("consumers.priority.retry.delays", &["400ms"; 32].join(","))
        .set("consumers.priority.format", "web")
        .set("consumers.order.steps", &other.steps(&["charge"], ""))
        .set("consumers.order.retry.delays", "200ms");
    for field in ["product", "quantity", "price", "currency", "customer_id"] {
        env.change(&format!("formats.web.{field}"), &format!("/{field}"));
    }
    let (env, mut file) = env.with_file();
    file.set("formats.web.id", "{ pointer = \"/id\", prefix = \"web-\" }").save();
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    raw.publish_to("orders", "order.priority.created", &Properties::persistent(), &order("17"));
    let retries = "SELECT count(*) FROM attempts WHERE consumer = 'priority' AND retry_count > 0";
    wait_until("its second step is retried", || ledger.number(retries) > 0);
    // A copy in the other queue.
    send(&mut raw, "web-17");
    wait_until("the copy is dead-lettered", || dead_letters(&ledger) == ["web-17|retries_exhausted"]);
    assert_eq!(status(&ledger, "web-17"), ["accepted"]);
    has_stock.store(true, Ordering::SeqCst);
    wait_until("it is processed", || ledger.processed() == 1);
    cancel(&mut raw, "web-17");
    wait_until("it is cancelled", || is_complete(&ledger, "web-17"));
    let mut paths = own.paths("web-17");
    paths.dedup();
    assert_eq!(paths, ["/charge", "/ship", "/ship/undo", "/charge/undo"]);
    assert_eq!(ledger.rows("SELECT id FROM orders"), ["web-17"]);
    assert!(other.calls().is_empty(), "{:?}", other.calls());
    assert_eq!(orderd.stop(), 0);
}
