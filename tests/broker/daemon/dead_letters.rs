//! The dead letter store: messages are drained into the ledger, none lost and none twice, and found there.

use std::collections::BTreeMap;
use std::fs;

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::raw_client::{field, number, persistent, text, with_headers};
use crate::support::test_env::{LedgerReader, OrderdProcess, TestEnv, order, wait_until};

const QUEUES: [&str; 2] = ["dead_letter_queue", "unrouted_queue"];

fn dead_letter_env<'a>(node: &'a Node) -> TestEnv<'a> {
    TestEnv::new(node).set("dead_letters.collect", "true")
}

fn stored(ledger: &LedgerReader) -> u64 {
    ledger.number("SELECT count(*) FROM stored_dead_letters")
}

fn output(env: &TestEnv<'_>, arguments: &[&str], exit: i32) -> String {
    let output = env.program(arguments).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {stdout}{stderr}");
    stdout
}

fn json_of(env: &TestEnv<'_>, arguments: &[&str]) -> Value {
    serde_json::from_str(&output(env, &[&["dead-letters"], arguments, &["--format", "json"]].concat(), 0)).unwrap()
}

/// The ids of what a list with these filters shows.
fn listed(env: &TestEnv<'_>, filters: &[&str]) -> Vec<i64> {
    let list = json_of(env, &[&["list"], filters].concat());
    list["dead_letters"].as_array().unwrap().iter().map(|letter| letter["id"].as_i64().unwrap()).collect()
}

#[test]
fn dead_letters_are_drained_into_the_ledger_and_found_there_by_what_is_known_about_them() {
    let node = Node::shared();
    let (env, mut file) = dead_letter_env(&node).with_file();
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    let publish = |raw: &mut crate::support::raw_client::RawClient, key: &str, body: &[u8]| {
        raw.publish_to("orders", key, &Properties::persistent(), body);
    };
    let invalid = |id: &str| {
        format!(r#"{{"id":"{id}","product":"Laptop","quantity":0,"price":"400.00","customer_id":"ada"}}"#).into_bytes()
    };
    for id in ["bad-1", "bad-2", "bad-3"] {
        publish(&mut raw, "order.normal.web", &invalid(id));
    }
    publish(&mut raw, "order.normal.web", b"not JSON");
    publish(&mut raw, "oder.normal.web", &order("typo"));
    let headers = [number("n", -5), text("t", "\u{fc}"), field("b", b't', &[1]), text("x-failure-code", "forged")];
    raw.publish("dead_letter_queue", &with_headers(&headers), b"\xff\x00 foreign");
    wait_until("all are stored", || stored(&ledger) == 6);
    wait_until("and acked", || QUEUES.iter().all(|queue| raw.depth(queue) == 0));

    let groups = json_of(&env, &["list", "--group"]);
    let counts: BTreeMap<_, _> = groups["groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| (group["reason"].as_str().unwrap(), group["messages"].as_u64().unwrap()))
        .collect();
    assert_eq!(counts, [("permanent", 3), ("malformed", 1), ("unrouted", 1), ("foreign", 1)].into(), "{groups}");
    let of_typo = groups["groups"].as_array().unwrap().iter().find(|group| group["reason"] == "unrouted").unwrap();
    assert_eq!(of_typo["money"], json!({"EUR": "1200.00"}));

    assert_eq!(listed(&env, &["--code", "invalid_quantity"]).len(), 3);
    assert_eq!(listed(&env, &["--customer", "ada", "--consumer", "order", "--product", "Laptop"]).len(), 3);
    assert_eq!(listed(&env, &["--order", "bad-2"]), listed(&env, &["--text", "BAD-2"]));
    assert_eq!(listed(&env, &["--source", "unrouted_queue", "--since", "1h"]).len(), 1);
    assert_eq!(listed(&env, &["--until", "1h"]), [] as [i64; 0]);
    assert_eq!(listed(&env, &["--state", "held"]), [] as [i64; 0]);
    let page = json_of(&env, &["list", "--limit", "2"]);
    let next = page["next"].as_i64().unwrap().to_string();
    assert_eq!(listed(&env, &["--before", &next]).len(), 4);

    let shown = |id: i64| json_of(&env, &["show", &id.to_string()]);
    let bad = shown(listed(&env, &["--order", "bad-1"])[0]);
    assert_eq!(bad["headers"]["x-dead-letter-reason"], json!({"type": "string", "value": "permanent"}));
    assert_eq!((&bad["consumer"], &bad["attempts"][0]["code"]), (&json!("order"), &json!("invalid_quantity")));
    assert_eq!(bad["body"].as_str().unwrap().as_bytes(), invalid("bad-1"));
    let foreign = shown(listed(&env, &["--reason", "foreign"])[0]);
    assert_eq!(
        (&foreign["code"], &foreign["origin"]),
        (&json!("foreign"), &json!("others")),
        "its headers are not believed"
    );
    assert_eq!(foreign["headers"]["n"], json!({"type": "long", "value": -5}));
    assert_eq!(foreign["headers"]["b"], json!({"type": "bool", "value": true}));
    assert_eq!((&foreign["headers"]["t"]["value"], &foreign["body_base64"]), (&json!("ü"), &json!("/wAgZm9yZWlnbg==")));
    output(&env, &["dead-letters", "show", "4711"], 1);

    let exported = output(&env, &["dead-letters", "export"], 0);
    let lines: Vec<Value> = exported.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["id"], &lines[5]["id"]), (6, &json!(1), &json!(6)));
    let csv = output(&env, &["dead-letters", "export", "--format", "csv", "--reason", "permanent"], 0);
    assert_eq!((csv.lines().count(), csv.lines().next().unwrap().split(',').next()), (4, Some("id")));
    assert!(output(&env, &["dead-letters", "list"], 0).contains("invalid_quantity"));

    wait_until("the status counts them", || orderd.status()["dead_letters"]["open"] == 6);
    let status = orderd.status()["dead_letters"].clone();
    assert_eq!(status["collectors"]["dead_letter_queue"]["stored"], 5, "{status}");
    assert_eq!(
        (&status["money"], &status["collectors"]["unrouted_queue"]["stored"]),
        (&json!({"EUR": "1200.00"}), &json!(1))
    );

    // Left alone by a reload, and drained again by another one.
    file.set("dead_letters.collect", "false").save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    publish(&mut raw, "order.normal.web", &invalid("bad-4"));
    wait_until("it is dead-lettered", || raw.depth("dead_letter_queue") == 1);
    assert_eq!(raw.queue_counts("unrouted_queue"), Some((0, 0)), "nobody consumes it");
    assert_eq!(orderd.status()["dead_letters"]["collectors"]["dead_letter_queue"]["enabled"], false);
    file.set("dead_letters.collect", "true").save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    wait_until("it is drained", || stored(&ledger) == 7 && raw.depth("dead_letter_queue") == 0);
    assert_eq!(orderd.stop(), 0);
    assert_eq!(listed(&env, &[]).len(), 7, "while no daemon runs");
}

/// The bodies of stored messages, and how often each is there, with and without those that may be there twice.
fn bodies(ledger: &LedgerReader, condition: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    let sql = format!("SELECT body FROM stored_dead_letters JOIN stored_contents ON letter_id = id WHERE {condition}");
    for body in ledger.rows(&sql) {
        *counts.entry(body).or_default() += 1;
    }
    counts
}

#[test]
fn instances_that_are_killed_while_they_drain_lose_no_dead_letter_and_store_none_twice_without_saying_so() {
    const MESSAGES: u64 = 4_000;
    const TWINS: u64 = 500;
    let node = Node::shared();
    let env = dead_letter_env(&node).set("log.level", "info");
    let mut orderd = env.start();
    assert_eq!(orderd.stop(), 0);
    let (mut raw, ledger) = (env.raw(), env.ledger());
    // Half of them say which message they are.
    let body = |n: u64| format!("message {n}").into_bytes();
    raw.publish_many("dead_letter_queue", (0..MESSAGES).filter(|n| n % 2 == 0).map(body));
    for n in (0..MESSAGES).filter(|n| n % 2 == 1) {
        let properties = Properties::persistent().text("message_id", &format!("m-{n}"));
        raw.publish_to("orders.dead_letter", "any", &properties, &body(n));
        // Nothing distinguishes these.
        if n % (MESSAGES / TWINS) == 1 {
            raw.publish("dead_letter_queue", &persistent(), b"twin");
        }
    }
    for round in 1..=6 {
        let mut instances = [env.start(), env.start()];
        let goal = round * MESSAGES / 8;
        wait_until("some are stored", || stored(&ledger) >= goal);
        instances[round as usize % 2].kill();
        if round % 3 == 0 {
            instances.iter_mut().for_each(|orderd| orderd.kill());
        }
    }
    let mut orderd = env.start();
    wait_until("all are drained", || raw.queue_counts("dead_letter_queue") == Some((0, 1)));
    assert_eq!(orderd.stop(), 0);
    assert_eq!(raw.depth("dead_letter_queue"), 0);
    let twins = bodies(&ledger, "true")["twin"];
    assert!(twins >= TWINS, "{} twins are lost", TWINS - twins);
    let mut counts = bodies(&ledger, "maybe_duplicate_of IS NULL");
    let unmarked = counts.remove("twin").unwrap();
    assert!(unmarked <= TWINS, "{unmarked}");
    assert_eq!(counts.len() as u64, MESSAGES, "none is lost");
    let twice: Vec<_> = counts.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    assert_eq!(
        ledger.number("SELECT count(*) FROM stored_dead_letters WHERE message_id <> '' AND maybe_duplicate_of <> 0"),
        0
    );
}

#[test]
fn a_dead_letter_waits_for_the_ledger_and_one_that_is_too_large_does_not_stop_the_others() {
    let node = Node::shared();
    let mut env = dead_letter_env(&node).set("broker.max_body", "1048576").set("management.poll_every", "500ms");
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    let program = Connection::open(env.ledger_directory().join("orderd.db")).unwrap();
    program.execute_batch("BEGIN IMMEDIATE").unwrap();
    let large = vec![b'x'; 1_500_000];
    raw.publish("dead_letter_queue", &persistent(), &large);
    raw.publish_many("dead_letter_queue", (0..300).map(|n| format!("message {n}").into_bytes()));
    let collector = |status: &Value| status["dead_letters"]["collectors"]["dead_letter_queue"].clone();
    wait_until("they are received", || collector(&orderd.status())["in_flight"].as_u64() >= Some(200));
    wait_until("the outage is noticed", || orderd.has_logged(super::ledger_outages::CANNOT_RECORD));
    assert_eq!((stored(&ledger), collector(&orderd.status())["stored"].as_u64()), (0, Some(0)));
    program.execute_batch("COMMIT").unwrap();
    wait_until("all others are stored", || stored(&ledger) == 300);
    wait_until("a finding names the one that is left", || {
        let findings = orderd.status()["broker"]["findings"].clone();
        findings.as_array().unwrap().iter().any(|finding| {
            finding["kind"] == "not_collected" && finding["queue"] == "dead_letter_queue" && finding["messages"] == 1
        })
    });
    assert_eq!(collector(&orderd.status())["too_large"], 1);
    assert_eq!(orderd.stop(), 0);
    assert_eq!(raw.depth("dead_letter_queue"), 1, "it is neither lost nor stored");
    env.change("broker.max_body", "4194304");
    let mut orderd = env.start();
    wait_until("it is stored", || stored(&ledger) == 301 && raw.depth("dead_letter_queue") == 0);
    assert_eq!(ledger.number("SELECT max(bytes) FROM stored_dead_letters"), large.len() as u64);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn orders_are_processed_and_dead_letters_wait_while_the_broker_allows_too_few_connections() {
    let node = Node::shared();
    let env = dead_letter_env(&node).set("log.level", "info");
    let mut orderd = env.start();
    let consumers = orderd.status()["consumers"].as_object().unwrap().len();
    assert_eq!(orderd.stop(), 0);
    let limit = format!("/vhost-limits/{}/max-connections", env.vhost.name);
    // One for the test, one for each consumer, one for the publisher.
    let (status, _) = node.management("PUT", &limit, &json!({"value": consumers + 2}).to_string());
    assert!([201, 204].contains(&status), "{status}");
    let mut raw = env.raw();
    let mut orderd = env.start();
    for n in 0..20 {
        raw.publish_to("orders", "order.normal.web", &Properties::persistent(), &order(&format!("ord-{n}")));
    }
    raw.publish("dead_letter_queue", &persistent(), b"foreign");
    env.ledger().await_settled(20);
    let collector = |orderd: &OrderdProcess| orderd.status()["dead_letters"]["collectors"]["dead_letter_queue"].clone();
    wait_until("it gets no connection", || !collector(&orderd)["subscribe_error"].is_null());
    assert_eq!(stored(&env.ledger()), 0);
    let (status, _) = node.management("DELETE", &limit, "");
    assert_eq!(status, 204);
    wait_until("it is stored", || stored(&env.ledger()) == 1);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn an_erased_customer_is_in_no_stored_dead_letter() {
    let node = Node::shared();
    let env = dead_letter_env(&node);
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    let body = br#"{"id":"bad","product":"Laptop","quantity":0,"price":"1","customer_id":"ada-lovelace","email":"ada@lovelace.example"}"#;
    raw.publish_to("orders", "order.normal.web", &Properties::persistent(), body);
    wait_until("it is stored", || stored(&ledger) == 1);
    let erased: Value =
        serde_json::from_str(&output(&env, &["erase", "--customer", "ada-lovelace", "--format", "json"], 0)).unwrap();
    assert_eq!((&erased["ledger"]["dead_letters"], &erased["orders"]), (&json!(1), &json!(["bad"])), "{erased}");
    assert_eq!(orderd.stop(), 0);
    for file in fs::read_dir(env.ledger_directory()).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            let content = fs::read(&path).unwrap();
            assert!(!content.windows(12).any(|window| window == b"ada-lovelace"), "{path:?}");
        }
    }
    assert_eq!(json_of(&env, &["list", "--state", "any", "--group"])["messages"], 1, "it still counts");
}

#[test]
fn what_the_broker_itself_has_dead_lettered_is_stored_as_what_it_is() {
    let node = Node::shared();
    let env = dead_letter_env(&node);
    assert_eq!(env.start().stop(), 0, "declares the topology");
    let (mut raw, ledger) = (env.raw(), env.ledger());
    let properties = Properties::persistent().text("message_id", "m-1");
    raw.publish_to("orders", "order.failed.order", &properties, &order("ord-1"));
    // More often than the limit of the queue.
    wait_until("the broker dead-letters it", || {
        while let Some((tag, _)) = raw.get_unacked("failed_order_queue") {
            raw.reject(tag);
        }
        raw.depth("dead_letter_queue") == 1
    });
    let mut orderd = env.start();
    wait_until("it is stored", || stored(&ledger) == 1 && raw.depth("dead_letter_queue") == 0);
    let shown = json_of(&env, &["show", "1"]);
    assert_eq!(
        (&shown["origin"], &shown["reason"], &shown["code"]),
        (&json!("broker"), &json!("delivery_limit"), &json!("delivery_limit")),
        "{shown}"
    );
    assert_eq!((&shown["consumer"], &shown["message_id"]), (&json!("order"), &json!("m-1")), "{shown}");
    assert_eq!(shown["body"].as_str().unwrap().as_bytes(), order("ord-1"));
    assert_eq!(listed(&env, &["--reason", "delivery_limit"]), [1]);
    wait_until("the status has its reason", || {
        let rows = orderd.status()["dead_letters"]["by_reason"].clone();
        rows.as_array().unwrap().iter().any(|row| row["reason"] == "delivery_limit" && row["messages"] == 1)
    });
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn an_unrouted_order_is_edited_only_to_an_order_that_somebody_can_read_and_then_replayed() {
    let node = Node::shared();
    let env = dead_letter_env(&node);
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    raw.publish_to("orders", "oder.normal.web", &Properties::persistent(), &order("typo"));
    wait_until("it is stored", || stored(&ledger) == 1);
    let address = orderd.admin_address().to_string();
    let file = env.directory.path().join("body.json");
    let edit = |body: &str, more: &[&str]| {
        fs::write(&file, body).unwrap();
        let file = file.to_str().unwrap();
        let arguments = [&["dead-letters", "edit", "1", "--file", file, "--address", &address], more].concat();
        let output = env.program(&arguments).output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code(), format!("{stdout}{stderr}"))
    };
    let with = |id: &str, price: &str| {
        format!(
            r#"{{"id":"{id}","product":"Ink","quantity":2,"price":{price},"currency":"EUR","customer_id":"grace"}}"#
        )
    };
    for (bad, reason) in [("{\"broken", "not JSON"), (&*with("typo", "-1"), "price")] {
        let (code, text) = edit(bad, &[]);
        assert!(code == Some(1) && text.contains(reason) && text.contains("orderd: "), "{code:?} {text}");
        assert!(text.contains(file.to_str().unwrap()), "it names the file: {text}");
        assert_eq!(fs::read_to_string(&file).unwrap(), bad, "what was written is kept");
    }
    let (code, text) = edit(&with("other", "4"), &[]);
    assert!(code == Some(1) && text.contains("--change-order-id"), "{code:?} {text}");
    assert_eq!(ledger.number("SELECT count(*) FROM stored_contents"), 1, "the letter is unchanged");

    let (code, text) = edit(&with("typo", "4"), &[]);
    assert!(code == Some(0) && text.contains("--to QUEUE"), "{code:?} {text}");
    // What two operators edit at the same time is not replaced.
    let (code, text) = edit(&with("typo", "5"), &["--revision", "0"]);
    assert!(code == Some(1) && text.contains("show 1"), "{code:?} {text}");
    let hash = |revision: &str| json_of(&env, &["show", "1", "--revision", revision])["body_sha256"].clone();
    let journal = output(&env, &["journal", "list", "--action", "edit", "--format", "ndjson"], 0);
    let entry: Value = serde_json::from_str(&journal).unwrap();
    assert_eq!(entry["result"]["body_sha256"], json!({"before": hash("0"), "after": hash("1")}), "{entry}");
    assert_ne!(hash("0"), hash("1"));
    let list = json_of(&env, &["list", "--customer", "grace"]);
    let letter = &list["dead_letters"][0];
    assert_eq!((&letter["order_id"], &letter["product"]), (&json!("typo"), &json!("Ink")), "{list}");
    assert_eq!((&letter["total"], &letter["currency"]), (&json!("8"), &json!("EUR")), "{list}");
    let replay = json_of(&env, &["replay", "1", "--to", "order_queue", "--yes", "--address", &address]);
    assert_eq!(replay["letters"], json!({"processed": 1}), "{replay}");
    assert_eq!(ledger.rows("SELECT id, product, total, customer_id FROM orders"), ["typo|Ink|8|grace"]);
    assert_eq!(orderd.stop(), 0);
}
