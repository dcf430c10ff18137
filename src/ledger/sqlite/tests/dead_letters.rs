//! The store of dead letters in the file: removed by retention, erased and backed up.

use std::time::Instant;

use futures_util::future::join_all;
use tempfile::TempDir;

use super::super::{MIN_ENTRY_BYTES, SqliteLedger, Tuning, back_up};
use super::generated_letters::generate;
use super::{count, directory, other};
use crate::ledger::conformance::{accept, at, attempt, dead_letter, order, stored_letter};
use crate::ledger::{
    DeadLetterFilter, DeadLetterQuery, ErasureOptions, ErasureSubject, LedgerEntry, LedgerError, LedgerMaintenance,
    LedgerReader, LedgerWriter, LetterChange, LetterEdit, LetterOperation, LetterOperationWriter, LetterOrder,
    LetterOrigin, LetterState, LetterWriter, NewStoredLetter, OperationAnswer, OutageCause, Recorded, StoreAnswer,
};

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[tokio::test]
async fn retention_removes_what_is_replayed_or_discarded_with_its_content_and_nothing_else() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    generate(&other(&directory), 100, 300);
    // As the replay does.
    let connection = other(&directory);
    connection
        .execute("UPDATE stored_dead_letters SET closed_at = 2000 WHERE state IN ('replayed', 'discarded')", [])
        .unwrap();
    // Letters 10 and 11 are among those of the orders `ord-10`, which is replayed, and `ord-11`, which is open.
    for id in ["ord-10", "ord-11"] {
        ledger.record(LedgerEntry::Attempt(Box::new(attempt(id, "order", 0)))).await.unwrap();
    }
    // In pages of its own, which the writer does not overwrite otherwise.
    let sql =
        "UPDATE stored_contents SET body = CAST(zeroblob(9000) || 'ada@example.com' AS BLOB) WHERE letter_id = ?1";
    connection.execute(sql, [10]).unwrap();
    assert!(contains(&directory, "ada@example.com"));
    let mut removed = 0;
    loop {
        let pruned = ledger.prune(at(10_000)).await.unwrap();
        removed += pruned.letters;
        if !pruned.more {
            break;
        }
    }
    assert_eq!(removed, 10);
    for table in ["stored_dead_letters", "stored_contents", "stored_products", "stored_texts"] {
        assert_eq!(count(&connection, table), 90, "{table}");
    }
    let all = DeadLetterQuery { limit: 1_000, ..DeadLetterQuery::default() };
    let left = ledger.dead_letters(all).await.unwrap().letters;
    assert!(left.iter().all(|letter| letter.state == LetterState::Open));
    let attempts: String =
        connection.query_row("SELECT group_concat(identity) FROM attempts", [], |row| row.get(0)).unwrap();
    assert_eq!(attempts, "ord-11");
    drop(connection);
    ledger.close().await;
    assert!(!contains(&directory, "ada@example.com"), "`orderd erase` finds no row any more");
}

#[tokio::test]
async fn a_dead_letter_without_room_on_the_disk_is_no_outage_and_orders_are_recorded() {
    let directory = directory();
    let tuning = Tuning { max_pages: Some(150), ..Tuning::default() };
    let ledger = SqliteLedger::open_with(directory.path(), tuning).unwrap();
    let program = other(&directory);
    let large = || NewStoredLetter { body: vec![b'x'; 2 << 20].into(), ..stored_letter("ord-large", 1) };
    let letters = [large(), stored_letter("ord-1", 2)];
    program.execute_batch("BEGIN IMMEDIATE").unwrap();
    let letters = letters.map(|letter| ledger.store_letter(letter));
    let orders = join_all((0..50).map(|n| ledger.record(accept(order(&format!("ord-{n}"))))));
    program.execute_batch("COMMIT").unwrap();
    let (letters, orders) = tokio::join!(join_all(letters), orders);
    assert!(orders.iter().all(|answer| matches!(answer, Ok(Recorded::New))), "{orders:?}");
    let is_full = |answer: &Result<StoreAnswer, LedgerError>| {
        matches!(answer, Err(LedgerError::Unavailable { cause: OutageCause::DiskFull, .. }))
    };
    assert!(is_full(&letters[0]) && matches!(letters[1], Ok(StoreAnswer::Stored(1))), "{letters:?}");
    assert_eq!(ledger.outages(), 0);
    ledger.close().await;
}

#[tokio::test]
async fn dead_letters_never_take_the_room_of_orders_and_a_large_one_is_stored_alone() {
    let directory = directory();
    let tuning = Tuning { pending_bytes: 64 * MIN_ENTRY_BYTES, letter_bytes: 2 * MIN_ENTRY_BYTES, ..Tuning::default() };
    let ledger = SqliteLedger::open_with(directory.path(), tuning).unwrap();
    let program = other(&directory);
    program.execute_batch("BEGIN IMMEDIATE").unwrap();
    let body = |content: u8| vec![content; 1 << 20];
    let letters =
        (1..=8).map(|n| ledger.store_letter(NewStoredLetter { body: body(n).into(), ..stored_letter("x", n) }));
    let letters: Vec<_> = letters.collect();
    assert_eq!(ledger.room.free.available_permits(), 64 * MIN_ENTRY_BYTES);
    program.execute_batch("COMMIT").unwrap();
    let answers = join_all(letters).await;
    assert!(answers.iter().all(|answer| matches!(answer, Ok(StoreAnswer::Stored(_)))), "{answers:?}");
    let all = u32::try_from(2 * MIN_ENTRY_BYTES).unwrap();
    drop(ledger.letter_room.free.acquire_many(all).await.unwrap());
    ledger.close().await;
}

#[tokio::test]
async fn retention_and_erasure_of_large_dead_letters_take_turns_with_orders() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    for n in 1..=6 {
        let body = vec![n; 5 << 20].into();
        ledger.store_letter(NewStoredLetter { body, ..stored_letter("ord-1", n) }).await.unwrap();
    }
    let connection = other(&directory);
    connection
        .execute("UPDATE stored_dead_letters SET state = 'discarded', closed_at = 2000 WHERE id <= 3", [])
        .unwrap();
    let mut batches = Vec::new();
    while *batches.last().unwrap_or(&1) > 0 {
        batches.push(ledger.prune(at(10_000)).await.unwrap().letters);
    }
    assert_eq!(batches, [2, 1, 0], "8 MiB at a time");
    connection.execute("UPDATE stored_dead_letters SET state = 'replaying' WHERE id = 4", []).unwrap();
    let order = ErasureSubject::Order("ord-1".to_owned());
    let targets = super::super::erasure_targets(directory.path(), &order).unwrap();
    let erased = super::super::erase(directory.path(), &targets, ErasureOptions::default(), "local").unwrap();
    assert_eq!((erased.dead_letters, erased.replaying_dead_letters), (2, 1));
    assert!(!ledger.dead_letter(4).await.unwrap().unwrap().content.body.is_empty(), "its copy has the content too");
    ledger.close().await;
}

#[tokio::test]
async fn dead_letters_of_no_known_order_are_counted_by_an_erasure_and_erased_by_their_number() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let unknown = NewStoredLetter { identity: None, order: LetterOrder::default(), ..stored_letter("x", 1) };
    ledger.store_letter(unknown).await.unwrap();
    // Its id could be read, and nothing else.
    let order = LetterOrder { id: text("ord-9"), ..LetterOrder::default() };
    ledger.store_letter(NewStoredLetter { order, ..stored_letter("ord-9", 2) }).await.unwrap();
    let erase = |subject| {
        let targets = super::super::erasure_targets(directory.path(), &subject).unwrap();
        super::super::erase(directory.path(), &targets, ErasureOptions::default(), "local").unwrap()
    };
    let erased = erase(ErasureSubject::Customer("ada".to_owned()));
    assert_eq!((erased.dead_letters, erased.unattributed_dead_letters), (0, 2), "each may be hers");
    assert_eq!(erase(ErasureSubject::Order("ord-9".to_owned())).unattributed_dead_letters, 1, "the other one may be");
    let erased = erase(ErasureSubject::DeadLetter(1));
    assert_eq!((erased.dead_letters, erased.unattributed_dead_letters), (1, 0));
    assert_eq!(erase(ErasureSubject::DeadLetter(1)).dead_letters, 0);
    assert_eq!(erase(ErasureSubject::Customer("ada".to_owned())).unattributed_dead_letters, 0);
    ledger.close().await;
    assert!(!contains(&directory, "ada@example.com"));
}

#[tokio::test]
async fn a_message_is_stored_again_after_it_was_discarded_however_it_comes() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let letter = |session: &str, redelivered| NewStoredLetter {
        redelivered,
        session: session.to_owned(),
        ..stored_letter("ord-1", 1)
    };
    let store = async |letter| ledger.store_letter(letter).await.unwrap();
    let discard = |id: i64| {
        let sql = "UPDATE stored_dead_letters SET state = 'discarded', closed_at = 1 WHERE id = ?1";
        other(&directory).execute(sql, [id]).unwrap();
    };
    assert_eq!(store(letter("a", false)).await, StoreAnswer::Stored(1));
    assert_eq!(store(letter("a", true)).await, StoreAnswer::Duplicate(1));
    discard(1);
    assert_eq!(store(letter("b", false)).await, StoreAnswer::Stored(2), "its sender has published it again");
    discard(2);
    // The ack of one of them was lost, or it is a third one.
    assert_eq!(store(letter("c", true)).await, StoreAnswer::Stored(3));
    let original = async |id| ledger.dead_letter(id).await.unwrap().unwrap().letter.maybe_duplicate_of;
    assert_eq!((original(2).await, original(3).await), (None, Some(2)));
    ledger.close().await;
}

/// Whether the text is anywhere in the ledger's files.
fn contains(directory: &TempDir, text: &str) -> bool {
    let files = std::fs::read_dir(directory.path()).unwrap();
    let mut contents = files.map(|file| std::fs::read(file.unwrap().path()).unwrap());
    contents.any(|content| content.windows(text.len()).any(|window| window == text.as_bytes()))
}

#[tokio::test]
async fn an_erased_customer_is_in_no_dead_letter_and_the_dead_letters_still_count() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let of = |id: &str, content: u8, customer: &str| {
        let mut letter = stored_letter(id, content);
        letter.order.customer_id = text(customer);
        letter.body = format!(r#"{{"id":"{id}","email":"{customer}@example.com"}}"#).into();
        letter.search = format!("{id}\n{customer}@example.com");
        letter.failure_reason = Some(format!("the card of {customer} has expired"));
        letter
    };
    let event = NewStoredLetter {
        identity: text("ord-1/notification/processed"),
        order: LetterOrder { id: text("ord-1"), ..LetterOrder::default() },
        ..of("ord-1", 3, "ada-lovelace")
    };
    // Another customer's order with the same id.
    let conflict = of("ord-3", 4, "grace-hopper");
    // As erased messages looked once.
    let forged =
        NewStoredLetter { headers: r#"{"erased":{"type":"void"}}"#.to_owned(), ..of("ord-3", 5, "ada-lovelace") };
    for letter in [of("ord-1", 1, "ada-lovelace"), of("ord-2", 2, "grace-hopper"), event, conflict, forged] {
        ledger.store_letter(letter).await.unwrap();
    }
    let ada = ErasureSubject::Customer("ada-lovelace".to_owned());
    let targets = super::super::erasure_targets(directory.path(), &ada).unwrap();
    assert_eq!(targets.orders, ["ord-1"], "it was never accepted");
    assert_eq!(targets.orders_of_others, ["ord-3"], "nobody knows whose it is");
    let erase = |dry_run| {
        let options = ErasureOptions { dry_run, ..ErasureOptions::default() };
        super::super::erase(directory.path(), &targets, options, "local").unwrap().dead_letters
    };
    assert_eq!((erase(true), erase(false), erase(false)), (3, 3, 0));
    ledger.close().await;
    assert!(!contains(&directory, "ada-lovelace"));
    assert!(contains(&directory, "grace-hopper@example.com"));
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let letter = ledger.dead_letter(1).await.unwrap().unwrap();
    assert_eq!((letter.letter.state, letter.content.body.len()), (LetterState::Discarded, 0));
    assert_eq!(letter.letter.order_id.as_deref(), Some("ord-1"));
    let groups = ledger.dead_letter_groups(DeadLetterFilter::default()).await.unwrap();
    assert_eq!((groups.messages, letter.letter.erased), (5, true));
    let conflict = ledger.dead_letter(4).await.unwrap().unwrap();
    assert_eq!((conflict.letter.state, conflict.content.body.is_empty()), (LetterState::Open, false));
    ledger.close().await;
}

#[tokio::test]
async fn a_customer_or_an_order_that_an_edit_replaced_is_erased_with_all_bodies_of_the_dead_letter() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let order = |id: &str, customer: &str| LetterOrder {
        id: text(id),
        customer_id: text(customer),
        products: vec![format!("Ring, engraved {customer}")],
        ..LetterOrder::default()
    };
    let body = |customer: &str| format!(r#"{{"email":"{customer}@example.com"}}"#).into_bytes();
    for content in [1, 2, 3] {
        let (order, search) = (order("ord-1", "ada-lovelace"), "ada-lovelace@example.com".to_owned());
        let letter =
            NewStoredLetter { order, search, body: body("ada-lovelace").into(), ..stored_letter("ord-1", content) };
        ledger.store_letter(letter).await.unwrap();
    }
    let edit = async |letter, base, id: &str, customer: &str| {
        let edit = LetterEdit {
            properties: None,
            letter,
            base,
            body: body(customer).into(),
            order: order(id, customer),
            identity: text(id),
            search: format!("{customer}@example.com"),
            whole_order: None,
            by: "operator".to_owned(),
            at: at(1),
        };
        ledger.carry_out(LetterOperation::Edit(Box::new(edit))).await.unwrap();
    };
    edit(1, 0, "ord-1", "grace-hopper").await;
    edit(1, 1, "ord-1", "joan-clarke").await;
    edit(2, 0, "ord-2", "grace-hopper").await;
    edit(2, 1, "ord-3", "joan-clarke").await;
    let erased = |subject| {
        let targets = super::super::erasure_targets(directory.path(), &subject).unwrap();
        super::super::erase(directory.path(), &targets, ErasureOptions::default(), "local").unwrap().dead_letters
    };
    assert_eq!(erased(ErasureSubject::Order("ord-2".to_owned())), 1, "the second order of three");
    assert_eq!(erased(ErasureSubject::Customer("ada-lovelace".to_owned())), 2, "edited twice, and not edited");
    assert_eq!(erased(ErasureSubject::Customer("grace-hopper".to_owned())), 0, "nothing is left");
    ledger.close().await;
    for customer in ["ada-lovelace", "grace-hopper", "joan-clarke"] {
        assert!(!contains(&directory, customer), "{customer}");
    }
}

#[tokio::test]
async fn a_message_that_the_broker_dead_lettered_itself_has_the_reason_that_orderd_has_recorded() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    ledger.record(dead_letter(attempt("ord-1", "order", 2))).await.unwrap();
    // It is recorded as dead-lettered at 7 s.
    let rejected = |identity: &str, content, died_at| NewStoredLetter {
        origin: LetterOrigin::Broker,
        reason: "rejected".to_owned(),
        code: "rejected".to_owned(),
        died_at: Some(died_at),
        ..stored_letter(identity, content)
    };
    let months_later = at(100 * 86_400_000);
    let letters = [
        rejected("ord-1", 1, at(8_000)),
        rejected("ord-2", 2, at(8_000)),
        NewStoredLetter { failed_at: months_later, ..rejected("ord-1", 3, months_later) },
    ];
    for (letter, id) in letters.into_iter().zip(1..) {
        assert_eq!(ledger.store_letter(letter).await.unwrap(), StoreAnswer::Stored(id));
    }
    let all = DeadLetterQuery { limit: 10, ..DeadLetterQuery::default() };
    let letters = ledger.dead_letters(all).await.unwrap().letters;
    let reasons = letters.iter().map(|letter| (letter.reason.as_str(), letter.code.as_str(), letter.retries));
    let of_broker = ("rejected", "rejected", 3);
    let expected = [of_broker, of_broker, ("retries_exhausted", "stock_unreachable", 2)];
    assert_eq!(reasons.collect::<Vec<_>>(), expected);
    assert!(letters.iter().all(|letter| letter.broker_reason.as_deref() == Some("rejected")));
    assert_eq!(letters[0].failed_at, months_later, "what is recorded is about another failure");
    let attempts = ledger.dead_letter(1).await.unwrap().unwrap().attempts;
    assert_eq!(attempts.iter().map(|attempt| attempt.code.as_str()).collect::<Vec<_>>(), ["stock_unreachable"]);
    ledger.close().await;
}

#[tokio::test]
async fn a_backup_contains_the_dead_letters() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    let target = TempDir::new().unwrap();
    let file = target.path().join("backup.db");
    let summary = back_up(directory.path(), &file, false, &|_| {}, &false.into()).unwrap();
    assert_eq!((summary.rows["stored_dead_letters"], summary.rows["stored_contents"]), (1, 1));
    ledger.close().await;
}

/// Orders are recorded while persons change many stored messages, and while there is no room for that.
#[tokio::test]
async fn orders_wait_for_one_change_of_the_desk_at_most_and_a_change_without_room_is_no_outage() {
    let directory = directory();
    let ledger =
        SqliteLedger::open_with(directory.path(), Tuning { max_pages: Some(1_500), ..Tuning::default() }).unwrap();
    let program = other(&directory);
    let letters = join_all((0..400_u32).map(|n| {
        let [.., high, low] = n.to_be_bytes();
        let mut letter = stored_letter(&format!("ord-{n}"), low);
        letter.fingerprint[..2].copy_from_slice(&[low, high]);
        ledger.store_letter(letter)
    }));
    assert!(letters.await.iter().all(|answer| matches!(answer, Ok(StoreAnswer::Stored(_)))));
    let discard = |ids: Vec<i64>| {
        let change = LetterChange::Discard { reason: "x".repeat(1_000) };
        ledger.carry_out(LetterOperation::Letters { ids, change, states: Vec::new(), by: "ada".to_owned(), at: at(1) })
    };
    program.execute_batch("BEGIN IMMEDIATE").unwrap();
    let before = ledger.commits();
    let changes: Vec<_> = (0..39).map(|n| discard((n * 10 + 1..=n * 10 + 10).collect())).collect();
    let edit = LetterOperation::Edit(Box::new(LetterEdit {
        letter: 400,
        base: 0,
        body: vec![b'x'; 16 << 20].into(),
        properties: None,
        order: LetterOrder::default(),
        identity: None,
        search: String::new(),
        whole_order: None,
        by: "ada".to_owned(),
        at: at(1),
    }));
    let edit = tokio::spawn(ledger.carry_out(edit));
    let orders = join_all((0..50).map(|n| ledger.record(accept(order(&format!("ord-{n}"))))));
    assert_eq!(ledger.room.free.available_permits(), ledger.room.bytes - 50 * MIN_ENTRY_BYTES);
    program.execute_batch("COMMIT").unwrap();
    let orders = tokio::spawn(async { (orders.await, Instant::now()) });
    let changes = tokio::spawn(async { (join_all(changes).await, Instant::now()) });
    let ((orders, recorded), (changes, changed)) = (orders.await.unwrap(), changes.await.unwrap());
    assert!(orders.iter().all(|answer| matches!(answer, Ok(Recorded::New))), "{orders:?}");
    assert!(recorded < changed, "the orders come first");
    assert!(ledger.commits() - before >= 39, "each change has its own transaction");
    let is_full = |answer: &Result<OperationAnswer, LedgerError>| {
        matches!(answer, Err(LedgerError::Unavailable { cause: OutageCause::DiskFull, .. }))
    };
    assert!(changes.iter().all(Result::is_ok), "{changes:?}");
    assert!(is_full(&edit.await.unwrap()), "16 MiB do not fit");
    assert_eq!(ledger.outages(), 0);
    ledger.record(accept(order("ord-50"))).await.unwrap();
    ledger.close().await;
}
