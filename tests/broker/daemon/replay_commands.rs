//! The commands that act on dead letters, in scripts: what they print and how they exit, with a daemon and without one.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use super::pause::send_command;
use super::replays::{Service, ask, dead_letter_orders, json_of, open, replay_env, states};
use crate::support::step_server::{StepServer, reply};
use crate::support::test_env::{TestEnv, order, wait_until};
use crate::support::{Node, free_address};

/// The exit code and the output of a command that finds the daemon by its configuration.
fn run(env: &TestEnv<'_>, arguments: &[&str]) -> (i32, String) {
    let output = env.program(&[&["dead-letters"], arguments].concat()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    (output.status.code().unwrap(), stdout + &stderr)
}

#[test]
fn a_replay_that_nobody_waits_for_can_be_followed_listed_and_looked_into_page_by_page() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("dead_letters.collect", "true").set("log.level", "info");
    let mut orderd = env.start();
    let (ledger, letters) = (env.ledger(), 1_010);
    let unrouted = (0..letters).map(|n| ("oder.normal.web".to_owned(), order(&format!("o-{n}"))));
    env.raw().publish_all("orders", unrouted);
    wait_until("all are stored", || open(&ledger) == letters);
    assert_eq!(ask(&env, &orderd, &["replays"]), (0, "no replays\n".to_owned()));
    assert_eq!(send_command(&orderd, "pause", "order").0, 200);
    let arguments = ["replay", "--source", "unrouted_queue", "--to", "order_queue", "--yes", "--no-canary", "--rate"];
    let (code, text) = ask(&env, &orderd, &[&arguments[..], &["1000", "--detach"]].concat());
    assert!(code == 0 && text.contains("; follow it with `orderd dead-letters replays 1`\n"), "{code}: {text}");
    let selected = "SELECT count(*) FROM replay_letters WHERE state = 'selected'";
    wait_until("all are selected", || ledger.number(selected) == letters);
    let (code, text) = ask(&env, &orderd, &[&arguments[..], &["1000", "--detach"]].concat());
    assert!(
        code == 3 && text.contains("1010 not replayed, because they are being replayed in replay 1: 1, 2, "),
        "{code}: {text}"
    );
    assert_eq!(send_command(&orderd, "resume", "order").0, 200);
    let (code, text) = ask(&env, &orderd, &["replays", "1"]);
    assert!(code == 0 && text.contains("replay 1 finished: 1010 processed\n"), "{code}: {text}");
    let (code, text) = ask(&env, &orderd, &["replays", "1"]);
    assert_eq!((code, text.as_str()), (0, "replay 1 finished: 1010 processed\n"), "again");
    let (code, text) = ask(&env, &orderd, &["replays"]);
    assert!(code == 0 && text.contains("Z  replay 1 finished: 1010 processed  (by local/"), "{code}: {text}");

    // Two pages of the API.
    let (code, text) = ask(&env, &orderd, &["replays", "--letters", "1"]);
    let rows: BTreeSet<Vec<&str>> = text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert!(code == 0 && rows.len() as u64 == letters, "{code}: {} rows", rows.len());
    assert!(rows.contains(&vec!["1", "processed", "-", "-"]) && rows.contains(&vec!["1010", "processed", "-", "-"]));
    let listed = json_of(&env, &orderd, &["replays", "--letters", "1"], 0);
    assert_eq!((listed["letters"].as_array().unwrap().len() as u64, &listed["next"]), (letters, &Value::Null));
    assert_eq!(listed["letters"][1_009]["id"], 1_010);
    for option in [&["replays", "2"][..], &["replays", "--letters", "2"], &["replays", "--stop", "2"]] {
        let (code, text) = ask(&env, &orderd, option);
        assert!(code == 1 && text.contains("there is no replay 2"), "{option:?} {code}: {text}");
    }
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn what_hold_release_and_discard_would_do_is_shown_and_nothing_is_discarded_without_a_confirmation() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("dead_letters.collect", "true");
    let mut orderd = env.start();
    let ledger = env.ledger();
    let unrouted = (0..4).map(|n| ("oder.normal.web".to_owned(), order(&format!("o-{n}"))));
    env.raw().publish_all("orders", unrouted);
    wait_until("all are stored", || open(&ledger) == 4);
    let journal = || ledger.number("SELECT count(*) FROM journal");
    let recorded = journal();

    let (code, text) = ask(&env, &orderd, &["hold", "--all", "--dry-run"]);
    assert!(code == 0 && text.starts_with("to hold: 4 dead letters, 4800.00 EUR\n"), "{code}: {text}");
    let (code, text) = ask(&env, &orderd, &["discard", "1", "99", "--dry-run"]);
    assert!(code == 1 && text.contains("to discard: 1 dead letter, 1200.00 EUR\n"), "{code}: {text}");
    assert!(text.contains("  there is no dead letter 99\n"), "{text}");
    let (code, text) = ask(&env, &orderd, &["release", "--all", "--dry-run"]);
    assert!(
        code == 3 && text.contains("nothing to release: of 4 dead letters that match, none is held"),
        "{code} {text}"
    );
    let (code, text) = ask(&env, &orderd, &["discard", "--all", "--note", "test"]);
    assert!(code == 64 && text.contains("nothing was done: use --yes"), "{code}: {text}");
    assert_eq!((states(&ledger), journal()), (vec!["open|4".to_owned()], recorded), "looking changes nothing");

    let (code, text) = ask(&env, &orderd, &["hold", "1", "2", "--note", "SHOP-7"]);
    assert_eq!((code, text.as_str()), (0, "held: 2 dead letters, 2400.00 EUR\n"));
    let (code, text) = ask(&env, &orderd, &["hold", "1", "2", "3", "99", "--note", "SHOP-7"]);
    assert!(code == 1 && text.contains("held: 3 dead letters, 3600.00 EUR\n"), "with the new note: {code}: {text}");
    assert!(text.contains("  there is no dead letter 99\n"), "{text}");
    let (code, text) = ask(&env, &orderd, &["release", "--all", "--dry-run"]);
    assert!(code == 0 && text.contains("to release: 3 dead letters"), "{code}: {text}");
    let released = json_of(&env, &orderd, &["release", "1"], 0);
    assert_eq!((&released["changed"], &released["refused"]), (&json!(1), &json!({})), "{released}");
    let (code, text) = ask(&env, &orderd, &["discard", "--state", "held", "--note", "test", "--yes"]);
    assert!(code == 0 && text.contains("discarded: 2 dead letters, 2400.00 EUR\n"), "{code}: {text}");
    assert_eq!(states(&ledger), ["discarded|2", "open|2"]);
    let (code, text) = ask(&env, &orderd, &["discard", "2", "4", "--note", "test", "--yes"]);
    assert!(code == 0 && text.contains("  1 dead letter was already discarded\n"), "{code}: {text}");
    let (code, text) = ask(&env, &orderd, &["release", "2"]);
    assert!(code == 3 && text.contains("dead letter 2 is discarded"), "{code}: {text}");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_replay_is_stopped_at_the_daemon_or_in_the_ledger_if_none_answers_but_not_instead_of_one_that_is_named() {
    let node = Node::shared();
    let server = StepServer::start();
    let (service, env) = (Service::start(&server), replay_env(&node, &server));
    let admin = free_address().to_string();
    let mut env = env.set("admin.listen", &admin);
    let mut orderd = env.start();
    let ledger = env.ledger();
    dead_letter_orders(&env, 4);
    service.repair();
    assert_eq!(send_command(&orderd, "pause", "order").0, 200);
    let replay = |ids: &[&str]| run(&env, &[&["replay", "--yes", "--detach"], ids].concat()).0;
    assert_eq!((replay(&["1"]), replay(&["2"]), replay(&["3"]), replay(&["4"])), (0, 0, 0, 0));
    let state =
        |id: u64| ledger.rows(&format!("SELECT state, end_reason, stopped_by FROM replays WHERE id = {id}")).concat();
    wait_until("all are selected", || {
        ledger.number("SELECT count(*) FROM replay_letters WHERE state = 'selected'") == 4
    });

    let (code, text) = run(&env, &["replays", "--stop", "1"]);
    assert!(code == 0 && text.contains("stopped by local/") && text.contains("1 dead letter is open again"), "{text}");
    assert!(state(1).starts_with("stopped|requested|local/"), "{}", state(1));
    let (code, text) = run(&env, &["replays", "--stop", "1"]);
    assert!(code == 0 && text.contains("replay 1 stopped"), "{code}: {text}");

    assert_eq!(orderd.stop(), 0);
    let (code, text) = run(&env, &["replays", "--stop", "2", "--address", &admin]);
    assert!(code == 69 && state(2).starts_with("running"), "it may be a daemon with another ledger: {code} {text}");
    let (code, text) = run(&env, &["replays", "--stop", "2"]);
    assert!(code == 0 && text.contains("stopping replay 2 in the ledger"), "{code}: {text}");
    assert!(state(2).starts_with("stopped|requested|local/"), "{}", state(2));
    assert_eq!(run(&env, &["replays", "--stop", "9"]).0, 1);
    env.change("admin.listen", "off");
    let (code, text) = run(&env, &["replays", "--stop", "3"]);
    assert!(code == 0 && text.contains("stopping replay 3 in the ledger"), "{code}: {text}");
    assert_eq!(states(&ledger), ["open|3", "replaying|1"]);

    // The stop of one that is on its way waits for the outcome.
    env.change("admin.listen", &admin);
    server.answer(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1_200));
        reply("200 OK", "1")
    });
    let mut orderd = env.start();
    assert_eq!(send_command(&orderd, "resume", "order").0, 200);
    wait_until("the service is called", || server.in_flight() == 1);
    let (code, text) = run(&env, &["replays", "--stop", "4"]);
    assert!(code == 0 && text.contains("1 waiting for an outcome"), "{code}: {text}");
    assert!(
        text.contains("replay 4 stopped: 1 processed") || text.contains("replay 4 finished: 1 processed"),
        "{text}"
    );
    assert_eq!(states(&ledger), ["open|3", "replayed|1"]);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_viewer_acts_on_no_dead_letter_and_without_a_daemon_nobody_does() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let (viewer, file) = (env.directory.path().join("viewer"), env.directory.path().join("body.json"));
    fs::write(&viewer, "fedcba9876543210\n").unwrap();
    fs::write(&file, order("ord-1")).unwrap();
    let users = format!("[{{name = 'bob', role = 'viewer', token_file = {viewer:?}}}]");
    let admin = free_address().to_string();
    let env = env.set("dead_letters.collect", "true").set("admin.listen", &admin).set("admin.users", &users);
    let mut orderd = env.start();
    let ledger = env.ledger();
    env.raw().publish_all("orders", [("order.normal.web".to_owned(), b"not an order".to_vec())]);
    wait_until("it is stored", || open(&ledger) == 1);
    let commands = [
        &["replay", "1", "--yes"][..],
        &["replay", "--all", "--yes", "--detach"],
        &["replays", "--stop", "1"],
        &["edit", "1", "--file", file.to_str().unwrap()],
        &["hold", "1", "--note", "SHOP-7"],
        &["release", "1"],
        &["discard", "1", "--note", "test", "--yes"],
    ];
    for command in commands {
        let token = ["--token-file", viewer.to_str().unwrap()];
        let (code, text) = run(&env, &[command, &token].concat());
        assert!(code == 77 && text.contains("403") && text.contains("bob"), "{command:?} {code}: {text}");
    }
    let token = ["--token-file", viewer.to_str().unwrap()];
    assert_eq!(run(&env, &[&["replays"], &token[..]].concat()).0, 0, "a viewer reads");
    assert_eq!(orderd.stop(), 0);
    for command in commands {
        let (code, text) = run(&env, &[command, &["--address", &admin]].concat());
        assert!(code == 69 && text.contains(&admin), "{command:?} {code}: {text}");
    }
    assert_eq!((states(&ledger), ledger.number("SELECT count(*) FROM replays")), (vec!["open|1".to_owned()], 0));
    assert_eq!(ledger.number("SELECT count(*) FROM stored_contents"), 1);
}
