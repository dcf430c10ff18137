//! `orderd probe` of a running daemon.

use crate::support::test_env::{TestEnv, wait_until};
use crate::support::{Node, free_address};

/// A test environment whose daemon has a fixed admin address, so that commands find it through the configuration.
fn with_admin(node: &Node) -> TestEnv<'_> {
    TestEnv::new(node).set("admin.listen", &free_address().to_string())
}

fn probe(env: &TestEnv<'_>, arguments: &[&str]) -> (i32, String) {
    let mut command = env.command(&[&["probe"], arguments].concat());
    (command.wait_for_exit(), command.output())
}

#[test]
fn probe_distinguishes_alive_from_ready_and_names_what_is_missing() {
    let node = Node::shared();
    let env = with_admin(&node);
    assert_eq!(env.start().stop(), 0);
    let other = rusqlite::Connection::open(env.ledger_directory().join("orderd.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut orderd = env.spawn();
    orderd.admin_address();
    assert_eq!(probe(&env, &[]), (0, "live\n".to_owned()));
    let (code, output) = probe(&env, &["--ready"]);
    assert_eq!(code, 69, "{output}");
    assert!(output.contains("is not ready (503)") && output.contains("ledger: not open yet"), "{output}");
    let (code, output) = probe(&env, &["--ready", "--format", "json"]);
    let answer: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert_eq!((code, &answer["ok"], &answer["status"]), (69, &false.into(), &503.into()));

    other.execute_batch("ROLLBACK").unwrap();
    wait_until("it is ready", || probe(&env, &["--ready"]) == (0, "ready\n".to_owned()));
    assert_eq!(orderd.stop(), 0);
    assert_eq!(probe(&env, &[]).0, 69);
}
