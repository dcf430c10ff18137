//! Totals: everything in the ledger is counted, while it is open and after it was closed.

use std::collections::BTreeMap;

use rust_decimal::Decimal;

use super::rules;
use crate::ledger::conformance::{accept, analytics, at, attempt, dead_letter, finish, notification, order, sale};
use crate::ledger::{Ledger, LedgerEntry, NewOrder, OrderCounts, Revenue, Totals};

rules! {
    an_empty_ledger_has_empty_totals,
    totals_count_everything,
}

async fn an_empty_ledger_has_empty_totals(ledger: &dyn Ledger) {
    assert_eq!(ledger.totals().await.unwrap(), Totals::default());
}

async fn totals_count_everything(ledger: &dyn Ledger) {
    let priority = NewOrder { consumer: "priority".into(), ..order("p-1") };
    let entries = [
        accept(order("o-1")),
        accept(order("o-2")),
        accept(priority),
        finish("o-1"),
        notification("n-1"),
        analytics("a-1", Some(sale("Laptop", Decimal::new(1_050, 2), at(0)))),
        analytics("a-2", Some(sale("Phone", Decimal::new(25, 1), at(90_000_000)))),
        analytics("a-3", None),
        LedgerEntry::Attempt(Box::new(attempt("o-2", "order", 0))),
        dead_letter(attempt("o-2", "order", 1)),
    ];
    for entry in entries {
        ledger.record(entry).await.unwrap();
    }
    let totals = ledger.totals().await.unwrap();
    assert_eq!(totals.orders["order"], OrderCounts { accepted: 1, processed: 1, ..OrderCounts::default() });
    assert_eq!(totals.orders["priority"], OrderCounts { accepted: 1, ..OrderCounts::default() });
    assert_eq!((totals.notifications, totals.analytics, totals.retried), (1, 3, 1));
    assert_eq!(totals.dead_letters, BTreeMap::from([("retries_exhausted".to_owned(), 1)]));
    let expected = Revenue { quantity: 6, total: Decimal::from(13).into() };
    assert_eq!(totals.revenue, BTreeMap::from([("EUR".to_owned(), expected)]));
    ledger.close().await;
    assert_eq!(ledger.totals().await.unwrap(), totals);
}
