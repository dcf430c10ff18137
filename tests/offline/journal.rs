//! `orderd journal`: what it shows of a ledger, and what it finds after somebody has changed the file.

use std::path::Path;

use jiff::Timestamp;
use orderd::ledger::sqlite::SqliteLedger;
use orderd::ledger::{JournalAction, JournalWriter, LedgerMaintenance, NewJournalEntry};
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

fn journal(directory: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let setting = format!("ledger.directory={}", directory.to_str().unwrap());
    let mut command = crate::orderd();
    command.arg("journal").args(arguments).args(["--set", &setting, "--config"]);
    let output = command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml")).output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

fn read(directory: &Path, arguments: &[&str]) -> (Option<i32>, Value) {
    let (code, text) = journal(directory, arguments);
    (code, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

#[tokio::test]
async fn the_journal_is_shown_page_by_page_and_whatever_is_done_to_it_is_found() {
    let directory = TempDir::new().unwrap();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    for (actor, action) in
        [("ada", JournalAction::Pause), ("bob", JournalAction::Pause), ("ada", JournalAction::Resume)]
    {
        let subject = json!({ "consumer": "order\u{1b}[2J" });
        let entry = NewJournalEntry::new(Timestamp::now(), actor, action, &subject, &json!({ "changed": true }));
        ledger.record_action(entry).await.unwrap();
    }
    ledger.close().await;
    let path = directory.path();

    let (code, page) = read(path, &["list", "--limit", "2", "--since", "1h", "--format", "json"]);
    assert_eq!((code, &page["entries"][0]["action"], &page["next"]), (Some(0), &json!("resume"), &json!(2)));
    let (_, lines) = journal(path, &["list", "--before", "2", "--format", "ndjson"]);
    assert_eq!(serde_json::from_str::<Value>(&lines).unwrap()["seq"], 1);
    let (_, text) = journal(path, &["list", "--actor", "bob", "--action", "pause"]);
    assert!(text.lines().count() == 2 && text.contains("bob") && !text.contains('\u{1b}'), "{text:?}");
    assert_eq!(journal(path, &["list", "--until", "1h"]).1, "no entries\n");

    let (code, whole) = read(path, &["verify", "--format", "json"]);
    assert_eq!((code, &whole["entries"], &whole["problem_count"]), (Some(0), &json!(3), &json!(0)));
    let hash = whole["head"]["hash"].as_str().unwrap();
    assert_eq!(journal(path, &["verify", "--expect", hash]).0, Some(0));
    assert_eq!(journal(path, &["verify", "--expect", &"0".repeat(64)]).0, Some(1));
    assert_eq!(journal(path, &["verify", "--expect", "0"]).0, Some(64));

    let file = Connection::open(path.join("orderd.db")).unwrap();
    file.execute_batch("DELETE FROM journal WHERE seq = 3; UPDATE journal_head SET seq = 2, hash = (SELECT hash FROM journal WHERE seq = 2)").unwrap();
    assert_eq!(journal(path, &["verify"]).0, Some(0), "the end was removed, and its record too");
    let (code, cut) = read(path, &["verify", "--expect", hash, "--format", "json"]);
    assert_eq!((code, &cut["problems"][0]["kind"]), (Some(1), &json!("not_found")));
    file.execute_batch("UPDATE journal SET actor = 'eve' WHERE seq = 1").unwrap();
    let (code, changed) = read(path, &["verify", "--format", "json"]);
    assert_eq!(
        (code, &changed["problems"][0]["kind"], &changed["problems"][0]["seq"]),
        (Some(1), &json!("changed"), &json!(1))
    );
}
