//! The journal in its file: an action and its entry are recorded together or not at all, and what somebody does to the file is found.

use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::ledger::sqlite::FILE_NAME;
use crate::ledger::traits::{JournalWriter, LedgerReader};
use crate::ledger::{JournalAction, JournalProblemKind, JournalQuery, NewJournalEntry};

fn entry(actor: &str) -> NewJournalEntry {
    NewJournalEntry::new(at(1_000), actor, JournalAction::Pause, &json!({ "consumer": "order" }), &json!({}))
}

async fn problems(ledger: &SqliteLedger) -> Vec<(JournalProblemKind, i64)> {
    let verified = ledger.verify_journal(None).await.unwrap();
    verified.problems.iter().map(|problem| (problem.kind, problem.seq)).collect()
}

#[tokio::test]
async fn whatever_is_done_to_the_journal_in_its_file_is_found_and_never_stops_the_ledger() {
    use JournalProblemKind::{Changed, End, Missing, NotLinked};
    for (sql, expected) in [
        ("UPDATE journal SET actor = 'bob' WHERE seq = 2", vec![(Changed, 2)]),
        ("UPDATE journal SET hash = x'00' WHERE seq = 2", vec![(Changed, 2), (NotLinked, 3)]),
        ("UPDATE journal SET subject = 'no json' WHERE seq = 2", vec![(Changed, 2)]),
        ("DELETE FROM journal WHERE seq = 2", vec![(Missing, 2)]),
        ("DELETE FROM journal WHERE seq = 3", vec![(Missing, 3)]),
        ("DELETE FROM journal", vec![(Missing, 1)]),
        ("DELETE FROM journal_head", vec![(End, 3)]),
        ("UPDATE journal_head SET seq = 2", vec![(End, 3)]),
    ] {
        let directory = TempDir::new().unwrap();
        let ledger = SqliteLedger::open(directory.path()).unwrap();
        for actor in ["ada", "ada", "ada"] {
            ledger.record_action(entry(actor)).await.unwrap();
        }
        assert_eq!(problems(&ledger).await, []);
        Connection::open(directory.path().join(FILE_NAME)).unwrap().execute_batch(sql).unwrap();
        assert_eq!(problems(&ledger).await, expected, "{sql}");
        // It goes on after the last number ever recorded, and the problem stays visible unless only the record of the end was lost.
        let head = ledger.record_action(entry("ada")).await.unwrap();
        assert_eq!(head.seq, 4, "{sql}");
        let only_the_end = matches!(expected[..], [(End, _)]);
        assert_eq!(problems(&ledger).await.is_empty(), only_the_end, "{sql}");
        assert!(ledger.journal(JournalQuery { limit: 10, ..JournalQuery::default() }).await.is_ok(), "{sql}");
        ledger.close().await;
    }
}
