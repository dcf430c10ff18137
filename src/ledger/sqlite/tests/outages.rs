//! Outages: nothing that waits keeps the writer from closing, entries are limited in bytes, and a writer that dies is seen.

use super::super::*;
use super::{await_recording, count, directory, is_recording, other, outage, short_timeout};
use crate::ledger::NewOrder;
use crate::ledger::OutageCause;
use crate::ledger::Recorded::New;
use crate::ledger::conformance::{accept, notification, of_product, order};

#[tokio::test]
async fn closing_during_an_outage_does_not_wait_however_many_entries_do() {
    let directory = directory();
    let tuning = Tuning { pending_bytes: 64 * MIN_ENTRY_BYTES, ..short_timeout() };
    let ledger = SqliteLedger::open_with(directory.path(), tuning).unwrap();
    let program = other(&directory);
    program.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let waiting: Vec<_> = (0..200).map(|n| ledger.record(notification(&format!("n-{n}")))).collect();
    assert_eq!(outage(&ledger).await, OutageCause::Locked);
    assert!(ledger.prune(jiff::Timestamp::UNIX_EPOCH).await.is_err(), "it is answered during the outage");
    ledger.close().await;
    for answer in futures_util::future::join_all(waiting).await {
        assert!(matches!(answer, Err(LedgerError::Unavailable { .. } | LedgerError::Closed)), "{answer:?}");
    }
}

#[tokio::test]
async fn waiting_entries_are_limited_in_bytes_and_a_larger_one_is_recorded_alone() {
    let directory = directory();
    let tuning = Tuning { pending_bytes: 1 << 20, ..Tuning::default() };
    let ledger = SqliteLedger::open_with(directory.path(), tuning).unwrap();
    let large = |id: &str, bytes| accept(of_product(id, "x".repeat(bytes)));
    let program = other(&directory);
    program.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let waiting =
        [ledger.record(large("a", 700_000)), ledger.record(large("b", 700_000)), ledger.record(large("c", 3 << 20))];
    assert!(ledger.room.free.available_permits() < 400_000);
    program.execute_batch("COMMIT").unwrap();
    for answer in futures_util::future::join_all(waiting).await {
        assert_eq!(answer.unwrap(), New);
    }
    // All of it is given back.
    drop(ledger.room.free.acquire_many(1 << 20).await.unwrap());
}

#[tokio::test]
async fn an_outage_lasts_until_a_write_succeeds_although_all_callers_have_stopped_waiting() {
    let directory = directory();
    let ledger = SqliteLedger::open_with(directory.path(), short_timeout()).unwrap();
    let program = other(&directory);
    program.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let answer = ledger.record(notification("n-1"));
    assert_eq!(outage(&ledger).await, OutageCause::Locked);
    drop(answer);
    // The room of a dropped entry is given back.
    let all = u32::try_from(ledger.room.bytes).unwrap();
    drop(ledger.room.free.acquire_many(all).await.unwrap());
    for _ in 0..2 {
        // Each is answered before the writer's next attempt, so the second one follows an attempt without an entry.
        assert!(ledger.prune(jiff::Timestamp::UNIX_EPOCH).await.is_err());
        assert!(!is_recording(&ledger), "the file is still locked");
    }
    program.execute_batch("COMMIT").unwrap();
    await_recording(&ledger).await;
    assert_eq!(count(&program, "events"), 0, "its message is delivered again");
}

#[tokio::test]
async fn a_writer_that_dies_is_an_outage_for_good_and_interrupts_what_waits() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    ledger.queue.send(Request::Panic).unwrap();
    let answer = ledger.record(notification("n-1")).await;
    assert!(matches!(answer, Err(LedgerError::Closed)), "{answer:?}");
    let cause = outage(&ledger).await;
    assert!(cause == OutageCause::WriterDied && cause.is_final());
    assert!(matches!(ledger.record(notification("n-2")).await, Err(LedgerError::Closed)));
    ledger.close().await;
}

#[tokio::test]
async fn an_older_copy_of_the_same_size_that_overwrites_the_file_in_place_is_noticed() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let (path, copy) = (directory.path().join(FILE_NAME), directory.path().join("copy.db"));
    let now = |id: &str| accept(NewOrder { at: jiff::Timestamp::now(), ..order(id) });
    let program = other(&directory);
    let checkpoint = || program.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    ledger.record(now("ord-1")).await.unwrap();
    checkpoint();
    std::fs::copy(&path, &copy).unwrap();
    ledger.record(now("ord-2")).await.unwrap();
    checkpoint();
    // The check after its commit reads the file, which then contains the second order.
    ledger.record(notification("n-1")).await.unwrap();
    assert_eq!(std::fs::metadata(&copy).unwrap().len(), std::fs::metadata(&path).unwrap().len());
    let newer = std::fs::read(&path).unwrap();
    std::fs::copy(&copy, &path).unwrap();
    assert_eq!(outage(&ledger).await, OutageCause::FileReplaced, "noticed without a commit");
    let answer = ledger.record(now("ord-3"));
    std::fs::write(&path, newer).unwrap();
    assert_eq!(answer.await.unwrap(), New, "recorded once the content is back");
    assert_eq!(count(&program, "orders"), 3);
}

#[tokio::test]
async fn an_older_state_that_sqlite_restores_into_the_open_ledger_is_noticed() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let now = |id: &str| accept(NewOrder { at: jiff::Timestamp::now(), ..order(id) });
    let (mut program, mut older) = (other(&directory), rusqlite::Connection::open_in_memory().unwrap());
    let copy = |from: &rusqlite::Connection, to: &mut rusqlite::Connection| {
        rusqlite::backup::Backup::new(from, to).unwrap().run_to_completion(1_000, Duration::ZERO, None).unwrap();
    };
    ledger.record(now("ord-1")).await.unwrap();
    copy(&program, &mut older);
    ledger.record(now("ord-2")).await.unwrap();
    // The check after its commit counts the second order.
    ledger.record(notification("n-1")).await.unwrap();
    copy(&older, &mut program);
    assert_eq!(outage(&ledger).await, OutageCause::FileReplaced, "noticed without a commit");
    assert_eq!(count(&program, "orders"), 1);
}

#[tokio::test]
async fn a_file_that_is_complete_only_with_its_log_is_not_taken_for_overwritten() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let path = directory.path().join(FILE_NAME);
    let program = other(&directory);
    let now = |id: &str| accept(NewOrder { at: jiff::Timestamp::now(), ..order(id) });
    ledger.record(now("ord-1")).await.unwrap();
    program.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    ledger.record(notification("n-1")).await.unwrap();
    // The log contains every page of the file, as after a checkpoint that a full disk ended before its first page.
    program.execute_batch("BEGIN IMMEDIATE; CREATE TABLE moved (x); DROP TABLE moved; COMMIT").unwrap();
    let size = std::fs::metadata(&path).unwrap().len();
    program.execute_batch("VACUUM").unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![0; usize::try_from(size).unwrap() - 4096], 4096).unwrap();
    ledger.record(now("ord-2")).await.unwrap();
    ledger.record(now("ord-3")).await.unwrap();
    assert_eq!(*ledger.state().borrow(), LedgerState::Recording);
    program.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    assert_eq!(count(&program, "orders"), 3);
}

#[tokio::test]
async fn a_link_that_is_changed_and_a_log_that_is_emptied_in_place_are_noticed() {
    let (target, elsewhere, linked) = (directory(), directory(), directory());
    let link = linked.path().join("ledger");
    std::os::unix::fs::symlink(target.path(), &link).unwrap();
    SqliteLedger::open(elsewhere.path()).unwrap().close().await;
    let ledger = SqliteLedger::open(&link).unwrap();
    ledger.record(accept(NewOrder { at: jiff::Timestamp::now(), ..order("ord-1") })).await.unwrap();
    let point_to = |path: &Path| {
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(path, &link).unwrap();
    };
    point_to(elsewhere.path());
    assert_eq!(outage(&ledger).await, OutageCause::FileReplaced);
    point_to(target.path());
    await_recording(&ledger).await;
    let log = target.path().join(format!("{FILE_NAME}-wal"));
    std::fs::OpenOptions::new().write(true).open(log).unwrap().set_len(0).unwrap();
    assert_eq!(outage(&ledger).await, OutageCause::FileReplaced);
}

#[tokio::test]
async fn what_operators_do_to_the_running_ledger_is_not_taken_for_a_replaced_file() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    for n in 0..200 {
        let large = of_product(&format!("ord-{n}"), "x".repeat(4_000));
        ledger.record(accept(large)).await.unwrap();
    }
    let program = other(&directory);
    program.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let size = || std::fs::metadata(directory.path().join(FILE_NAME)).unwrap().len();
    let before = size();
    // A reader holds a snapshot, so the file shrinks at a later checkpoint than the `VACUUM`.
    let reader = other(&directory);
    reader.execute_batch("BEGIN; SELECT count(*) FROM orders").unwrap();
    program.execute_batch("DELETE FROM orders WHERE id <> 'ord-7'; VACUUM").unwrap();
    ledger.record(notification("n-1")).await.unwrap();
    assert_eq!(size(), before);
    reader.execute_batch("COMMIT").unwrap();
    program.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    assert!(size() < before);
    ledger.record(notification("n-2")).await.unwrap();
    // Refused, because the ledger is in use.
    let _ = program.pragma_update_and_check(None, "journal_mode", "delete", |_| Ok(()));
    std::fs::hard_link(directory.path().join(FILE_NAME), directory.path().join("link")).unwrap();
    program.execute_batch(&format!("VACUUM INTO '{}/copy.db'", directory.path().display())).unwrap();
    ledger.record(notification("n-3")).await.unwrap();
    assert_eq!(ledger.outages(), 0);
    // A directory that is renamed and put back.
    let moved = directory.path().with_extension("moved");
    std::fs::rename(directory.path(), &moved).unwrap();
    assert_eq!(outage(&ledger).await, OutageCause::FileReplaced);
    std::fs::rename(&moved, directory.path()).unwrap();
    ledger.record(notification("n-4")).await.unwrap();
    await_recording(&ledger).await;
}
