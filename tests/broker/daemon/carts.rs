//! Carts, a shop's services with a mix of failures, and an orderd that is killed again and again: every charge is either kept with
//! a processed order or refunded.
//!
//! `make carts` does it with 10,000 carts (`ORDERD_TEST_CARTS`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::soak::harness::shop::books::{Action, Books, OrderStates};
use crate::support::Node;
use crate::support::step_server::{StepCall, StepReply, StepServer, reply};
use crate::support::test_env::{LedgerReader, TestEnv, wait_until};

/// Orders without a variable.
const CARTS: u64 = 300;
/// The time for a thousand carts, on a machine that does something else as well.
const TIME_PER_THOUSAND: Duration = Duration::from_secs(30);
const KILLS: u64 = 4;
/// The service of reservations is out of order for this part of each period.
const BURST: Duration = Duration::from_millis(200);
const BURST_PERIOD: Duration = Duration::from_secs(3);
/// Of this many orders, one can never be reserved, because the service fails.
const NEVER_RESERVED: u64 = 71;
const STEPS: [(&str, &str); 3] = [("charge", "refund"), ("reserve", "release"), ("ship", "cancel")];

/// What a service does in a call that is not only answered.
#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    /// An answer without an effect.
    Refuses(&'static str, &'static str),
    /// An effect, and this answer.
    Works(&'static str, &'static str),
    /// An effect, and no answer.
    WorksAndHangs,
    /// An effect, and a reset.
    WorksAndResets,
    /// A reset once the request was read.
    Resets,
}

/// The services' books, and the calls that they have seen by key.
#[derive(Default)]
struct Shop {
    books: Books,
    calls: HashMap<String, u64>,
}

/// The number at the end of the id in a key.
fn number(key: &str) -> u64 {
    key.split('/').next().unwrap().rsplit('-').next().unwrap().parse().unwrap()
}

/// The same in every run: it depends on the key and on how often it was called before.
fn fault(action: Action, key: &str, before: u64, began: Instant) -> Fault {
    let in_burst = began.elapsed().as_millis() % BURST_PERIOD.as_millis() < BURST.as_millis();
    if action == Action::Reserve && (in_burst || number(key) % NEVER_RESERVED == 2) {
        return Fault::Refuses("503 Service Unavailable", "");
    }
    let mut hasher = DefaultHasher::new();
    (key, before).hash(&mut hasher);
    // A key that has failed twice succeeds, so that undos do not fail for good.
    match hasher.finish() % 40 {
        _ if before >= 2 => Fault::None,
        0 => Fault::Refuses("503 Service Unavailable", ""),
        1 => Fault::Refuses("429 Too Many Requests", "retry-after: 1\r\n"),
        2 => Fault::Works("500 Internal Server Error", ""),
        3 => Fault::Works("200 OK", "x-garbage: 1\r\n"),
        4 => Fault::WorksAndHangs,
        5 => Fault::WorksAndResets,
        6 => Fault::Resets,
        _ => Fault::None,
    }
}

fn answer(shop: &Mutex<Shop>, call: &StepCall, began: Instant) -> StepReply {
    let action = Action::of_path(&call.path).unwrap();
    let mut shop = shop.lock().unwrap();
    let calls = shop.calls.entry(call.key.clone()).or_default();
    let before = *calls;
    *calls += 1;
    let fault = fault(action, &call.key, before, began);
    let with = |status: &str, headers: &str, body: &str| StepReply::Answer {
        status: status.to_owned(),
        headers: headers.to_owned(),
        body: body.to_owned(),
    };
    match fault {
        Fault::Refuses(status, headers) => return with(status, headers, "not now"),
        Fault::Resets => return StepReply::Reset,
        Fault::None | Fault::Works(..) | Fault::WorksAndHangs | Fault::WorksAndResets => {}
    }
    let order = call.key.split('/').next().unwrap();
    let (status, body) = shop.books.call(action, &call.key, order);
    match fault {
        Fault::Works(status, headers) => with(status, headers, "<html>"),
        Fault::WorksAndHangs => StepReply::Nothing,
        Fault::WorksAndResets => StepReply::Reset,
        Fault::None | Fault::Refuses(..) | Fault::Resets => reply(status, &body),
    }
}

/// An order for one to nine products.
fn cart(number: u64) -> Vec<u8> {
    let item = |line: u64| format!(r#"{{"product":"Product {line}","quantity":{},"price":"{line}.50"}}"#, 1 + line % 3);
    let items: Vec<String> = (1..=1 + number % 9).map(item).collect();
    format!(r#"{{"id":"cart-{number}","currency":"EUR","items":[{}]}}"#, items.join(",")).into_bytes()
}

fn steps(server: &StepServer) -> String {
    let step = |(name, undo): &(&str, &str)| {
        let http = |path: &str| format!("http = {{ url = {:?} }}", server.url(&format!("/{path}")));
        format!("{{ name = \"{name}\", {}, undo = {{ {} }}, timeout = \"500ms\" }}", http(name), http(undo))
    };
    format!("[{}]", STEPS.iter().map(step).collect::<Vec<_>>().join(", "))
}

fn ids(ledger: &LedgerReader, query: &str) -> HashSet<String> {
    ledger.rows(query).into_iter().collect()
}

#[test]
fn every_charge_of_a_cart_is_kept_with_a_processed_order_or_refunded_whatever_fails() {
    let carts = std::env::var("ORDERD_TEST_CARTS").map_or(CARTS, |text| text.parse().unwrap());
    let node = Node::shared();
    let server = StepServer::start().without_calls();
    let (shop, began) = (Arc::new(Mutex::new(Shop::default())), Instant::now());
    let serving = Arc::clone(&shop);
    server.answer(move |call| answer(&serving, call, began));
    let env = TestEnv::new(&node)
        .set("consumers.order.steps", &steps(&server))
        .set("consumers.order.retry.delays", "200ms,1s,2s")
        .set("log.level", "info");
    let mut orderd = env.start();
    let ledger = env.ledger();
    env.raw().publish_all("orders", (1..=carts).map(|number| ("order.normal.created".to_owned(), cart(number))));
    let ended = "SELECT (SELECT count(*) FROM orders WHERE status = 'processed') + (SELECT count(*) FROM dead_letters)";
    for kill in 1..=KILLS {
        wait_until_within(carts, "orders end", || ledger.number(ended) >= carts * kill / (KILLS + 2));
        orderd.kill();
        orderd = env.start();
    }
    wait_until_within(carts, "every order has ended", || ledger.number(ended) == carts);

    let processed = ids(&ledger, "SELECT id FROM orders WHERE status = 'processed'");
    let dead = ids(&ledger, "SELECT identity FROM dead_letters");
    assert_eq!((processed.len() + dead.len()) as u64, carts);
    let codes = "SELECT failure_code || ' ' || reason, count(*) FROM dead_letters GROUP BY 1 ORDER BY 1";
    println!("{} processed; dead letters: {:?}", processed.len(), ledger.rows(codes));
    assert_eq!(ledger.number("SELECT count(*) FROM dead_letters WHERE reason = 'undo_failed'"), 0);
    let Shop { books, calls } = std::mem::take(&mut *shop.lock().unwrap());
    let audit = books.audit(&OrderStates { processed, dead_lettered: dead, ..OrderStates::default() });
    println!("{audit}\n{} calls in {:?}", calls.values().sum::<u64>(), began.elapsed());
    assert!(audit.passed());

    let recorded: BTreeMap<String, u64> = ledger
        .rows("SELECT identity || '/' || step || iif(action = 'undo', '/undo', ''), attempts FROM steps")
        .iter()
        .map(|row| row.rsplit_once('|').map(|(key, attempts)| (key.to_owned(), attempts.parse().unwrap())).unwrap())
        .collect();
    for (key, made) in &calls {
        let recorded = recorded[key];
        assert!(*made <= recorded && recorded <= made + KILLS, "{key}: {made} calls, {recorded} recorded");
    }
    assert_eq!(orderd.stop(), 0);
}

/// [`wait_until`] for as long as so many carts may take.
fn wait_until_within(carts: u64, what: &str, mut condition: impl FnMut() -> bool) {
    let time = TIME_PER_THOUSAND * u32::try_from(carts / 1_000).unwrap();
    let begun = Instant::now();
    while begun.elapsed() < time {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    wait_until(what, condition);
}
