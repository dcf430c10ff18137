//! Two instances share a ledger. Two operators replay the same dead letters, one at each instance, while a third one begins at the other
//! end and holds, edits, releases and discards them. In the end each order was charged once or discarded, and all adds up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use super::replays::{ask, dead_letter_orders, open, replay_env};
use crate::soak::harness::audit;
use crate::soak::harness::audit::dead_letter_sums;
use crate::support::Node;
use crate::support::step_server::{StepServer, reply};
use crate::support::test_env::{OrderdProcess, TestEnv, wait_until};

const ORDERS: u64 = 240;
/// Dead letters that are replayed at a time.
const CHUNK: usize = 6;

/// Exit codes of a command that somebody else's may have overtaken: done, not all, nothing.
const OVERTAKEN: [i32; 3] = [0, 1, 3];

/// Charges nothing until it is repaired. Then it refuses every eighth order once more.
#[derive(Default)]
struct Charges {
    repaired: AtomicBool,
    calls: Mutex<BTreeMap<String, u64>>,
    /// How often each order was charged.
    charged: Mutex<BTreeMap<String, u64>>,
}

impl Charges {
    fn start(server: &StepServer) -> Arc<Charges> {
        let charges = Arc::new(Charges::default());
        let answering = Arc::clone(&charges);
        server.answer(move |call| {
            let order = call.key.split('/').next().unwrap().to_owned();
            let number: u64 = order.trim_start_matches("o-").parse().unwrap();
            let mut calls = answering.calls.lock().unwrap();
            let calls = calls.entry(order.clone()).or_default();
            let is_repaired = answering.repaired.load(Ordering::SeqCst);
            *calls += u64::from(is_repaired);
            if !is_repaired || (*calls == 1 && number.is_multiple_of(8)) {
                return reply("402 Payment Required", "no");
            }
            *answering.charged.lock().unwrap().entry(order).or_default() += 1;
            reply("200 OK", "1")
        });
        charges
    }
}

/// Replays these, a few at a time, without waiting for the outcomes.
fn replay_each(env: &TestEnv<'_>, orderd: &OrderdProcess, letters: &[String]) {
    for chunk in letters.chunks(CHUNK) {
        let ids = chunk.iter().map(String::as_str);
        let arguments: Vec<_> = ["replay", "--yes", "--no-canary", "--detach"].into_iter().chain(ids).collect();
        let (exit, text) = ask(env, orderd, &arguments);
        assert!(OVERTAKEN.contains(&exit), "{exit}: {text}");
    }
}

#[test]
fn of_two_operators_at_two_instances_and_a_third_who_holds_edits_and_discards_none_doubles_or_loses_an_order() {
    let node = Node::shared();
    let server = StepServer::start();
    let (charges, env) = (Charges::start(&server), replay_env(&node, &server));
    let mut instances = [env.start(), env.start()];
    let ledger = env.ledger();
    dead_letter_orders(&env, ORDERS);
    charges.repaired.store(true, Ordering::SeqCst);
    let body = env.directory.path().join("body.json");
    let letters = ledger.rows("SELECT id FROM stored_dead_letters WHERE order_id IS NOT NULL ORDER BY id");
    let (mut edited, mut discarded, mut too_late) = (0, 0, 0);
    thread::scope(|scope| {
        let operators = instances.each_ref().map(|orderd| scope.spawn(|| replay_each(&env, orderd, &letters)));
        // Both ends meet.
        for (round, letter) in letters.iter().rev().step_by(2).enumerate() {
            let orderd = &instances[round % 2];
            let exit = |arguments: &[&str]| {
                let (exit, text) = ask(&env, orderd, arguments);
                assert!(OVERTAKEN.contains(&exit), "{arguments:?} {exit}: {text}");
                exit
            };
            let done = match round % 3 {
                0 => {
                    let is_held = exit(&["hold", letter, "--note", "SHOP-7"]) == 0;
                    if is_held {
                        assert_eq!(exit(&["release", letter]), 0, "it is in no replay");
                    }
                    is_held
                }
                1 => {
                    let order = ledger.rows(&format!("SELECT order_id FROM stored_dead_letters WHERE id = {letter}"));
                    // What the ledger does not compare.
                    let changed = format!(
                        r#"{{"id":"{}","product":"Laptop","quantity":3,"price":"400.00","currency":"EUR","email":"ada@example.com"}}"#,
                        order[0]
                    );
                    std::fs::write(&body, changed).unwrap();
                    let is_edited = exit(&["edit", letter, "--file", body.to_str().unwrap()]) == 0;
                    edited += u64::from(is_edited);
                    is_edited
                }
                _ => {
                    let is_discarded = exit(&["discard", letter, "--note", "a test", "--yes"]) == 0;
                    discarded += u64::from(is_discarded);
                    is_discarded
                }
            };
            too_late += u64::from(!done);
        }
        operators.into_iter().for_each(|operator| operator.join().unwrap());
    });
    assert!(edited > 0 && discarded > 0 && too_late > 0, "{edited} edited, {discarded} discarded, {too_late} too late");
    let mut raw = env.raw();
    let have_ended = || ledger.number("SELECT count(*) FROM replays WHERE state NOT IN ('finished', 'stopped')") == 0;
    let mut all_is_stored = || {
        wait_until("the replays end", have_ended);
        wait_until("all is stored", || raw.depth("dead_letter_queue") + raw.depth("failed_order_queue") == 0);
    };
    all_is_stored();
    while open(&ledger) > 0 {
        let arguments = ["replay", "--all", "--yes", "--rate", "1000", "--stop-at", "100"];
        let (exit, text) = ask(&env, &instances[0], &arguments);
        assert!(OVERTAKEN.contains(&exit), "{exit}: {text}");
        all_is_stored();
    }
    let mut states: BTreeMap<String, u64> = BTreeMap::new();
    for row in ledger.rows("SELECT state, count(*) FROM stored_dead_letters GROUP BY state") {
        let (state, count) = row.split_once('|').unwrap();
        states.insert(state.to_owned(), count.parse().unwrap());
    }
    assert_eq!(states.get("discarded").copied().unwrap_or_default(), discarded, "{states:?}");
    assert_eq!(ledger.processed(), ORDERS - discarded, "{states:?}");
    assert_eq!(ledger.number("SELECT count(*) FROM stored_contents WHERE revision = 1"), edited);
    let charged = charges.charged.lock().unwrap();
    let doubled: Vec<_> = charged.iter().filter(|(_, times)| **times != 1).collect();
    assert_eq!((charged.len() as u64, doubled), (ORDERS - discarded, vec![]), "each is charged once");
    let (sums, none) = (audit::open(&env.ledger_directory()).unwrap(), Vec::<String>::new());
    assert_eq!(dead_letter_sums::problems(&sums).unwrap(), none);
    for orderd in &mut instances {
        assert_eq!(orderd.stop(), 0);
    }
    let verified = env.program(&["journal", "verify"]).output().unwrap();
    assert_eq!(verified.status.code(), Some(0), "{}", String::from_utf8_lossy(&verified.stdout));
    println!("{edited} edited, {discarded} discarded, {too_late} too late, {states:?}");
}
