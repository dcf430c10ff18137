//! The journal: entries are chained in the order of recording, and found by everything that is known about them.

use serde_json::json;

use super::{Ledger, at, rules};
use crate::ledger::{
    JournalAction, JournalFilter, JournalHash, JournalHead, JournalProblemKind, JournalQuery, NewJournalEntry,
};

rules! {
    entries_are_chained_in_the_order_of_recording,
    entries_are_found_by_time_actor_and_action,
    pages_of_the_journal_follow_each_other,
    a_journal_without_entries_is_whole,
    a_hash_that_is_not_in_the_journal_is_reported,
}

async fn record(ledger: &dyn Ledger, seconds: i64, actor: &str, action: JournalAction) -> JournalHead {
    let (subject, result) = (json!({ "consumer": "order" }), json!({ "changed": true }));
    ledger.record_action(NewJournalEntry::new(at(seconds * 1_000), actor, action, &subject, &result)).await.unwrap()
}

async fn found(ledger: &dyn Ledger, filter: JournalFilter) -> Vec<i64> {
    let page = ledger.journal(JournalQuery { filter, before: None, limit: 10 }).await.unwrap();
    page.entries.iter().map(|entry| entry.seq).collect()
}

async fn entries_are_chained_in_the_order_of_recording(ledger: &dyn Ledger) {
    // An earlier time does not change the order.
    for (n, (seconds, action)) in
        [(9, JournalAction::Pause), (5, JournalAction::Resume), (7, JournalAction::Reload)].into_iter().enumerate()
    {
        let head = record(ledger, seconds, "ada", action).await;
        assert_eq!(head.seq, n as i64 + 1);
    }
    let page = ledger.journal(JournalQuery { limit: 10, ..JournalQuery::default() }).await.unwrap();
    let [third, second, first] = &page.entries[..] else { panic!("{page:?}") };
    assert_eq!((first.seq, first.at, first.actor.as_str(), first.action.as_str()), (1, at(9_000), "ada", "pause"));
    assert_eq!((&first.subject["consumer"], &first.result["changed"]), (&json!("order"), &json!(true)));
    assert_eq!((first.previous, second.previous, third.previous), (JournalHash::NONE, first.hash, second.hash));
    let verified = ledger.verify_journal(Some(second.hash)).await.unwrap();
    assert_eq!((verified.entries, verified.problem_count), (3, 0));
    assert_eq!(verified.head, JournalHead { seq: 3, hash: third.hash });
}

async fn entries_are_found_by_time_actor_and_action(ledger: &dyn Ledger) {
    record(ledger, 1, "ada", JournalAction::Pause).await;
    record(ledger, 2, "bob", JournalAction::Pause).await;
    record(ledger, 3, "ada", JournalAction::Resume).await;
    let any = JournalFilter::default;
    for (filter, expected) in [
        (any(), &[3, 2, 1][..]),
        (JournalFilter { since: Some(at(2_000)), ..any() }, &[3, 2]),
        (JournalFilter { until: Some(at(2_000)), ..any() }, &[1]),
        (JournalFilter { actor: Some("ada".to_owned()), ..any() }, &[3, 1]),
        (JournalFilter { action: Some("pause".to_owned()), ..any() }, &[2, 1]),
        (JournalFilter { actor: Some("ada".to_owned()), action: Some("pause".to_owned()), ..any() }, &[1]),
        (JournalFilter { actor: Some("ad".to_owned()), ..any() }, &[]),
    ] {
        assert_eq!(found(ledger, filter.clone()).await, expected, "{filter:?}");
    }
}

async fn pages_of_the_journal_follow_each_other(ledger: &dyn Ledger) {
    for seconds in 1..=5 {
        record(ledger, seconds, "ada", JournalAction::Pause).await;
    }
    let page = async |before| {
        let page = ledger.journal(JournalQuery { before, limit: 2, ..JournalQuery::default() }).await.unwrap();
        (page.entries.iter().map(|entry| entry.seq).collect::<Vec<_>>(), page.next)
    };
    assert_eq!(page(None).await, (vec![5, 4], Some(4)));
    assert_eq!(page(Some(4)).await, (vec![3, 2], Some(2)));
    assert_eq!(page(Some(2)).await, (vec![1], None));
}

async fn a_journal_without_entries_is_whole(ledger: &dyn Ledger) {
    let verified = ledger.verify_journal(None).await.unwrap();
    assert_eq!((verified.entries, verified.problem_count, verified.head), (0, 0, JournalHead::EMPTY));
}

async fn a_hash_that_is_not_in_the_journal_is_reported(ledger: &dyn Ledger) {
    let head = record(ledger, 1, "ada", JournalAction::Pause).await;
    assert_eq!(ledger.verify_journal(Some(head.hash)).await.unwrap().problem_count, 0);
    let verified = ledger.verify_journal(Some(JournalHash::NONE)).await.unwrap();
    assert_eq!(verified.problems[0].kind, JournalProblemKind::NotFound);
}
