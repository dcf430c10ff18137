//! Pausing and resuming consumers, under load and across restarts, and how a pause is shown.

use serde_json::{Value, json};

use super::reload::{assert_once, flood};
use crate::support::Node;
use crate::support::http::{Scrape, get, send};
use crate::support::test_env::{OrderdProcess, TestEnv, wait_until};

const NORMAL: &str = "order.normal.created";

/// Pauses or resumes a consumer. Returns the HTTP status and the answer.
pub(super) fn send_command(orderd: &OrderdProcess, verb: &str, consumer: &str) -> (u16, Value) {
    let admin = orderd.admin_address();
    let token = orderd.command_token();
    let request = format!(
        "POST /api/v1/consumers/{consumer}/{verb} HTTP/1.1\r\nHost: {admin}\r\n{token}Content-Type: application/json\r\n\
         Content-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let answer = send(admin, &request);
    (answer.status, serde_json::from_str(&answer.body).unwrap_or(Value::Null))
}

fn answered(consumer: &str, paused: bool, changed: bool) -> (u16, Value) {
    (200, json!({"consumer": consumer, "paused": paused, "changed": changed}))
}

#[test]
fn a_paused_consumer_receives_nothing_and_finishes_deliveries_in_flight() {
    const ORDERS: u64 = 6_000;
    let node = Node::shared();
    let (env, mut file) =
        TestEnv::new(&node).set("log.level", "info").set("management.poll_every", "500ms").with_file();
    let mut orderd = env.start();
    let ledger = env.ledger();
    std::thread::scope(|scope| {
        let feeding = scope.spawn(|| flood(&env, NORMAL, "ord", ORDERS));
        wait_until("orders flow", || ledger.processed() > 100);
        assert_eq!(send_command(&orderd, "pause", "order"), answered("order", true, true));
        feeding.join().unwrap();
    });
    wait_until("its deliveries in flight are finished", || orderd.status()["consumers"]["order"]["draining"] == 0);
    let scrape = Scrape::of(orderd.admin_address());
    let taken = scrape.of_consumer("orderd_deliveries_total", "order");
    assert_eq!(
        (scrape.of_consumer("orderd_paused", "order"), scrape.of_consumer("orderd_paused", "failed")),
        (1.0, 0.0)
    );
    assert_eq!(ledger.processed() as f64, taken);
    assert!(ledger.processed() < ORDERS, "all were processed before the pause");
    assert_eq!(u64::from(env.raw().depth("order_queue")), ORDERS - ledger.processed());

    let verbose = get(orderd.admin_address(), "/readyz?verbose");
    assert!(verbose.status == 200 && verbose.body.contains("[+] consumer order: paused"), "{}", verbose.body);
    assert!(
        orderd.log_lines("paused: consumes nothing until it is resumed, also after a restart")[0]["level"] == "WARN"
    );
    wait_until("a finding says why orders wait", || {
        let findings = orderd.status()["broker"]["findings"].clone();
        let kinds: Vec<_> = findings.as_array().unwrap().iter().map(|one| one["kind"].clone()).collect();
        kinds == [json!("consumer_paused")] && findings[0]["detail"].as_str().unwrap().contains("orderd resume order")
    });
    assert_eq!(send_command(&orderd, "pause", "order"), answered("order", true, false));

    // A reload leaves it paused; the new settings apply when it is resumed.
    file.set("consumers.order.workers", "3").save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    let of = orderd.status()["consumers"]["order"].clone();
    assert_eq!(
        (&of["paused"], &of["subscribed"], &of["workers_running"]),
        (&json!(true), &json!(false), &json!(0)),
        "{of}"
    );
    assert!(of["paused_since"].is_string());
    assert_eq!(send_command(&orderd, "resume", "order"), answered("order", false, true));
    ledger.await_settled(ORDERS);
    let of = orderd.status()["consumers"]["order"].clone();
    assert_eq!(
        (&of["paused"], &of["workers_running"], &of["paused_since"]),
        (&json!(false), &json!(3), &Value::Null),
        "{of}"
    );
    assert_once(&env, &orderd, ORDERS);
    wait_until("the finding ends", || orderd.status()["broker"]["findings"] == json!([]));
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_pause_and_a_resume_survive_a_restart_and_a_kill() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    assert_eq!(send_command(&orderd, "pause", "order"), answered("order", true, true));
    // Killed at once: a pause is on disk before it is answered.
    orderd.kill();
    flood(&env, NORMAL, "ord", 10);
    for end in ["TERM", "KILL"] {
        let mut orderd = env.start();
        let warned = orderd.log_lines("paused: consumes nothing until it is resumed");
        assert_eq!((warned.len(), &warned[0]["consumer"]), (1, &json!("order")));
        wait_until("the others are ready", || get(orderd.admin_address(), "/readyz").status == 200);
        assert_eq!(orderd.status()["consumers"]["order"]["paused"], true);
        assert_eq!(env.raw().depth("order_queue"), 10);
        orderd.signal(end);
        wait_until("it has ended", || orderd.exit_status().is_some());
    }
    let mut orderd = env.start();
    assert_eq!(send_command(&orderd, "resume", "order"), answered("order", false, true));
    orderd.kill();
    let mut orderd = env.start();
    env.ledger().await_settled(10);
    assert_eq!(orderd.status()["consumers"]["order"]["paused"], false);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_pause_that_cannot_be_written_is_refused_and_so_is_an_unknown_consumer() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    let (code, answer) = send_command(&orderd, "pause", "nobody");
    assert_eq!((code, &answer["error"]), (404, &json!("unknown_consumer")));
    let folder = env.ledger_directory().join("paused");
    std::fs::write(&folder, "in the way").unwrap();
    let (code, answer) = send_command(&orderd, "pause", "order");
    assert_eq!((code, &answer["error"]), (500, &json!("not_persisted")), "{answer}");
    flood(&env, NORMAL, "ord", 5);
    env.ledger().await_settled(5);
    std::fs::remove_file(&folder).unwrap();
    assert_eq!(send_command(&orderd, "pause", "order"), answered("order", true, true));
    assert_eq!(orderd.stop(), 0);

    // A consumer that was removed: its pause is kept, and can be ended by a resume.
    std::fs::write(folder.join("former"), "2026-11-22T08:00:00Z\n").unwrap();
    let mut orderd = env.start();
    assert_eq!(orderd.log_lines("a paused consumer is not configured; resume it to remove the pause").len(), 1);
    assert_eq!(send_command(&orderd, "resume", "former"), answered("former", false, true));
    assert_eq!(send_command(&orderd, "resume", "former").0, 404);
    assert_eq!(orderd.stop(), 0);
}
