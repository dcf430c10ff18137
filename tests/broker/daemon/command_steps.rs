//! Steps performed by commands, their circuit breaker, and a consumer's rate limit, in the running daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::support::Node;
use crate::support::test_env::{ConfigFile, TestEnv, order, wait_until};

/// Answers each request and writes down its pid and the request's key.
const CHARGE: &str = r#"#!/usr/bin/env python3
import json, os, sys
print('{"orderd": 1}', flush=True)
for line in sys.stdin:
    call = json.loads(line)
    with open("calls", "a") as calls:
        print(os.getpid(), call["idempotency_key"], file=calls)
    print(json.dumps({"id": call["id"], "result": {"receipt": "r-" + call["request"]["order"]["id"]}}), flush=True)
"#;

fn script(env: &TestEnv<'_>, text: &str) -> PathBuf {
    let path = env.directory.path().join("command");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Gives consumer `order` one step that this command performs in the test's directory, with further keys.
fn add_step(env: &TestEnv<'_>, file: &mut ConfigFile, command: &Path, keys: &str) {
    let directory = env.directory.path();
    let step = format!("[{{name = \"charge\", command = [{command:?}], working_directory = {directory:?}{keys}}}]");
    file.set("consumers.order.steps", &step).save();
}

fn publish(env: &TestEnv<'_>, ids: impl IntoIterator<Item = u32>) {
    let orders = ids.into_iter().map(|n| ("order.normal.created".to_owned(), order(&format!("ord-{n}"))));
    env.raw().publish_all("orders", orders);
}

#[test]
fn orders_are_charged_by_a_command_whose_children_end_with_orderd_even_if_it_is_killed() {
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).with_file();
    add_step(&env, &mut file, &script(&env, CHARGE), "");
    let calls = || fs::read_to_string(env.directory.path().join("calls")).unwrap_or_default();
    let last_pid = || calls().lines().last().unwrap().split(' ').next().unwrap().to_owned();
    let is_running = |pid: &str| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.is_ok_and(|stat| !stat.contains(") Z "))
    };

    let mut orderd = env.start();
    publish(&env, 1..=20);
    env.ledger().await_settled(20);
    let mut keys: Vec<_> = calls().lines().map(|line| line.split(' ').nth(1).unwrap().to_owned()).collect();
    keys.sort();
    let mut expected: Vec<_> = (1..=20).map(|n| format!("ord-{n}/charge")).collect();
    expected.sort();
    assert_eq!(keys, expected, "each order was charged once");
    let pids: std::collections::BTreeSet<_> =
        calls().lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
    assert!(pids.len() <= 4, "one child for each worker: {pids:?}");
    orderd.kill();
    wait_until("the children see the end of their input", || pids.iter().all(|pid| !is_running(pid)));

    let mut orderd = env.start();
    publish(&env, 21..=21);
    env.ledger().await_settled(21);
    assert!(is_running(&last_pid()));
    // The consumer's pool is replaced, and its children with it.
    let former = last_pid();
    file.set("consumers.order.prefetch", "7").save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    wait_until("the former child has ended", || !is_running(&former));
    publish(&env, 22..=22);
    env.ledger().await_settled(22);
    let last = last_pid();
    assert!(is_running(&last));
    assert_eq!(orderd.stop(), 0);
    assert!(!is_running(&last));
}

/// Ignores SIGTERM and the end of its input, and writes down its open files and its pid.
const HANGS: &str = r#"#!/usr/bin/env python3
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('{"orderd": 1}', flush=True)
sys.stdin.readline()
files = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
with open("files", "w") as file:
    print("\n".join(files), file=file)
with open("pid.new", "w") as file:
    print(os.getpid(), file=file)
os.rename("pid.new", "pid")
while True:
    time.sleep(600)
"#;

#[test]
fn a_command_that_hangs_ends_when_orderd_is_killed_and_has_none_of_the_files_that_orderd_was_started_with() {
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).with_file();
    add_step(&env, &mut file, &script(&env, HANGS), "");
    // As a shell script does that holds a lock while orderd runs.
    let lock = fs::File::create(env.directory.path().join("lock")).unwrap();
    rustix::io::fcntl_setfd(&lock, rustix::io::FdFlags::empty()).unwrap();
    let mut orderd = env.start();
    publish(&env, 1..=1);
    let read = |name: &str| fs::read_to_string(env.directory.path().join(name)).unwrap_or_default();
    wait_until("the command is called", || !read("pid").is_empty());
    let open = fs::read_dir(format!("/proc/{}/fd", orderd.pid())).unwrap();
    let is_lock = |path: std::path::PathBuf| path.ends_with("lock");
    assert!(open.flatten().any(|file| fs::read_link(file.path()).is_ok_and(is_lock)), "orderd itself has it");
    assert!(!read("files").contains("lock"), "{}", read("files"));
    let process = format!("/proc/{}", read("pid").trim());
    assert!(Path::new(&process).exists());
    orderd.kill();
    wait_until("the command has ended", || {
        fs::read_to_string(format!("{process}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
}

#[test]
fn an_open_circuit_breaker_stops_the_intake_and_uses_up_no_attempt_while_orderd_stays_ready() {
    let node = Node::shared();
    let env = TestEnv::new(&node)
        .set("consumers.order.retry.immediate", "0")
        .set("consumers.order.retry.delays", &["300ms"; 12].join(","));
    let (env, mut file) = env.with_file();
    // Not available until a file is there.
    let command = script(&env, "#!/bin/sh\ntest -e up || { echo closed >&2; exit 75; }\necho '{\"charged\": true}'\n");
    let keys = ", mode = \"per_message\", circuit_breaker = {open = \"500ms\"}";
    add_step(&env, &mut file, &command, keys);
    let mut orderd = env.start();
    publish(&env, 1..=60);
    let breaker = |orderd: &crate::support::test_env::OrderdProcess| {
        orderd.status()["consumers"]["order"]["breakers"]["charge"].clone()
    };
    // Tried in vain: it has opened more than once.
    wait_until("the service was tried again", || breaker(&orderd)["openings"].as_u64().is_some_and(|count| count > 2));
    let status = orderd.status();
    let checks = status["checks"].as_array().unwrap();
    assert!(checks.iter().all(|check| check["ok"] == true), "{checks:#?}");
    let failed =
        |code: &str| env.ledger().number(&format!("SELECT count(*) FROM attempts WHERE failure_code = '{code}'"));
    assert!(failed("command_retry") < 40, "most orders have not been tried");
    let shown = breaker(&orderd);
    assert!(shown["last_failure"].as_str().unwrap().contains("closed"), "{shown}");
    file.set("consumers.order.prefetch", "7").save();
    let openings = shown["openings"].as_u64();
    assert_eq!(orderd.reload()["outcome"], "applied");
    assert!(breaker(&orderd)["openings"].as_u64() >= openings, "its state survives a reload");
    fs::write(env.directory.path().join("up"), "").unwrap();
    env.ledger().await_settled(60);
    assert_eq!(env.ledger().number("SELECT count(*) FROM dead_letters"), 0);
    publish(&env, 61..=130);
    env.ledger().await_settled(130);
    assert_eq!(breaker(&orderd)["state"], "closed");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_rate_limit_holds_from_the_start_and_a_reload_changes_it_at_once() {
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).set("consumers.order.rate_limit", "20/s").with_file();
    let mut orderd = env.start();
    let begun = Instant::now();
    publish(&env, 1..=30);
    env.ledger().await_settled(30);
    // Two at once, then twenty a second.
    assert!(begun.elapsed().as_millis() >= 1_350, "{:?}", begun.elapsed());
    assert_eq!(orderd.status()["consumers"]["order"]["rate_limit"], "20/s");
    file.set("consumers.order.rate_limit", "1/m").save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    publish(&env, 31..=40);
    wait_until("some wait", || {
        let status = orderd.status();
        let counts = &status["consumers"]["order"];
        counts["rate_limit"] == "1/m" && counts["in_flight"] == 0
    });
    file.set("consumers.order.rate_limit", "off").save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    env.ledger().await_settled(40);
    assert_eq!(orderd.stop(), 0);
}
