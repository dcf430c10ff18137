//! orderd, the broker and the waiting command are killed in every state that a replay passes through, while other orders are processed.
//! In the end each order has taken effect once, and dead letters and replays add up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::soak::harness::audit;
use crate::soak::harness::audit::dead_letter_sums;
use crate::support::Node;
use crate::support::step_server::{StepReply, StepServer, reply};
use crate::support::test_env::{LedgerReader, OrderdProcess, TestEnv, order, wait_until};

/// Dead letters in each round: they are selected in two batches.
const LETTERS: u64 = 130;
/// Other orders that are published in each round.
const OTHERS: u64 = 50;
/// How often a state is waited for. Some last for milliseconds only.
const TRIES: usize = 8;

/// A state of the latest replay, and a query that is true in it.
struct Moment {
    name: &'static str,
    sql: &'static str,
    /// Whether the broker is killed instead of orderd.
    broker: bool,
    /// `--stop-at`
    stop_at: &'static str,
}

const fn moment(name: &'static str, sql: &'static str) -> Moment {
    Moment { name, sql, broker: false, stop_at: "100" }
}

const fn of_broker(name: &'static str, sql: &'static str) -> Moment {
    Moment { broker: true, ..moment(name, sql) }
}

/// `L`: the letters of the latest replay, `R`: its row.
const MOMENTS: [Moment; 11] = [
    moment("begun", "R.state = 'selecting'"),
    moment("selecting", "R.state = 'selecting' AND EXISTS (L)"),
    moment("selected", "R.state = 'running' AND NOT EXISTS (L AND state <> 'selected')"),
    moment("publishing", "EXISTS (L AND state = 'publishing')"),
    moment("published", "EXISTS (L AND state = 'published')"),
    moment("retrying", "EXISTS (L AND state = 'retrying')"),
    moment("processed", "EXISTS (L AND state = 'processed')"),
    moment("failed again", "EXISTS (L AND state = 'failed_again' AND came_back_as IS NULL)"),
    moment("came back", "EXISTS (L AND came_back_as IS NOT NULL)"),
    Moment { stop_at: "0", ..moment("stopping", "R.state = 'stopping'") },
    moment(
        "all outcomes",
        "R.state = 'running' AND NOT EXISTS (L AND state IN ('selected', 'publishing', 'published', 'retrying'))",
    ),
];

/// The same, for kills of the broker.
const BROKER_MOMENTS: [Moment; 7] = [
    of_broker("selecting, broker", "R.state = 'selecting' AND EXISTS (L)"),
    of_broker("publishing, broker", "EXISTS (L AND state = 'publishing')"),
    of_broker("published, broker", "EXISTS (L AND state = 'published')"),
    of_broker("retrying, broker", "EXISTS (L AND state = 'retrying')"),
    of_broker("failed again, broker", "EXISTS (L AND state = 'failed_again' AND came_back_as IS NULL)"),
    // Its ack may be on its way.
    of_broker("came back, broker", "EXISTS (L AND came_back_as IS NOT NULL)"),
    Moment { stop_at: "0", ..of_broker("stopping, broker", "R.state = 'stopping'") },
];

impl Moment {
    fn query(&self) -> String {
        let letters = "SELECT 1 FROM replay_letters WHERE replay_id = R.id";
        let condition = self.sql.replace("(L", &format!("({letters}"));
        format!("SELECT count(*) FROM (SELECT * FROM replays ORDER BY id DESC LIMIT 1) AS R WHERE {condition}")
    }
}

/// A service that charges: nothing until it is repaired; then some orders are refused once more, and some calls fail once.
#[derive(Default)]
struct Charges {
    repaired: AtomicBool,
    calls: Mutex<BTreeMap<String, u64>>,
    /// The idempotency keys that were charged, by order.
    charged: Mutex<BTreeMap<String, BTreeSet<String>>>,
}

impl Charges {
    fn start(server: &StepServer) -> Arc<Charges> {
        let charges = Arc::new(Charges::default());
        let answering = Arc::clone(&charges);
        server.answer(move |call| answering.answer(&call.key));
        charges
    }

    fn answer(&self, key: &str) -> StepReply {
        let order = key.split('/').next().unwrap_or(key);
        let refused = || reply("402 Payment Required", "no");
        let number: Option<u64> = order.strip_prefix("dead-").and_then(|number| number.parse().ok());
        if let Some(number) = number {
            if !self.repaired.load(Ordering::SeqCst) {
                return refused();
            }
            let mut calls = self.calls.lock().unwrap();
            let calls = calls.entry(order.to_owned()).or_default();
            *calls += 1;
            match (*calls, number % 20) {
                (1, 1 | 8 | 15) => return refused(),
                (1, 3) => return reply("503 Service Unavailable", "later"),
                _ => {}
            }
        }
        self.charged.lock().unwrap().entry(order.to_owned()).or_default().insert(key.to_owned());
        reply("200 OK", "1")
    }
}

fn number(ledger: &Connection, sql: &str) -> u64 {
    ledger.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap_or_default().cast_unsigned()
}

/// How many replays have not ended.
const RUNNING: &str = "SELECT count(*) FROM replays WHERE state NOT IN ('finished', 'stopped')";

/// Waits for the moment, at full speed. `false`: the replay has ended without having been seen in it.
fn reaches(env: &TestEnv<'_>, moment: &Moment, replays: u64) -> bool {
    let ledger = audit::open(&env.ledger_directory()).unwrap();
    let (query, begin) = (moment.query(), Instant::now());
    loop {
        if number(&ledger, "SELECT count(*) FROM replays") > replays {
            if number(&ledger, &query) == 1 {
                return true;
            }
            if number(&ledger, RUNNING) == 0 {
                return false;
            }
        }
        assert!(begin.elapsed() < Duration::from_secs(120), "{} is not reached", moment.name);
    }
}

fn replay(env: &TestEnv<'_>, orderd: &OrderdProcess, stop_at: &str) -> OrderdProcess {
    let address = orderd.admin_address().to_string();
    env.command(&[
        "dead-letters",
        "replay",
        "--all",
        "--yes",
        "--rate",
        "1000",
        "--stop-at",
        stop_at,
        "--address",
        &address,
    ])
}

fn open_letters(ledger: &LedgerReader) -> u64 {
    ledger.number("SELECT count(*) FROM stored_dead_letters WHERE state = 'open'")
}

#[test]
fn in_whatever_state_of_a_replay_orderd_and_the_command_are_killed_each_order_takes_effect_once() {
    assert_once_after_kills("replay_kills", &MOMENTS);
}

#[test]
fn in_whatever_state_of_a_replay_the_broker_is_killed_each_order_takes_effect_once() {
    assert_once_after_kills("replay_broker_kills", &BROKER_MOMENTS);
}

fn assert_once_after_kills(node: &str, moments: &[Moment]) {
    let node = Node::own(node);
    let server = StepServer::start();
    let charges = Charges::start(&server);
    let env = TestEnv::new(&node)
        .set("dead_letters.collect", "true")
        .set("consumers.order.retry.immediate", "0")
        .set("consumers.order.retry.delays", "1s, 1s, 1s")
        .set("consumers.order.steps", &server.steps(&["charge"], ""));
    let mut orderd = env.start();
    let ledger = env.ledger();
    let (begin, mut published, mut live) = (Instant::now(), 0, 0);
    for moment in moments {
        let mut reached = false;
        for _ in 0..TRIES {
            charges.repaired.store(false, Ordering::SeqCst);
            let before = open_letters(&ledger);
            env.raw().publish_all(
                "orders",
                (published..published + LETTERS).map(|n| ("order.normal.web".to_owned(), order(&format!("dead-{n}")))),
            );
            published += LETTERS;
            wait_until("all are stored", || open_letters(&ledger) == before + LETTERS);
            charges.repaired.store(true, Ordering::SeqCst);
            let replays = ledger.number("SELECT count(*) FROM replays");
            let mut command = replay(&env, &orderd, moment.stop_at);
            // Other orders meanwhile.
            let others = (live..live + OTHERS).map(|n| ("order.normal.web".to_owned(), order(&format!("live-{n}"))));
            env.raw().publish_all("orders", others);
            live += OTHERS;
            reached = reaches(&env, moment, replays);
            if reached && moment.broker {
                node.kill();
                command.kill();
                node.restart();
            } else if reached {
                orderd.kill();
                command.kill();
                orderd = env.start();
            }
            wait_until("the replay ends", || ledger.number(RUNNING) == 0);
            if reached {
                break;
            }
        }
        assert!(reached, "{} was never seen", moment.name);
        println!("{} after {:?}", moment.name, begin.elapsed());
    }
    let mut raw = env.raw();
    wait_until("all else is processed", || raw.depth("order_queue") + raw.depth("order_queue.retry.1s") == 0);
    // What was refused once more, and what was given back.
    while open_letters(&ledger) > 0 {
        replay(&env, &orderd, "100").wait_for_exit();
        wait_until("what failed again is stored again", || raw.depth("dead_letter_queue") == 0);
    }
    let orders = published + live;
    wait_until("all are processed", || ledger.processed() == orders);
    let charged = charges.charged.lock().unwrap();
    let twice: Vec<_> = charged.iter().filter(|(_, keys)| keys.len() != 1).collect();
    assert_eq!((charged.len() as u64, twice), (orders, vec![]), "each order is charged with one key");
    let problems = dead_letter_sums::problems(&audit::open(&env.ledger_directory()).unwrap()).unwrap();
    assert_eq!(problems, Vec::<String>::new());
    assert_eq!(orderd.stop(), 0);
}
