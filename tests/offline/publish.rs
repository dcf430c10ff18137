//! `orderd publish` without a broker.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml");

#[test]
fn a_signal_while_the_broker_is_not_reached_yet_ends_publish_with_a_summary() {
    for signal in ["TERM", "INT"] {
        let mut publish = crate::orderd()
            .args(["publish", "--config", CONFIG, "--format", "json", "--connect-timeout", "1h"])
            .args(["--set", "broker.addresses=127.0.0.1:1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A pipe that stays open.
        let mut input = publish.stdin.take().unwrap();
        input.write_all(b"{}\n").unwrap();
        let mut errors = BufReader::new(publish.stderr.take().unwrap());
        let mut line = String::new();
        errors.read_line(&mut line).unwrap();
        assert!(line.contains("trying again"), "{line}");
        let sent = Command::new("kill").args(["-s", signal, &publish.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let output = publish.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{signal}");
        let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&summary["end"], &summary["published"]), (&"interrupted".into(), &0.into()), "{signal}");
        drop(input);
    }
}
