//! Erasing what steps have said, while their runs are in progress and after that.

use std::path::Path;

use tempfile::TempDir;

use super::super::{FILE_NAME, SqliteLedger};
use super::{directory, other};
use crate::ledger::conformance::step_runs::{call, charge, done, failure, granted, key, record_of, recorded, work};
use crate::ledger::conformance::{accept, attempt, finish, order, stored_letter};
use crate::ledger::{
    ErasedRows, ErasureOptions, ErasureSubject, ErasureTargets, LedgerEntry, LedgerMaintenance, LedgerReader,
    LedgerWriter, LetterState, LetterWriter, NewOrder, Recorded, RunClaim, RunKey, RunRecord, RunState, StepAction,
    StepRun,
};

const ADA: &str = "{\"card\":\"of ada-lovelace\"}";
const ERASED: &str = "\"[erased]\"";

fn erase(path: &Path, subject: &ErasureSubject, options: ErasureOptions) -> ErasedRows {
    let targets = super::super::erasure_targets(path, subject).unwrap();
    super::super::erase(path, &targets, options, "local").unwrap()
}

fn erase_order(path: &Path, id: &str) -> ErasedRows {
    erase(path, &ErasureSubject::Order(id.to_owned()), ErasureOptions::default())
}

/// The run after its first step, whose result is about Ada; `is_order`: with its order.
async fn charged(ledger: &SqliteLedger, key: &RunKey, is_order: bool) {
    let order = || Box::new(NewOrder { customer_id: Some("ada-lovelace".to_owned()), ..order(&key.identity) });
    let claim = RunClaim { order: is_order.then(order), ..work(key, "a", 0, Some(charge())) };
    assert_eq!(granted(ledger, claim).await.fence, 1);
    recorded(ledger, RunRecord { ended: done("charge", StepAction::Do, ADA), ..record_of(key, 1, 1) }).await;
}

/// What the next worker is handed on, and its fencing number.
async fn claimed(ledger: &SqliteLedger, key: &RunKey, millis: i64) -> (i64, String) {
    let StepRun { fence, steps, .. } = granted(ledger, work(key, "a", millis, None)).await;
    (fence, steps[0].result.clone().unwrap())
}

async fn enter(ledger: &SqliteLedger, key: &RunKey, state: RunState) {
    let (fence, _) = claimed(ledger, key, 10).await;
    let failure = (state != RunState::Done).then(|| failure(5));
    recorded(ledger, RunRecord { state: Some(state), failure, ..record_of(key, fence, 11) }).await;
}

/// State and erasure of the runs in the file.
fn runs(directory: &TempDir) -> Vec<String> {
    let file = other(directory);
    let mut query =
        file.prepare("SELECT concat_ws('|', identity, state, erasure) FROM step_runs ORDER BY identity").unwrap();
    query.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

fn states(erased: &ErasedRows) -> Vec<(&str, &str)> {
    erased.unfinished.iter().map(|steps| (&*steps.id, steps.state)).collect()
}

fn is_in_file(directory: &TempDir, text: &[u8]) -> bool {
    let file = std::fs::read(directory.path().join(FILE_NAME)).unwrap();
    file.windows(text.len()).any(|bytes| bytes == text)
}

#[tokio::test]
async fn the_steps_of_an_erased_order_in_progress_are_handed_what_was_charged_and_it_is_erased_when_the_order_ends() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    // The order may also be finished by another instance.
    let other_instance = SqliteLedger::open(directory.path()).unwrap();
    let path = directory.path();
    let keys = ["processed", "elsewhere", "undone"].map(key);
    for key in &keys {
        charged(&ledger, key, true).await;
        let erased = erase_order(path, &key.identity);
        assert_eq!((states(&erased), erased.step_texts), (vec![(&*key.identity, "running")], 0));
        assert_eq!(claimed(&ledger, key, 2).await.1, ADA);
    }
    let [processed, elsewhere, undone] = &keys;
    for key in [processed, elsewhere] {
        enter(&ledger, key, RunState::Done).await;
        assert_eq!(states(&erase_order(path, &key.identity)), [(&*key.identity, "done")], "it may still be undone");
    }
    enter(&ledger, undone, RunState::Undoing).await;
    assert_eq!(claimed(&ledger, undone, 20).await.1, ADA, "the refund needs it");
    let expected = ["elsewhere|done|requested", "processed|done|requested", "undone|undoing|requested"];
    assert_eq!(runs(&directory), expected);

    assert_eq!(ledger.record(finish("processed")).await.unwrap(), Recorded::New);
    assert_eq!(other_instance.record(finish("elsewhere")).await.unwrap(), Recorded::New);
    enter(&ledger, undone, RunState::Undone).await;
    assert_eq!(runs(&directory), ["elsewhere|done|done", "processed|done|done", "undone|undone|done"]);
    for key in &keys {
        assert_eq!(claimed(&ledger, key, 40).await.1, ERASED);
        assert_eq!(states(&erase_order(path, &key.identity)), []);
    }
    other_instance.close().await;
    ledger.close().await;
    assert!(!is_in_file(&directory, b"ada-lovelace") && !is_in_file(&directory, failure(5).reason.as_bytes()));
}

#[tokio::test]
async fn what_a_person_needs_to_refund_by_hand_is_erased_only_if_asked_for() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let (path, key) = (directory.path(), key("stuck"));
    charged(&ledger, &key, true).await;
    enter(&ledger, &key, RunState::UndoFailed).await;
    let subject = ErasureSubject::Order("stuck".to_owned());
    for dry_run in [true, false] {
        let erased = erase(path, &subject, ErasureOptions { dry_run, include_unfinished: false });
        assert_eq!((states(&erased), erased.step_texts), (vec![("stuck", "undo_failed")], 0));
        assert_eq!(runs(&directory), [if dry_run { "stuck|undo_failed" } else { "stuck|undo_failed|requested" }]);
    }
    assert_eq!(claimed(&ledger, &key, 20).await.1, ADA);
    let erased = erase(path, &subject, ErasureOptions { dry_run: false, include_unfinished: true });
    assert_eq!((states(&erased), erased.step_texts), (vec![], 2));
    assert_eq!(claimed(&ledger, &key, 30).await.1, ERASED);
    // What its undo says later, after a replay, is erased too.
    let (fence, _) = claimed(&ledger, &key, 40).await;
    let undo = RunRecord { next: Some(call("charge", StepAction::Undo, 0)), ..record_of(&key, fence, 41) };
    recorded(&ledger, undo).await;
    let ended = done("charge", StepAction::Undo, ADA);
    recorded(&ledger, RunRecord { ended, state: Some(RunState::Undone), ..record_of(&key, fence, 42) }).await;
    assert_eq!(runs(&directory), ["stuck|undone|done"]);
    ledger.close().await;
    assert!(!is_in_file(&directory, b"ada-lovelace"));
}

#[tokio::test]
async fn messages_that_are_no_orders_are_erased_by_their_id_whoever_sent_them() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let path = directory.path();
    let of = |scope: &str, identity: &str| RunKey { scope: scope.to_owned(), identity: identity.to_owned() };
    let meant = [of("invoices", "inv-1/unverified"), of("invoices", "inv-1/from/shop"), of("mails", "inv-1")];
    let others = [of("invoices", "inv-10/unverified"), of("mails", "inv-1/2"), of("", "inv-1")];
    for key in meant.iter().chain(&others) {
        charged(&ledger, key, false).await;
    }
    for key in meant[..2].iter().chain(&others) {
        enter(&ledger, key, RunState::Done).await;
    }
    let subject = ErasureSubject::Message("inv-1".to_owned());
    let found = super::super::erasure_targets(path, &subject).unwrap();
    let expected = ["inv-1", "inv-1/from/shop", "inv-1/unverified"].map(str::to_owned).to_vec();
    assert_eq!(found, ErasureTargets { messages: expected, ..ErasureTargets::default() });
    let erased = erase(path, &subject, ErasureOptions::default());
    assert_eq!((erased.step_texts, states(&erased)), (2, vec![("inv-1", "running")]));
    assert_eq!(erased.unfinished[0].consumer.as_deref(), Some("mails"));
    enter(&ledger, &meant[2], RunState::Done).await;
    for (key, result) in meant.iter().map(|key| (key, ERASED)).chain(others.iter().map(|key| (key, ADA))) {
        assert_eq!(claimed(&ledger, key, 50).await.1, result, "{key:?}");
    }
    // By its whole identity it is one message.
    let one = ErasureSubject::Message("inv-10/unverified".to_owned());
    assert_eq!(erase(path, &one, ErasureOptions::default()).step_texts, 1);
    ledger.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_that_are_erased_while_they_are_processed_are_processed_and_then_erased() {
    const ORDERS: usize = 60;
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let path = directory.path().to_owned();
    let erasing = tokio::task::spawn_blocking(move || {
        while runs_erased(&path) < ORDERS {
            for n in 0..ORDERS {
                erase_order(&path, &format!("ord-{n}"));
            }
        }
    });
    for n in 0..ORDERS {
        let key = key(&format!("ord-{n}"));
        charged(&ledger, &key, true).await;
        let (fence, result) = claimed(&ledger, &key, 2).await;
        assert_eq!(result, ADA, "the steps of an order in progress need it");
        let ended = done("ship", StepAction::Do, ADA);
        let ship = RunRecord { next: Some(call("ship", StepAction::Do, 1)), ..record_of(&key, fence, 3) };
        recorded(&ledger, ship).await;
        recorded(&ledger, RunRecord { ended, state: Some(RunState::Done), ..record_of(&key, fence, 4) }).await;
        assert_eq!(ledger.record(finish(&key.identity)).await.unwrap(), Recorded::New);
        // No run that has ended waits to be erased.
        let waiting = "SELECT count(*) FROM step_runs JOIN orders ON id = identity
                       WHERE erasure = 'requested' AND status = 'processed'";
        let waiting: i64 = other(&directory).query_row(waiting, [], |row| row.get(0)).unwrap();
        assert_eq!(waiting, 0);
    }
    erasing.await.unwrap();
    ledger.close().await;
    assert!(!is_in_file(&directory, b"ada-lovelace"));
}

fn runs_erased(path: &Path) -> usize {
    let file = rusqlite::Connection::open(path.join(FILE_NAME)).unwrap();
    let erased = "SELECT count(*) FROM step_runs WHERE erasure = 'done'";
    file.query_row(erased, [], |row| row.get::<_, i64>(0)).unwrap().try_into().unwrap()
}

/// A dead letter that names this order, of this customer.
async fn dead_lettered(ledger: &SqliteLedger, order: &str, content: u8, customer: &str) {
    let mut letter = stored_letter(order, content);
    letter.order.customer_id = Some(customer.to_owned());
    letter.body = format!("{{\"email\":\"{customer}@example.com\"}}").into();
    letter.search = format!("{customer}@example.com");
    ledger.store_letter(letter).await.unwrap();
}

/// Whose letters have a content.
async fn letters_with_content(ledger: &SqliteLedger, letters: i64) -> Vec<i64> {
    let mut found = Vec::new();
    for id in 1..=letters {
        if !ledger.dead_letter(id).await.unwrap().unwrap().content.body.is_empty() {
            found.push(id);
        }
    }
    found
}

#[tokio::test]
async fn erasing_a_customer_leaves_its_replayed_dead_letters_counted_as_replayed() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    for (order, content) in [("open", 1), ("replayed", 2)] {
        dead_lettered(&ledger, order, content, "ada-lovelace").await;
    }
    other(&directory)
        .execute("UPDATE stored_dead_letters SET state = 'replayed', closed_at = 9 WHERE id = 2", [])
        .unwrap();
    let customer = ErasureSubject::Customer("ada-lovelace".to_owned());
    assert_eq!(erase(directory.path(), &customer, ErasureOptions::default()).dead_letters, 2);
    let mut states = Vec::new();
    for letter in [1, 2] {
        states.push(ledger.dead_letter(letter).await.unwrap().unwrap().letter.state);
    }
    assert_eq!(states, [LetterState::Discarded, LetterState::Replayed]);
    assert!(letters_with_content(&ledger, 2).await.is_empty());
}

#[tokio::test]
async fn erasing_a_customer_whose_dead_letter_names_an_order_of_another_customer_leaves_that_order_as_it_is() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let key = key("ord-1");
    // Accepted for Ada, with an e-mail address, a failed attempt and the result of a step.
    let email = Some("ada@lovelace.example".to_owned());
    let ada = NewOrder { customer_id: Some("ada-lovelace".to_owned()), email, ..order("ord-1") };
    let claim = RunClaim { order: Some(Box::new(ada)), ..work(&key, "a", 0, Some(charge())) };
    assert_eq!(granted(&ledger, claim).await.fence, 1);
    recorded(&ledger, RunRecord { ended: done("charge", StepAction::Do, ADA), ..record_of(&key, 1, 1) }).await;
    enter(&ledger, &key, RunState::Done).await;
    ledger.record(finish("ord-1")).await.unwrap();
    ledger.record(LedgerEntry::Attempt(Box::new(attempt("ord-1", "order", 0)))).await.unwrap();
    // An order without a customer is nobody's but its own.
    ledger
        .record(accept(NewOrder { customer_id: None, email: Some("joan@clarke.example".to_owned()), ..order("ord-2") }))
        .await
        .unwrap();
    for (content, name) in [(1, "ord-1"), (2, "ord-2")] {
        dead_lettered(&ledger, name, content, "grace-hopper").await;
    }
    dead_lettered(&ledger, "ord-1", 3, "ada-lovelace").await;
    let rows = |table: &str| {
        let file = other(&directory);
        let mut query = file.prepare(&format!("SELECT * FROM {table}")).unwrap();
        let columns = query.column_count();
        let read = |row: &rusqlite::Row<'_>| {
            (0..columns).map(|n| row.get(n)).collect::<rusqlite::Result<Vec<rusqlite::types::Value>>>()
        };
        query.query_map([], read).unwrap().map(Result::unwrap).collect::<Vec<_>>()
    };
    let of_others = || ["orders", "attempts", "steps", "step_runs"].map(rows);
    let before = of_others();

    let grace = ErasureSubject::Customer("grace-hopper".to_owned());
    let targets = super::super::erasure_targets(directory.path(), &grace).unwrap();
    assert_eq!((targets.orders.len(), &*targets.orders_of_others), (0, &["ord-1".to_owned(), "ord-2".to_owned()][..]));
    let erased = erase(directory.path(), &grace, ErasureOptions::default());
    let ErasedRows { customer_ids, failure_texts, recipients, step_texts, dead_letters, .. } = erased;
    assert_eq!((customer_ids, failure_texts, recipients, step_texts, dead_letters), (0, 0, 0, 0, 2));
    assert_eq!(of_others(), before);
    assert_eq!(letters_with_content(&ledger, 3).await, [3]);
    // Ada's own order is erased with her dead letter.
    let erased =
        erase(directory.path(), &ErasureSubject::Customer("ada-lovelace".to_owned()), ErasureOptions::default());
    assert_eq!((erased.customer_ids, erased.failure_texts, erased.step_texts, erased.dead_letters), (1, 1, 1, 1));
    ledger.close().await;
    assert!(!is_in_file(&directory, b"grace-hopper") && !is_in_file(&directory, b"lovelace"));
    assert!(is_in_file(&directory, b"joan@clarke.example"));
}

#[tokio::test]
async fn the_steps_of_an_order_that_was_never_accepted_stay_if_a_dead_letter_of_another_customer_names_it_too() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    for id in ["ord-1", "ord-2"] {
        charged(&ledger, &key(id), false).await;
        enter(&ledger, &key(id), RunState::Done).await;
    }
    for (content, order, customer) in
        [(1, "ord-1", "grace-hopper"), (2, "ord-1", "joan-clarke"), (3, "ord-2", "grace-hopper")]
    {
        dead_lettered(&ledger, order, content, customer).await;
    }
    let grace = ErasureSubject::Customer("grace-hopper".to_owned());
    let erased = erase(directory.path(), &grace, ErasureOptions::default());
    assert_eq!((erased.step_texts, erased.dead_letters), (1, 2), "the second order is only hers");
    assert_eq!(letters_with_content(&ledger, 3).await, [2]);
    assert_eq!(claimed(&ledger, &key("ord-1"), 50).await.1, ADA);
    assert_eq!(claimed(&ledger, &key("ord-2"), 50).await.1, ERASED);
    ledger.close().await;
    assert!(!is_in_file(&directory, b"grace-hopper"));
}
