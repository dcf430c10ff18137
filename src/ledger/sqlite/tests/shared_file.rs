//! Several ledgers on one file, as with several instances: nothing is recorded twice, nothing is lost, none blocks
//! another.

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::thread;

use futures_util::future::join_all;
use proptest::prelude::*;
use tempfile::TempDir;

use super::super::*;
use super::{is_refused, other, outage, record_together};
use crate::domain::Item;
use crate::ledger::OtherOrder;
use crate::ledger::Recorded::{Conflict, Duplicate, New, Unfinished};
use crate::ledger::conformance::{accept, analytics, at, attempt, finish, order, sale, with_items};
use crate::ledger::{LedgerEntry, NewOrder, OutageCause};

/// An order for this many pieces.
fn of_quantity(id: &str, quantity: i64) -> NewOrder {
    with_items(order(id), [Item::new("Laptop", quantity, 400.into())])
}

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn open(directory: &TempDir) -> SqliteLedger {
    SqliteLedger::open(directory.path()).unwrap()
}

/// The columns of one row, joined by `|`.
fn row(directory: &TempDir, query: &str) -> String {
    other(directory).query_row(query, [], |row| row.get(0)).unwrap()
}

#[test]
fn instances_that_start_at_the_same_time_create_one_file() {
    for _ in 0..20 {
        let directory = directory();
        let barrier = Barrier::new(4);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    barrier.wait();
                    open(&directory)
                });
            }
        });
        assert_eq!(schema::version(&other(&directory)).unwrap(), schema::last_version(schema::MIGRATIONS));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_sent_to_all_instances_at_once_is_recorded_by_one_and_counted_once() {
    const ORDERS: usize = 500;
    let directory = directory();
    let ledgers = [open(&directory), open(&directory), open(&directory)];
    let ids: Vec<_> = (0..ORDERS).map(|n| format!("ord-{n}")).collect();
    let record_everywhere = async |entry: fn(&str) -> LedgerEntry| {
        let answers = ids.iter().flat_map(|id| ledgers.iter().map(move |ledger| ledger.record(entry(id))));
        let answers: Vec<_> = join_all(answers).await.into_iter().map(Result::unwrap).collect();
        let new = |answers: &[Recorded]| answers.iter().filter(|answer| **answer == New).count();
        answers.chunks(ledgers.len()).map(new).collect::<Vec<_>>()
    };
    let once: Vec<usize> = vec![1; ORDERS];
    assert_eq!(record_everywhere(|id| accept(order(id))).await, once);
    assert_eq!(record_everywhere(finish).await, once);
    assert_eq!(record_everywhere(|id| analytics(id, Some(sale("Laptop", 1200.into(), at(4_000))))).await, once);
    assert!(ledgers.iter().all(|ledger| ledger.commits() > 0), "one of them recorded nothing at all");
    join_all(ledgers.iter().map(LedgerMaintenance::close)).await;
    let sold = "SELECT sum(orders) || '|' || sum(CAST(revenue AS INTEGER)) FROM sales WHERE granularity = 'minute'";
    assert_eq!(row(&directory, sold), format!("{ORDERS}|{}", 1200 * ORDERS));
    let sums = "SELECT sum(accepted) || '|' || sum(processed) || '|' || sum(CAST(processed_total AS INTEGER))
                FROM order_sums WHERE granularity = 'hour'";
    assert_eq!(row(&directory, sums), format!("{ORDERS}|{ORDERS}|{}", 1200 * ORDERS));
}

#[tokio::test]
async fn sums_in_memory_never_overwrite_what_another_instance_has_added() {
    let directory = directory();
    let (one, two) = (open(&directory), open(&directory));
    for n in 0..10 {
        let ledger = if n % 3 == 0 { &one } else { &two };
        ledger.record(analytics(&format!("event-{n}"), Some(sale("Laptop", 1200.into(), at(4_000))))).await.unwrap();
    }
    assert_eq!(row(&directory, "SELECT orders || '|' || revenue FROM sales WHERE granularity = 'day'"), "10|12000");
}

#[tokio::test]
async fn an_order_accepted_by_one_instance_is_finished_by_another_and_counted_with_its_own_figures() {
    let directory = directory();
    let (one, two) = (open(&directory), open(&directory));
    one.record(accept(order("ord-1"))).await.unwrap();
    assert_eq!(two.record(accept(order("ord-1"))).await.unwrap(), Recorded::Unfinished);
    assert_eq!(two.record(finish("ord-1")).await.unwrap(), New);
    // Retention removes it, and its id arrives again with other content and gets the same row. The first instance still
    // has the old content in its cache.
    while two.prune(at(1_000_000_000)).await.unwrap().more {}
    let other_content = || NewOrder { at: at(4_000), ..of_quantity("ord-1", 1) };
    assert_eq!(two.record(accept(other_content())).await.unwrap(), New);
    assert_eq!(one.record(accept(other_content())).await.unwrap(), Recorded::Unfinished);
    assert_eq!(row(&directory, "SELECT CAST(rowid AS TEXT) FROM orders"), "1");
    assert_eq!(one.record(finish("ord-1")).await.unwrap(), New);
    assert_eq!(two.record(finish("ord-1")).await.unwrap(), Duplicate);
    let sums = "SELECT processed || '|' || processed_quantity || '|' || processed_total FROM order_sums
                WHERE granularity = 'hour'";
    assert_eq!(row(&directory, sums), "2|4|1600");
}

#[tokio::test]
async fn an_order_is_never_finished_in_a_row_that_another_order_has_taken() {
    let directory = directory();
    let (one, two) = (open(&directory), open(&directory));
    one.record(accept(order("ord-1"))).await.unwrap();
    other(&directory).execute_batch("DELETE FROM orders").unwrap();
    two.record(accept(order("ord-2"))).await.unwrap();
    assert_eq!(
        row(&directory, "SELECT CAST(rowid AS TEXT) FROM orders"),
        "1",
        "the row that the first instance has cached"
    );
    assert!(one.record(finish("ord-1")).await.is_err());
    assert_eq!(row(&directory, "SELECT id || '|' || status FROM orders"), "ord-2|accepted");
}

#[tokio::test]
async fn an_order_whose_row_was_moved_is_finished_where_it_is_now() {
    let directory = directory();
    let ledger = open(&directory);
    for id in ["ord-1", "ord-2", "ord-3"] {
        ledger.record(accept(order(id))).await.unwrap();
    }
    // Each is now in the row that the order before it had, as after a dump and restore.
    let close_the_gap = "DELETE FROM orders WHERE id = 'ord-1'; UPDATE orders SET rowid = rowid - 1";
    other(&directory).execute_batch(close_the_gap).unwrap();
    assert_eq!(row(&directory, "SELECT CAST(rowid AS TEXT) FROM orders WHERE id = 'ord-3'"), "2");
    for (id, expected) in [("ord-2", New), ("ord-3", New), ("ord-2", Duplicate)] {
        assert_eq!(ledger.record(finish(id)).await.unwrap(), expected, "{id}");
    }
    assert_eq!(
        row(&directory, "SELECT group_concat(id || ' ' || status) FROM orders"),
        "ord-2 processed,ord-3 processed"
    );
    let sums = "SELECT processed || '|' || processed_total FROM order_sums WHERE granularity = 'hour'";
    assert_eq!(row(&directory, sums), "2|2400");
}

#[tokio::test]
async fn two_instances_that_prune_at_once_remove_all_old_rows_and_nothing_else() {
    let directory = directory();
    let (one, two) = (open(&directory), open(&directory));
    let old: Vec<_> = (0..1_000).map(|n| format!("old-{n}")).collect();
    join_all(old.iter().flat_map(|id| [one.record(accept(order(id))), one.record(finish(id))])).await;
    let young = NewOrder { at: at(9_000_000), ..order("young") };
    two.record(accept(young)).await.unwrap();
    let prune = async |ledger: &SqliteLedger| while ledger.prune(at(8_000_000)).await.unwrap().more {};
    tokio::join!(prune(&one), prune(&two));
    assert_eq!(row(&directory, "SELECT group_concat(id) FROM orders"), "young");
}

#[tokio::test]
async fn closing_one_instance_neither_waits_for_locks_nor_blocks_another() {
    let directory = directory();
    let (one, two) = (open(&directory), open(&directory));
    two.record(accept(order("ord-1"))).await.unwrap();
    let reader = other(&directory);
    reader.execute_batch("BEGIN; SELECT count(*) FROM orders").unwrap();
    two.record(accept(order("ord-2"))).await.unwrap();
    let writer = other(&directory);
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    // Both locks are held until it has closed: if it waited for them, it would not close.
    one.close().await;
    writer.execute_batch("COMMIT").unwrap();
    assert_eq!(two.record(accept(order("ord-3"))).await.unwrap(), New);
}

#[tokio::test]
async fn a_file_migrated_by_a_newer_orderd_is_not_written_any_more() {
    let directory = directory();
    let ledger = open(&directory);
    ledger.record(accept(order("ord-1"))).await.unwrap();
    other(&directory).pragma_update(None, "user_version", schema::last_version(schema::MIGRATIONS) + 1).unwrap();
    let error = ledger.record(accept(order("ord-2"))).await.unwrap_err();
    assert!(matches!(error, LedgerError::Outdated { found: 5, known: 4 }), "{error:?}");
    assert_eq!(outage(&ledger).await, OutageCause::Outdated);
    assert_eq!(row(&directory, "SELECT group_concat(id) FROM orders"), "ord-1");
}

/// What happens to one of two ledgers on a file, and to one order.
#[derive(Debug, Clone, Copy)]
enum Action {
    Accept,
    /// Finish it, by a ledger that accepted it; the other may have finished it meanwhile.
    Finish,
    /// Accept and finish it in a batch with an entry that makes SQLite roll it back.
    Fail,
    /// Remove all processed orders.
    Prune,
    /// Another program removes the order.
    Remove,
}

fn actions() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => Just(Action::Accept),
        6 => Just(Action::Finish),
        1 => Just(Action::Fail),
        1 => Just(Action::Prune),
        1 => Just(Action::Remove),
    ]
}

/// The expected rows of orders, and the expected sums: number of orders and quantity.
#[derive(Debug, Default, PartialEq)]
struct Model {
    /// By id: the quantity, and whether the order is processed.
    orders: BTreeMap<String, (i64, bool)>,
    accepted: (i64, i64),
    processed: (i64, i64),
}

impl Model {
    fn accept(&mut self, id: &str, quantity: i64) -> Recorded {
        match self.orders.get(id) {
            Some((other, true)) if *other != quantity => Conflict(OtherOrder::Finished),
            Some((other, false)) if *other != quantity => Conflict(OtherOrder::InProgress),
            Some((_, true)) => Duplicate,
            Some((_, false)) => Unfinished,
            None => {
                self.orders.insert(id.to_owned(), (quantity, false));
                self.accepted = (self.accepted.0 + 1, self.accepted.1 + quantity);
                New
            }
        }
    }

    /// `None` if there is no such order.
    fn finish(&mut self, id: &str) -> Option<Recorded> {
        let (quantity, processed) = self.orders.get_mut(id)?;
        if std::mem::replace(processed, true) {
            return Some(Duplicate);
        }
        self.processed = (self.processed.0 + 1, self.processed.1 + *quantity);
        Some(New)
    }

    fn read(directory: &TempDir) -> Self {
        let connection = other(directory);
        let mut read = connection.prepare("SELECT id, quantity, status = 'processed' FROM orders").unwrap();
        let orders = read.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)))).unwrap();
        const SUMS: &str = "
            SELECT coalesce(sum(accepted), 0), coalesce(sum(accepted_quantity), 0), coalesce(sum(processed), 0),
                           coalesce(sum(processed_quantity), 0) FROM order_sums WHERE granularity = 'hour'";
        let sums = |row: &rusqlite::Row<'_>| Ok(((row.get(0)?, row.get(1)?), (row.get(2)?, row.get(3)?)));
        let (accepted, processed) = connection.query_row(SUMS, [], sums).unwrap();
        Model { orders: orders.map(Result::unwrap).collect(), accepted, processed }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn orders_and_their_sums_match_the_answers_whichever_instance_accepts_finishes_or_removes_them(
        actions in prop::collection::vec((actions(), 0..2usize, 0..2u8, 1..3i64), 1..60),
    ) {
        let directory = directory();
        let mut model = Model::default();
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            let tuning = Tuning { gather: Duration::ZERO, ..Tuning::default() };
            let open = || SqliteLedger::open_with(directory.path(), tuning.clone()).unwrap();
            let (ledgers, program) = ([open(), open()], other(&directory));
            let deny = "CREATE TRIGGER deny BEFORE INSERT ON attempts BEGIN SELECT RAISE(ROLLBACK, 'no'); END";
            program.execute_batch(deny).unwrap();
            // By ledger and order: the quantity that the ledger accepted last.
            let mut known = BTreeMap::new();
            for (action, number, id, quantity) in actions {
                let (ledger, id) = (&ledgers[number], format!("ord-{id}"));
                let accepted = || accept(of_quantity(&id, quantity));
                match action {
                    Action::Accept => {
                        assert_eq!(ledger.record(accepted()).await.unwrap(), model.accept(&id, quantity));
                        known.insert((number, id), quantity);
                    }
                    // A handler accepts before it finishes.
                    Action::Finish if known.get(&(number, id.clone())) != model.orders.get(&id).map(|row| &row.0) => {}
                    Action::Finish => assert_eq!(ledger.record(finish(&id)).await.ok(), model.finish(&id)),
                    Action::Fail => {
                        let rolls_back = LedgerEntry::Attempt(Box::new(attempt(&id, "order", 0)));
                        let answers = record_together(ledger, &program, [accepted(), finish(&id), rolls_back]).await;
                        assert_eq!(answers[0].as_ref().unwrap(), &model.accept(&id, quantity));
                        assert_eq!(answers[1].as_ref().ok(), model.finish(&id).as_ref());
                        assert!(is_refused(&answers[2]), "{answers:?}");
                        known.insert((number, id), quantity);
                    }
                    Action::Prune => {
                        while ledger.prune(at(1_000_000_000)).await.unwrap().more {}
                        model.orders.retain(|_, (_, processed)| !*processed);
                    }
                    Action::Remove => {
                        program.execute("DELETE FROM orders WHERE id = ?1", [&id]).unwrap();
                        model.orders.remove(&id);
                    }
                }
            }
            join_all(ledgers.iter().map(LedgerMaintenance::close)).await;
        });
        prop_assert_eq!(Model::read(&directory), model);
    }
}
