//! What of a replay can be seen from outside: its rate, the headers of what it publishes, the status, metrics and alerts.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::pause::send_command;
use super::replays::{Service, ask, dead_letter_orders, json_of, open, replay_env};
use crate::support::Node;
use crate::support::http::Scrape;
use crate::support::raw_client::properties::{Field, Properties};
use crate::support::step_server::{StepReply, StepServer};
use crate::support::test_env::{order, wait_until};

#[test]
fn a_replay_publishes_no_more_than_its_rate() {
    const RATE: u32 = 10;
    const ORDERS: u64 = 41;
    let node = Node::shared();
    let server = StepServer::start();
    let (service, env) = (Service::start(&server), replay_env(&node, &server));
    let mut orderd = env.start();
    dead_letter_orders(&env, ORDERS);
    service.repair();
    let begun = Instant::now();
    let replay = ["replay", "--all", "--yes", "--no-canary", "--rate", &RATE.to_string()];
    let (exit, text) = ask(&env, &orderd, &replay);
    let took = begun.elapsed();
    assert_eq!(exit, 0, "{text}");
    // Two at once at most, since what is not used is kept for two tenths of a second.
    let least = Duration::from_secs(ORDERS - 2) / RATE;
    assert!(took >= least, "{took:?} is less than {least:?}");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_replayed_message_names_its_replay_and_its_history_and_starts_without_retries() {
    let node = Node::shared();
    let server = StepServer::start();
    // Longer than this test needs to kill orderd.
    let step = format!("[{{ name = \"charge\", http = {{ url = {:?} }}, timeout = \"20s\" }}]", server.url("/charge"));
    let env = replay_env(&node, &server)
        .set("consumers.order.steps", &step)
        .set("consumers.order.retry.immediate", "0")
        .set("consumers.order.retry.delays", "300ms,300ms");
    let service = Service::start(&server);
    let mut orderd = env.start();
    let ledger = env.ledger();
    let sent = Properties::persistent()
        .text("message_id", "m-1")
        .header("x-shop", Field::Text("berlin".to_owned()))
        .header("x-replay-id", Field::Text("forged".to_owned()));
    env.raw().publish_to("orders", "order.normal.web", &sent, &order("o-1"));
    wait_until("it is stored", || open(&ledger) == 1);
    // The service keeps it until orderd is killed.
    service.repair();
    server.answer(|_| StepReply::Nothing);
    assert_eq!(ask(&env, &orderd, &["replay", "1", "--yes", "--detach"]).0, 0);
    wait_until("it is delivered", || server.in_flight() == 1);
    // Otherwise it would be published once more.
    let published = "SELECT count(*) FROM replay_letters WHERE state = 'published'";
    wait_until("it is recorded", || ledger.number(published) == 1);
    orderd.kill();
    let mut raw = env.raw();
    wait_until("it is back in its queue", || raw.depth("order_queue") == 1);
    let (_, message) = raw.get_unacked("order_queue").unwrap();
    let properties = message.properties();
    assert_eq!((message.exchange.as_str(), message.routing_key.as_str()), ("orders.requeue", "order_queue"));
    assert_eq!((message.body, properties.delivery_mode), (order("o-1"), Some(2)));
    assert_eq!(properties.texts["message_id"], "m-1");
    let headers = properties.headers;
    assert_eq!(headers["x-shop"].text(), "berlin");
    let id = headers["x-replay-id"].text();
    assert!(id.starts_with("1-") && id.len() > 10, "{id}");
    assert_eq!(ledger.rows("SELECT key FROM replay_letters"), [id]);
    assert!(matches!(headers["x-replayed-at"], Field::Time(_)), "{headers:?}");
    let Field::List(history) = &headers["x-replay-history"] else { panic!("{headers:?}") };
    let [Field::Table(failure)] = &history[..] else { panic!("{history:?}") };
    assert_eq!((failure["reason"].text(), failure["code"].text()), ("permanent", "http_402"));
    assert!(matches!(failure["failed-at"], Field::Time(_)), "{failure:?}");
    for removed in [
        "x-retry-count",
        "x-failure-kind",
        "x-failure-code",
        "x-failure-reason",
        "x-retry-after",
        "x-first-failed-at",
        "x-failed-at",
        "x-dead-letter-reason",
    ] {
        assert!(!headers.contains_key(removed), "{removed}: {headers:?}");
    }
    drop(raw);

    // It has all its retries again.
    server.answer(|_| crate::support::step_server::reply("503 Service Unavailable", "later"));
    let calls = server.calls().len();
    let mut orderd = env.start();
    wait_until("it is stored again", || open(&ledger) == 1);
    assert_eq!(server.calls().len() - calls, 3, "one and two retries");
    let shown = json_of(&env, &orderd, &["show", "2"], 0);
    assert_eq!((&shown["retries"], &shown["came_back_from"]), (&json!(2), &json!(1)), "{shown}");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn the_status_and_the_metrics_show_a_running_replay_and_one_that_stops_by_itself_is_an_alert() {
    let node = Node::shared();
    let (server, chat) = (StepServer::start(), StepServer::start());
    let _service = Service::start(&server);
    let env = replay_env(&node, &server)
        .set("notify.operators.type", "webhook")
        .set("notify.operators.http.url", &chat.url("/chat"))
        .set("alerts.channel", "operators")
        .set("alerts.open_after", "0s")
        .set("alerts.interval", "0s");
    let mut orderd = env.start();
    dead_letter_orders(&env, 3);
    env.raw().publish_to("orders", "oder.normal.web", &Properties::persistent(), &order("typo"));
    wait_until("all are stored", || open(&env.ledger()) == 4);
    assert_eq!(send_command(&orderd, "pause", "order").0, 200);
    let (exit, _) = ask(&env, &orderd, &["replay", "--consumer", "order", "--yes", "--detach", "--stop-at", "0"]);
    assert_eq!(exit, 0);
    let stored = |orderd: &crate::support::test_env::OrderdProcess| orderd.status()["dead_letters"].clone();
    wait_until("the replay is shown", || {
        let status = stored(&orderd);
        status["replaying"] == 3 && status["replays"][0]["waiting_cause"] == "paused"
    });
    let status = stored(&orderd);
    let replay = &status["replays"][0];
    assert_eq!(
        (&replay["id"], &replay["state"], &replay["letters"]),
        (&json!(1), &json!("running"), &json!({"selected": 3})),
        "{status}"
    );
    assert_eq!((&status["open"], &status["money"]), (&json!(1), &json!({"EUR": "4800.00"})), "{status}");
    let by_reason = |source: &str, reason: &str, state: &str| -> u64 {
        let of = |row: &&Value| {
            (&row["source"], &row["reason"], &row["state"]) == (&json!(source), &json!(reason), &json!(state))
        };
        let rows = status["by_reason"].as_array().unwrap().iter().filter(of);
        rows.map(|row| row["messages"].as_u64().unwrap()).sum()
    };
    assert_eq!(by_reason("dead_letter_queue", "permanent", "replaying"), 3, "{status}");
    assert_eq!(by_reason("unrouted_queue", "unrouted", "open"), 1, "{status}");
    let failed_at = json_of(&env, &orderd, &["list"], 0)["dead_letters"][0]["failed_at"].clone();
    assert_eq!(status["oldest"], failed_at, "the only open one: {status}");
    let scrape = Scrape::of(orderd.admin_address());
    for (name, labels, expected) in [
        ("orderd_replays", ("state", "running"), 1.0),
        ("orderd_replays_waiting", ("cause", "paused"), 1.0),
        ("orderd_replay_letters", ("progress", "selected"), 3.0),
    ] {
        assert_eq!(scrape.sum(name, &[labels]), expected, "{name}");
    }

    assert_eq!(send_command(&orderd, "resume", "order").0, 200);
    wait_until("it stops", || stored(&orderd)["replays"] == json!([]));
    let stopped = json_of(&env, &orderd, &["replays"], 0);
    assert_eq!(stopped["replays"][0]["end_reason"], "too_many_failed", "{stopped}");
    let sent = || -> Vec<String> {
        let calls = chat.calls().into_iter().flat_map(|call| call.body["event"]["alerts"].as_array().cloned());
        calls
            .flatten()
            .filter(|alert| alert["state"] == "open")
            .map(|alert| alert["cause"].as_str().unwrap().to_owned())
            .collect()
    };
    let is_sent = |kind: &str| sent().iter().any(|cause| cause.starts_with(kind));
    wait_until("the alerts are sent", || is_sent("replay_stopped/1") && is_sent("unrouted"));
    wait_until("it is counted", || {
        Scrape::of(orderd.admin_address()).sum("orderd_replays_stopped", &[("reason", "too_many_failed")]) == 1.0
    });
    assert_eq!(orderd.stop(), 0);
}
