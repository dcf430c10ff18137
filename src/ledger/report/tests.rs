//! Known orders in, the same figures out, however they are grouped.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rusqlite::Connection;
use rust_decimal::Decimal;
use tempfile::TempDir;

use super::*;
use crate::domain::{OrderId, Sale};
use crate::ledger::conformance::{accept, attempt};
use crate::ledger::{FILE_NAME, Ledger, LedgerEntry, NewAnalytics, NewAttempt, NewDeadLetter, NewOrder, SqliteLedger};

const NOW: &str = "2026-11-22T08:30:30Z";

fn moment(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// An order that was accepted, processed and counted at one moment, as nearly all are.
#[derive(Debug, Clone)]
struct Sold {
    product: &'static str,
    quantity: i64,
    total: Decimal,
    currency: &'static str,
    urgent: bool,
    at: Timestamp,
}

fn sold(product: &'static str, total: &str, currency: &'static str, urgent: bool, at: &str) -> Sold {
    Sold { product, quantity: 2, total: total.parse().unwrap(), currency, urgent, at: moment(at) }
}

impl Sold {
    fn accepted(&self, id: &str) -> LedgerEntry {
        accept(NewOrder {
            id: OrderId::new(id).unwrap(),
            consumer: if self.urgent { "priority" } else { "order" }.into(),
            product: self.product.to_owned(),
            quantity: self.quantity,
            price: self.total,
            total: self.total,
            currency: self.currency.parse().unwrap(),
            priority: self.urgent,
            customer_id: None,
            placed_at: None,
            at: self.at,
        })
    }

    fn finished(&self, id: &str) -> LedgerEntry {
        LedgerEntry::FinishOrder { id: OrderId::new(id).unwrap(), at: self.at }
    }

    fn counted(&self, id: &str) -> LedgerEntry {
        LedgerEntry::Analytics(Box::new(NewAnalytics {
            id: format!("{id}/analytics/processed"),
            order_id: Some(id.to_owned()),
            name: "processed".to_owned(),
            sale: Some(Sale {
                product: self.product.to_owned(),
                quantity: self.quantity,
                total: self.total,
                currency: self.currency.parse().unwrap(),
                at: self.at,
            }),
            at: self.at,
        }))
    }
}

async fn sell(ledger: &SqliteLedger, id: &str, sold: &Sold) {
    for entry in [sold.accepted(id), sold.finished(id), sold.counted(id)] {
        ledger.record(entry).await.unwrap();
    }
}

fn dead_lettered(identity: &str, consumer: &str, reason: &'static str, at: &str) -> LedgerEntry {
    let attempt = NewAttempt { delay: None, ..attempt(identity, consumer, 0) };
    LedgerEntry::DeadLetter(Box::new(NewDeadLetter { attempt, reason, origin_queue: None, at: moment(at) }))
}

fn query(since: &str, until: &str, by: By) -> Query {
    Query { since: since.parse().unwrap(), until: until.parse().unwrap(), by }
}

fn report(directory: &TempDir, since: &str, until: &str, by: By) -> Report {
    read(directory.path(), &query(since, until, by), moment(NOW)).unwrap()
}

/// `EUR: Laptop 2 orders 4 pieces 20.00; …` for each currency.
fn told(report: &Report) -> Vec<String> {
    let row = |row: &Row| {
        let Figures { orders, quantity, revenue } = row.figures;
        format!("{} {orders} {quantity} {revenue}", row.key)
    };
    let rows = |block: &Block| block.rows.iter().map(row).collect::<Vec<_>>().join("; ");
    report.currencies.iter().map(|block| format!("{}: {}", block.currency, rows(block))).collect()
}

async fn shop(directory: &TempDir) {
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    for (n, sold) in [
        sold("Laptop", "1200.00", "EUR", false, "2026-11-20T23:59:59.999Z"),
        sold("Laptop", "400.10", "EUR", true, "2026-11-21T00:00:00Z"),
        sold("Mouse", "19.99", "EUR", false, "2026-11-21T07:30:00Z"),
        sold("Mouse", "0.015", "USD", false, "2026-11-21T07:30:00Z"),
        sold("Mouse", "5", "XXX", true, "2026-11-22T08:30:00Z"),
    ]
    .iter()
    .enumerate()
    {
        sell(&ledger, &format!("ord-{n}"), sold).await;
    }
    let unfinished = sold("Desk", "99", "EUR", false, "2026-11-22T08:00:00Z");
    ledger.record(unfinished.accepted("open")).await.unwrap();
    ledger.record(dead_lettered("bad-1", "order", "malformed", "2026-11-21T12:00:00Z")).await.unwrap();
    ledger.record(dead_lettered("bad-2", "order", "malformed", "2026-11-22T08:29:00Z")).await.unwrap();
    ledger.record(dead_lettered("bad-3", "notification", "too_old", "2026-11-22T08:29:00Z")).await.unwrap();
    ledger.close().await;
}

#[tokio::test]
async fn a_report_groups_each_currency_for_itself() {
    let directory = tempfile::tempdir().unwrap();
    shop(&directory).await;
    let week = |by| told(&report(&directory, "7d", "now", by));
    assert_eq!(
        week(By::Product),
        ["EUR: Laptop 2 4 1600.10; Mouse 1 2 19.99", "USD: Mouse 1 2 0.015", "XXX: Mouse 1 2 5",]
    );
    assert_eq!(
        week(By::Day),
        ["EUR: 2026-11-20 1 2 1200.00; 2026-11-21 2 4 420.09", "USD: 2026-11-21 1 2 0.015", "XXX: 2026-11-22 1 2 5",]
    );
    assert_eq!(
        week(By::Hour)[0],
        "EUR: 2026-11-20T23:00Z 1 2 1200.00; 2026-11-21T00:00Z 1 2 400.10; 2026-11-21T07:00Z 1 2 19.99"
    );
    assert_eq!(week(By::Priority)[0], "EUR: normal 2 4 1219.99; urgent 1 2 400.10");
    assert_eq!(
        week(By::Status),
        [
            "EUR: accepted 4 8 1719.09; processed 3 6 1620.09",
            "USD: accepted 1 2 0.015; processed 1 2 0.015",
            "XXX: accepted 1 2 5; processed 1 2 5",
        ]
    );
}

#[tokio::test]
async fn a_report_covers_the_time_it_says_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    shop(&directory).await;
    let day = report(&directory, "2026-11-21", "2026-11-22", By::Product);
    assert_eq!(told(&day), ["EUR: Laptop 1 2 400.10; Mouse 1 2 19.99", "USD: Mouse 1 2 0.015"]);
    assert_eq!(
        day.dead_lettered,
        [DeadLettered { consumer: "order".to_owned(), reason: "malformed".to_owned(), messages: 1 }]
    );
    let minutes = report(&directory, "2m", "now", By::Status);
    assert_eq!(minutes.window.since, moment("2026-11-22T08:28:00Z"));
    assert_eq!(told(&minutes), ["XXX: accepted 1 2 5; processed 1 2 5"]);
    assert_eq!(minutes.dead_lettered.len(), 2);
    let before = report(&directory, "2026-11-21T07:00", "2026-11-21T07:30", By::Product);
    assert_eq!(told(&before), [""; 0], "the end is not part of it");
}

#[tokio::test]
async fn the_json_of_a_report_is_a_contract() {
    let directory = tempfile::tempdir().unwrap();
    shop(&directory).await;
    let json = serde_json::to_value(report(&directory, "2026-11-20T20:00Z", "2026-11-21", By::Hour)).unwrap();
    let expected = serde_json::json!({
        "since": "2026-11-20T20:00:00Z",
        "until": "2026-11-21T00:00:00Z",
        "by": "hour",
        "currencies": [{
            "currency": "EUR",
            "processed": {"orders": 1, "quantity": 2, "revenue": "1200.00"},
            "rows": [{"key": "2026-11-20T23:00Z", "orders": 1, "quantity": 2, "revenue": "1200.00"}],
        }],
        "dead_lettered": [],
    });
    assert_eq!(json, expected);
}

#[tokio::test]
async fn products_lag_behind_while_their_events_are_on_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let sold = sold("Laptop", "10", "EUR", false, "2026-11-22T08:00:00Z");
    ledger.record(sold.accepted("ord-1")).await.unwrap();
    ledger.record(sold.finished("ord-1")).await.unwrap();
    let block = &report(&directory, "1h", "now", By::Product).currencies[0];
    assert_eq!((block.processed.orders, block.rows.len()), (1, 0));
}

#[test]
fn a_report_without_a_ledger_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let error = read(directory.path(), &Query::default(), moment(NOW)).unwrap_err();
    assert!(matches!(error, ReportError::Ledger(OpenError::Missing { .. })), "{error:?}");
    assert!(!error.is_question());
}

/// An order of any product, of a worth whose sums fit a sale, at any moment within three days.
fn any_sold() -> impl Strategy<Value = Sold> {
    let total = (0..1_000_000_000_000_000i64, 0..=9u32).prop_map(|(mantissa, scale)| Decimal::new(mantissa, scale));
    (0..3usize, 1..10i64, total, 0..2usize, any::<bool>(), 0..3 * DAY).prop_map(
        |(product, quantity, total, currency, urgent, at)| Sold {
            product: ["Laptop", "Mouse", "Desk"][product],
            quantity,
            total,
            currency: ["EUR", "USD"][currency],
            urgent,
            at: Timestamp::from_millisecond(moment("2026-11-19T12:00:00Z").as_millisecond() + at).unwrap(),
        },
    )
}

fn sums(sold: &[Sold], window: Window) -> BTreeMap<String, Figures> {
    let mut sums = BTreeMap::<String, Figures>::new();
    for sold in sold.iter().filter(|sold| (window.since..window.until).contains(&sold.at)) {
        let figures = Figures { orders: 1, quantity: sold.quantity, revenue: sold.total.into() };
        sums.entry(sold.currency.to_owned()).or_default().add(figures);
    }
    sums
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_grouping_adds_up_to_what_was_sold(
        orders in prop::collection::vec(any_sold(), 1..40),
        since in 0..4 * DAY / MINUTE,
        length in 0..2 * DAY / MINUTE,
        migrated in any::<bool>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let ledger = SqliteLedger::open(directory.path()).unwrap();
            for (n, sold) in orders.iter().enumerate() {
                sell(&ledger, &format!("ord-{n}"), sold).await;
            }
            ledger.close().await;
            if migrated {
                let file = Connection::open(directory.path().join(FILE_NAME)).unwrap();
                file.execute_batch("DROP TABLE order_sums; PRAGMA user_version = 1").unwrap();
                SqliteLedger::open(directory.path()).unwrap().close().await;
            }
        });
        let since = moment("2026-11-18T12:00:00Z").as_millisecond() + since * MINUTE;
        let at = |millis| When::At(Timestamp::from_millisecond(millis).unwrap());
        for by in [By::Product, By::Hour, By::Day, By::Status, By::Priority] {
            let query = Query { since: at(since), until: at(since + length * MINUTE), by };
            let report = read(directory.path(), &query, moment(NOW)).unwrap();
            let expected = sums(&orders, report.window);
            let mut found = BTreeMap::new();
            for block in report.currencies {
                let mut sum = Figures::default();
                block.rows.iter().filter(|row| row.key != "accepted").for_each(|row| sum.add(row.figures));
                prop_assert_eq!(sum, block.processed);
                found.insert(block.currency, sum);
            }
            prop_assert_eq!(&found, &expected, "{}", by);
        }
    }
}
