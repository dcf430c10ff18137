//! The ledger's promise under `kill -9`: what was answered is in the file, and nothing is half there.
//!
//! The victim is this test binary again, told by an environment variable to record until it is killed.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use jiff::Timestamp;
use orderd::domain::Sale;
use orderd::ledger::sqlite::SqliteLedger;
use orderd::ledger::{LedgerEntry, LedgerMaintenance, LedgerWriter, NewAnalytics, NewAttempt, NewDeadLetter, Recorded};
use rusqlite::Connection;
use rust_decimal::Decimal;

/// Where the victim records; unset in an ordinary run.
const VICTIM: &str = "ORDERD_TEST_LEDGER_VICTIM";

/// Answers before the kill: enough for many commits, and for the log to be moved into the file.
const ANSWERS: usize = 20_000;

/// Entries of the victim in flight.
const CONCURRENCY: u64 = 100;

fn analytics(n: u64) -> LedgerEntry {
    let at = Timestamp::UNIX_EPOCH;
    let currency = "EUR".parse().unwrap();
    let sale = Sale { product: format!("Product {}", n % 3), quantity: 1, total: Decimal::new(1, 2), currency, at };
    let (id, name) = (format!("event-{n}"), "processed".to_owned());
    LedgerEntry::Analytics(Box::new(NewAnalytics { id, order_id: None, name, sale: Some(sale), at }))
}

fn dead_letter(n: u64) -> LedgerEntry {
    let at = Timestamp::UNIX_EPOCH;
    let attempt = NewAttempt {
        identity: format!("event-{n}"),
        consumer: "order".to_owned(),
        retry_count: 3,
        kind: "transient",
        code: "stock_unreachable".to_owned(),
        reason: "the stock service did not answer".to_owned(),
        failed_at: at,
        delay: None,
    };
    LedgerEntry::DeadLetter(Box::new(NewDeadLetter { attempt, reason: "retries_exhausted", origin_queue: None, at }))
}

/// Not a test in an ordinary run: the victim's body, which never returns.
#[test]
fn victim() {
    let Some(directory) = std::env::var_os(VICTIM).map(PathBuf::from) else { return };
    let ledger = SqliteLedger::open(&directory).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let record_forever = async |lane: u64| {
        for n in (lane..).step_by(CONCURRENCY as usize) {
            ledger.record(analytics(n)).await.unwrap();
            ledger.record(dead_letter(n)).await.unwrap();
            // Not `println!`: the test harness would keep it.
            writeln!(std::io::stdout(), "answered {n}").unwrap();
        }
    };
    runtime.block_on(futures_util::future::join_all((0..CONCURRENCY).map(record_forever)));
}

fn start_victim(directory: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["ledger_kill::victim", "--exact", "--nocapture"])
        .env(VICTIM, directory)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn answered_entries_survive_a_kill_and_no_entry_is_partial() {
    let directory = tempfile::tempdir().unwrap();
    let mut victim = start_victim(directory.path());
    let mut output = BufReader::new(victim.stdout.take().unwrap());
    let (mut answered, mut line) = (Vec::new(), String::new());
    // To the end, which comes soon after the kill: the latest answers are the ones in danger. A line without
    // its end was cut short and could name another number.
    while output.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
        answered.extend(line.trim_end().strip_prefix("answered ").and_then(|number| number.parse::<u64>().ok()));
        line.clear();
        if answered.len() == ANSWERS {
            victim.kill().unwrap();
        }
    }
    victim.wait().unwrap();
    assert!(answered.len() >= ANSWERS, "the victim ended by itself");

    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for n in answered {
            assert_eq!(ledger.record(analytics(n)).await.unwrap(), Recorded::Duplicate, "event {n}");
        }
        ledger.close().await;
    });
    nothing_is_half_there(&Connection::open(directory.path().join("orderd.db")).unwrap());
}

fn nothing_is_half_there(file: &Connection) {
    let text = |sql: &str| file.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    let number = |sql: &str| file.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(text("PRAGMA integrity_check"), "ok");
    let events = number("SELECT count(*) FROM events");
    for granularity in ["minute", "hour", "day"] {
        let of = format!("FROM sales WHERE granularity = '{granularity}'");
        assert_eq!(number(&format!("SELECT sum(orders) {of}")), events, "orders per {granularity}");
        let cents = number(&format!("SELECT sum(CAST(replace(revenue, '.', '') AS INTEGER)) {of}"));
        assert_eq!(cents, events, "revenue per {granularity}");
    }
    let lone = "SELECT count(*) FROM dead_letters FULL JOIN attempts USING (identity, consumer)
                WHERE dead_letters.reason IS NULL OR attempts.failure_kind IS NULL";
    assert_eq!(number(lone), 0, "a dead letter without its attempt, or the other way round");
}
