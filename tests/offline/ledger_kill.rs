//! The ledger after `kill -9`: every acknowledged entry is in the file, and no entry is partial.
//!
//! The process that is killed, the victim, is this test binary again; an environment variable makes it record until then.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use jiff::Timestamp;
use orderd::domain::Sale;
use orderd::ledger::sqlite::SqliteLedger;
use orderd::ledger::{LedgerEntry, LedgerMaintenance, LedgerWriter, NewAnalytics, NewAttempt, NewDeadLetter, Recorded};
use rusqlite::Connection;
use rust_decimal::Decimal;

/// The environment variable with the directory in which the victim records; unset in an ordinary run.
const VICTIM: &str = "ORDERD_TEST_LEDGER_VICTIM";

/// Acknowledged entries before the kill: enough for many commits and for a checkpoint of the write-ahead log.
const ACKNOWLEDGED: usize = 20_000;

/// Number of entries that the victim has in flight.
const CONCURRENCY: u64 = 100;

fn analytics(n: u64) -> LedgerEntry {
    let at = Timestamp::UNIX_EPOCH;
    let currency = "EUR".parse().unwrap();
    let sale = Sale::new([(format!("Product {}", n % 3), 1, Decimal::new(1, 2))], currency, at);
    let (id, name) = (format!("event-{n}"), "processed".to_owned());
    LedgerEntry::Analytics(Box::new(NewAnalytics { id, order_id: None, name, sale: Some(sale), at }))
}

fn dead_letter(n: u64) -> LedgerEntry {
    let at = Timestamp::UNIX_EPOCH;
    let attempt = NewAttempt {
        identity: format!("event-{n}"),
        consumer: "order".to_owned(),
        replay: None,
        retry_count: 3,
        kind: "transient",
        code: "stock_unreachable".to_owned(),
        reason: "the stock service did not answer".to_owned(),
        failed_at: at,
        delay: None,
    };
    LedgerEntry::DeadLetter(Box::new(NewDeadLetter {
        attempt,
        order: None,
        reason: "retries_exhausted",
        origin_queue: None,
        at,
    }))
}

/// The victim, which records until it is killed. In an ordinary run it does nothing.
#[test]
fn victim() {
    let Some(directory) = std::env::var_os(VICTIM).map(PathBuf::from) else { return };
    let ledger = SqliteLedger::open(&directory).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let record_forever = async |first: u64| {
        for n in (first..).step_by(CONCURRENCY as usize) {
            ledger.record(analytics(n)).await.unwrap();
            ledger.record(dead_letter(n)).await.unwrap();
            // Not `println!`, which the test harness would capture.
            writeln!(std::io::stdout(), "acknowledged {n}").unwrap();
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
fn acknowledged_entries_survive_a_kill_and_no_entry_is_partial() {
    let directory = tempfile::tempdir().unwrap();
    let mut victim = start_victim(directory.path());
    let mut output = BufReader::new(victim.stdout.take().unwrap());
    let (mut acknowledged, mut line) = (Vec::new(), String::new());
    // Read to the end of the output, since the latest entries are the most likely to be lost. A line without a newline was
    // cut off, and its number may be wrong.
    while output.read_line(&mut line).unwrap() > 0 && line.ends_with('\n') {
        acknowledged
            .extend(line.trim_end().strip_prefix("acknowledged ").and_then(|number| number.parse::<u64>().ok()));
        line.clear();
        if acknowledged.len() == ACKNOWLEDGED {
            victim.kill().unwrap();
        }
    }
    victim.wait().unwrap();
    assert!(acknowledged.len() >= ACKNOWLEDGED, "the victim exited before it was killed");

    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        for n in acknowledged {
            assert_eq!(ledger.record(analytics(n)).await.unwrap(), Recorded::Duplicate, "event {n}");
        }
        ledger.close().await;
    });
    assert_no_partial_entry(&Connection::open(directory.path().join("orderd.db")).unwrap());
}

fn assert_no_partial_entry(file: &Connection) {
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
    let unpaired = "SELECT count(*) FROM dead_letters FULL JOIN attempts USING (identity, consumer)
                WHERE dead_letters.reason IS NULL OR attempts.failure_kind IS NULL";
    assert_eq!(number(unpaired), 0, "dead letters without an attempt, or attempts without a dead letter");
}
