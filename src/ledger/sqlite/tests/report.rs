//! Reports from a file, including one whose aggregates were filled by a migration.

use jiff::Timestamp;
use proptest::prelude::*;
use rusqlite::Connection;

use super::super::{FILE_NAME, SqliteLedger, SqliteReader};
use crate::ledger::conformance::reports::{every_grouping_adds_up, orders_and_period, sell};
use crate::ledger::report::{ReportError, ReportQuery};
use crate::ledger::{LedgerMaintenance, LedgerReader, OpenError};

#[tokio::test]
async fn a_report_without_a_ledger_is_an_error_of_the_ledger() {
    let directory = tempfile::tempdir().unwrap();
    let reader = SqliteReader::new(directory.path().to_owned());
    let error = reader.report(ReportQuery::default(), Timestamp::now()).await.unwrap_err();
    assert!(matches!(error, ReportError::Ledger(OpenError::Missing { .. })), "{error:?}");
    assert!(!error.is_query_error());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_grouping_adds_up_to_the_orders((orders, since, length) in orders_and_period(), migrated in any::<bool>()) {
        let directory = tempfile::tempdir().unwrap();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let ledger = SqliteLedger::open(directory.path()).unwrap();
            for (n, sold) in orders.iter().enumerate() {
                sell(&ledger, &format!("ord-{n}"), sold).await;
            }
            ledger.close().await;
            if migrated {
                let file = Connection::open(directory.path().join(FILE_NAME)).unwrap();
                let newer = [
                    "order_sums",
                    "order_items",
                    "step_runs",
                    "steps",
                    "notification_claims",
                    "notification_attempts",
                    "alerts",
                    "alert_messages",
                    "stored_dead_letters",
                    "stored_contents",
                    "stored_products",
                    "stored_texts",
                    "former_orders",
                    "replays",
                    "replay_counts",
                    "replay_letters",
                    "letter_readings",
                    "journal",
                    "journal_head",
                ];
                let drop = newer.map(|table| format!("DROP TABLE {table};"));
                let columns = "ALTER TABLE events DROP COLUMN provider; ALTER TABLE events DROP COLUMN recipient; \
                    ALTER TABLE events DROP COLUMN not_delivered; ALTER TABLE dead_letters DROP COLUMN replay_key;";
                file.execute_batch(&(drop.concat() + columns + "PRAGMA user_version = 1")).unwrap();
            }
            let ledger = SqliteLedger::open(directory.path()).unwrap();
            every_grouping_adds_up(&ledger, &orders, since, length).await;
            ledger.close().await;
        });
    }
}
