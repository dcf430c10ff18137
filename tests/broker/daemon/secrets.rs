//! No output contains a secret, and JSON logs are valid JSON.

use std::fs;

use serde_json::Value;

use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{TestEnv, order};
use crate::support::{Node, http};

const PASSWORD: &str = "Zq8-vaNilla%2F&seCret";
const WRONG: &str = "Wr0ng-&-distinCtive";
const MANAGEMENT: &str = "Mgmt-#-pAssword";
const TOKEN: &str = "t0ken-0f-the-admin-listener";
const USER: &str = "teller";

fn assert_no_secret(output: &str, what: &str) {
    for secret in [PASSWORD, WRONG, MANAGEMENT, TOKEN] {
        let base64 = [secret, &format!("{USER}:{secret}")].map(base64);
        for form in [secret.to_owned()].into_iter().chain(base64) {
            assert!(!output.contains(&form), "{what} contains a password: {output}");
        }
    }
    assert!(!output.is_empty(), "{what} is empty");
}

/// Base64 without padding.
fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.as_bytes().chunks(3).flat_map(|chunk| {
        let number = chunk.iter().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte)) << (8 * (3 - chunk.len()));
        (0..=chunk.len()).map(move |digit| char::from(DIGITS[number >> (18 - 6 * digit) & 63]))
    });
    digits.collect()
}

#[test]
fn no_password_is_ever_printed_and_json_logs_are_json() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let vhost = env.vhost.name.clone();
    let user = format!("{USER}-{vhost}");
    let create = format!(r#"{{"password":"{PASSWORD}","tags":"administrator"}}"#);
    assert_eq!(node.management("PUT", &format!("/users/{user}"), &create).0, 201);
    let everything = r#"{"configure":".*","write":".*","read":".*"}"#;
    assert_eq!(node.management("PUT", &format!("/permissions/{vhost}/{user}"), everything).0, 201);
    let watcher = format!("watcher-{vhost}");
    let create = format!(r#"{{"password":"{MANAGEMENT}","tags":"administrator"}}"#);
    assert_eq!(node.management("PUT", &format!("/users/{watcher}"), &create).0, 201);
    let logs = env.directory.path().join("logs");
    let token = env.directory.path().join("token");
    fs::write(&token, TOKEN).unwrap();
    let env = env
        .set("broker.username", &user)
        .set("broker.password", PASSWORD)
        .set("management.username", &watcher)
        .set("management.password", MANAGEMENT)
        .set("admin.users", &format!("[{{name = 'ada', role = 'viewer', token_file = {token:?}}}]"))
        .set("log.level", "trace")
        .set("log.directory", logs.to_str().unwrap());

    let mut orderd = env.start();
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), b"malformed");
    env.ledger().await_settled(1);
    for page in ["/api/v1/status", "/metrics", "/readyz"] {
        let address = orderd.admin_address();
        let request = format!(
            "GET {page} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {TOKEN}\r\nConnection: close\r\n\r\n"
        );
        let answer = http::send(address, &request);
        assert_eq!(answer.status, 200, "{page}: {answer:?}");
        assert_no_secret(&format!("{answer:?}"), page);
    }
    assert_no_secret(&orderd.command_line(), "the command line");
    assert_eq!(orderd.stop(), 0);
    assert_no_secret(&orderd.output(), "the daemon");
    for line in orderd.output().lines() {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["timestamp"].is_string() && line["level"].is_string() && line["message"].is_string(), "{line}");
    }
    for arguments in [&["check"][..], &["check", "--format", "json"], &["check", "--connect"]] {
        let mut check = env.command(arguments);
        assert_eq!(check.wait_for_exit(), 0, "{}", check.output());
        assert_no_secret(&check.output(), "check");
    }

    let env = env.set("broker.password", WRONG);
    let mut refused = env.spawn();
    assert_eq!(refused.wait_for_exit(), 78);
    assert_no_secret(&refused.output(), "the refused daemon");
    let mut check = env.command(&["check", "--connect"]);
    assert_ne!(check.wait_for_exit(), 0);
    assert_no_secret(&check.output(), "the refused check");
    let mut refused = env.command(&["check", "--set", &format!("broker.password={PASSWORD}")]);
    assert_eq!(refused.wait_for_exit(), 78);
    assert!(refused.output().contains("broker.password: must not be on the command line"), "{}", refused.output());
    assert_no_secret(&refused.output(), "the complaint about the command line");
    let misspelt = TestEnv::new(&node).set("broker.passwort", PASSWORD);
    let mut refused = misspelt.spawn();
    assert_eq!(refused.wait_for_exit(), 78);
    assert_no_secret(&refused.output(), "the complaint about an unknown key");

    let files: Vec<_> = fs::read_dir(&logs).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 2, "orderd's own and the analytics events: {files:?}");
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        assert_no_secret(&text, &file.display().to_string());
        text.lines().for_each(|line| drop(serde_json::from_str::<Value>(line).unwrap()));
    }
    for user in [user, watcher] {
        assert_eq!(node.management("DELETE", &format!("/users/{user}"), "").0, 204);
    }
}
