//! What the SQLite ledger guarantees beyond the traits: durable answers, shared commits, exact sums, and recovery from
//! temporary errors.

mod dead_letters;
mod erasure;
mod found_letters;
mod generated_letters;
mod journal;
mod letter_history;
mod migration;
mod outages;
mod replays;
mod report;
mod retention;
mod shared_file;

use std::collections::BTreeMap;

use futures_util::future::join_all;
use proptest::prelude::*;
use rusqlite::Connection;
use rust_decimal::Decimal;
use tempfile::TempDir;

use super::schema::{self, MigrateError, Migration};
use super::*;
use crate::ledger::Recorded::{Duplicate, New};
use crate::ledger::conformance::{
    accept, analytics, at, attempt, finish, look_up, notification, of_product, order, sale,
};
use crate::ledger::{LedgerEntry, LedgerState, OutageCause, Totals};

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A connection of another program.
pub(super) fn other(directory: &TempDir) -> Connection {
    Connection::open(directory.path().join(FILE_NAME)).unwrap()
}

fn count(connection: &Connection, table: &str) -> i64 {
    connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
}

fn totals(directory: &TempDir) -> Totals {
    totals::read(directory.path()).unwrap()
}

fn short_timeout() -> Tuning {
    Tuning { busy_timeout: Duration::from_millis(50), ..Tuning::default() }
}

/// Records entries in one batch, however fast the writer is: they are queued while another program locks the file and
/// the writer waits for that lock with a batch of one.
pub(super) async fn record_together(
    ledger: &SqliteLedger,
    program: &Connection,
    entries: impl IntoIterator<Item = LedgerEntry>,
) -> Vec<Result<Recorded, LedgerError>> {
    program.execute_batch("BEGIN IMMEDIATE").unwrap();
    let first = ledger.record(look_up("first"));
    // The writer marks itself busy once it has taken it from the queue.
    while !ledger.shared.busy.is_busy() {
        tokio::task::yield_now().await;
    }
    let answers: Vec<_> = entries.into_iter().map(|entry| ledger.record(entry)).collect();
    program.execute_batch("COMMIT").unwrap();
    assert_eq!(first.await.unwrap(), New);
    join_all(answers).await
}

pub(super) fn is_refused(answer: &Result<Recorded, LedgerError>) -> bool {
    matches!(answer, Err(LedgerError::Refused { .. }))
}

/// Waits until the ledger has an outage, and returns its cause.
pub(super) async fn outage(ledger: &SqliteLedger) -> OutageCause {
    let mut state = ledger.state();
    let state = state.wait_for(|state| matches!(state, LedgerState::Unavailable(_)));
    let state = tokio::time::timeout(Duration::from_secs(60), state).await.unwrap().unwrap();
    let LedgerState::Unavailable(outage) = &*state else { unreachable!() };
    outage.cause
}

fn is_recording(ledger: &SqliteLedger) -> bool {
    *ledger.state().borrow() == LedgerState::Recording
}

/// Waits until the ledger records again: it is in this state soon after the first answer.
pub(super) async fn await_recording(ledger: &SqliteLedger) {
    let mut state = ledger.state();
    let recording = state.wait_for(|state| *state == LedgerState::Recording);
    tokio::time::timeout(Duration::from_secs(60), recording).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_answered_order_can_be_read_by_another_program_with_its_times() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    ledger.record(accept(order("ord-1"))).await.unwrap();
    ledger.record(finish("ord-1")).await.unwrap();
    let row: String = other(&directory)
        .query_row(
            "SELECT concat_ws('|', id, status, consumer, product, quantity, price, goods_total, shipping, fees,
                              tax, tax_included, discount, total, currency, priority, customer_id, placed_at, accepted_at, processed_at) FROM orders",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(row, "ord-1|processed|order|Laptop|3|400|1200|1200|EUR|0|7|1000|2000|3000");
}

#[tokio::test]
async fn entries_that_wait_together_share_one_commit() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let entries = (0..300).map(|n| accept(order(&format!("ord-{n}"))));
    let answers = record_together(&ledger, &other(&directory), entries).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap() == New));
    assert!(ledger.commits() <= 2, "one for the entry that waited for the lock and one for the 300");
}

#[tokio::test]
async fn callers_wait_while_the_queue_is_full_and_every_entry_is_recorded() {
    let directory = directory();
    let tuning = Tuning { pending_bytes: 4 * MIN_ENTRY_BYTES, batch: 3, ..Tuning::default() };
    let ledger = SqliteLedger::open_with(directory.path(), tuning).unwrap();
    let answers = join_all((0..100).map(|n| ledger.record(accept(order(&format!("ord-{n}")))))).await;
    assert!(answers.into_iter().all(|answer| answer.unwrap() == New));
    assert_eq!(count(&other(&directory), "orders"), 100);
}

#[tokio::test]
async fn a_full_disk_holds_the_whole_batch_until_there_is_room_again() {
    let directory = directory();
    let tuning = Tuning { max_pages: Some(88), ..Tuning::default() };
    let ledger = SqliteLedger::open_with(directory.path(), tuning).unwrap();
    let large = |id: String| accept(of_product(&id, "x".repeat(3_000)));
    let sold = |id: &str| analytics(id, Some(sale("Laptop", Decimal::TEN, at(0))));
    for n in 0..20 {
        ledger.record(large(format!("kept-{n}"))).await.unwrap();
    }
    ledger.record(sold("a-1")).await.unwrap();
    let program = other(&directory);
    // The disk is full after the second sale has been added in memory.
    let entries = std::iter::once(sold("a-2")).chain((0..20).map(|n| large(format!("ord-{n}"))));
    let answers = record_together(&ledger, &program, entries);
    let make_room = async {
        assert_eq!(outage(&ledger).await, OutageCause::DiskFull);
        assert_eq!((count(&program, "orders"), ledger.outages()), (20, 1));
        program.execute_batch("DELETE FROM orders").unwrap();
    };
    let (answers, ()) = tokio::join!(answers, make_room);
    assert!(answers.iter().all(|answer| matches!(answer, Ok(New))), "{answers:?}");
    await_recording(&ledger).await;
    assert_eq!(totals(&directory).revenue["EUR"].total, Decimal::from(20).into(), "each sale is counted once");
}

#[tokio::test]
async fn a_locked_file_holds_entries_until_it_is_unlocked() {
    let directory = directory();
    let ledger = SqliteLedger::open_with(directory.path(), short_timeout()).unwrap();
    let program = other(&directory);
    program.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let answer = ledger.record(notification("n-1"));
    assert_eq!(outage(&ledger).await, OutageCause::Locked);
    program.execute_batch("COMMIT").unwrap();
    assert_eq!(answer.await.unwrap(), New);
    ledger.record(notification("n-2")).await.unwrap();
    await_recording(&ledger).await;
    program.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let answer = ledger.record(notification("n-3"));
    assert_eq!(outage(&ledger).await, OutageCause::Locked);
    ledger.close().await;
    assert!(matches!(answer.await, Err(LedgerError::Unavailable { .. })), "closing does not wait for the outage's end");
}

#[tokio::test]
async fn a_write_that_does_not_finish_is_an_outage_until_it_does() {
    let directory = directory();
    let tuning =
        Tuning { busy_timeout: Duration::from_secs(60), hung_after: Duration::from_millis(100), ..Tuning::default() };
    let ledger = SqliteLedger::open_with(directory.path(), tuning).unwrap();
    let program = other(&directory);
    program.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let answer = ledger.record(notification("n-1"));
    assert_eq!(outage(&ledger).await, OutageCause::Hung);
    program.execute_batch("COMMIT").unwrap();
    assert_eq!(answer.await.unwrap(), New);
    ledger.record(notification("n-2")).await.unwrap();
    await_recording(&ledger).await;
}

#[tokio::test]
async fn nothing_is_recorded_in_files_that_were_deleted_or_replaced() {
    for file in ["orderd.db", "orderd.db-wal", "orderd.db-shm"] {
        let directory = directory();
        let ledger = SqliteLedger::open(directory.path()).unwrap();
        ledger.record(notification("n-1")).await.unwrap();
        let (path, aside) = (directory.path().join(file), directory.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        assert_eq!(outage(&ledger).await, OutageCause::FileReplaced, "{file}: noticed without a commit");
        let answer = ledger.record(notification("n-2"));
        std::fs::write(&path, "another file").unwrap();
        tokio::task::yield_now().await;
        std::fs::rename(&aside, &path).unwrap();
        assert_eq!(answer.await.unwrap(), New, "{file}: recorded once the file is back");
        std::fs::remove_file(&path).unwrap();
        let answer = ledger.record(notification("n-3"));
        assert_eq!(outage(&ledger).await, OutageCause::FileReplaced);
        std::fs::write(&path, "restored").unwrap();
        ledger.close().await;
        assert!(matches!(answer.await, Err(LedgerError::Unavailable { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "restored", "{file}: closing touches no file of others");
    }
}

#[tokio::test]
async fn a_copy_of_a_ledger_without_its_log_is_not_taken_for_a_new_ledger() {
    // An empty database in WAL mode: the whole content was in its log.
    let copied = directory();
    other(&copied).pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())).unwrap();
    assert!(matches!(SqliteLedger::open(copied.path()), Err(OpenError::NoTables { .. })));
    let log = directory();
    std::fs::write(log.path().join("orderd.db-wal"), "content").unwrap();
    let error = SqliteLedger::open(log.path()).unwrap_err();
    assert!(matches!(error, OpenError::LogWithoutDatabase { .. }) && error.is_configuration(), "{error:?}");
    // An empty file is a new ledger: a crash at its creation leaves one.
    let empty = directory();
    std::fs::write(empty.path().join(FILE_NAME), "").unwrap();
    SqliteLedger::open(empty.path()).unwrap().close().await;
    let taken = directory();
    std::fs::create_dir(taken.path().join(FILE_NAME)).unwrap();
    assert!(matches!(SqliteLedger::open(taken.path()), Err(OpenError::Permission { .. })));
}

#[tokio::test]
async fn orders_of_a_failed_batch_are_not_counted_by_the_next() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let program = other(&directory);
    ledger.record(accept(order("ord-1"))).await.unwrap();
    let deny = "CREATE TRIGGER deny BEFORE INSERT ON attempts BEGIN SELECT RAISE(ROLLBACK, 'no'); END";
    program.execute_batch(deny).unwrap();
    let entries = || [finish("ord-1"), accept(order("ord-2")), finish("ord-2")];
    let rolls_back = LedgerEntry::Attempt(Box::new(attempt("o-1", "order", 0)));
    let answers = record_together(&ledger, &program, entries().into_iter().chain([rolls_back])).await;
    assert!(is_refused(&answers[3]) && answers[..3].iter().all(|answer| matches!(answer, Ok(New))), "{answers:?}");
    ledger.record(accept(order("ord-3"))).await.unwrap();
    assert!(is_refused(&ledger.record(finish("ord-4")).await), "an order that was never accepted");
    let statuses = "SELECT group_concat(rowid || ' ' || id || ' ' || status) FROM orders";
    let statuses: String = program.query_row(statuses, [], |row| row.get(0)).unwrap();
    assert_eq!(statuses, "1 ord-1 processed,2 ord-2 processed,3 ord-3 accepted");
    let sums = "SELECT concat_ws('|', accepted, processed, processed_total) FROM order_sums WHERE granularity = 'hour'";
    let sums: String = program.query_row(sums, [], |row| row.get(0)).unwrap();
    assert_eq!(sums, "3|2|2400");
}

#[tokio::test]
async fn an_entry_that_ends_the_transaction_is_refused_and_the_others_are_recorded() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let program = other(&directory);
    let deny = "CREATE TRIGGER deny BEFORE INSERT ON attempts BEGIN SELECT RAISE(ROLLBACK, 'no'); END";
    program.execute_batch(deny).unwrap();
    let sold = || analytics("a-1", Some(sale("Laptop", Decimal::TEN, at(0))));
    let entries = [LedgerEntry::Attempt(Box::new(attempt("o-1", "order", 0))), sold()];
    let answers = record_together(&ledger, &program, entries).await;
    assert!(is_refused(&answers[0]) && matches!(answers[1], Ok(New)), "{answers:?}");
    assert_eq!(ledger.record(sold()).await.unwrap(), Duplicate);
}

#[tokio::test]
async fn an_extreme_amount_does_not_prevent_other_sales_from_being_counted() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let sold = |id: &str, total: Decimal| ledger.record(analytics(id, Some(sale("Laptop", total, at(0)))));
    // The sum of these needs more digits than a `Decimal` has.
    let answers = join_all([
        sold("many decimals", Decimal::new(1, 28)),
        sold("usual", Decimal::from(1_200)),
        sold("huge", Decimal::MAX),
        sold("as huge", Decimal::MAX),
    ])
    .await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(New))), "{answers:?}");
    ledger.close().await;
    // The reopened ledger reads the sum from the file.
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    assert_eq!(ledger.record(analytics("cent", Some(sale("Laptop", Decimal::new(1, 2), at(0))))).await.unwrap(), New);
    let revenue = totals(&directory).revenue["EUR"];
    let expected = "158456325028528675187087901870.0100000000000000000000000001";
    assert_eq!((revenue.quantity, revenue.total.to_string().as_str()), (15, expected));
}

#[tokio::test]
async fn two_processes_on_one_file_add_to_the_same_sums() {
    let directory = directory();
    let ledgers = [SqliteLedger::open(directory.path()).unwrap(), SqliteLedger::open(directory.path()).unwrap()];
    for n in 0..20 {
        // Every event reaches both, as when a connection is lost between the record and its ack.
        let sold = || analytics(&format!("a-{n}"), Some(sale("Laptop", Decimal::TEN, at(0))));
        let answers = [ledgers[n % 2].record(sold()).await.unwrap(), ledgers[1 - n % 2].record(sold()).await.unwrap()];
        assert_eq!(answers, [New, Duplicate]);
    }
    assert_eq!(totals(&directory).revenue["EUR"].total, Decimal::from(200).into());
}

#[tokio::test]
async fn closing_answers_queued_entries_and_leaves_one_file() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let waiting: Vec<_> = (0..50).map(|n| ledger.record(accept(order(&format!("ord-{n}"))))).collect();
    tokio::join!(ledger.close(), ledger.close());
    assert!(join_all(waiting).await.into_iter().all(|answer| answer.unwrap() == New));
    assert!(matches!(ledger.record(look_up("x")).await, Err(LedgerError::Closed)));
    ledger.close().await;
    let files: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, [FILE_NAME]);
}

#[tokio::test]
async fn a_recorded_entry_is_a_duplicate_after_a_restart() {
    let directory = directory();
    for expected in [New, Duplicate] {
        let ledger = SqliteLedger::open(&directory.path().join("made/on/demand")).unwrap();
        assert_eq!(ledger.record(notification("n-1")).await.unwrap(), expected);
        ledger.close().await;
    }
}

#[test]
fn a_file_in_place_of_the_directory_is_named_in_the_error() {
    let directory = directory();
    let path = directory.path().join("taken");
    std::fs::write(&path, "").unwrap();
    let error = SqliteLedger::open(&path).unwrap_err();
    assert!(matches!(&error, OpenError::Directory { .. }), "{error:?}");
    assert!(error.to_string().contains("taken"));
}

#[test]
fn the_error_for_a_read_only_directory_says_which_user_can_read_the_ledger() {
    // SQLite's error for such a directory. A real one would not do: tests may run as root, who can write to it.
    let source =
        rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_READONLY_DIRECTORY), None);
    let error = open::error(Path::new("/ledger"), source);
    assert!(error.is_configuration() && error.to_string().contains("as orderd's user"), "{error}");
}

#[test]
fn a_file_that_is_not_a_ledger_is_rejected_and_left_unchanged() {
    let text = directory();
    let content = "not a database at all, ".repeat(50);
    std::fs::write(text.path().join(FILE_NAME), &content).unwrap();
    assert!(matches!(SqliteLedger::open(text.path()), Err(OpenError::Damaged { .. })));
    assert_eq!(std::fs::read_to_string(text.path().join(FILE_NAME)).unwrap(), content);
    let foreign = directory();
    other(&foreign).execute_batch("CREATE TABLE recipes (name TEXT)").unwrap();
    assert!(matches!(SqliteLedger::open(foreign.path()), Err(OpenError::Foreign { .. })));
    // A program that numbers its versions as orderd does.
    other(&foreign).pragma_update(None, "user_version", 2).unwrap();
    assert!(matches!(SqliteLedger::open(foreign.path()), Err(OpenError::Foreign { .. })));
    assert!(matches!(totals::read(directory().path()), Err(OpenError::Missing { .. })));
}

#[tokio::test]
async fn a_ledger_that_lacks_a_table_or_cannot_be_created_is_refused_and_not_waited_for() {
    let damaged = directory();
    SqliteLedger::open(damaged.path()).unwrap().close().await;
    other(&damaged).execute_batch("DROP TABLE attempts").unwrap();
    let error = SqliteLedger::open(damaged.path()).unwrap_err();
    assert!(matches!(error, OpenError::OtherSchema { .. }), "{error:?}");
    let linked = directory();
    std::os::unix::fs::symlink("/no/such/directory/orderd.db", linked.path().join(FILE_NAME)).unwrap();
    let error = SqliteLedger::open(linked.path()).unwrap_err();
    assert!(matches!(error, OpenError::CannotOpen { .. }), "{error:?}");
    assert!(error.is_configuration() && error.temporary_cause().is_none());
}

#[tokio::test]
async fn a_file_that_another_program_locks_cannot_be_opened() {
    let directory = directory();
    SqliteLedger::open(directory.path()).unwrap().close().await;
    let program = other(&directory);
    program.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE").unwrap();
    let error = SqliteLedger::open_with(directory.path(), short_timeout()).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }), "{error:?}");
}

#[tokio::test]
async fn a_file_is_migrated_with_its_rows_and_then_rejected_by_an_older_program() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    ledger.record(accept(order("ord-1"))).await.unwrap();
    ledger.close().await;
    let mut connection = other(&directory);
    let migration = |tables| Migration { tables, fill: None };
    let migrations = |last| {
        let released = schema::MIGRATIONS.iter().map(|known| migration(known.tables));
        released.chain([migration("ALTER TABLE orders ADD COLUMN note TEXT"), migration(last)]).collect::<Vec<_>>()
    };
    let known = schema::last_version(schema::MIGRATIONS);
    let broken = migrations("ALTER TABLE orders ADD COLUMN colour TEXT; ALTER TABLE nowhere ADD COLUMN x TEXT");
    assert!(matches!(schema::migrate(&mut connection, &broken, || false), Err(MigrateError::Sqlite(_))));
    assert_eq!(schema::version(&connection).unwrap(), known + 1, "a failed migration leaves the version before it");
    schema::migrate(&mut connection, &migrations("ALTER TABLE orders ADD COLUMN colour TEXT"), || false).unwrap();
    let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
    let row: (String, Option<String>, Option<String>) =
        connection.query_row("SELECT id, note, colour FROM orders", [], row).unwrap();
    assert_eq!(row, ("ord-1".to_owned(), None, None));
    let error = SqliteLedger::open(directory.path()).unwrap_err();
    assert!(
        matches!(error, OpenError::Newer { found, known: last, .. } if (found, last) == (known + 2, known)),
        "{error:?}"
    );
    assert!(matches!(totals::read(directory.path()), Err(OpenError::Newer { .. })));
}

type Sums = BTreeMap<(String, i64, String), (i64, i64, Decimal)>;

fn stored_sums(directory: &TempDir) -> Sums {
    let connection = other(directory);
    let mut query =
        connection.prepare("SELECT granularity, starts_at, product, orders, quantity, revenue FROM sales").unwrap();
    let rows = query.query_map([], |row| {
        let revenue: String = row.get(5)?;
        Ok(((row.get(0)?, row.get(1)?, row.get(2)?), (row.get(3)?, row.get(4)?, revenue.parse().unwrap())))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

fn expected_sums<'a>(sales: impl Iterator<Item = &'a crate::domain::Sale>) -> Sums {
    let mut sums = Sums::new();
    for sale in sales {
        for (granularity, width) in [("minute", 60_000), ("hour", 3_600_000), ("day", 86_400_000)] {
            let starts_at = sale.at.as_millisecond().div_euclid(width) * width;
            for sold in sale.products() {
                let sum = sums.entry((granularity.to_owned(), starts_at, sold.product.clone())).or_default();
                *sum = (sum.0 + 1, sum.1 + sold.quantity, sum.2 + sold.revenue.to_decimal().unwrap());
            }
        }
    }
    sums
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn sums_equal_their_events_however_often_and_in_whatever_batches_these_arrive(
        events in prop::collection::vec((0..3usize, -200_000_000..200_000_000i64, 0..10_000_000i64, 0..5u32), 1..40),
        deliveries in prop::collection::vec((0..40usize, 1..12usize), 1..25),
    ) {
        let sales: Vec<_> = events
            .iter()
            .map(|(product, time, amount, scale)| sale(["a", "b", "c"][*product], Decimal::new(*amount, *scale), at(*time)))
            .collect();
        let directory = directory();
        let mut delivered = vec![false; sales.len()];
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let tuning = Tuning { batch: 7, gather: Duration::ZERO, ..Tuning::default() };
            let ledger = SqliteLedger::open_with(directory.path(), tuning).unwrap();
            for (first, length) in &deliveries {
                let burst: Vec<usize> = (*first..first + length).map(|n| n % sales.len()).collect();
                let answers = burst.iter().map(|n| ledger.record(analytics(&format!("a-{n}"), Some(sales[*n].clone()))));
                for (n, answer) in burst.iter().zip(join_all(answers).await) {
                    let known = std::mem::replace(&mut delivered[*n], true);
                    assert_eq!(answer.unwrap(), if known { Duplicate } else { New });
                }
            }
            ledger.close().await;
        });
        let counted = sales.iter().zip(&delivered).filter_map(|(sale, delivered)| delivered.then_some(sale));
        prop_assert_eq!(stored_sums(&directory), expected_sums(counted));
    }
}
