//! What commands show is the same whether they ask a daemon or read the ledger.

use std::fs;
use std::io::Read;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use super::notifications::{place, smtp};
use crate::support::Node;
use crate::support::http::send;
use crate::support::raw_client::RawClient;
use crate::support::raw_client::properties::Properties;
use crate::support::raw_client::{field, number, persistent, text, with_headers};
use crate::support::smtp_server::SmtpServer;
use crate::support::step_server::{StepServer, reply};
use crate::support::test_env::{LedgerReader, TestEnv, order, wait_until};

fn run(env: &TestEnv<'_>, arguments: &[&str]) -> Output {
    env.program(arguments).stdin(Stdio::null()).output().unwrap()
}

/// The JSON that a command prints.
fn json(env: &TestEnv<'_>, arguments: &[&str]) -> Value {
    let output = run(env, arguments);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {output:?}"))
}

/// The exit code, and what is written to standard output and standard error.
fn shown(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_daemon_and_its_ledger_show_the_same_dead_letters_orders_and_journal_byte_by_byte_and_looking_changes_nothing() {
    let node = Node::shared();
    let server = SmtpServer::start(&[]);
    let env = smtp(TestEnv::new(&node), "email", server.port).set("dead_letters.collect", "true");
    let orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    for n in 0..3 {
        let body = format!(
            r#"{{"id":"bad-{n}","product":"Läptop\u0007 + \"x\",y","quantity":0,"price":"400.00","customer_id":"=1+1"}}"#
        );
        raw.publish_to("orders", "order.normal.web", &Properties::persistent(), body.as_bytes());
    }
    raw.publish_to("orders", "order.normal.web", &Properties::persistent(), b"{\"id\": \"not JSON");
    raw.publish_to("orders", "oder.normal.web", &Properties::persistent(), &order("a/b c"));
    let headers =
        [number("n", -5), text("t", "\u{1b}[2J\u{fc}\n"), field("b", b't', &[1]), text("x-failure-code", "forged")];
    raw.publish("dead_letter_queue", &with_headers(&headers), b"\xff\x00 foreign");
    wait_until("all are stored", || ledger.number("SELECT count(*) FROM stored_dead_letters") == 6);
    let address = orderd.admin_address().to_string();
    let held = ledger.rows("SELECT id FROM stored_dead_letters WHERE order_id = 'bad-2'").concat();
    let hold = run(&env, &["dead-letters", "hold", &held, "--note", "SHOP-7", "--address", &address]);
    assert_eq!(hold.status.code(), Some(0), "{hold:?}");

    let listed = run(&env, &["dead-letters", "list", "--order", "bad-0", "--format", "json"]);
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let bad = listed["dead_letters"][0]["id"].to_string();
    let replay = run(&env, &["dead-letters", "replay", &bad, "--yes", "--address", &address]);
    assert_eq!(replay.status.code(), Some(1), "it fails again: {replay:?}");
    wait_until("it is stored again", || ledger.number("SELECT count(*) FROM stored_dead_letters") == 7);
    let history = json(&env, &["dead-letters", "show", &bad, "--format", "json"]);
    let replay = &history["replays"][0];
    assert_eq!(
        (&replay["replay"], &replay["outcome"], &replay["came_back_as"]),
        (&json!(1), &json!("failed_again"), &json!(7))
    );
    assert_eq!(json(&env, &["dead-letters", "show", "7", "--format", "json"])["came_back_from"].to_string(), bad);
    let traced = json(&env, &["trace", "bad-0", "--format", "json"]);
    let steps = traced["steps"].as_array().unwrap().iter().filter(|step| step["message"] == "order");
    let steps: Vec<_> = steps.map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(steps, ["failed", "dead_lettered", "replayed", "failed", "dead_lettered"], "both times: {traced}");
    for id in [&*bad, "7"] {
        let attempts = &json(&env, &["dead-letters", "show", id, "--format", "json"])["attempts"];
        let replays: Vec<_> = attempts.as_array().unwrap().iter().map(|attempt| &attempt["replay"]).collect();
        assert_eq!(replays, [&Value::Null, &json!(1)], "{attempts}");
    }
    place(&mut raw, "refused", &json!({"email": "refused@example.com"}));
    wait_until("the notification is stored", || ledger.number("SELECT count(*) FROM stored_dead_letters") == 8);
    let notification = json(&env, &["dead-letters", "show", "8", "--format", "json"]);
    let delivery = &notification["deliveries"][0];
    assert_eq!(
        ["channel", "provider", "recipient", "kind", "code"].map(|key| delivery[key].as_str().unwrap()),
        ["email", "email", "r…@example.com", "permanent", "smtp_550"],
        "{notification}"
    );
    assert!(delivery["reason"].as_str().unwrap().contains("no such customer"));
    let typo = json(
        &env,
        &["dead-letters", "list", "--group", "--routing-key", "oder.normal.web", "--state", "any", "--format", "json"],
    );
    assert_eq!(typo["groups"][0]["routing_key"], "oder.normal.web");

    // The letter of an order becomes another order.
    let edited = ledger.rows("SELECT id FROM stored_dead_letters WHERE order_id = 'bad-1'").concat();
    let body = env.directory.path().join("body");
    fs::write(&body, order("good-1")).unwrap();
    let edit = ["dead-letters", "edit", &edited, "--change-order-id", "--address", &address, "--file"];
    let edit = run(&env, &[&edit[..], &[body.to_str().unwrap()]].concat());
    assert_eq!(edit.status.code(), Some(0), "{edit:?}");
    for (id, now) in [("bad-1", json!("good-1")), ("good-1", Value::Null)] {
        let traced = json(&env, &["trace", id, "--format", "json"]);
        let head = format!("Host: {address}\r\nConnection: close\r\n{}", orderd.command_token());
        let path = format!("/api/v1/orders/{id}");
        let answer = send(orderd.admin_address(), &format!("GET {path} HTTP/1.1\r\n{head}\r\n"));
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(answer["steps"], traced["steps"], "{id}");
        for place in [&answer["places"][0], &traced["places"][0]] {
            let copy = json!([{"id": edited.parse::<i64>().unwrap(), "state": "open", "edited_to": now}]);
            assert_eq!(place["stored"], copy, "{id}: {place}");
        }
    }

    let before = everything(&ledger, &mut raw);
    for command in [
        &format!("dead-letters show {bad}"),
        "dead-letters show 7",
        "dead-letters show 8",
        "dead-letters show 8 --format json",
        "trace refused",
        "dead-letters show 7 --revision 0 --format json",
        "dead-letters show 7 --revision 1",
        "dead-letters list --replay 1",
        "dead-letters list --replay 1 --format json",
        "dead-letters list --replay 4711",
        "dead-letters list --state discarded --consumer nope",
        "dead-letters list --group --state any",
        "trace bad-0",
        "trace bad-0 --format json",
        "dead-letters list",
        "dead-letters list --state any --format json",
        "dead-letters list --state any --limit 2 --format json",
        "dead-letters list --before 4 --limit 1",
        "dead-letters list --state held",
        "dead-letters list --group",
        "dead-letters list --group --state any --format json",
        "dead-letters list --group --limit 1",
        "dead-letters list --text LÄPTOP --since 1h --customer =1+1 --format json",
        "dead-letters list --code nope",
        "dead-letters show 1",
        "dead-letters show 2 --format json",
        "dead-letters show 6",
        "dead-letters show 6 --format json",
        "dead-letters show 4711",
        "dead-letters export --state any",
        "dead-letters export --format csv --state any",
        "dead-letters export --format csv --code nope",
        "dead-letters export --code nope --replay 4711",
        "trace bad-1",
        "trace good-1",
        "trace good-1 --format json",
        "trace bad-1 --format json",
        "trace a/b --format json",
        "trace nobody --format json",
        "dead-letters replays",
        "dead-letters replays --format json",
        "dead-letters replays 1",
        "dead-letters replays 1 --format json",
        "dead-letters replays 4711",
        "dead-letters replays --letters 1",
        "dead-letters replays --letters 1 --format json",
        "dead-letters replays --letters 4711",
        "journal list",
        "journal list --format json --limit 1",
        "journal list --format ndjson --action hold",
    ] {
        let arguments: Vec<&str> = command.split(' ').collect();
        // The configuration of the tests has no port that a command could know, so the ledger is read.
        let from_ledger = || shown(&run(&env, &arguments));
        let from_daemon = || shown(&run(&env, &[&arguments[..], &["--address", &address]].concat()));
        // Ages are in seconds, so both must be of the same one.
        let mut last = (from_ledger(), from_daemon());
        for _ in 0..20 {
            if last.0 == last.1 {
                break;
            }
            last = (from_ledger(), from_daemon());
        }
        assert_eq!(last.0, last.1, "{command}");
        assert!([Some(0), Some(1)].contains(&last.0.0), "{command}: {last:?}");
    }
    for command in [
        "replay --all --dry-run",
        "replay 1 --dry-run --format json",
        "replay --source unrouted_queue --to order_queue --dry-run",
        "hold --all --dry-run",
        "release --all --dry-run",
        "discard --all --note x --dry-run",
    ] {
        let arguments: Vec<&str> = ["dead-letters"].into_iter().chain(command.split(' ')).collect();
        let output = run(&env, &[&arguments[..], &["--address", &address]].concat());
        assert!([Some(0), Some(1), Some(3)].contains(&output.status.code()), "{command}: {output:?}");
    }
    // It is left as it is in the editor.
    let edit = ["dead-letters", "edit", &edited, "--address", &address];
    let edit = env.program(&edit).env("VISUAL", "true").stdin(Stdio::null()).output().unwrap();
    assert_eq!(edit.status.code(), Some(1), "{edit:?}");
    let after = everything(&ledger, &mut raw);
    assert!(before.len() > 50 && before.iter().any(|row| row.starts_with("stored_contents: ")), "{before:#?}");
    assert_eq!(before, after, "looking has changed something");
}

/// Each row of each table of the ledger, and how many messages each queue has.
fn everything(ledger: &LedgerReader, raw: &mut RawClient) -> Vec<String> {
    let tables = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name";
    let rows = ledger.rows(tables).into_iter().flat_map(|table| {
        let rows = ledger.rows(&format!("SELECT * FROM \"{table}\" ORDER BY 1"));
        rows.into_iter().map(move |row| format!("{table}: {row}"))
    });
    let mut all: Vec<String> = rows.collect();
    for queue in ["order_queue", "notification_queue", "failed_order_queue", "dead_letter_queue", "unrouted_queue"] {
        all.push(format!("{queue}: {}", raw.depth(queue)));
    }
    all
}

#[test]
fn the_attempts_after_a_replay_are_shown_and_a_replayed_order_that_waits_for_its_retry_is_traced_as_waiting() {
    let node = Node::shared();
    let service = StepServer::start();
    service.answer(|_| reply("402 Payment Required", "no contract"));
    let env = TestEnv::new(&node)
        .set("dead_letters.collect", "true")
        .set("consumers.order.steps", &service.steps(&["charge"], ""))
        .set("consumers.order.retry.delays", "1h");
    let orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    raw.publish_to("orders", "order.normal.web", &Properties::persistent(), &order("late"));
    wait_until("it is stored", || ledger.number("SELECT count(*) FROM stored_dead_letters") == 1);
    service.answer(|_| reply("503 Service Unavailable", "busy"));
    let address = orderd.admin_address().to_string();
    let replay = run(&env, &["dead-letters", "replay", "1", "--yes", "--detach", "--address", &address]);
    assert_eq!(replay.status.code(), Some(0), "{replay:?}");
    wait_until("it waits", || ledger.number("SELECT count(*) FROM attempts WHERE delay = '1h'") == 1);
    assert_eq!(ledger.number("SELECT count(*) FROM attempts"), 2);
    let shown = json(&env, &["dead-letters", "show", "1", "--format", "json"]);
    let attempts: Vec<_> = shown["attempts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|attempt| ["replay", "retries", "code", "delay"].map(|key| attempt[key].clone()))
        .collect();
    let expected =
        [[Value::Null, json!(0), json!("http_402"), Value::Null], [json!(1), json!(0), json!("http_503"), json!("1h")]];
    assert_eq!(attempts, expected);
    let trace = json(&env, &["trace", "late", "--format", "json"]);
    let place = &trace["places"][0];
    assert_eq!(
        (&place["message"], &place["state"], &place["delay"]),
        (&json!("order"), &json!("waiting"), &json!("1h"))
    );
    assert_eq!(place["queues"][0]["name"], "order_queue.retry.1h");
    let steps: Vec<_> = trace["steps"].as_array().unwrap().iter().map(|step| step["step"].as_str().unwrap()).collect();
    assert_eq!(steps.last(), Some(&"failed"), "{trace}");
    let text = String::from_utf8(run(&env, &["trace", "late"]).stdout).unwrap();
    assert!(text.contains("first attempt after replay 1 failed in consumer order: transient http_503"), "{text}");
    assert!(text.contains("in order_queue.retry.1h") && text.contains("retry due at"), "{text}");
}

#[test]
fn the_daemon_is_asked_if_it_answers_and_the_ledger_is_read_if_not_and_an_address_that_is_given_must_answer() {
    let node = Node::shared();
    let mut env = TestEnv::new(&node).set("dead_letters.collect", "true");
    let mut orderd = env.start();
    env.raw().publish("dead_letter_queue", &persistent(), b"foreign");
    let ledger = env.ledger();
    wait_until("it is stored", || ledger.number("SELECT count(*) FROM stored_dead_letters") == 1);
    let address = orderd.admin_address().to_string();
    let token = env.ledger_directory().join("admin-token").to_str().unwrap().to_owned();
    let other_token = env.directory.path().join("other-token").to_str().unwrap().to_owned();
    fs::write(&other_token, "0123456789abcdef0123456789abcdef").unwrap();
    let list = |env: &TestEnv<'_>, arguments: &[&str]| {
        let (exit, stdout, stderr) = shown(&run(env, &[&["dead-letters", "list"], arguments].concat()));
        (exit, stdout.contains("foreign"), stderr)
    };
    env.change("admin.listen", &address);
    assert_eq!(list(&env, &[]), (Some(0), true, String::new()));
    let (exit, _, stderr) = list(&env, &["--token-file", &other_token]);
    assert!(exit != Some(0) && stderr.contains("401") && stderr.contains("--token-file"), "{exit:?} {stderr}");
    let (exit, _, stderr) = list(&env, &["--address", "127.0.0.1:1"]);
    assert!(exit == Some(69) && stderr.contains("127.0.0.1:1"), "{exit:?} {stderr}");

    // Another user of this machine, who cannot read the ledger, or somebody on another one.
    let ledger_directory = env.ledger_directory().to_str().unwrap().to_owned();
    let elsewhere = env.directory.path().join("elsewhere").to_str().unwrap().to_owned();
    env.change("ledger.directory", &elsewhere);
    assert_eq!(list(&env, &["--token-file", &token]), (Some(0), true, String::new()));
    let (exit, _, stderr) = list(&env, &[]);
    assert!(exit == Some(78) && stderr.contains("--token-file"), "what to do: {exit:?} {stderr}");
    let (exit, _, stderr) = list(&env, &["--address", &address]);
    assert!(exit != Some(0) && stderr.contains("--token-file"), "what to do: {exit:?} {stderr}");
    env.change("ledger.directory", &ledger_directory);

    env.change("admin.listen", "off");
    assert_eq!(list(&env, &[]), (Some(0), true, String::new()));
    env.change("admin.listen", &address);
    assert_eq!(orderd.stop(), 0);
    assert_eq!(list(&env, &[]), (Some(0), true, String::new()), "no daemon runs");
    assert_eq!(list(&env, &["--address", &address]).0, Some(69));
    let plan = shown(&run(&env, &["dead-letters", "replay", "--all", "--dry-run"]));
    assert!(plan.0 == Some(69) && plan.2.contains("a dry run needs the daemon"), "{plan:?}");
    let plan = shown(&run(&env, &["dead-letters", "hold", "1", "--note", "x", "--dry-run"]));
    assert!(plan.0 == Some(69) && plan.2.contains("a dry run needs the daemon"), "{plan:?}");
}

#[test]
fn an_export_whose_daemon_is_killed_is_no_success() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("dead_letters.collect", "true");
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    raw.publish_many("dead_letter_queue", (0..24).map(|n| vec![b'a' + n; 1 << 20]));
    wait_until("all are stored", || ledger.number("SELECT count(*) FROM stored_dead_letters") == 24);
    let address = orderd.admin_address().to_string();
    let mut export = env
        .program(&["dead-letters", "export", "--address", &address])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = export.stdout.take().unwrap();
    // Then the pipe and the connection are full.
    stdout.read_exact(&mut [0; 1 << 16]).unwrap();
    orderd.kill();
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    let output = export.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(69) && stderr.contains("not complete"), "{:?} {stderr}", output.status);
    assert!(rest.len() < 24 << 20);
}
