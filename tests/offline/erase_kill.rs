//! `orderd erase` that is killed in the middle, and repeated.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use futures_util::future::join_all;
use jiff::Timestamp;
use orderd::domain::{Amounts, Charges, Item, OrderId};
use orderd::ledger::sqlite::SqliteLedger;
use orderd::ledger::{
    CallOutcome, ClaimPurpose, EndedCall, LedgerEntry, LedgerMaintenance, LedgerWriter, NewOrder, Recorded, RunClaim,
    RunKey, RunMessage, RunRecord, RunState, StepAction, StepCallEntry,
};
use rusqlite::Connection;
use rust_decimal::Decimal;
use tempfile::TempDir;

/// Several transactions of the command.
const ORDERS: usize = 2_000;
const NAME: &str = "ada-lovelace";

fn order(n: usize) -> NewOrder {
    let item = Item::new("Laptop", 1, Decimal::from(400));
    NewOrder {
        id: OrderId::new(format!("ord-{n}")).unwrap(),
        consumer: "order".into(),
        amounts: Amounts::new(std::slice::from_ref(&item), Charges::default(), "EUR".parse().unwrap()).unwrap(),
        items: [item].into(),
        priority: false,
        customer_id: Some(NAME.to_owned()),
        email: None,
        phone: None,
        locale: None,
        notify: None,
        placed_at: None,
        at: Timestamp::UNIX_EPOCH,
    }
}

fn key(n: usize) -> RunKey {
    RunKey { scope: String::new(), identity: format!("ord-{n}") }
}

fn claim(n: usize) -> RunClaim {
    let (step, action) = ("charge".to_owned(), StepAction::Do);
    let first = StepCallEntry { step, action, position: 0, undoable: true, retries: 0 };
    let at = Timestamp::UNIX_EPOCH;
    let message = RunMessage { queue: "order_queue".into(), hash: [0; 32] };
    RunClaim {
        key: key(n),
        purpose: ClaimPurpose::Work { message, is_new: true, replayed_at: None, takes_over: false, first: Some(first) },
        owner: "a".into(),
        at,
        until: at,
        order: Some(Box::new(order(n))),
    }
}

fn charged(n: usize) -> RunRecord {
    let outcome = CallOutcome::Done { result: format!("{{\"card\":\"of {NAME}\"}}") };
    RunRecord {
        key: key(n),
        fence: 1,
        at: Timestamp::UNIX_EPOCH,
        until: None,
        ended: Some(EndedCall { step: "charge".to_owned(), action: StepAction::Do, outcome }),
        next: None,
        state: Some(RunState::Done),
        failure: None,
        dead_lettered: false,
    }
}

async fn ledger() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    join_all((0..ORDERS).map(|n| ledger.claim_run(claim(n)))).await;
    join_all((0..ORDERS).map(|n| ledger.record_run(charged(n)))).await;
    let finish = |n| LedgerEntry::FinishOrder { id: order(n).id, at: Timestamp::UNIX_EPOCH };
    join_all((0..ORDERS).map(|n| ledger.record(finish(n)))).await;
    ledger.close().await;
    directory
}

fn erase(directory: &Path) -> Child {
    let setting = format!("ledger.directory={}", directory.to_str().unwrap());
    let mut command: Command = crate::orderd();
    command.args(["erase", "--customer", NAME, "--format", "json", "--set", &setting, "--config"]);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml"));
    command.stdout(Stdio::null()).spawn().unwrap()
}

#[tokio::test]
async fn an_erasure_that_is_killed_leaves_whole_orders_and_is_finished_by_repeating_it() {
    let directory = ledger().await;
    let file = directory.path().join("orderd.db");
    let reader = Connection::open(&file).unwrap();
    let number = |sql: &str| reader.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let erased = || number("SELECT count(*) FROM orders WHERE customer_id = '[erased]'");
    let mut killed = erase(directory.path());
    while erased() == 0 {
        assert!(killed.try_wait().unwrap().is_none(), "it ended before it was killed");
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!((1..i64::try_from(ORDERS).unwrap()).contains(&erased()), "{} orders", erased());
    let partial = "SELECT count(*) FROM orders JOIN steps ON identity = id
                   WHERE (customer_id = '[erased]') <> (result = '\"[erased]\"')";
    assert_eq!(number(partial), 0, "an order is erased as a whole or not at all");
    assert_eq!(reader.query_row("PRAGMA integrity_check", [], |row| row.get::<_, String>(0)).unwrap(), "ok");
    drop(reader);

    assert_eq!(erase(directory.path()).wait().unwrap().code(), Some(0));
    for name in ["orderd.db", "orderd.db-wal"] {
        let bytes = std::fs::read(directory.path().join(name)).unwrap_or_default();
        assert!(!bytes.windows(NAME.len()).any(|bytes| bytes == NAME.as_bytes()), "{name}");
    }
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    for n in [0, ORDERS - 1] {
        let accepted = ledger.record(LedgerEntry::AcceptOrder(Box::new(order(n)))).await.unwrap();
        assert_eq!(accepted, Recorded::Duplicate);
    }
    ledger.close().await;
}
