//! Files of earlier versions, with rows, opened by this version.

use rusqlite::Connection;

use super::super::schema::{self, MIGRATIONS};
use super::super::{FILE_NAME, SqliteLedger};
use super::other;
use crate::ledger::Recorded::{Duplicate, Unfinished};
use crate::ledger::conformance::{accept, at, order};
use crate::ledger::report::{GroupBy, PointInTime, ReportQuery};
use crate::ledger::{LedgerMaintenance, LedgerReader, LedgerWriter, NewOrder, OpenError};

/// Creates a file of version 2, as the release with that version wrote it.
fn version_2(directory: &tempfile::TempDir) -> Connection {
    let mut connection = other(directory);
    connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
    schema::migrate(&mut connection, &MIGRATIONS[..2], || true).unwrap();
    connection
}

/// The order with this id that `order` makes, and this customer.
fn insert(connection: &Connection, id: &str, customer: &str, processed_at: Option<i64>) {
    let status = if processed_at.is_some() { "processed" } else { "accepted" };
    connection
        .execute(
            "INSERT INTO orders VALUES (?1, ?2, 'order', 'Laptop', 3, '400', '1200', 'EUR', 0, ?3, 1000, 2000, ?4)",
            (id, status, customer, processed_at),
        )
        .unwrap();
}

#[tokio::test]
async fn the_orders_of_a_file_of_version_2_keep_their_amounts_and_are_recognized_when_they_come_again() {
    let directory = tempfile::tempdir().unwrap();
    let file = version_2(&directory);
    insert(&file, "accepted", "7", None);
    insert(&file, "processed", "7", Some(3_000));
    // The sums include an order whose row retention has removed.
    for granularity in ["minute", "hour"] {
        file.execute("INSERT INTO order_sums VALUES (?1, 0, 'EUR', 0, 3, 9, '3600', 2, 6, '2400')", [granularity])
            .unwrap();
    }
    file.execute_batch(
        "INSERT INTO attempts VALUES ('accepted', 'order', 0, 'transient', 'http_503', 'busy', '10s', 2000);
         INSERT INTO dead_letters VALUES ('o', 'order', 'permanent', 0, 'permanent', 'http_402', 'no', 'order_queue', 1, 2);",
    )
    .unwrap();
    drop(file);
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let rows: Vec<String> = other(&directory)
        .prepare(
            "SELECT concat_ws('|', id, status, consumer, product, quantity, price, goods_total,
                              coalesce(shipping, fees, tax, tax_included, discount, '-'), total, currency, priority,
                              customer_id, placed_at, accepted_at, processed_at) FROM orders",
        )
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(
        rows,
        [
            "accepted|accepted|order|Laptop|3|400|1200|-|1200|EUR|0|7|1000|2000",
            "processed|processed|order|Laptop|3|400|1200|-|1200|EUR|0|7|1000|2000|3000"
        ]
    );
    let attempts = "SELECT concat_ws('|', identity, consumer, replay_key, retry_count, failure_code, delay, failed_at) FROM attempts";
    let read = |sql: &str| other(&directory).query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
    assert_eq!(read(attempts), "accepted|order||0|http_503|10s|2000");
    assert_eq!(read("SELECT concat_ws('|', identity, replay_key, failed_at) FROM dead_letters"), "o||1");
    let query = ReportQuery { since: PointInTime::At(at(0)), until: PointInTime::At(at(60_000)), by: GroupBy::Status };
    let report = ledger.report(query, at(60_000)).await.unwrap();
    let json = serde_json::to_value(&report.currencies[0]).unwrap();
    let sums = |row: &serde_json::Value| {
        ["orders", "quantity", "revenue", "shipping", "tax", "total"].map(|key| row[key].to_string()).join(" ")
    };
    assert_eq!(sums(&json["rows"][0]).replace('"', ""), "3 9 3600 0 0 3600");
    assert_eq!(sums(&json["processed"]).replace('"', ""), "2 6 2400 0 0 2400");
    let trace = ledger.trace("processed").await.unwrap().order.unwrap();
    assert_eq!((trace.items.len(), trace.goods_total, trace.total), (1, trace.total, trace.items[0].total));
    assert_eq!((trace.tax, trace.tax_included), (None, None));
    assert_eq!(ledger.record(accept(order("accepted"))).await.unwrap(), Unfinished);
    assert_eq!(ledger.record(accept(order("processed"))).await.unwrap(), Duplicate);
    ledger.close().await;
}

#[tokio::test]
async fn a_migration_leaves_no_copies_of_customer_ids_in_free_pages() {
    let directory = tempfile::tempdir().unwrap();
    let file = version_2(&directory);
    let customer = "ada-lovelace";
    for n in 0..200 {
        insert(&file, &format!("ord-{n}"), customer, Some(3_000));
    }
    drop(file);
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let again = NewOrder { customer_id: Some(customer.to_owned()), ..order("ord-1") };
    assert_eq!(ledger.record(accept(again)).await.unwrap(), Duplicate);
    ledger.close().await;
    let bytes = std::fs::read(directory.path().join(FILE_NAME)).unwrap();
    let count = bytes.windows(customer.len()).filter(|bytes| *bytes == customer.as_bytes()).count();
    assert_eq!(count, 200, "one for each row");
}

#[tokio::test]
async fn a_ledger_of_a_development_version_that_lacks_a_column_is_refused_at_the_start_and_left_as_it_is() {
    for (change, lacks) in [
        ("ALTER TABLE replay_letters DROP COLUMN marked_at", "replay_letters.marked_at"),
        ("DROP TABLE letter_readings", "letter_readings.began_at"),
    ] {
        let directory = tempfile::tempdir().unwrap();
        SqliteLedger::open(directory.path()).unwrap().close().await;
        other(&directory).execute_batch(change).unwrap();
        let before = std::fs::read(directory.path().join(FILE_NAME)).unwrap();
        let error = SqliteLedger::open(directory.path()).unwrap_err();
        assert!(
            matches!(&error, OpenError::OtherSchema { version: 4, missing, .. } if missing.starts_with(lacks)),
            "{error:?}"
        );
        assert!(error.is_configuration());
        assert_eq!(std::fs::read(directory.path().join(FILE_NAME)).unwrap(), before);
    }
}

#[tokio::test]
async fn tables_and_columns_that_other_programs_have_added_are_no_fault() {
    let directory = tempfile::tempdir().unwrap();
    SqliteLedger::open(directory.path()).unwrap().close().await;
    other(&directory).execute_batch("CREATE TABLE other (x); ALTER TABLE orders ADD COLUMN other TEXT").unwrap();
    SqliteLedger::open(directory.path()).unwrap().close().await;
}
