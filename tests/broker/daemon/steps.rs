//! Steps of orders and of other messages, performed by a real HTTP server: recorded, resumed after a crash, and undone.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::Node;
use crate::support::raw_client::RawClient;
use crate::support::raw_client::properties::{Field, Properties};
use crate::support::step_server::{StepServer, reply};
use crate::support::test_env::{LedgerReader, OrderdProcess, TestEnv, order, wait_until};

const STEPS: [&str; 3] = ["charge", "reserve", "ship"];

fn send(raw: &mut RawClient, id: &str) {
    raw.publish_to("orders", "order.normal.created", &Properties::persistent(), &order(id));
}

fn is_processed(ledger: &LedgerReader, id: &str) -> bool {
    ledger.number(&format!("SELECT count(*) FROM orders WHERE id = '{id}' AND status = 'processed'")) == 1
}

fn run(ledger: &LedgerReader, identity: &str) -> Vec<String> {
    ledger.rows(&format!("SELECT scope, state FROM step_runs WHERE identity = '{identity}'"))
}

fn steps(ledger: &LedgerReader, identity: &str) -> Vec<String> {
    ledger.rows(&format!(
        "SELECT step, action, status, attempts FROM steps WHERE identity = '{identity}' ORDER BY action, position"
    ))
}

fn dead_letter(ledger: &LedgerReader, identity: &str) -> Vec<String> {
    let columns = "reason, failure_kind, failure_code, retry_count";
    ledger.rows(&format!("SELECT {columns} FROM dead_letters WHERE identity = '{identity}'"))
}

#[test]
fn an_order_is_processed_once_its_steps_are_done_and_undone_in_reverse_before_it_is_dead_lettered() {
    let node = Node::shared();
    let server = StepServer::start();
    server.answer(|call| match (call.body["order"]["id"].as_str(), call.path.as_str()) {
        (Some("homeless"), "/ship") => reply("404 Not Found", "no such address"),
        (Some("flaky"), "/reserve") if call.body["message"]["quantity"] == 3 => reply("503 Service Unavailable", ""),
        (Some("stuck"), "/ship") => reply("422 Unprocessable Content", "too heavy"),
        (Some("stuck"), "/charge/undo") => reply("409 Conflict", "paid out already"),
        (_, "/charge") => reply(
            "200 OK",
            r#"{"payment": 7, "events": [{"routing_key": "order.notification.receipt", "body": {"order_id": "x"}}]}"#,
        ),
        (_, path) => reply("200 OK", &format!("{{\"done\":{path:?}}}")),
    });
    let emits = ", emits = [\"order.notification.receipt\"]";
    let env = TestEnv::new(&node)
        .set("consumers.order.steps", &server.steps(&STEPS, emits))
        .set("queues.invoices_queue.bindings", "invoice.#")
        .set("consumers.invoices.queue", "invoices_queue")
        .set("consumers.invoices.handler", "steps")
        .set("consumers.invoices.retry.delays", "200ms")
        .set("consumers.invoices.steps", &server.steps(&["print"], ""));
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    for id in ["good", "homeless", "flaky", "stuck"] {
        send(&mut raw, id);
    }
    let invoice =
        Properties::persistent().text("message_id", "inv-1").header("traceparent", Field::Text("00-a-b-01".into()));
    raw.publish_to("orders", "invoice.new", &invoice, b"not JSON");
    raw.publish_to("orders", "invoice.new", &invoice, b"not JSON");
    raw.publish_to("orders", "invoice.new", &Properties::persistent(), b"without an id");

    wait_until("the order is processed", || is_processed(&ledger, "good"));
    assert_eq!(server.paths("good"), ["/charge", "/reserve", "/ship"]);
    assert_eq!(steps(&ledger, "good"), ["charge|do|done|1", "reserve|do|done|1", "ship|do|done|1"]);
    let last = server.calls().into_iter().find(|call| call.key == "good/ship").unwrap().body;
    assert_eq!((&last["order"]["total"], &last["message"]["price"]), (&"1200.00".into(), &"400.00".into()));
    assert_eq!(
        (&last["steps"]["charge"]["payment"], &last["steps"]["reserve"]["done"]),
        (&7.into(), &"/reserve".into())
    );
    let receipts = "SELECT count(*) FROM events WHERE name = 'receipt' AND id = 'good/charge/event/1'";
    wait_until("the event of the charge is sent", || ledger.number(receipts) == 1);

    wait_until("the refused order is dead-lettered", || !dead_letter(&ledger, "homeless").is_empty());
    assert_eq!(server.paths("homeless"), ["/charge", "/reserve", "/ship", "/reserve/undo", "/charge/undo"]);
    assert_eq!(dead_letter(&ledger, "homeless"), ["permanent|permanent|http_404|0"]);
    assert_eq!(run(&ledger, "homeless"), ["|undone"]);
    let undo = server.calls().into_iter().find(|call| call.key == "homeless/charge/undo").unwrap().body;
    assert_eq!(undo["failure"]["code"], "http_404");

    wait_until("the order whose retries are exhausted is dead-lettered", || !dead_letter(&ledger, "flaky").is_empty());
    assert_eq!(dead_letter(&ledger, "flaky"), ["retries_exhausted|transient|http_503|1"]);
    // Each delivery has one immediate retry. Its effect is uncertain, so it is undone too.
    let reserves = ["/reserve"; 4];
    let expected: Vec<&str> =
        ["/charge"].into_iter().chain(reserves).chain(["/reserve/undo", "/charge/undo"]).collect();
    assert_eq!(server.paths("flaky"), expected);

    wait_until("the order that cannot be undone is dead-lettered", || !dead_letter(&ledger, "stuck").is_empty());
    assert_eq!(dead_letter(&ledger, "stuck"), ["undo_failed|permanent|undo_failed|0"]);
    assert_eq!(run(&ledger, "stuck"), ["|undo_failed"]);
    let reason = ledger.rows("SELECT failure_reason FROM dead_letters WHERE identity = 'stuck'");
    assert!(reason[0].contains("left to be undone: charge") && reason[0].contains("too heavy"), "{reason:?}");

    let printed = || server.calls().iter().filter(|call| call.path == "/print").count();
    wait_until("the other message is done", || !run(&ledger, "inv-1/unverified").is_empty() || printed() > 0);
    wait_until("its duplicate too", || orderd.status()["consumers"]["invoices"]["duplicates"] == 1);
    assert_eq!(printed(), 1);
    let invoice = server.calls().into_iter().find(|call| call.path == "/print").unwrap();
    assert_eq!((&invoice.body["message"], invoice.key.split('/').next()), (&"not JSON".into(), Some("invoices")));
    let refused = "SELECT failure_kind FROM dead_letters WHERE failure_code = 'no_message_id'";
    wait_until("the message without an id is refused", || ledger.rows(refused) == ["permanent"]);
    wait_until("all dead letters are in their queue", || raw.depth("dead_letter_queue") == 4);
    assert_eq!(printed(), 1);
    assert_eq!(orderd.stop(), 0);
}

/// Kills the daemon while a step is called, before its result is recorded, and at arbitrary moments under load.
#[test]
fn after_a_crash_no_step_is_skipped_or_undone_twice_and_none_is_called_more_than_once_beyond_what_is_recorded() {
    const ORDERS: usize = 40;
    let node = Node::shared();
    let server = StepServer::start();
    server.answer(|call| match (call.path.as_str(), call.key.split('/').next()) {
        // Of every fourth order the last step fails for good.
        ("/ship", Some(id)) if id.ends_with(['3', '7']) => reply("410 Gone", "sold out"),
        _ => reply("200 OK", "1"),
    });
    let env = TestEnv::new(&node).set("consumers.order.steps", &server.steps(&STEPS, ", max_concurrent = 2"));
    let mut orderd = env.start();
    let ledger = env.ledger();
    env.raw().publish_all("orders", (0..ORDERS).map(|n| ("order.normal.created".to_owned(), order(&format!("k{n}")))));
    let mut kills = 0;
    for calls in [3, 60, 120] {
        wait_until("steps are called", || server.calls().len() >= calls);
        orderd.kill();
        kills += 1;
        orderd = env.start();
    }
    let ended = "SELECT (SELECT count(*) FROM orders WHERE status = 'processed') + (SELECT count(*) FROM dead_letters)";
    wait_until("every order is processed or dead-lettered", || ledger.number(ended) == ORDERS as u64);

    let calls = server.calls();
    for n in 0..ORDERS {
        let id = format!("k{n}");
        let mut repeated = 0;
        let made: Vec<&str> =
            calls.iter().filter(|call| call.key.split('/').next() == Some(&*id)).map(|call| &*call.path).collect();
        let count = |path: &str| made.iter().filter(|made| **made == path).count() as u64;
        let fails = id.ends_with(['3', '7']);
        let mut expected: BTreeSet<&str> = match fails {
            true => ["/charge", "/reserve", "/ship", "/reserve/undo", "/charge/undo"].into(),
            false => ["/charge", "/reserve", "/ship"].into(),
        };
        // Nobody knows what a call did whose answer was lost, so it is undone too.
        let uncertain =
            format!("SELECT uncertain FROM steps WHERE identity = '{id}' AND step = 'ship' AND action = 'do'");
        if fails && ledger.number(&uncertain) == 1 {
            expected.insert("/ship/undo");
        }
        assert_eq!(made.iter().copied().collect::<BTreeSet<_>>(), expected, "{id}");
        assert_eq!(is_processed(&ledger, &id), !fails, "{id}");
        let mut first_calls = made.clone();
        let mut seen = BTreeSet::new();
        first_calls.retain(|path| seen.insert(*path));
        assert_eq!(first_calls[..3], ["/charge", "/reserve", "/ship"], "{id}");
        for row in ledger.rows(&format!("SELECT step, action, attempts FROM steps WHERE identity = '{id}'")) {
            let [step, action, attempts] = row.split('|').collect::<Vec<_>>().try_into().unwrap();
            let path = if action == "undo" { format!("/{step}/undo") } else { format!("/{step}") };
            let (made, recorded) = (count(&path), attempts.parse::<u64>().unwrap());
            // What was recorded and then not called was killed in between.
            assert!(made <= recorded && recorded <= made + kills, "{id} {path}: {made} calls, {recorded} recorded");
            repeated += made.saturating_sub(1);
        }
        // An order has one call at a time.
        assert!(repeated <= kills, "{id}: {repeated} calls were repeated");
    }
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn two_instances_with_one_ledger_never_call_a_step_of_one_order_at_the_same_time() {
    const ORDERS: usize = 20;
    let node = Node::shared();
    let (server, overlapping) = (StepServer::start(), Arc::new(AtomicU64::new(0)));
    let (in_call, overlaps) = (Mutex::new(BTreeSet::new()), Arc::clone(&overlapping));
    server.answer(move |call| {
        let order = call.key.split('/').next().unwrap().to_owned();
        if !in_call.lock().unwrap().insert(order.clone()) {
            overlaps.fetch_add(1, Ordering::SeqCst);
        }
        thread::yield_now();
        in_call.lock().unwrap().remove(&order);
        reply("200 OK", "1")
    });
    let env = TestEnv::new(&node)
        .set("consumers.order.steps", &server.steps(&STEPS, ""))
        .set("consumers.order.workers", "1")
        .set("consumers.order.prefetch", "10");
    let (mut first, mut second) = (env.start(), env.start());
    let consumes =
        |orderd: &OrderdProcess| orderd.log_lines("consuming").iter().any(|line| line["queue"] == "order_queue");
    wait_until("both consume", || consumes(&first) && consumes(&second));
    let copies = (0..3 * ORDERS).map(|n| ("order.normal.created".to_owned(), order(&format!("c{}", n / 3))));
    env.raw().publish_all("orders", copies);
    let ledger = env.ledger();
    wait_until("all orders are processed", || ledger.processed() == ORDERS as u64);
    let settled = || {
        let of = |orderd: &OrderdProcess| {
            let status = orderd.status();
            let count = |key: &str| status["consumers"]["order"][key].as_u64().unwrap();
            count("processed") + count("duplicates")
        };
        of(&first) + of(&second)
    };
    wait_until("their copies are acked", || settled() >= 3 * ORDERS as u64);
    assert_eq!(overlapping.load(Ordering::SeqCst), 0);
    assert_eq!(server.calls().len(), 3 * ORDERS, "each step was called once");
    assert_eq!((first.stop(), second.stop()), (0, 0));
}

/// They are refused, or fail in a consumer without steps, before any step is called for them.
#[test]
fn other_messages_with_the_bytes_of_an_order_neither_undo_its_steps_nor_process_it_without_them() {
    let node = Node::shared();
    let (server, has_stock) = (StepServer::start(), Arc::new(AtomicBool::new(false)));
    let in_stock = Arc::clone(&has_stock);
    server.answer(move |call| match &*call.path {
        "/ship" if !in_stock.load(Ordering::SeqCst) => reply("503 Service Unavailable", ""),
        path => reply("200 OK", &format!("{{\"done\":{path:?}}}")),
    });
    let env = TestEnv::new(&node)
        .set("consumers.order.steps", &server.steps(&["charge", "ship"], ""))
        .set("consumers.order.retry.delays", &["400ms"; 32].join(","))
        .set("consumers.priority.retry.delays", "200ms");
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    send(&mut raw, "o");
    let retries = "SELECT count(*) FROM attempts WHERE identity = 'o' AND retry_count > 0";
    wait_until("its second step is retried", || ledger.number(retries) > 0);
    let updated = Properties::persistent().text("type", "order.updated");
    raw.publish_to("orders", "order.normal.updated", &updated, &order("o"));
    raw.publish_to("orders", "order.priority.created", &Properties::persistent(), &order("o"));
    let codes = || ledger.rows("SELECT failure_code FROM dead_letters ORDER BY 1");
    wait_until("both are dead-lettered", || codes() == ["steps_in_progress", "unsupported_event"]);
    assert_eq!(run(&ledger, "o"), ["|running"]);
    has_stock.store(true, Ordering::SeqCst);
    wait_until("the order is processed", || is_processed(&ledger, "o"));
    let paths = server.paths("o");
    assert!(paths[0] == "/charge" && paths[1..].iter().all(|path| path == "/ship"), "{paths:?}");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn with_on_conflict_ignore_an_order_that_replaces_a_failed_one_is_kept() {
    let node = Node::shared();
    let server = StepServer::start();
    server.answer(|call| match &*call.path {
        "/ship" => reply("404 Not Found", "no such address"),
        path => reply("200 OK", &format!("{{\"done\":{path:?}}}")),
    });
    let env = TestEnv::new(&node)
        .set("consumers.order.steps", &server.steps(&["charge", "ship"], ""))
        .set("consumers.order.on_conflict", "ignore");
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    send(&mut raw, "o");
    wait_until("it is dead-lettered", || raw.depth("dead_letter_queue") == 1);
    let changed = |quantity: u32| {
        let order = String::from_utf8(order("o")).unwrap();
        order.replace("\"quantity\":3", &format!("\"quantity\":{quantity}")).into_bytes()
    };
    // The shop sends it again, and a person replays it with another quantity.
    raw.publish_to("orders", "order.normal.updated", &Properties::persistent(), &changed(2));
    wait_until("the changed one is kept", || raw.depth("dead_letter_queue") == 2);
    raw.publish_to("orders.requeue", "order_queue", &Properties::persistent().text("user_id", "guest"), &changed(1));
    wait_until("the replayed one is kept", || raw.depth("dead_letter_queue") == 3);
    assert_eq!(ledger.rows("SELECT failure_code FROM dead_letters"), ["id_conflict"]);
    assert_eq!(orderd.stop(), 0);
}
