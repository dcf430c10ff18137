//! `orderd status`: what it shows about a running daemon, and what it says when a daemon, broker or API is missing.

use serde_json::Value;

use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{TestEnv, order, wait_until};
use crate::support::{Node, free_address};

fn with_admin(node: &Node) -> TestEnv<'_> {
    TestEnv::new(node).set("admin.listen", &free_address().to_string()).set("management.poll_every", "500ms")
}

/// Runs `orderd status`. Returns its exit code and everything it printed.
fn status(env: &TestEnv<'_>, arguments: &[&str]) -> (i32, String) {
    let mut command = env.command(&[&["status"], arguments].concat());
    (command.wait_for_exit(), command.output())
}

#[test]
fn one_screen_shows_daemon_queues_consumers_and_that_nothing_is_missing() {
    let node = Node::shared();
    let env =
        with_admin(&node).set("consumers.order.retry.delays", "1h").set("consumers.order.faults.transient", "0.5");
    let mut orderd = env.start();
    let orders = (0..100).map(|n| ("order.normal.created".to_owned(), order(&format!("ord-{n}"))));
    env.raw().publish_all("orders", orders);
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), b"{not json");
    let ledger = env.ledger();
    let count = |query: &str| ledger.number(query);
    let (processed, retried) =
        ("SELECT count(*) FROM orders WHERE status = 'processed'", "SELECT count(*) FROM attempts WHERE delay = '1h'");
    wait_until("everything is settled", || {
        count(processed) + count(retried) == 100 && count("SELECT count(*) FROM dead_letters") == 1
    });
    let (processed, retried) = (count(processed), count(retried));
    let waiting = format!("{retried} in 1h");
    wait_until("the broker has reported everything", || status(&env, &[]).1.contains(&waiting));

    let (code, text) = status(&env, &[]);
    assert_eq!(code, 0, "{text}");
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "running, up ",
        "(generation 1)",
        "ready yes",
        "connections 6 open",
        "nothing is missing",
        "order: 1h",
        "malformed 1",
    ] {
        assert!(words.contains(part), "no {part:?}: {text}");
    }
    let row = text.lines().find(|line| line.trim_start().starts_with("order ")).unwrap_or_else(|| panic!("{text}"));
    let cells: Vec<_> = row.split_whitespace().collect();
    // Consumer, workers, in-flight, oldest, done, duplicate, failed, retried, dead.
    assert_eq!(cells[..3], ["order", "4/4", "0"], "{text}");
    let numbers = [processed, 0, retried + 1, retried, 1].map(|number| number.to_string());
    assert_eq!(cells[4..9], numbers, "{text}");
    let row = text.lines().find(|line| line.trim_start().starts_with("dead_letter_queue ")).unwrap();
    assert_eq!(row.split_whitespace().nth(1), Some("1"), "{text}");

    let (code, output) = status(&env, &["--format", "json"]);
    assert_eq!(code, 0);
    let json: Value = serde_json::from_str(&output).unwrap();
    assert_eq!(json["consumers"]["order"]["processed"], processed);
    assert_eq!(json["consumers"]["order"]["dead_letters"]["malformed"], 1);
    assert_eq!(json["broker"]["queues"]["order_queue.retry.1h"]["ready"], retried);
    assert_eq!(json["broker"]["api"]["state"], "fresh");
    assert_eq!((&json["conservation_ok"], &json["daemon"]["config_generation"]), (&true.into(), &1.into()));

    let mut watching = env.command(&["status", "--watch", "100ms", "--format", "json"]);
    wait_until("it is shown repeatedly", || watching.output().lines().count() >= 3);
    watching.kill();
    for line in watching.output().lines().take(2) {
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["conservation_ok"], true);
    }
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn without_a_daemon_status_says_what_to_do() {
    let node = Node::shared();
    let env = with_admin(&node);
    let (code, output) = status(&env, &[]);
    assert_eq!(code, 69, "{output}");
    assert!(output.contains("no daemon answers") && output.contains("orderd run"), "{output}");
    let off = env.set("admin.listen", "off");
    let (code, output) = status(&off, &[]);
    assert_eq!(code, 78, "{output}");
    assert!(output.contains("admin.listen"), "{output}");
}

#[test]
fn without_a_broker_status_shows_the_daemon_and_that_the_broker_is_unreachable() {
    let node = Node::shared();
    let env = with_admin(&node).set("broker.addresses", &free_address().to_string());
    let mut orderd = env.spawn();
    orderd.admin_address();
    // It answers before the ledger is open.
    wait_until("the ledger is open", || status(&env, &[]).1.contains("NO: topology"));
    let (code, output) = status(&env, &[]);
    assert_eq!(code, 69, "{output}");
    for part in ["starting", "NO: topology", "no connection to the broker"] {
        assert!(output.contains(part), "no {part:?}: {output}");
    }
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn without_a_management_api_status_shows_the_reason_and_everything_else() {
    let node = Node::shared();
    let env = with_admin(&node).set("management.url", "http://127.0.0.1:1");
    let mut orderd = env.start();
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    env.ledger().await_settled(1);
    wait_until("the reason is shown", || {
        let (code, output) = status(&env, &[]);
        assert_eq!(code, 0, "{output}");
        output.contains("UNREACHABLE")
            && output.contains("cannot reach the management API")
            && output.contains("ready         yes")
    });
    assert_eq!(orderd.stop(), 0);
    let off = env.set("management.poll_every", "off");
    let mut orderd = off.start();
    let (_, output) = status(&off, &[]);
    assert!(output.contains("management.poll_every"), "{output}");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn status_sends_the_token_in_the_ledgers_directory() {
    let node = Node::shared();
    let env = with_admin(&node);
    let file = env.directory.path().join("token");
    std::fs::write(&file, "0123456789abcdef").unwrap();
    let env = env.set("admin.users", &format!("[{{name = 'ada', role = 'viewer', token_file = {file:?}}}]"));
    let mut orderd = env.start();
    wait_until("its connections are open", || status(&env, &[]).0 == 0);
    std::fs::write(&file, "fedcba9876543210").unwrap();
    let (code, output) = status(&env, &["--token-file", file.to_str().unwrap()]);
    assert_eq!(code, 77, "{output}");
    assert!(output.contains("401"), "{output}");
    assert_eq!(orderd.stop(), 0);
}
