//! Reloads that change steps while orders are between them.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use crate::support::Node;
use crate::support::step_server::{StepServer, reply};
use crate::support::test_env::{ConfigFile, LedgerReader, OrderdProcess, TestEnv, order, wait_until};

fn reload(orderd: &OrderdProcess, file: &mut ConfigFile, steps: &str) {
    file.set("consumers.order.steps", steps).save();
    assert_eq!(orderd.reload()["outcome"], "applied");
}

fn publish(env: &TestEnv<'_>, id: &str) {
    env.raw().publish_all("orders", [("order.normal.created".to_owned(), order(id))]);
}

fn await_processed(ledger: &LedgerReader, id: &str) {
    let processed = format!("SELECT count(*) FROM orders WHERE id = '{id}' AND status = 'processed'");
    wait_until("the order is processed", || ledger.number(&processed) == 1);
}

fn await_failed(ledger: &LedgerReader, id: &str, step: &str) {
    let failed =
        format!("SELECT count(*) FROM steps WHERE identity = '{id}' AND step = '{step}' AND status = 'failed'");
    wait_until("the step has failed", || ledger.number(&failed) == 1);
}

/// The paths of the calls for an order, repeated ones once.
fn paths(server: &StepServer, id: &str) -> Vec<String> {
    let mut paths = server.paths(id);
    paths.dedup();
    paths
}

#[test]
fn an_order_between_steps_continues_with_those_of_a_reload_and_repeats_none_that_is_done() {
    let node = Node::shared();
    let server = StepServer::start();
    // Paths that answer so.
    let failing = Arc::new(Mutex::new(("/reserve", "503 Service Unavailable")));
    let failures = Arc::clone(&failing);
    server.answer(move |call| match *failures.lock().unwrap() {
        (path, status) if path == call.path => reply(status, ""),
        _ => reply("200 OK", "1"),
    });
    let (env, mut file) = TestEnv::new(&node)
        .set("consumers.order.steps", &server.steps(&["charge", "reserve", "ship"], ""))
        .set("consumers.order.retry.delays", &["200ms"; 16].join(","))
        .with_file();
    let mut orderd = env.start();
    let ledger = env.ledger();

    publish(&env, "reordered");
    await_failed(&ledger, "reordered", "reserve");
    reload(&orderd, &mut file, &server.steps(&["reserve", "ship", "charge"], ""));
    failing.lock().unwrap().0 = "";
    await_processed(&ledger, "reordered");
    assert_eq!(paths(&server, "reordered"), ["/charge", "/reserve", "/ship"]);

    failing.lock().unwrap().0 = "/ship";
    publish(&env, "renamed");
    await_failed(&ledger, "renamed", "ship");
    reload(&orderd, &mut file, &server.steps(&["reserve", "deliver", "charge"], ""));
    await_processed(&ledger, "renamed");
    assert_eq!(paths(&server, "renamed"), ["/reserve", "/ship", "/deliver", "/charge"]);

    failing.lock().unwrap().0 = "/charge";
    publish(&env, "removed");
    await_failed(&ledger, "removed", "charge");
    reload(&orderd, &mut file, &server.steps(&["reserve", "charge"], ""));
    failing.lock().unwrap().1 = "402 Payment Required";
    let dead = "SELECT reason, failure_code, failure_reason FROM dead_letters WHERE identity = 'removed'";
    wait_until("the order is dead-lettered", || !ledger.rows(dead).is_empty());
    let row = ledger.rows(dead).remove(0);
    // Its first call was not answered, so it is undone; what was removed cannot be.
    assert!(row.starts_with("undo_failed|undo_failed|left to be undone: deliver, reserve; "), "{row}");
    assert_eq!(paths(&server, "removed"), ["/reserve", "/deliver", "/charge", "/charge/undo"]);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_new_token_and_a_changed_url_are_used_from_the_reload_on_and_calls_in_flight_finish() {
    let node = Node::shared();
    let (former, new) = (StepServer::start(), StepServer::start());
    let (release, held) = channel::<()>();
    let (held, is_held) = (Mutex::new(held), Arc::new(AtomicBool::new(false)));
    let holding = Arc::clone(&is_held);
    former.answer(move |call| {
        if call.key.starts_with("held") {
            holding.store(true, Ordering::SeqCst);
            let _ = held.lock().unwrap().recv();
        }
        reply("200 OK", "1")
    });
    let env = TestEnv::new(&node);
    let token = env.directory.path().join("token");
    let steps = |server: &StepServer| {
        let url = server.url("/charge");
        format!("[{{ name = \"charge\", http = {{ url = {url:?}, bearer_file = {token:?} }} }}]")
    };
    fs::write(&token, "the-first-token-of-all").unwrap();
    let (env, mut file) = env.set("consumers.order.steps", &steps(&former)).with_file();
    let mut orderd = env.start();
    let ledger = env.ledger();
    let authorization = |server: &StepServer, id: &str| {
        let calls = server.calls();
        let of_order = calls.iter().filter(|call| call.key.split('/').next() == Some(id));
        of_order.map(|call| call.authorization.clone()).collect::<Vec<_>>()
    };
    publish(&env, "first");
    await_processed(&ledger, "first");
    assert_eq!(authorization(&former, "first"), ["Bearer the-first-token-of-all"]);
    fs::write(&token, "the-second-token-of-all").unwrap();
    assert_eq!(orderd.reload()["outcome"], "applied");
    publish(&env, "second");
    await_processed(&ledger, "second");
    assert_eq!(authorization(&former, "second"), ["Bearer the-second-token-of-all"]);

    publish(&env, "held");
    wait_until("the call is made", || is_held.load(Ordering::SeqCst));
    reload(&orderd, &mut file, &steps(&new));
    publish(&env, "third");
    await_processed(&ledger, "third");
    assert_eq!(authorization(&new, "third"), ["Bearer the-second-token-of-all"]);
    release.send(()).unwrap();
    await_processed(&ledger, "held");
    assert_eq!((former.paths("held").len(), new.paths("held").len()), (1, 0));
    assert_eq!(orderd.stop(), 0);
}

/// A prefix that a reload adds to the ids of orders makes another order of each that is published again.
#[test]
fn an_order_between_steps_keeps_its_id_when_a_reload_changes_how_ids_are_read() {
    let node = Node::shared();
    let (server, has_stock) = (StepServer::start(), Arc::new(AtomicBool::new(false)));
    let in_stock = Arc::clone(&has_stock);
    server.answer(move |call| match &*call.path {
        "/ship" if !in_stock.load(Ordering::SeqCst) => reply("503 Service Unavailable", ""),
        _ => reply("200 OK", "1"),
    });
    let mut env = TestEnv::new(&node)
        .set("consumers.order.steps", &server.steps(&["charge", "ship"], ""))
        .set("consumers.order.retry.delays", &["200ms"; 32].join(","))
        .set("consumers.order.format", "shop");
    for field in ["id", "product", "quantity", "price", "currency"] {
        env.change(&format!("formats.shop.{field}"), &format!("/{field}"));
    }
    let (env, mut file) = env.with_file();
    let mut orderd = env.start();
    let ledger = env.ledger();
    publish(&env, "o");
    await_failed(&ledger, "o", "ship");
    file.set("formats.shop.id", "{ pointer = \"/id\", prefix = \"shop-b-\" }").save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    has_stock.store(true, Ordering::SeqCst);
    await_processed(&ledger, "o");
    assert_eq!(paths(&server, "o"), ["/charge", "/ship"]);
    assert_eq!(ledger.rows("SELECT id FROM orders"), ["o"]);
    assert_eq!(orderd.stop(), 0);
}
