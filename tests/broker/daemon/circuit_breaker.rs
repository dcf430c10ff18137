//! Circuit breakers of steps whose real HTTP service goes away, hangs, comes back and flaps.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::support::Node;
use crate::support::step_server::{StepReply, StepServer, reply};
use crate::support::test_env::{LedgerReader, OrderdProcess, TestEnv, order, wait_until};

/// What the service does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Down,
    Hangs,
    Works,
}

fn publish(env: &TestEnv<'_>, ids: std::ops::Range<u32>) {
    env.raw().publish_all("orders", ids.map(|n| ("order.normal.created".to_owned(), order(&format!("ord-{n}")))));
}

fn breaker(orderd: &OrderdProcess) -> Value {
    orderd.status()["consumers"]["order"]["breakers"]["charge"].clone()
}

fn openings(orderd: &OrderdProcess) -> u64 {
    breaker(orderd)["openings"].as_u64().unwrap()
}

fn attempts(ledger: &LedgerReader) -> u64 {
    ledger.number("SELECT count(*) FROM attempts")
}

/// One step with a breaker that opens for 300 ms, and many retries.
fn env<'n>(node: &'n Node, server: &StepServer, timeout: &str, window: &str) -> TestEnv<'n> {
    let step = format!(
        "[{{ name = \"charge\", http = {{ url = {:?} }}, timeout = {timeout:?}, \
         circuit_breaker = {{ window = {window:?}, open = \"300ms\" }} }}]",
        server.url("/charge")
    );
    TestEnv::new(node)
        .set("consumers.order.steps", &step)
        .set("consumers.order.retry.immediate", "0")
        .set("consumers.order.retry.delays", &["300ms"; 16].join(","))
}

/// How many calls a breaker allows at the same time, once the service has answered its trial and then this many calls.
fn ramp(answered: usize) -> usize {
    let limits = [2, 4, 8, 16, 32];
    let mut left = answered;
    for limit in limits {
        match left.checked_sub(limit) {
            None => return limit,
            Some(rest) => left = rest,
        }
    }
    usize::MAX
}

#[test]
fn a_breaker_begins_closed_after_a_restart_tries_a_hanging_service_with_one_call_and_ramps_up() {
    const ORDERS: u32 = 150;
    let node = Node::shared();
    let server = StepServer::start();
    let mode = Arc::new(Mutex::new(Mode::Down));
    let failed = Arc::new(AtomicUsize::new(0));
    let (worked, too_many) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let hung = Arc::new(AtomicUsize::new(0));
    {
        let (server, mode, failed) = (server.clone(), Arc::clone(&mode), Arc::clone(&failed));
        let (worked, too_many, hung) = (Arc::clone(&worked), Arc::clone(&too_many), Arc::clone(&hung));
        server.clone().answer(move |_| {
            let mode = *mode.lock().unwrap();
            let limit = match mode {
                Mode::Down => {
                    failed.fetch_add(1, Ordering::SeqCst);
                    return reply("503 Service Unavailable", "");
                }
                Mode::Hangs => 1,
                // The first is the trial.
                Mode::Works => worked.load(Ordering::SeqCst).checked_sub(1).map_or(1, ramp),
            };
            // The server may still hold a call that orderd has given up.
            too_many.fetch_add(usize::from(server.in_flight() > limit.saturating_add(1)), Ordering::SeqCst);
            if mode == Mode::Hangs {
                failed.fetch_add(1, Ordering::SeqCst);
                hung.fetch_add(1, Ordering::SeqCst);
                return StepReply::Nothing;
            }
            thread::sleep(Duration::from_millis(10));
            worked.fetch_add(1, Ordering::SeqCst);
            reply("200 OK", "1")
        });
    }
    let (env, mut file) = env(&node, &server, "700ms", "5m").with_file();
    let mut orderd = env.start();
    let ledger = env.ledger();
    publish(&env, 0..ORDERS);
    wait_until("the breaker has opened", || openings(&orderd) > 0);
    assert_eq!(orderd.stop(), 0);
    let mut orderd = env.start();
    wait_until("it opens again", || openings(&orderd) > 0);
    file.set("consumers.order.prefetch", "50").save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    assert!(openings(&orderd) > 0, "a reload keeps its state");

    *mode.lock().unwrap() = Mode::Hangs;
    // Calls that were begun before it opened may still be in flight.
    wait_until("the service was tried", || hung.load(Ordering::SeqCst) > 0 && server.in_flight() <= 1);
    too_many.store(0, Ordering::SeqCst);
    let before = hung.load(Ordering::SeqCst);
    wait_until("the service was tried three times more", || hung.load(Ordering::SeqCst) >= before + 3);
    assert_eq!(too_many.load(Ordering::SeqCst), 0, "it was tried with more than one call");
    assert!(["open", "half_open"].contains(&breaker(&orderd)["state"].as_str().unwrap()));
    *mode.lock().unwrap() = Mode::Works;
    env.ledger().await_settled(ORDERS.into());
    assert_eq!(too_many.load(Ordering::SeqCst), 0, "it did not ramp up");
    // Waiting uses up no attempt: each one is a call that the service did not answer well.
    assert!(attempts(&ledger) <= failed.load(Ordering::SeqCst) as u64);
    assert_eq!(ledger.number("SELECT count(*) FROM dead_letters"), 0);
    publish(&env, ORDERS..2 * ORDERS);
    env.ledger().await_settled(u64::from(2 * ORDERS));
    assert_eq!(breaker(&orderd)["state"], "closed");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn no_order_is_dead_lettered_because_a_service_flaps() {
    const ORDERS: u32 = 320;
    const FLAPS: u32 = 8;
    let node = Node::shared();
    let server = StepServer::start();
    let (is_up, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (up, answers) = (Arc::clone(&is_up), Arc::clone(&answered));
    server.answer(move |_| match up.load(Ordering::SeqCst) {
        true => {
            answers.fetch_add(1, Ordering::SeqCst);
            reply("200 OK", "1")
        }
        false => StepReply::Reset,
    });
    let env = env(&node, &server, "2s", "1s");
    let mut orderd = env.start();
    for flap in 0..FLAPS {
        let (opened, before) = (openings(&orderd), answered.load(Ordering::SeqCst));
        publish(&env, flap * ORDERS / FLAPS..(flap + 1) * ORDERS / FLAPS);
        match is_up.load(Ordering::SeqCst) {
            false => wait_until("the breaker opens", || openings(&orderd) > opened),
            true => wait_until("the service answers", || answered.load(Ordering::SeqCst) >= before + 10),
        }
        is_up.fetch_not(Ordering::SeqCst);
    }
    is_up.store(true, Ordering::SeqCst);
    env.ledger().await_settled(ORDERS.into());
    assert!(openings(&orderd) > 0);
    assert_eq!(env.ledger().number("SELECT count(*) FROM dead_letters"), 0);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_replay_waits_while_the_breaker_is_open_and_its_first_letter_is_the_trial_that_closes_it() {
    // As many as open the breaker.
    const ORDERS: usize = 10;
    let node = Node::shared();
    let server = StepServer::start();
    let is_repaired = Arc::new(AtomicBool::new(false));
    let (repaired, all) = (Arc::clone(&is_repaired), server.clone());
    server.answer(move |_| {
        if repaired.load(Ordering::SeqCst) {
            return reply("200 OK", "1");
        }
        // No call waits for the breaker.
        wait_until("all are called", || all.calls().len() >= ORDERS);
        reply("503 Service Unavailable", "")
    });
    let step = |open: &str| {
        let url = server.url("/charge");
        format!(
            "[{{ name = \"charge\", http = {{ url = {url:?} }}, circuit_breaker = {{ window = \"5m\", open = {open:?} }} }}]"
        )
    };
    let (env, mut file) = TestEnv::new(&node)
        .set("dead_letters.collect", "true")
        .set("consumers.order.steps", &step("2m"))
        .set("consumers.order.retry.immediate", "0")
        .with_file();
    let env = env.set("consumers.order.retry.delays", "");
    let mut orderd = env.start();
    let ledger = env.ledger();
    publish(&env, 0..ORDERS as u32);
    let stored =
        |state: &str| ledger.number(&format!("SELECT count(*) FROM stored_dead_letters WHERE state = '{state}'"));
    wait_until("all are stored", || stored("open") == ORDERS as u64);
    assert_eq!(breaker(&orderd)["state"], "open");
    is_repaired.store(true, Ordering::SeqCst);

    let address = orderd.admin_address().to_string();
    let mut command = env.command(&["dead-letters", "replay", "--code", "http_503", "--yes", "--address", &address]);
    let is_waiting = || command.output().contains("circuit breaker") && stored("replaying") == ORDERS as u64;
    wait_until("the replay has begun, and says why it waits", is_waiting);
    assert_eq!(server.calls().len(), ORDERS);
    file.set("consumers.order.steps", &step("300ms")).save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    // No other order comes.
    assert_eq!(command.wait_for_exit(), 0, "{}", command.output());
    assert_eq!((stored("replayed"), ledger.processed()), (ORDERS as u64, ORDERS as u64));
    assert_eq!(server.calls().len(), 2 * ORDERS, "each is called once more");
    assert_ne!(breaker(&orderd)["state"], "open");
    assert_eq!(orderd.stop(), 0);
}
