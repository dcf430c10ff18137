//! Commands whose output cannot be written: a reader that is gone, and a full disk.

use std::fs::File;
use std::io;
use std::process::{Output, Stdio};

use jiff::Timestamp;
use orderd::ledger::sqlite::SqliteLedger;
use orderd::ledger::{
    Identification, JournalAction, JournalWriter, LedgerMaintenance, LetterOrder, LetterOrigin, LetterSource,
    LetterWriter, NewJournalEntry, NewStoredLetter,
};
use serde_json::json;
use tempfile::TempDir;

const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml");

const ORDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/offline/documents/shopify.json");

/// A directory with a ledger that has a dead letter and an entry in its journal.
async fn ledger() -> TempDir {
    let directory = TempDir::new().unwrap();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let now = Timestamp::now();
    let letter = NewStoredLetter {
        source: LetterSource::DeadLetterQueue,
        origin: LetterOrigin::Others,
        reason: "foreign".to_owned(),
        code: "foreign".to_owned(),
        failure_kind: None,
        failure_reason: None,
        consumer: String::new(),
        retries: 0,
        identity: None,
        order: LetterOrder::default(),
        origin_queue: None,
        exchange: "orders.dead_letter".to_owned(),
        routing_key: "any".to_owned(),
        message_id: None,
        user_id: None,
        failed_at: now,
        died_at: None,
        at: now,
        properties: "{}".to_owned(),
        headers: "{}".to_owned(),
        body: b"a body".as_slice().into(),
        search: "a body".to_owned(),
        fingerprint: [7; 32],
        replay_key: None,
        identification: Identification::Unidentified,
        redelivered: false,
        unparsed: false,
        session: "a".to_owned(),
    };
    ledger.store_letter(letter).await.unwrap();
    let entry = NewJournalEntry::new(now, "ada", JournalAction::Pause, &json!({"consumer": "order"}), &json!({}));
    ledger.record_action(entry).await.unwrap();
    ledger.close().await;
    directory
}

/// Every command that prints without a daemon or a broker, with its exit code when the output can be written.
fn commands(ledger: &TempDir) -> Vec<(Vec<String>, i32)> {
    let backup = ledger.path().join("backup.db").display().to_string();
    let ledger = format!("ledger.directory={}", ledger.path().display());
    let with_config = |arguments: &[&str]| {
        let arguments = [arguments, &["--config", CONFIG, "--set", &ledger]].concat();
        arguments.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    // No daemon is asked: one may run on this machine.
    let with_ledger = |arguments: &[&str]| with_config(&[arguments, &["--set", "admin.listen=off"]].concat());
    let plain = |arguments: &[&str]| arguments.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>();
    vec![
        (with_config(&["check"]), 0),
        (with_config(&["check", "--format", "json"]), 0),
        (with_config(&["check", "--permissions"]), 0),
        // The exit code of a refused configuration is kept, too.
        (with_config(&["check", "--format", "json", "--set", "log.level=nonsense"]), 78),
        (with_config(&["check", "--order", ORDER, "--format", "shopify"]), 0),
        (with_config(&["check", "--order", ORDER, "--format", "shopify", "--format", "json"]), 0),
        (with_config(&["notify", "--preview", "processed", "--order", ORDER, "--format", "shopify"]), 0),
        (with_config(&["report"]), 0),
        (with_config(&["report", "--format", "csv"]), 0),
        (with_config(&["report", "--format", "json"]), 0),
        (with_config(&["trace", "ord-1"]), 1),
        (with_config(&["trace", "ord-1", "--format", "json"]), 1),
        (with_config(&["erase", "--customer", "c-1"]), 1),
        (with_config(&["erase", "--order", "ord-1", "--dry-run", "--format", "json"]), 1),
        (with_config(&["erase", "--message", "m-1", "--include-unfinished"]), 1),
        (with_ledger(&["dead-letters", "list"]), 0),
        (with_ledger(&["dead-letters", "list", "--code", "nope", "--format", "json"]), 0),
        (with_ledger(&["dead-letters", "list", "--group"]), 0),
        (with_ledger(&["dead-letters", "show", "1"]), 0),
        (with_ledger(&["dead-letters", "show", "1", "--format", "json"]), 0),
        (with_ledger(&["dead-letters", "export"]), 0),
        (with_ledger(&["dead-letters", "export", "--format", "csv"]), 0),
        (with_ledger(&["journal", "list"]), 0),
        (with_ledger(&["journal", "list", "--format", "ndjson"]), 0),
        (with_ledger(&["journal", "verify"]), 0),
        (with_ledger(&["journal", "verify", "--format", "json", "--expect", &"0".repeat(64)]), 1),
        (with_config(&["ledger", "backup", "--force", &backup]), 0),
        (with_config(&["ledger", "backup", "--force", &backup, "--format", "json"]), 0),
        (with_config(&["probe", "--format", "json", "--set", "admin.listen=127.0.0.1:1"]), 69),
        (plain(&["completions", "bash"]), 0),
        (plain(&["completions", "zsh"]), 0),
        (plain(&["man"]), 0),
        (plain(&["schema", "config"]), 0),
        (plain(&["schema", "order"]), 0),
        (plain(&["--help"]), 0),
        (plain(&["help", "run"]), 0),
        (plain(&["--version"]), 0),
    ]
}

fn run(arguments: &[String], stdout: Stdio, stderr: Stdio) -> Output {
    crate::orderd().args(arguments).stdout(stdout).stderr(stderr).output().unwrap()
}

fn closed_pipe() -> Stdio {
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full_device() -> Stdio {
    File::create("/dev/full").unwrap().into()
}

#[tokio::test]
async fn a_closed_pipe_is_silent_and_changes_no_exit_code() {
    let ledger = ledger().await;
    for (arguments, expected) in commands(&ledger) {
        let output = run(&arguments, closed_pipe(), Stdio::piped());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(expected), "{arguments:?}: {error}");
        assert!(!error.contains("output") && !error.contains("panicked"), "{arguments:?}: {error}");
    }
}

#[tokio::test]
async fn a_full_device_is_reported_with_70() {
    let ledger = ledger().await;
    for (arguments, _) in commands(&ledger) {
        let output = run(&arguments, full_device(), Stdio::piped());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(70), "{arguments:?}: {error}");
        assert!(error.contains("cannot write the output"), "{arguments:?}: {error}");
    }
}

#[tokio::test]
async fn errors_that_cannot_be_written_change_no_exit_code() {
    let ledger = ledger().await;
    for stderr in [closed_pipe, full_device] {
        for (arguments, expected) in commands(&ledger) {
            assert_eq!(run(&arguments, Stdio::piped(), stderr()).status.code(), Some(expected), "{arguments:?}");
        }
        let missing = ["check".to_owned(), "--config".to_owned(), "/nowhere/orderd.toml".to_owned()];
        assert_eq!(run(&missing, Stdio::piped(), stderr()).status.code(), Some(78));
        assert_eq!(run(&["--nonsense".to_owned()], Stdio::piped(), stderr()).status.code(), Some(64));
    }
}

/// What others choose and scripts pass on: a forged line, escape sequences, hidden characters.
const HOSTILE: &str =
    "1\n2026-11-22T08:00:00Z ERROR forged\r\u{1b}[2J\u{7}\u{8}\u{9b}31m\u{85}\u{202e}\u{2066}\u{2028}\u{200b}";

#[tokio::test]
async fn no_argument_variable_path_or_configured_name_forges_a_line_or_reaches_the_terminal() {
    let ledger = ledger().await;
    let setting = |key: &str| format!("{key}={HOSTILE}");
    let (host, level, exchange) = (setting("broker.virtual_host"), setting("log.level"), setting("topology.exchange"));
    let backup = ledger.path().join(HOSTILE).display().to_string();
    let directory = format!("ledger.directory={}", ledger.path().display());
    for arguments in [
        vec!["trace", HOSTILE],
        vec!["trace", HOSTILE, "--format", "json"],
        vec!["erase", "--customer", HOSTILE],
        vec!["erase", "--order", HOSTILE, "--format", "json"],
        vec!["erase", "--message", HOSTILE],
        vec!["report", "--since", HOSTILE],
        vec!["report", "--by", HOSTILE],
        vec!["report", "--format", HOSTILE],
        vec!["pause", HOSTILE],
        vec!["status", "--address", HOSTILE],
        vec!["publish", HOSTILE],
        vec!["ledger", "backup", &backup],
        vec!["check", "--set", &host],
        vec!["check", "--set", &level],
        vec!["check", "--set", &exchange],
        vec!["check", "--set", HOSTILE],
        vec!["check"],
        vec!["completions", HOSTILE],
        vec![HOSTILE],
    ] {
        let config: &[&str] = if arguments[0] != HOSTILE { &["--config", CONFIG, "--set", &directory] } else { &[] };
        // A variable with such a name makes every command fail, so it is set for one.
        let variable = if arguments == ["check"] { "ORDERD_LOG__\n2026\u{1b}" } else { "OTHER" };
        let output = crate::orderd().args(&arguments).args(config).env(variable, HOSTILE).output().unwrap();
        for text in [output.stdout, output.stderr] {
            let text = String::from_utf8(text).unwrap();
            let shown = text.replace(['\n', '\t'], "");
            assert!(!shown.contains(orderd::escape::is_escaped), "{arguments:?}: {shown:?}");
            assert!(!text.lines().any(|line| line.starts_with("2026")), "{arguments:?}: {text}");
        }
    }
}

#[test]
fn a_configuration_file_without_its_option_is_refused_with_the_option() {
    let output = crate::orderd().args(["check", CONFIG]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(64), "{error}");
    assert!(error.contains(&format!("--config {CONFIG}")), "{error}");
}

#[tokio::test]
async fn what_was_recorded_can_be_read_although_the_configuration_has_errors_elsewhere() {
    let ledger = ledger().await;
    let set = format!("ledger.directory={}", ledger.path().display());
    for (arguments, code) in [(&["report", "--format", "json"][..], 0), (&["trace", "ord-1", "--format", "json"], 1)] {
        let output = |more: &[&str]| {
            let common = ["--config", CONFIG, "--set", &set, "--set", "consumers.order.workers=0"];
            let output = crate::orderd().args(arguments).args(common).args(more).output().unwrap();
            let text = |bytes| String::from_utf8(bytes).unwrap();
            (output.status.code(), text(output.stdout), text(output.stderr))
        };
        let (found, out, err) = output(&[]);
        assert_eq!(found, Some(code), "{err}");
        assert!(err.contains("the configuration has errors") && err.contains(ledger.path().to_str().unwrap()), "{err}");
        let report: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert!(report["broker_error"].is_null() == (arguments[0] == "report"), "{report}");
        // Not if the error may be about the ledger.
        assert_eq!(output(&["--set", "ledger.directory="]).0, Some(78));
    }
}

#[test]
fn a_configuration_with_errors_is_shown_with_its_warnings() {
    let check = |set: &str| {
        let output = crate::orderd().args(["check", "--config", CONFIG, "--set", set]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, err) = check("log.level=nonsense");
    assert_eq!(code, Some(78));
    assert!(err.contains("error: ") && err.contains("warning: ") && err.contains("default user \"guest\""), "{err}");
    assert!(!check("broker.username=").1.contains("default user"));
}
