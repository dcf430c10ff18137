//! Erases personal data from the file, also while a daemon uses it.
//!
//! It never removes a row, and never changes an aggregate: an order that is delivered again stays a duplicate.

use std::iter;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::{FILE_NAME, open};
use crate::domain::EVENT_ID_SUFFIXES;
use crate::ledger::erase::{ERASED, ErasedRows, ErasureSubject};
use crate::ledger::error::OpenError;

/// How long to wait for a lock. A daemon holds it for one commit.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// Orders in one transaction, during which a daemon records nothing.
const BATCH_ORDERS: usize = 256;

/// The ids of the subject's orders. An order that was never accepted has no row, but may have attempts.
pub(in crate::ledger) fn orders(directory: &Path, subject: &ErasureSubject) -> Result<Vec<String>, OpenError> {
    let connection = open::for_reading(directory, BUSY_TIMEOUT)?;
    let read = |sql: &str, id: &str| {
        let mut select = connection.prepare(sql)?;
        select.query_map([id], |row| row.get(0))?.collect::<rusqlite::Result<Vec<String>>>()
    };
    let found = match subject {
        ErasureSubject::Customer(id) => read("SELECT id FROM orders WHERE customer_id = ?1 ORDER BY rowid", id),
        ErasureSubject::Order(id) => read(
            "SELECT ?1 WHERE EXISTS (SELECT 1 FROM orders WHERE id = ?1)
                OR EXISTS (SELECT 1 FROM attempts WHERE identity = ?1)
                OR EXISTS (SELECT 1 FROM dead_letters WHERE identity = ?1)",
            id,
        ),
    };
    found.map_err(|error| open::error(directory, error))
}

/// Erases the customers of these orders, and the texts of their failures and their events' failures.
pub(in crate::ledger) fn erase(directory: &Path, orders: &[String], dry_run: bool) -> Result<ErasedRows, OpenError> {
    // Checks that there is a ledger, of this version.
    drop(open::for_reading(directory, BUSY_TIMEOUT)?);
    erase_in(directory, orders, dry_run).map_err(|error| open::error(directory, error))
}

fn erase_in(directory: &Path, orders: &[String], dry_run: bool) -> rusqlite::Result<ErasedRows> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(directory.join(FILE_NAME), flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "synchronous", "full")?;
    // What is replaced is overwritten with zeros.
    connection.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))?;
    let mut erased = ErasedRows::default();
    for orders in orders.chunks(BATCH_ORDERS) {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for order in orders {
            erase_order(&transaction, order, &mut erased)?;
        }
        if dry_run { transaction.rollback()? } else { transaction.commit()? }
    }
    if !dry_run && !orders.is_empty() {
        // The write-ahead log contains pages from before.
        let busy: i64 = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
        erased.copies_remain = busy != 0;
    }
    Ok(erased)
}

fn erase_order(connection: &Connection, order: &str, erased: &mut ErasedRows) -> rusqlite::Result<()> {
    erased.customer_ids += connection
        .execute("UPDATE orders SET customer_id = ?2 WHERE id = ?1 AND customer_id <> ?2", (order, ERASED))?;
    for table in ["attempts", "dead_letters"] {
        // Not every identity that begins with the order's: `ord-1/2` may be another order.
        for suffix in iter::once("").chain(EVENT_ID_SUFFIXES) {
            erased.failure_texts += connection.execute(
                &format!("UPDATE {table} SET failure_reason = ?2 WHERE identity = ?1 AND failure_reason <> ?2"),
                (format!("{order}{suffix}"), ERASED),
            )?;
        }
    }
    erased.step_texts += connection.execute(
        "UPDATE steps SET result = iif(result IS NULL, NULL, json_quote(?2)),
                          failure_reason = iif(failure_reason IS NULL, NULL, ?2)
         WHERE scope = '' AND identity = ?1 AND (result <> json_quote(?2) OR failure_reason <> ?2)",
        (order, ERASED),
    )?;
    erased.step_texts += connection.execute(
        "UPDATE step_runs SET failure_reason = ?2 WHERE scope = '' AND identity = ?1 AND failure_reason <> ?2",
        (order, ERASED),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::conformance::fixtures::{accept, at, attempt, dead_letter, finish, order};
    use crate::ledger::sqlite::SqliteLedger;
    use crate::ledger::{
        CallOutcome, ClaimAnswer, ClaimPurpose, EndedCall, LedgerEntry, LedgerMaintenance, LedgerReader, LedgerWriter,
        NewOrder, Recorded, RunClaim, RunKey, RunRecord, StepAction, StepCallEntry, StepStatus,
    };

    fn of_customer(id: &str, customer: &str) -> LedgerEntry {
        accept(NewOrder { customer_id: Some(customer.to_owned()), ..order(id) })
    }

    #[tokio::test]
    async fn an_erased_customer_is_nowhere_in_the_ledger_and_its_orders_stay_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = SqliteLedger::open(directory.path()).unwrap();
        for (id, customer) in [("ord-1", "ada-lovelace"), ("ord-2", "other"), ("ord-3", "ada-lovelace")] {
            assert_eq!(ledger.record(of_customer(id, customer)).await.unwrap(), Recorded::New);
        }
        ledger.record(finish("ord-1")).await.unwrap();
        for identity in ["ord-1", "ord-1/notification/processed", "ord-10", "ord-1/2"] {
            ledger.record(LedgerEntry::Attempt(Box::new(attempt(identity, "order", 0)))).await.unwrap();
            ledger.record(dead_letter(attempt(identity, "order", 1))).await.unwrap();
        }
        let totals = ledger.totals().await.unwrap();
        let path = directory.path();
        let found = orders(path, &ErasureSubject::Customer("ada-lovelace".to_owned())).unwrap();
        assert_eq!(found, ["ord-1", "ord-3"]);
        let planned = erase(path, &found, true).unwrap();
        assert_eq!((planned.customer_ids, planned.failure_texts), (2, 6));
        assert_eq!(orders(path, &ErasureSubject::Customer("ada-lovelace".to_owned())).unwrap(), found);
        let erased = |orders| ErasedRows { copies_remain: false, ..erase(path, orders, false).unwrap() };
        assert_eq!(erased(&found), planned);
        assert_eq!(erased(&found), ErasedRows::default(), "nothing is left to erase");
        assert_eq!(ledger.totals().await.unwrap(), totals);
        // A redelivery is no conflict, and another customer is untouched.
        assert_eq!(ledger.record(of_customer("ord-1", "ada-lovelace")).await.unwrap(), Recorded::Duplicate);
        assert_eq!(ledger.record(of_customer("ord-3", "ada-lovelace")).await.unwrap(), Recorded::Unfinished);
        assert_eq!(ledger.record(of_customer("ord-2", "third")).await.unwrap(), Recorded::Conflict);
        ledger.close().await;
        let file = std::fs::read(path.join(FILE_NAME)).unwrap();
        assert!(!file.windows(12).any(|bytes| bytes == b"ada-lovelace"));
        assert!(orders(path, &ErasureSubject::Order("ord-7".to_owned())).unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_the_steps_of_an_erased_order_said_is_erased_and_the_steps_stay_done() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = SqliteLedger::open(directory.path()).unwrap();
        let key = RunKey { scope: String::new(), identity: "ord-1".to_owned() };
        let call = StepCallEntry {
            step: "charge".to_owned(),
            action: StepAction::Do,
            position: 0,
            undoable: true,
            retries: 0,
        };
        let claim = || RunClaim {
            key: key.clone(),
            purpose: ClaimPurpose::Work { body: [0; 32], is_new: true, replayed_at: None, first: Some(call.clone()) },
            owner: "a".into(),
            at: at(0),
            until: at(1),
            order: Some(Box::new(order("ord-1"))),
        };
        ledger.claim_run(claim()).await.unwrap();
        let outcome = CallOutcome::Done { result: "{\"card\":\"of ada-lovelace\"}".to_owned() };
        let record = RunRecord {
            key: key.clone(),
            fence: 1,
            at: at(1),
            until: None,
            ended: Some(EndedCall { step: "charge".to_owned(), action: StepAction::Do, outcome }),
            next: None,
            state: None,
            failure: None,
            dead_lettered: false,
        };
        ledger.record_run(record).await.unwrap();
        let orders = ["ord-1".to_owned()];
        assert_eq!(erase(directory.path(), &orders, false).unwrap().step_texts, 1);
        assert_eq!(erase(directory.path(), &orders, false).unwrap().step_texts, 0);
        let ClaimAnswer::Granted(run) = ledger.claim_run(claim()).await.unwrap() else { panic!("it is not claimed") };
        assert_eq!((run.steps[0].status, run.steps[0].result.as_deref()), (StepStatus::Done, Some("\"[erased]\"")));
        ledger.close().await;
        let file = std::fs::read(directory.path().join(FILE_NAME)).unwrap();
        assert!(!file.windows(12).any(|bytes| bytes == b"ada-lovelace"));
    }
}
