//! `orderd reload`, `pause` and `resume`, their HTTP requests, and the watched configuration file: permissions, answers and
//! exit codes.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::http::{Response, Scrape, send};
use crate::support::test_env::{OrderdProcess, TestEnv, wait_until};
use crate::support::{Node, free_address};

/// Runs a command. Returns its exit code and everything it printed.
fn run(env: &TestEnv<'_>, arguments: &[&str]) -> (i32, String) {
    let mut command = env.command(arguments);
    (command.wait_for_exit(), command.output())
}

/// Runs a command with `--format json`. Returns its exit code and its output.
fn run_json(env: &TestEnv<'_>, arguments: &[&str]) -> (i32, Value) {
    let (code, text) = run(env, &[arguments, &["--format", "json"]].concat());
    (code, serde_json::from_str(&text).unwrap_or_else(|_| panic!("no JSON: {text}")))
}

/// Posts a request that is valid except for these additional header lines.
fn post(address: SocketAddr, path: &str, headers: &str) -> Response {
    send(address, &format!("POST {path} HTTP/1.1\r\nHost: {address}\r\n{headers}Connection: close\r\n\r\n"))
}

const JSON: &str = "Content-Type: application/json\r\n";

fn body(answer: &Response) -> Value {
    serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("no JSON: {answer:?}"))
}

fn status_words(env: &TestEnv<'_>) -> String {
    run(env, &["status"]).1.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_reload_command_succeeds_only_if_every_change_is_applied() {
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).set("admin.listen", &free_address().to_string()).with_file();
    let mut orderd = env.start();
    let (code, text) = run(&env, &["reload"]);
    assert_eq!((code, text.trim()), (0, "configuration unchanged (generation 1)"));

    file.set("consumers.order.workers", "2").save();
    let change = json!({"key": "consumers.order.workers", "from": "4", "to": "2", "effect": "live"});
    let report = json!({"outcome": "applied", "generation": 2, "changes": [change], "problems": [], "temporary": false, "notes": []});
    let (code, mut printed) = run_json(&env, &["reload"]);
    let applied_after = printed.as_object_mut().unwrap().remove("applied_after_ms");
    assert!(applied_after.is_some_and(|milliseconds| milliseconds.is_u64()));
    assert_eq!((code, printed), (0, report));

    file.set("runtime.threads", "2").set("log.level", "info").save();
    let (code, text) = run(&env, &["reload"]);
    assert_eq!(code, 1, "{text}");
    for line in ["  log.level: \"debug\" → \"info\", active", "  runtime.threads: 1 → 2, needs a restart"] {
        assert!(text.lines().any(|printed| printed == line), "no {line:?}: {text}");
    }
    // The restart is still needed.
    assert_eq!(run(&env, &["reload"]).0, 1);
    let status = status_words(&env);
    assert!(status.contains("requested by admin RESTART NEEDED for runtime.threads"), "{status}");
    assert!(status.contains("(generation 3)"), "{status}");
    assert_eq!(Scrape::of(orderd.admin_address()).sum("orderd_config_pending", &[]), 1.0);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn the_reload_command_finds_the_daemon_despite_a_broken_file() {
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).set("admin.listen", &free_address().to_string()).with_file();
    let mut orderd = env.start();
    let path = env.directory.path().join("orderd.toml");
    let whole = fs::read_to_string(&path).unwrap();
    file.set("consumers.order.workers", "0").set("log.level", "loud").save();
    let (code, text) = run(&env, &["reload"]);
    assert_eq!(code, 78, "{text}");
    for part in [
        "reload rejected, configuration unchanged (generation 1)",
        "problem: consumers.order.workers: must be at least 1, is 0",
        "problem: log.level: ",
        "the configuration has errors, see `orderd check`; using its admin section to find the daemon",
    ] {
        assert!(text.contains(part), "no {part:?}: {text}");
    }
    let status = status_words(&env);
    assert!(status.contains("REJECTED") && status.contains("must be at least 1, is 0"), "{status}");
    assert_eq!(Scrape::of(orderd.admin_address()).sum("orderd_config_reload_failed", &[]), 1.0);

    for (broken, problem) in [
        (whole.replacen("[broker]", "[broker", 1), "line "),
        (whole.trim_end().to_owned(), "no newline"),
        (whole[..whole.find("workers = ").unwrap() + 10].to_owned(), "no newline"),
    ] {
        file.write(&broken);
        let address = orderd.admin_address().to_string();
        // Where the file does not name the ledger's directory, the command cannot find the token.
        let token = env.ledger_directory().join("admin-token");
        let given = ["reload", "--address", &address, "--token-file", token.to_str().unwrap()];
        let (code, text) = run(&env, &given);
        assert_eq!(code, 78, "{text}");
        assert!(text.contains("reload rejected") && text.contains(problem), "{text}");
    }
    // Without an admin section, the default address is used, at which this daemon does not answer.
    file.write("consumers = 3\n");
    let (code, text) = run(&env, &["reload"]);
    assert!(code == 69 && text.contains("--address"), "{code}: {text}");
    file.write(&whole);
    assert_eq!(run(&env, &["reload"]).0, 0);
    assert_eq!(Scrape::of(orderd.admin_address()).sum("orderd_config_reload_failed", &[]), 0.0);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_command_without_a_daemon_names_the_address_it_tried() {
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).set("admin.listen", &free_address().to_string()).with_file();
    for command in [&["reload"][..], &["pause", "order"], &["resume", "order"]] {
        let (code, text) = run(&env, command);
        assert_eq!(code, 69, "{command:?}: {text}");
        assert!(text.contains("no daemon answers at") && text.contains("orderd run"), "{text}");
    }
    let mut orderd = env.start();
    let former = orderd.admin_address().to_string();
    file.set("admin.listen", &free_address().to_string()).save();
    let (code, text) = run(&env, &["reload"]);
    assert!(code == 69 && text.contains("--address"), "{code}: {text}");
    let (code, report) = run_json(&env, &["reload", "--address", &former]);
    assert_eq!(
        (code, &report["outcome"], &report["changes"][0]["key"]),
        (1, &json!("partly_applied"), &json!("admin.listen"))
    );
    file.set("admin.listen", "off").save();
    let (code, text) = run(&env, &["reload"]);
    assert!(code == 69 && text.contains("SIGHUP") && text.contains("systemctl reload orderd"), "{code}: {text}");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn pause_and_resume_work_by_command_and_are_shown() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("admin.listen", &free_address().to_string());
    let mut orderd = env.start();
    let answer = |paused, changed| json!({"consumer": "order", "paused": paused, "changed": changed});
    assert_eq!(run_json(&env, &["pause", "order"]), (0, answer(true, true)));
    assert_eq!(run_json(&env, &["pause", "order"]), (0, answer(true, false)));
    let screen = run(&env, &["status"]).1;
    for part in ["but PAUSED: order", "takes no deliveries until `orderd resume order`"] {
        assert!(screen.split_whitespace().collect::<Vec<_>>().join(" ").contains(part), "no {part:?}: {screen}");
    }
    let row = screen.lines().find(|line| line.starts_with("order ")).unwrap_or_else(|| panic!("{screen}"));
    assert_eq!(row.split_whitespace().nth(1), Some("PAUSED"), "{screen}");
    assert_eq!(Scrape::of(orderd.admin_address()).of_consumer("orderd_paused", "order"), 1.0);
    let (code, text) = run(&env, &["resume", "order"]);
    assert_eq!((code, text.trim()), (0, "consumer order resumed"));
    assert_eq!(run_json(&env, &["resume", "order"]), (0, answer(false, false)));
    assert!(!run(&env, &["status"]).1.contains("PAUSED"));

    let (code, text) = run(&env, &["pause", "nobody"]);
    assert_eq!(code, 64, "{text}");
    assert!(
        text.contains("unknown consumer \"nobody\"; known consumers: analytics, failed, notification, order"),
        "{text}"
    );
    assert_eq!(run(&env, &["pause", "../reload"]).0, 64);
    assert_eq!(run(&env, &["pause"]).0, 64);

    // Each command that was carried out is in the journal, also of the running daemon.
    assert_eq!(run(&env, &["reload"]).0, 0);
    let page = run_json(&env, &["journal", "list", "--limit", "5"]).1;
    let actions: Vec<_> = page["entries"].as_array().unwrap().iter().rev().map(|entry| &entry["action"]).collect();
    assert_eq!(actions, ["pause", "pause", "resume", "resume", "reload"]);
    assert_eq!(
        (&page["entries"][4]["subject"]["consumer"], &page["entries"][4]["result"]["changed"]),
        (&json!("order"), &json!(true))
    );
    assert_eq!(run(&env, &["journal", "verify"]).0, 0);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn control_requests_need_an_operators_token_and_tokens_are_replaced_by_a_reload() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let token = env.directory.path().join("token");
    fs::write(&token, "0123456789abcdef\n").unwrap();
    let users = |operator: &Path| {
        let viewer = env.directory.path().join("viewer");
        fs::write(&viewer, "fedcba9876543210\n").unwrap();
        format!(
            "[{{name = 'ada', role = 'operator', token_file = {operator:?}}}, {{name = 'bob', role = 'viewer', token_file = {viewer:?}}}]"
        )
    };
    let users = users(&token);
    let (env, mut file) = env.set("admin.listen", &free_address().to_string()).set("admin.users", &users).with_file();
    let mut orderd = env.start();
    let admin = orderd.admin_address();
    let bearer = "Authorization: Bearer 0123456789abcdef\r\n";
    let viewer = "Authorization: Bearer fedcba9876543210\r\n";
    let paths = ["/api/v1/reload", "/api/v1/consumers/order/pause", "/api/v1/consumers/order/resume"];
    for path in paths {
        for (headers, expected) in [
            (JSON.to_owned(), 401),
            (format!("{viewer}{JSON}"), 403),
            (bearer.to_owned(), 415),
            (format!("{bearer}Content-Type: text/plain\r\n"), 415),
            (format!("{bearer}{JSON}Origin: http://evil.example\r\n"), 403),
            (format!("{bearer}{JSON}Origin: null\r\n"), 403),
            (format!("{bearer}{JSON}Sec-Fetch-Site: cross-site\r\n"), 403),
            (format!("{bearer}{JSON}Content-Length: 2\r\n"), 413),
        ] {
            assert_eq!(post(admin, path, &headers).status, expected, "{path} {headers}");
        }
        let get = format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\n{bearer}{JSON}Connection: close\r\n\r\n");
        assert_eq!(send(admin, &get).status, 405, "{path}");
        let foreign = format!("POST {path} HTTP/1.1\r\nHost: evil.example\r\n{bearer}{JSON}Connection: close\r\n\r\n");
        assert_eq!(send(admin, &foreign).status, 421, "{path}");
    }
    let status = orderd_status(admin, bearer);
    assert_eq!(
        (&status["daemon"]["last_reload"], &status["consumers"]["order"]["paused"]),
        (&Value::Null, &json!(false))
    );

    let answer = post(admin, "/api/v1/reload", &format!("{bearer}{JSON}"));
    assert_eq!((answer.status, &body(&answer)["outcome"]), (200, &json!("unchanged")), "{answer:?}");
    let answer = post(admin, "/api/v1/consumers/nobody/pause", &format!("{bearer}{JSON}"));
    assert_eq!((answer.status, &body(&answer)["error"]), (404, &json!("unknown_consumer")), "{answer:?}");

    // The commands send the token in the ledger's directory, or the one they are given, and the journal has the user.
    let address = admin.to_string();
    assert_eq!(run(&env, &["pause", "order"]).0, 0);
    let given = ["resume", "order", "--address", &address, "--token-file", token.to_str().unwrap()];
    assert_eq!(run(&env, &given).0, 0);
    let viewer_file = env.directory.path().join("viewer");
    let refused = ["pause", "order", "--token-file", viewer_file.to_str().unwrap()];
    let (code, text) = run(&env, &refused);
    assert!(code == 77 && text.contains("403") && text.contains("bob"), "{code}: {text}");
    let path = "/api/v1/journal?limit=2";
    let journal = |bearer: &str| {
        send(admin, &format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\n{bearer}Connection: close\r\n\r\n"))
    };
    let page = body(&journal(viewer));
    let actor = |n: usize| page["entries"][n]["actor"].as_str().unwrap();
    assert_eq!(actor(0), "ada");
    assert!(actor(1).starts_with("local/"), "{page}");

    // A new token counts from the reload on, and the former one no longer.
    fs::write(&token, "00112233445566778899\n").unwrap();
    let (code, report) = run_json(&env, &["reload"]);
    assert_eq!(
        (code, &report["changes"][0]["key"], &report["changes"][0]["effect"]),
        (0, &json!("admin.users"), &json!("live"))
    );
    assert!(!report.to_string().contains("0011"), "{report}");
    assert_eq!(journal(bearer).status, 401);
    assert_eq!(journal("Authorization: Bearer 00112233445566778899\r\n").status, 200);
    // Without users, reading needs no token on this machine, except for what may be about people.
    file.set("admin.users", "[]").save();
    assert_eq!(run(&env, &["reload"]).0, 0);
    assert_eq!(journal("").status, 401);
    assert_eq!(orderd_status(admin, "")["consumers"]["order"]["paused"], json!(false));
    assert!(!orderd.output().contains("0123456789abcdef"));
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn without_a_configured_token_reads_need_none_and_commands_need_the_one_in_the_ledgers_directory() {
    let node = Node::shared();
    let (env, _) = TestEnv::new(&node).set("admin.listen", &free_address().to_string()).with_file();
    let mut orderd = env.start();
    let admin = orderd.admin_address();
    let path = "/api/v1/consumers/order/pause";
    assert_eq!(post(admin, path, JSON).status, 401);
    assert_eq!(post(admin, path, &format!("Authorization: Bearer 0123456789abcdef\r\n{JSON}")).status, 401);
    assert_eq!(orderd_status(admin, "")["consumers"]["order"]["paused"], json!(false));
    assert_eq!(post(admin, path, &format!("{}{JSON}", orderd.command_token())).status, 200);
    assert_eq!(run(&env, &["resume", "order"]).0, 0);
    assert_eq!(run(&env, &["pause", "order", "--address", &admin.to_string()]).0, 0);

    let mode = |name: &str| fs::metadata(env.ledger_directory().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode("admin-token"), 0o600);
    for file in ["orderd.db", "orderd.db-wal", "orderd.db-shm", "paused/order"] {
        assert_eq!(mode(file), 0o640, "{file}");
    }
    assert_eq!((mode("."), mode("paused")), (0o750, 0o750));
    assert_eq!(orderd.stop(), 0);
}

fn orderd_status(admin: SocketAddr, bearer: &str) -> Value {
    let request = format!("GET /api/v1/status HTTP/1.1\r\nHost: {admin}\r\n{bearer}Connection: close\r\n\r\n");
    body(&send(admin, &request))
}

fn last_reload(orderd: &OrderdProcess) -> Value {
    orderd.status()["daemon"]["last_reload"].clone()
}

#[test]
fn a_watched_file_is_applied_once_it_is_complete() {
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).set("reload.watch", "true").with_file();
    let mut orderd = env.start();
    file.set("consumers.order.workers", "2").save();
    wait_until("the file renamed over it is applied", || last_reload(&orderd)["report"]["generation"] == 2);
    let last = last_reload(&orderd);
    assert_eq!((&last["by"], &last["report"]["outcome"]), (&json!("file"), &json!("applied")));

    // Truncated in the middle of a number: the first part is a valid configuration with fewer workers.
    let path = env.directory.path().join("orderd.toml");
    file.set("consumers.order.workers", "64").save();
    let whole = fs::read_to_string(&path).unwrap();
    wait_until("the next file is applied too", || last_reload(&orderd)["report"]["generation"] == 3);
    let (head, tail) = whole.split_at(whole.find("workers = 64").unwrap() + "workers = 6".len());
    let mut writing = fs::File::create(&path).unwrap();
    writing.write_all(head.as_bytes()).unwrap();
    writing.sync_all().unwrap();
    // A reload that is requested now is rejected; the watcher requests none.
    let report = orderd.reload();
    assert_eq!((&report["outcome"], &report["generation"]), (&json!("rejected"), &json!(3)), "{report}");
    writing.write_all(tail.as_bytes()).unwrap();
    drop(writing);
    wait_until("the whole file is read", || last_reload(&orderd)["by"] == "file");
    assert_eq!(last_reload(&orderd)["report"]["outcome"], "unchanged");
    assert_eq!(orderd.status()["consumers"]["order"]["workers_configured"], 64);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_command_sent_to_a_frozen_daemon_is_not_carried_out_after_the_thaw() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("admin.listen", &free_address().to_string());
    let mut orderd = env.start();
    let admin = orderd.admin_address();
    let token = orderd.command_token();
    orderd.signal("STOP");
    let (code, text) = run(&env, &["pause", "order", "--timeout", "1s"]);
    assert_eq!(code, 69, "{text}");
    // Any other client that gives up, without a time in its request.
    let mut stream = TcpStream::connect(admin).unwrap();
    let request = format!("POST /api/v1/consumers/priority/pause HTTP/1.1\r\nHost: {admin}\r\n{token}{JSON}\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    drop(stream);
    // A client that still waits, for a command whose time is over.
    let mut late = TcpStream::connect(admin).unwrap();
    let until = "Orderd-Valid-Until: 2026-11-22T08:00:00Z\r\n";
    let request = format!("POST /api/v1/reload HTTP/1.1\r\nHost: {admin}\r\n{token}{JSON}{until}\r\n");
    late.write_all(request.as_bytes()).unwrap();
    orderd.signal("CONT");
    let mut answer = String::new();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("\"expired\""), "{answer}");
    let status = orderd.status();
    for consumer in ["order", "priority"] {
        assert_eq!(status["consumers"][consumer]["paused"], false, "{consumer}");
    }
    assert_eq!(status["daemon"]["last_reload"], Value::Null);
    let answer = json!({"consumer": "order", "paused": false, "changed": false});
    assert_eq!(run_json(&env, &["resume", "order"]), (0, answer), "a later command is carried out");
    assert_eq!(orderd.stop(), 0);
    assert!(!orderd.has_logged("paused: consumes nothing until it is resumed, also after a restart"));
    assert!(!orderd.has_logged("reloading the configuration"));
}
