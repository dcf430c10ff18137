//! Retention in the file: small transactions, the aggregates' minutes, and a full disk.

use jiff::Timestamp;
use rusqlite::Connection;
use rust_decimal::Decimal;
use tempfile::TempDir;

use super::super::prune::BATCH_ROWS;
use super::super::{FILE_NAME, SqliteLedger, Tuning};
use super::outage;
use crate::domain::{Item, MAX_ITEMS, OrderId};
use crate::ledger::conformance::{accept, analytics, at, attempt, dead_letter, order, sale, stored_letter, with_items};
use crate::ledger::{
    FailedDelivery, LedgerEntry, LedgerMaintenance, LedgerReader, LedgerWriter, LetterChange, LetterEdit,
    LetterOperation, LetterOperationWriter, LetterOrder, LetterWriter, NewAttempt, NewNotification, NewOrder,
    NotificationDelivery, OutageCause, Pruned, Recorded,
};

const DAY: i64 = 86_400_000;

fn ids(directory: &TempDir, table: &str, column: &str) -> Vec<String> {
    let connection = Connection::open(directory.path().join(FILE_NAME)).unwrap();
    let mut query = connection.prepare(&format!("SELECT {column} FROM {table} ORDER BY rowid")).unwrap();
    query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn count(directory: &TempDir, table: &str) -> i64 {
    let connection = Connection::open(directory.path().join(FILE_NAME)).unwrap();
    connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

/// Removes all rows older than `before`. Returns what was removed and the number of transactions.
async fn prune_all(ledger: &SqliteLedger, before: i64) -> (Pruned, usize) {
    let (mut sum, mut transactions) = (Pruned::default(), 0);
    loop {
        sum.add(ledger.prune(at(before)).await.unwrap());
        transactions += 1;
        if !sum.more {
            return (sum, transactions);
        }
    }
}

/// Everything that the daemon records about an order that is processed at one moment.
fn processed(id: &str, moment: Timestamp) -> [LedgerEntry; 4] {
    let event = |topic: &str| format!("{id}/{topic}");
    let notified = NewNotification {
        id: event("notification/processed"),
        order_id: Some(id.to_owned()),
        channel: "email".to_owned(),
        at: moment,
        delivery: NotificationDelivery::default(),
    };
    let mut counted = analytics(&event("analytics/processed"), Some(sale("Laptop", Decimal::from(1_200), moment)));
    if let LedgerEntry::Analytics(event) = &mut counted {
        event.at = moment;
    }
    [
        accept(NewOrder { at: moment, ..order(id) }),
        LedgerEntry::FinishOrder { id: OrderId::new(id).unwrap(), at: moment },
        LedgerEntry::Notification(Box::new(notified)),
        counted,
    ]
}

async fn record(ledger: &SqliteLedger, entries: impl IntoIterator<Item = LedgerEntry>) {
    for entry in entries {
        assert_eq!(ledger.record(entry).await.unwrap(), Recorded::New);
    }
}

#[tokio::test]
async fn old_rows_and_minutes_are_removed_and_the_rest_stays() {
    let directory = TempDir::new().unwrap();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let failed =
        |id: &str, moment| LedgerEntry::Attempt(Box::new(NewAttempt { failed_at: moment, ..attempt(id, "order", 0) }));
    record(&ledger, processed("old", at(DAY))).await;
    record(&ledger, [accept(NewOrder { at: at(DAY), ..order("open") }), failed("old", at(DAY))]).await;
    record(&ledger, [dead_letter(attempt("dead_lettered", "order", 0))]).await;
    record(&ledger, processed("young", at(3 * DAY))).await;
    record(&ledger, [failed("young", at(3 * DAY))]).await;
    let (pruned, _) = prune_all(&ledger, 2 * DAY).await;
    // The attempts include that of the dead-lettered message; the minutes are one of a sale and one of an order.
    assert_eq!(pruned, Pruned { orders: 1, events: 2, attempts: 2, minutes: 2, ..Pruned::default() });
    assert_eq!(ids(&directory, "orders", "id"), ["open", "young"], "an order that is not finished stays");
    assert_eq!(ids(&directory, "events", "id"), ["young/notification/processed", "young/analytics/processed"]);
    assert_eq!(ids(&directory, "attempts", "identity"), ["young"]);
    assert_eq!(ids(&directory, "dead_letters", "identity"), ["dead_lettered"]);
    assert!(ledger.prune(at(2 * DAY)).await.unwrap().is_empty());
    ledger.close().await;
    assert!(ledger.prune(at(2 * DAY)).await.is_err());
}

#[tokio::test]
async fn the_attempts_of_an_order_are_kept_while_its_dead_letter_is_open_as_another_order() {
    let directory = TempDir::new().unwrap();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let failed = NewAttempt { failed_at: at(DAY), ..attempt("ord-1", "order", 0) };
    record(&ledger, [LedgerEntry::Attempt(Box::new(failed))]).await;
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    let edit = LetterEdit {
        properties: None,
        letter: 1,
        base: 0,
        body: "{}".into(),
        order: LetterOrder { id: Some("ord-2".to_owned()), ..LetterOrder::default() },
        identity: Some("ord-2".to_owned()),
        search: String::new(),
        whole_order: None,
        by: "ada".to_owned(),
        at: at(DAY),
    };
    ledger.carry_out(LetterOperation::Edit(Box::new(edit))).await.unwrap();
    prune_all(&ledger, 2 * DAY).await;
    let attempts = ledger.dead_letter(1).await.unwrap().unwrap().attempts;
    assert_eq!(attempts.len(), 1, "the letter shows them");
    let change = LetterChange::Discard { reason: "test".to_owned() };
    let discard =
        LetterOperation::Letters { ids: vec![1], change, states: Vec::new(), by: "ada".to_owned(), at: at(DAY) };
    ledger.carry_out(discard).await.unwrap();
    prune_all(&ledger, 2 * DAY).await;
    assert_eq!(count(&directory, "attempts"), 0);
    ledger.close().await;
}

#[tokio::test]
async fn the_failed_deliveries_of_a_notification_are_kept_as_long_as_its_dead_letter_is_open() {
    let directory = TempDir::new().unwrap();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    for identity in ["open", "none"] {
        let failed = FailedDelivery {
            channel: "email".to_owned(),
            provider: "backup".to_owned(),
            recipient: None,
            kind: "transient",
            code: "smtp_450".to_owned(),
            reason: "the mailbox is full".to_owned(),
            at: at(DAY),
        };
        let (order_id, channel) = (None, "email".to_owned());
        let delivery = NotificationDelivery { failed: vec![failed], ..NotificationDelivery::default() };
        let entry = NewNotification { id: identity.to_owned(), order_id, channel, at: at(DAY), delivery };
        record(&ledger, [LedgerEntry::Notification(Box::new(entry))]).await;
        let failed = NewAttempt { failed_at: at(DAY), ..attempt(identity, "notification", 0) };
        record(&ledger, [LedgerEntry::Attempt(Box::new(failed))]).await;
    }
    ledger.store_letter(stored_letter("open", 1)).await.unwrap();
    prune_all(&ledger, 2 * DAY).await;
    for table in ["attempts", "notification_attempts"] {
        assert_eq!(ids(&directory, table, "identity"), ["open"], "{table}");
    }
    let change = LetterChange::Discard { reason: "test".to_owned() };
    let discard =
        LetterOperation::Letters { ids: vec![1], change, states: Vec::new(), by: "ada".to_owned(), at: at(DAY) };
    ledger.carry_out(discard).await.unwrap();
    prune_all(&ledger, 2 * DAY).await;
    for table in ["attempts", "notification_attempts"] {
        assert_eq!(count(&directory, table), 0, "{table}");
    }
    ledger.close().await;
}

#[tokio::test]
async fn each_transaction_is_small_and_a_pass_continues_after_unfinished_orders() {
    let directory = TempDir::new().unwrap();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let rows = usize::try_from(BATCH_ROWS).unwrap();
    let old = |n: usize| NewOrder { at: at(DAY), ..order(&format!("ord-{n}")) };
    let waiting: Vec<_> = (0..4 * rows).map(|n| ledger.record(accept(old(n)))).collect();
    for answer in waiting {
        answer.await.unwrap();
    }
    // The first half is never finished.
    let finished = |n: usize| LedgerEntry::FinishOrder { id: OrderId::new(format!("ord-{n}")).unwrap(), at: at(DAY) };
    let waiting: Vec<_> = (2 * rows..4 * rows).map(|n| ledger.record(finished(n))).collect();
    for answer in waiting {
        answer.await.unwrap();
    }
    let (pruned, transactions) = prune_all(&ledger, 2 * DAY).await;
    assert_eq!((pruned.orders, count(&directory, "orders")), (2 * rows, 2 * BATCH_ROWS));
    assert!(transactions >= 4, "{transactions}");
}

#[tokio::test]
async fn the_lines_of_removed_orders_are_removed_in_small_transactions() {
    let directory = TempDir::new().unwrap();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let lines = || vec![Item::new("Pen", 1, 1.into()); MAX_ITEMS];
    for n in 0..6 {
        let id = format!("ord-{n}");
        let moment = at(if n < 5 { DAY } else { 3 * DAY });
        let order = with_items(NewOrder { at: moment, ..order(&id) }, lines());
        let finished = LedgerEntry::FinishOrder { id: OrderId::new(id).unwrap(), at: moment };
        record(&ledger, [accept(order), finished]).await;
    }
    let (pruned, transactions) = prune_all(&ledger, 2 * DAY).await;
    assert_eq!((pruned.orders, count(&directory, "orders")), (5, 1));
    assert_eq!(count(&directory, "order_items"), i64::try_from(MAX_ITEMS).unwrap());
    assert!(transactions >= 2, "{transactions}");
}

#[tokio::test]
async fn retention_makes_room_on_a_full_disk() {
    let directory = TempDir::new().unwrap();
    let tuning = Tuning { max_pages: Some(88), ..Tuning::default() };
    let ledger = SqliteLedger::open_with(directory.path(), tuning).unwrap();
    let mut finished = 0;
    let held = 'full: loop {
        let [accepted, finish, ..] = processed(&format!("ord-{finished}"), at(DAY));
        for entry in [accepted, finish] {
            let mut answer = ledger.record(entry);
            tokio::select! {
                recorded = &mut answer => drop(recorded.unwrap()),
                cause = outage(&ledger) => {
                    assert_eq!(cause, OutageCause::DiskFull);
                    break 'full answer;
                }
            }
        }
        finished += 1;
    };
    let (pruned, _) = prune_all(&ledger, 2 * DAY).await;
    assert!(pruned.orders >= finished, "{pruned:?}");
    held.await.unwrap();
    record(&ledger, processed("young", at(3 * DAY))).await;
    ledger.close().await;
}
