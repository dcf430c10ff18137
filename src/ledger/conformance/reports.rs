//! Reports: known orders in, the same figures out, however they are grouped.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use proptest::prelude::*;
use rust_decimal::Decimal;

use super::{TestLedger, rules};
use crate::domain::{Amounts, Charges, Item, OrderId, Sale};
use crate::ledger::buckets::{DAY, MINUTE};
use crate::ledger::conformance::{accept, analytics, attempt, order, with_charges, with_items};
use crate::ledger::report::{
    CurrencyReport, DeadLettered, GroupBy, PointInTime, Report, ReportQuery, ReportRow, Window,
};
use crate::ledger::{Figures, Ledger, LedgerEntry, NewAnalytics, NewAttempt, NewDeadLetter, NewOrder};

rules! {
    a_report_groups_each_currency_separately,
    a_report_covers_its_period_and_no_more,
    the_json_of_a_report_is_a_contract,
    products_are_counted_when_their_events_are_recorded,
    an_order_with_several_lines_counts_once_and_each_of_its_products_too,
    charges_are_reported_apart_from_goods,
}

const NOW: &str = "2026-11-22T08:30:30Z";

fn moment(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// An order that was accepted, processed and counted at the same moment.
#[derive(Debug, Clone)]
pub(in crate::ledger) struct Sold {
    product: &'static str,
    quantity: i64,
    total: Decimal,
    currency: &'static str,
    priority: bool,
    at: Timestamp,
}

fn sold(product: &'static str, total: &str, currency: &'static str, priority: bool, at: &str) -> Sold {
    Sold { product, quantity: 2, total: total.parse().unwrap(), currency, priority, at: moment(at) }
}

impl Sold {
    fn accepted(&self, id: &str) -> LedgerEntry {
        // The line's total is given, not its price.
        let item = Item { total: self.total, ..Item::new(self.product, self.quantity, self.total) };
        let items: Arc<[Item]> = [item].into();
        accept(NewOrder {
            id: OrderId::new(id).unwrap(),
            consumer: if self.priority { "priority" } else { "order" }.into(),
            amounts: Amounts::new(&items, Charges::default(), self.currency.parse().unwrap()).unwrap(),
            items,
            priority: self.priority,
            customer_id: None,
            email: None,
            phone: None,
            locale: None,
            notify: None,
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
            sale: Some(Sale::new(
                [(self.product.to_owned(), self.quantity, self.total)],
                self.currency.parse().unwrap(),
                self.at,
            )),
            at: self.at,
        }))
    }
}

pub(in crate::ledger) async fn sell(ledger: &dyn Ledger, id: &str, sold: &Sold) {
    for entry in [sold.accepted(id), sold.finished(id), sold.counted(id)] {
        ledger.record(entry).await.unwrap();
    }
}

fn dead_lettered(identity: &str, consumer: &str, reason: &'static str, at: &str) -> LedgerEntry {
    let attempt = NewAttempt { delay: None, ..attempt(identity, consumer, 0) };
    LedgerEntry::DeadLetter(Box::new(NewDeadLetter {
        attempt,
        order: None,
        reason,
        origin_queue: None,
        at: moment(at),
    }))
}

fn query(since: &str, until: &str, by: GroupBy) -> ReportQuery {
    ReportQuery { since: since.parse().unwrap(), until: until.parse().unwrap(), by }
}

async fn report(ledger: &dyn Ledger, since: &str, until: &str, by: GroupBy) -> Report {
    ledger.report(query(since, until, by), moment(NOW)).await.unwrap()
}

/// `EUR: Laptop 2 4 20.00; …` for each currency: key, orders, quantity and revenue of each row.
fn rows(report: &Report) -> Vec<String> {
    let row = |row: &ReportRow| {
        let Figures { orders, quantity, revenue } = row.figures;
        format!("{} {orders} {quantity} {revenue}", row.key)
    };
    let rows = |currency: &CurrencyReport| currency.rows.iter().map(row).collect::<Vec<_>>().join("; ");
    report.currencies.iter().map(|currency| format!("{}: {}", currency.currency, rows(currency))).collect()
}

async fn record_a_few_orders(ledger: &dyn Ledger) {
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
        sell(ledger, &format!("ord-{n}"), sold).await;
    }
    let unfinished = sold("Desk", "99", "EUR", false, "2026-11-22T08:00:00Z");
    ledger.record(unfinished.accepted("open")).await.unwrap();
    ledger.record(dead_lettered("bad-1", "order", "malformed", "2026-11-21T12:00:00Z")).await.unwrap();
    ledger.record(dead_lettered("bad-2", "order", "malformed", "2026-11-22T08:29:00Z")).await.unwrap();
    ledger.record(dead_lettered("bad-3", "notification", "too_old", "2026-11-22T08:29:00Z")).await.unwrap();
}

async fn a_report_groups_each_currency_separately(ledger: &dyn Ledger) {
    record_a_few_orders(ledger).await;
    let week = async |by| rows(&report(ledger, "7d", "now", by).await);
    assert_eq!(
        week(GroupBy::Product).await,
        ["EUR: Laptop 2 4 1600.10; Mouse 1 2 19.99", "USD: Mouse 1 2 0.015", "XXX: Mouse 1 2 5",]
    );
    assert_eq!(
        week(GroupBy::Day).await,
        ["EUR: 2026-11-20 1 2 1200.00; 2026-11-21 2 4 420.09", "USD: 2026-11-21 1 2 0.015", "XXX: 2026-11-22 1 2 5",]
    );
    assert_eq!(
        week(GroupBy::Hour).await[0],
        "EUR: 2026-11-20T23:00Z 1 2 1200.00; 2026-11-21T00:00Z 1 2 400.10; 2026-11-21T07:00Z 1 2 19.99"
    );
    assert_eq!(week(GroupBy::Priority).await[0], "EUR: normal 2 4 1219.99; urgent 1 2 400.10");
    assert_eq!(
        week(GroupBy::Status).await,
        [
            "EUR: accepted 4 8 1719.09; processed 3 6 1620.09",
            "USD: accepted 1 2 0.015; processed 1 2 0.015",
            "XXX: accepted 1 2 5; processed 1 2 5",
        ]
    );
}

async fn a_report_covers_its_period_and_no_more(ledger: &dyn Ledger) {
    record_a_few_orders(ledger).await;
    let day = report(ledger, "2026-11-21", "2026-11-22", GroupBy::Product).await;
    assert_eq!(rows(&day), ["EUR: Laptop 1 2 400.10; Mouse 1 2 19.99", "USD: Mouse 1 2 0.015"]);
    assert_eq!(
        day.dead_lettered,
        [DeadLettered {
            consumer: "order".to_owned(),
            reason: "malformed".to_owned(),
            messages: 1,
            ..DeadLettered::default()
        }]
    );
    let minutes = report(ledger, "2m", "now", GroupBy::Status).await;
    assert_eq!(minutes.window.since, moment("2026-11-22T08:28:00Z"));
    assert_eq!(rows(&minutes), ["XXX: accepted 1 2 5; processed 1 2 5"]);
    assert_eq!(minutes.dead_lettered.len(), 2);
    let before = report(ledger, "2026-11-21T07:00", "2026-11-21T07:30", GroupBy::Product).await;
    assert_eq!(rows(&before), [""; 0], "the end is exclusive");
}

async fn the_json_of_a_report_is_a_contract(ledger: &dyn Ledger) {
    record_a_few_orders(ledger).await;
    let json = serde_json::to_value(report(ledger, "2026-11-20T20:00Z", "2026-11-21", GroupBy::Hour).await).unwrap();
    let expected = serde_json::json!({
        "since": "2026-11-20T20:00:00Z",
        "until": "2026-11-21T00:00:00Z",
        "by": "hour",
        "currencies": [{
            "currency": "EUR",
            "processed": {"orders": 1, "quantity": 2, "revenue": "1200.00",
                          "shipping": "0", "fees": "0", "tax": "0", "discount": "0", "total": "1200.00"},
            "cancelled": {"orders": 0, "quantity": 0, "revenue": "0",
                          "shipping": "0", "fees": "0", "tax": "0", "discount": "0", "total": "0"},
            "prevented": {"orders": 0, "quantity": 0, "revenue": "0",
                          "shipping": "0", "fees": "0", "tax": "0", "discount": "0", "total": "0"},
            "failed": {"orders": 0, "quantity": 0, "revenue": "0",
                       "shipping": "0", "fees": "0", "tax": "0", "discount": "0", "total": "0"},
            "failed_again": 0,
            "failed_discarded": 0,
            "rows": [{"key": "2026-11-20T23:00Z", "orders": 1, "quantity": 2, "revenue": "1200.00",
                      "shipping": "0", "fees": "0", "tax": "0", "discount": "0", "total": "1200.00"}],
        }],
        "dead_lettered": [],
    });
    assert_eq!(json, expected);
}

async fn products_are_counted_when_their_events_are_recorded(ledger: &dyn Ledger) {
    let sold = sold("Laptop", "10", "EUR", false, "2026-11-22T08:00:00Z");
    ledger.record(sold.accepted("ord-1")).await.unwrap();
    ledger.record(sold.finished("ord-1")).await.unwrap();
    let currency = &report(ledger, "1h", "now", GroupBy::Product).await.currencies[0];
    assert_eq!((currency.processed.figures.orders, currency.rows.len()), (1, 0));
}

async fn an_order_with_several_lines_counts_once_and_each_of_its_products_too(ledger: &dyn Ledger) {
    let at = moment("2026-11-22T08:00:00Z");
    let item = |product, quantity, price: &str| Item::new(product, quantity, price.parse().unwrap());
    let items = [item("Pen", 2, "1.20"), item("Ink", 1, "3"), item("Pen", 5, "1.00")];
    ledger.record(accept(NewOrder { at, ..with_items(order("cart"), items) })).await.unwrap();
    ledger.record(LedgerEntry::FinishOrder { id: OrderId::new("cart").unwrap(), at }).await.unwrap();
    let line = |product: &str, quantity, total: &str| (product.to_owned(), quantity, total.parse().unwrap());
    let sale =
        Sale::new([line("Pen", 2, "2.40"), line("Ink", 1, "3"), line("Pen", 5, "5.00")], "EUR".parse().unwrap(), at);
    ledger.record(analytics("cart/analytics/processed", Some(sale))).await.unwrap();
    let products = report(ledger, "1h", "now", GroupBy::Product).await;
    assert_eq!(rows(&products), ["EUR: Pen 1 7 7.40; Ink 1 1 3"]);
    assert_eq!(products.currencies[0].processed.figures.orders, 1);
    assert_eq!(rows(&report(ledger, "1h", "now", GroupBy::Day).await), ["EUR: 2026-11-22 1 8 10.40"]);
    assert_eq!(ledger.totals().await.unwrap().revenue["EUR"].quantity, 8);
}

async fn charges_are_reported_apart_from_goods(ledger: &dyn Ledger) {
    let (at, order_of) = (moment("2026-11-22T08:00:00Z"), order);
    let charges = |shipping: &str, discount: Option<&str>| Charges {
        shipping: Some(shipping.parse().unwrap()),
        fees: None,
        tax: Some("0.5".parse().unwrap()),
        discount: discount.map(|discount| discount.parse().unwrap()),
        tax_included: false,
    };
    for (id, charges) in [("a", charges("4.90", None)), ("b", charges("0.10", Some("100")))] {
        ledger.record(accept(NewOrder { at, ..with_charges(order(id), charges, "EUR") })).await.unwrap();
    }
    // Another order that the writer does not have in memory any more makes no difference.
    ledger.record(LedgerEntry::FinishOrder { id: OrderId::new("b").unwrap(), at }).await.unwrap();
    let json = serde_json::to_value(report(ledger, "1h", "now", GroupBy::Status).await).unwrap();
    let sums = |row: &serde_json::Value| {
        ["orders", "revenue", "shipping", "tax", "discount", "total"]
            .map(|key| row[key].to_string().replace('"', ""))
            .join(" ")
    };
    let currency = &json["currencies"][0];
    assert_eq!(sums(&currency["processed"]), "1 1200 0.10 0.5 100 1100.60");
    assert_eq!(sums(&currency["rows"][0]), "2 2400 5.00 1.0 100 2306.00");
    assert_eq!(sums(&currency["rows"][1]), "1 1200 0.10 0.5 100 1100.60");
    let order = ledger.trace("b").await.unwrap().order.unwrap();
    assert_eq!((order.goods_total.to_string(), order.total.to_string()), ("1200".to_owned(), "1100.60".to_owned()));
    assert_eq!(order.tax_included, Some(false));
    let included = Charges { tax_included: true, ..charges("0", None) };
    ledger.record(accept(NewOrder { at, ..with_charges(order_of("c"), included, "EUR") })).await.unwrap();
    let order = ledger.trace("c").await.unwrap().order.unwrap();
    assert_eq!((order.tax_included, order.total.to_string()), (Some(true), "1200".to_owned()));
}

/// An order for any product, at any moment within three days.
fn any_sold() -> impl Strategy<Value = Sold> {
    let total = (0..1_000_000_000_000_000i64, 0..=9u32).prop_map(|(mantissa, scale)| Decimal::new(mantissa, scale));
    (0..3usize, 1..10i64, total, 0..2usize, any::<bool>(), 0..3 * DAY).prop_map(
        |(product, quantity, total, currency, priority, at)| Sold {
            product: ["Laptop", "Mouse", "Desk"][product],
            quantity,
            total,
            currency: ["EUR", "USD"][currency],
            priority,
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

/// Any orders, and the start and length in minutes of a report on them.
pub(in crate::ledger) fn orders_and_period() -> impl Strategy<Value = (Vec<Sold>, i64, i64)> {
    (prop::collection::vec(any_sold(), 1..40), 0..4 * DAY / MINUTE, 0..2 * DAY / MINUTE)
}

/// Checks that each grouping of a report adds up to the orders that are in its period.
pub(in crate::ledger) async fn every_grouping_adds_up(ledger: &dyn Ledger, orders: &[Sold], since: i64, length: i64) {
    let since = moment("2026-11-18T12:00:00Z").as_millisecond() + since * MINUTE;
    let at = |millis| PointInTime::At(Timestamp::from_millisecond(millis).unwrap());
    for by in [GroupBy::Product, GroupBy::Hour, GroupBy::Day, GroupBy::Status, GroupBy::Priority] {
        let query = ReportQuery { since: at(since), until: at(since + length * MINUTE), by };
        let report = ledger.report(query, moment(NOW)).await.unwrap();
        let expected = sums(orders, report.window);
        let mut found = BTreeMap::new();
        for currency in report.currencies {
            let mut sum = Figures::default();
            currency.rows.iter().filter(|row| row.key != "accepted").for_each(|row| sum.add(row.figures));
            assert_eq!(sum, currency.processed.figures);
            found.insert(currency.currency, sum);
        }
        assert_eq!(found, expected, "{by}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_grouping_of_a_memory_ledger_adds_up((orders, since, length) in orders_and_period()) {
        let TestLedger { ledger, .. } = TestLedger::memory();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            for (n, sold) in orders.iter().enumerate() {
                sell(&*ledger, &format!("ord-{n}"), sold).await;
            }
            every_grouping_adds_up(&*ledger, &orders, since, length).await;
        });
    }
}
