//! Dead letters are replayed: none is lost and none takes effect twice, although operators compete and processes are killed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rusqlite::Connection;
use serde_json::{Value, json};

use super::pause::send_command;
use crate::soak::harness::amqp_proxy::AmqpProxy;
use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::step_server::{StepServer, reply};
use crate::support::test_env::{LedgerReader, OrderdProcess, TestEnv, order, wait_until};

/// Another number in the environment makes it a longer test.
fn letters() -> u64 {
    std::env::var("ORDERD_TEST_REPLAYED").ok().and_then(|text| text.parse().ok()).unwrap_or(400)
}

/// A service that refuses everything until it is repaired.
#[derive(Clone, Default)]
pub(super) struct Service(Arc<AtomicBool>);

impl Service {
    pub(super) fn start(server: &StepServer) -> Self {
        let service = Service::default();
        let repaired = Arc::clone(&service.0);
        server.answer(move |_| match repaired.load(Ordering::SeqCst) {
            true => reply("200 OK", "1"),
            false => reply("402 Payment Required", "no contract"),
        });
        service
    }

    pub(super) fn repair(&self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

pub(super) fn replay_env<'a>(node: &'a Node, server: &StepServer) -> TestEnv<'a> {
    TestEnv::new(node)
        .set("dead_letters.collect", "true")
        .set("log.level", "info")
        .set("consumers.order.steps", &server.steps(&["charge"], ""))
}

/// The exit code and the output of a command that asks the daemon.
pub(super) fn ask(env: &TestEnv<'_>, orderd: &OrderdProcess, arguments: &[&str]) -> (i32, String) {
    let address = orderd.admin_address().to_string();
    let all = [&["dead-letters"], arguments, &["--address", &address]].concat();
    let output = env.program(&all).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), format!("{stdout}{stderr}"))
}

pub(super) fn json_of(env: &TestEnv<'_>, orderd: &OrderdProcess, arguments: &[&str], exit: i32) -> Value {
    let address = orderd.admin_address().to_string();
    let all = [&["dead-letters"], arguments, &["--format", "json", "--address", &address]].concat();
    let output = env.program(&all).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {stderr}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {stderr}"))
}

pub(super) fn states(ledger: &LedgerReader) -> Vec<String> {
    ledger.rows("SELECT state, count(*) FROM stored_dead_letters GROUP BY state ORDER BY state")
}

pub(super) fn open(ledger: &LedgerReader) -> u64 {
    ledger.number("SELECT count(*) FROM stored_dead_letters WHERE state = 'open'")
}

pub(super) fn dead_letter_orders(env: &TestEnv<'_>, orders: u64) {
    env.raw().publish_all("orders", (0..orders).map(|n| ("order.normal.web".to_owned(), order(&format!("o-{n}")))));
    let ledger = env.ledger();
    wait_until("all are stored", || open(&ledger) == orders);
}

#[test]
fn a_replay_stops_while_the_cause_is_there_and_after_the_repair_processes_each_order_once() {
    let node = Node::shared();
    let server = StepServer::start();
    let (service, env) = (Service::start(&server), replay_env(&node, &server));
    let mut orderd = env.start();
    let (ledger, orders) = (env.ledger(), letters());
    dead_letter_orders(&env, orders);

    // Looking changes nothing.
    let before = ledger.rows("SELECT id, state, closed_at FROM stored_dead_letters");
    let plan = json_of(&env, &orderd, &["replay", "--all", "--dry-run"], 0);
    assert_eq!((&plan["queues"], &plan["skipped"]), (&json!({"order_queue": orders}), &json!({})));
    assert_eq!(json_of(&env, &orderd, &["replays"], 0), json!({"replays": []}));
    assert_eq!(ask(&env, &orderd, &["replay", "--all"]).0, 64, "nobody can be asked");
    assert_eq!(ledger.rows("SELECT id, state, closed_at FROM stored_dead_letters"), before);

    let stopped = json_of(&env, &orderd, &["replay", "--code", "http_402", "--yes", "--rate", "1000"], 1);
    let failed = stopped["letters"]["failed_again"].as_u64().unwrap();
    assert!((1..=10).contains(&failed) && stopped["end_reason"] == "too_many_failed", "{stopped}");
    assert_eq!(stopped["letters"]["returned"].as_u64().unwrap() + failed, orders, "{stopped}");
    wait_until("what failed again is stored again", || open(&ledger) == orders);
    assert_eq!(states(&ledger), [format!("open|{orders}"), format!("replayed|{failed}")]);
    let came_back = "SELECT count(*) FROM replay_letters JOIN stored_dead_letters ON id = came_back_as WHERE replay_letters.state = 'failed_again'";
    assert_eq!(ledger.number(came_back), failed);

    // One is held, one discarded, and two were processed or cancelled meanwhile.
    let number = |order: &str| {
        ledger.rows(&format!("SELECT id FROM stored_dead_letters WHERE order_id = '{order}' AND state <> 'replayed'"))
            [0]
        .clone()
    };
    assert_eq!(ask(&env, &orderd, &["hold", &number("o-390"), "--note", "SHOP-7"]).0, 0);
    assert_eq!(ask(&env, &orderd, &["discard", &number("o-391"), "--note", "a test", "--yes"]).0, 0);
    assert_eq!(ask(&env, &orderd, &["discard", &number("o-391"), "--note", "a test", "--yes"]).0, 0, "again");
    assert_eq!(ask(&env, &orderd, &["hold", &number("o-391"), "--note", "no"]).0, 3, "it is closed");
    service.repair();
    let mut raw = env.raw();
    raw.publish_to("orders", "order.normal.web", &Properties::persistent(), &order("o-392"));
    raw.publish_to(
        "orders",
        "order.normal.web",
        &Properties::persistent(),
        br#"{"id": "o-393", "event": "cancelled"}"#,
    );
    wait_until("one is processed, one cancelled", || {
        ledger.number("SELECT count(*) FROM orders WHERE status IN ('processed', 'cancelled')") == 2
    });

    let done = json_of(&env, &orderd, &["replay", "--all", "--yes", "--rate", "1000"], 0);
    assert_eq!(done["letters"], json!({"processed": orders - 4, "skipped": 2}), "{done}");
    assert_eq!(done["skipped"], json!({"order_cancelled": 1, "order_processed": 1}), "{done}");
    assert_eq!(
        states(&ledger),
        ["discarded|3".to_owned(), "held|1".to_owned(), format!("replayed|{}", failed + orders - 4)]
    );
    assert_eq!(ask(&env, &orderd, &["replay", &number("o-390"), "--yes"]).0, 3, "it is held");
    assert_eq!(ask(&env, &orderd, &["release", &number("o-390")]).0, 0);
    assert_eq!(ask(&env, &orderd, &["replay", &number("o-390"), "--yes"]).0, 0);

    // All are processed but the discarded and the cancelled one, each once.
    assert_eq!(ledger.processed(), orders - 2);
    assert_eq!(
        ledger.number("SELECT count(*) FROM steps WHERE action = 'do' AND status = 'done' AND is_current = 1"),
        orders - 2
    );
    let keys: Vec<String> = server.calls().into_iter().map(|call| call.key).collect();
    let charged = ledger.number("SELECT sum(attempts) FROM steps WHERE action = 'do'");
    assert_eq!(keys.iter().filter(|key| key.contains("/charge")).count() as u64, charged, "each call is recorded");
    let settled = |queue: &str| raw.depth(queue) == 0;
    assert!(["order_queue", "failed_order_queue", "dead_letter_queue"].into_iter().all(settled));
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn two_operators_at_once_replay_no_dead_letter_twice() {
    let node = Node::shared();
    let server = StepServer::start();
    let (service, env) = (Service::start(&server), replay_env(&node, &server));
    let orderd = env.start();
    let (ledger, orders) = (env.ledger(), 60);
    dead_letter_orders(&env, orders);
    service.repair();
    let before = server.calls().len() as u64;
    let codes: Vec<i32> = thread::scope(|scope| {
        let replay = || ask(&env, &orderd, &["replay", "--all", "--yes", "--rate", "1000"]).0;
        let operators = [scope.spawn(replay), scope.spawn(replay), scope.spawn(replay)];
        operators.into_iter().map(|operator| operator.join().unwrap()).collect()
    });
    assert!(
        codes.contains(&0) && codes.iter().all(|code| [0, 3].contains(code)),
        "the others may find nothing: {codes:?}"
    );
    assert_eq!(states(&ledger), [format!("replayed|{orders}")]);
    assert_eq!(ledger.number("SELECT count(*) FROM replay_letters"), orders);
    assert_eq!(server.calls().len() as u64 - before, orders, "each is charged once");
}

/// Where a replay is interrupted, seen from the broker's connections.
#[derive(Debug, Clone, Copy)]
enum Point {
    /// What orderd publishes does not reach the broker.
    Unpublished,
    /// The broker has it, and orderd does not see the confirm.
    Unconfirmed,
    /// A service has done its work, and nothing can be recorded.
    Processed,
}

#[test]
fn wherever_orderd_is_killed_during_a_replay_each_message_has_one_effect() {
    let node = Node::shared();
    let server = StepServer::start();
    let mut env = replay_env(&node, &server)
        .set("queues.invoices_queue.bindings", "invoice.#")
        .set("consumers.invoices.queue", "invoices_queue")
        .set("consumers.invoices.handler", "steps")
        .set("consumers.invoices.steps", &server.steps(&["print"], ""))
        .set("consumers.priority.format", "orderd");
    let lock = Arc::new(Mutex::new(None::<Connection>));
    let direct = format!("127.0.0.1:{}", node.amqp_port);
    let editor = env.directory.path().join("editor");
    std::fs::write(&editor, "#!/bin/sh\nprintf '%s' \"$NEW_BODY\" > \"$1\"\n").unwrap();
    for (round, point) in [Point::Unpublished, Point::Unconfirmed, Point::Processed].into_iter().enumerate() {
        let service = Service::start(&server);
        let mut orderd = env.start();
        let (ledger, mut raw) = (env.ledger(), env.raw());
        let id = |name: &str| format!("{name}-{round}");
        let with_id = |name: &str| Properties::persistent().text("message_id", &id(name));
        // One for each handler; what has no service is refused for its body, and mended.
        raw.publish_to("orders", "order.normal.web", &Properties::persistent(), &order(&id("steps")));
        raw.publish_to("orders", "order.priority.web", &Properties::persistent(), b"not an order");
        raw.publish_to("orders", "order.notification.email", &Properties::persistent(), b"not JSON");
        raw.publish_to("orders", "order.analytics.page_view", &Properties::persistent(), b"not JSON");
        raw.publish_to("orders", "invoice.new", &with_id("invoice"), b"{}");
        wait_until("all are stored", || open(&ledger) == 5);
        for (consumer, body) in [
            ("priority", String::from_utf8(order(&id("plain"))).unwrap()),
            ("notification", json!({"order_id": id("notified")}).to_string()),
            ("analytics", json!({"order_id": id("viewed")}).to_string()),
        ] {
            let letter = ledger
                .rows(&format!("SELECT id FROM stored_dead_letters WHERE state = 'open' AND consumer = '{consumer}'"))
                [0]
            .clone();
            let address = orderd.admin_address().to_string();
            let mut edit = env.program(&["dead-letters", "edit", &letter, "--address", &address]);
            let edit = edit.env("VISUAL", format!("sh {}", editor.display())).env("NEW_BODY", body).output().unwrap();
            assert_eq!(edit.status.code(), Some(0), "{}", String::from_utf8_lossy(&edit.stderr));
        }
        assert_eq!(ledger.number("SELECT count(*) FROM stored_contents WHERE revision = 1"), 3 * (round as u64 + 1));
        assert_eq!(orderd.stop(), 0);
        service.repair();

        let proxy = AmqpProxy::start(node.amqp_port).unwrap();
        env.change("broker.addresses", &proxy.address);
        let mut orderd = env.start();
        // It connects for publishing when it first publishes.
        raw.publish_to("orders", "order.normal.web", &Properties::persistent(), &order(&id("first")));
        wait_until("an order is processed", || ledger.processed() == 3 * round as u64 + 1);
        match point {
            Point::Unpublished => proxy.block("orderd publish"),
            Point::Unconfirmed => proxy.block_answers("orderd publish"),
            Point::Processed => {
                let (path, locks) = (env.ledger_directory().join("orderd.db"), Arc::clone(&lock));
                server.answer(move |_| {
                    let mut lock = locks.lock().unwrap();
                    if lock.is_none() {
                        let program = Connection::open(&path).unwrap();
                        program.busy_timeout(Duration::from_secs(60)).unwrap();
                        program.execute_batch("BEGIN IMMEDIATE").unwrap();
                        *lock = Some(program);
                    }
                    reply("200 OK", "1")
                });
            }
        }
        let (exit, _) = ask(&env, &orderd, &["replay", "--all", "--yes", "--no-canary", "--rate", "1000", "--detach"]);
        assert_eq!(exit, 0);
        let publishing = "SELECT count(*) FROM replay_letters WHERE state = 'publishing'";
        match point {
            Point::Unpublished => wait_until("they are being published", || ledger.number(publishing) == 5),
            Point::Unconfirmed => wait_until("they are published", || {
                // Both handlers with services are called for their copies.
                ledger.number("SELECT count(*) FROM steps WHERE status = 'done' AND is_current = 1")
                    >= 3 * (round as u64 + 1)
            }),
            Point::Processed => wait_until("a call is made", || lock.lock().unwrap().is_some()),
        }
        orderd.kill();
        *lock.lock().unwrap() = None;
        Service::start(&server).repair();
        env.change("broker.addresses", &direct);
        let mut orderd = env.start();
        wait_until("all have their outcome", || {
            open(&ledger) == 0
                && ledger.number("SELECT count(*) FROM replays WHERE state = 'finished'") == round as u64 + 1
        });
        assert_eq!(ledger.number("SELECT count(*) FROM replay_letters WHERE state <> 'processed'"), 0, "{point:?}");
        let queues = ["order_queue", "priority_order_queue", "notification_queue", "analytics_queue", "invoices_queue"];
        wait_until("the second copies are processed too", || queues.iter().all(|queue| raw.depth(queue) == 0));
        let each = round as u64 + 1;
        assert_eq!(ledger.number("SELECT count(*) FROM orders WHERE status = 'processed'"), 3 * each, "{point:?}");
        assert_eq!(ledger.number("SELECT count(*) FROM events WHERE name = 'page_view'"), each, "{point:?}");
        let notified = format!("SELECT count(*) FROM events WHERE order_id = '{}'", id("notified"));
        assert_eq!(ledger.number(&notified), 1, "{point:?}");
        assert_eq!(ledger.number("SELECT count(*) FROM steps WHERE status = 'done' AND is_current = 1"), 3 * each);
        for key in [format!("{}/charge", id("steps")), format!("invoices/{}", id("invoice"))] {
            let calls = server.calls().into_iter().filter(|call| call.key.starts_with(&key)).count();
            assert!(calls >= 1, "{key}");
        }
        assert_eq!(orderd.stop(), 0);
    }
}

fn replay_state(ledger: &LedgerReader) -> String {
    ledger.rows("SELECT state FROM replays ORDER BY id DESC LIMIT 1").concat()
}

#[test]
fn a_replay_waits_for_a_paused_consumer_and_survives_the_kill_of_the_command_and_of_the_broker() {
    let node = Node::own("replays");
    let server = StepServer::start();
    let (service, env) = (Service::start(&server), replay_env(&node, &server));
    let mut orderd = env.start();
    let (ledger, orders) = (env.ledger(), 300);
    dead_letter_orders(&env, orders);
    env.raw().publish_to("orders", "oder.normal.web", &Properties::persistent(), &order("typo"));
    wait_until("the unrouted one is stored", || open(&ledger) == orders + 1);
    service.repair();
    let plan = json_of(&env, &orderd, &["replay", "--all", "--dry-run"], 0);
    assert_eq!((&plan["queues"]["order_queue"], &plan["skipped"]), (&json!(orders), &json!({"no_queue": 1})), "{plan}");

    assert_eq!(send_command(&orderd, "pause", "order").0, 200);
    let address = orderd.admin_address().to_string();
    let arguments = ["dead-letters", "replay", "--all", "--yes", "--rate", "150", "--address", &address];
    let mut command = env.command(&arguments);
    wait_until("it waits", || {
        let replays = json_of(&env, &orderd, &["replays"], 0);
        replays["replays"][0]["letters"]["selected"] == orders && command.output().contains("is paused")
    });
    let not_selected = "SELECT letter_id FROM replay_letters WHERE state <> 'selected'";
    assert_eq!(ledger.rows(not_selected).len(), 1, "the unrouted one does not wait");
    command.kill();
    assert_eq!(send_command(&orderd, "resume", "order").0, 200);
    wait_until("some are processed", || ledger.processed() >= orders / 10);
    node.kill();
    assert!(ledger.processed() < orders, "it has ended before");
    node.restart();
    wait_until("it ends", || replay_state(&ledger) == "finished");
    assert_eq!(states(&ledger), ["open|1".to_owned(), format!("replayed|{orders}")]);
    assert_eq!(ledger.rows("SELECT code FROM replay_letters WHERE state <> 'processed'"), ["no_queue"]);
    let unrouted = json_of(&env, &orderd, &["replay", "--source", "unrouted_queue", "--to", "order_queue", "--yes"], 0);
    assert_eq!(unrouted["letters"], json!({"processed": 1}));
    assert_eq!(ledger.processed(), orders + 1);
    assert_eq!(
        ledger.number("SELECT count(*) FROM steps WHERE action = 'do' AND status = 'done' AND is_current = 1"),
        orders + 1
    );

    let actions =
        ledger.rows("SELECT action, count(*) FROM journal WHERE action IN ('replay', 'hold') AND result LIKE '%state%' GROUP BY action");
    assert_eq!(actions, ["replay|4"], "each begins and ends");
    assert_eq!(orderd.stop(), 0);
}
