//! What a dead letter, a list and a trace say about replays and edits.

use super::super::SqliteLedger;
use super::{directory, other};
use crate::ledger::conformance::{at, attempt, dead_letter, stored_letter};
use crate::ledger::trace::{MessageState, TraceEvent, TracedMessage};
use crate::ledger::{
    DeadLetterFilter, DeadLetterQuery, LedgerMaintenance, LedgerReader, LedgerWriter, LetterEdit, LetterOperation,
    LetterOperationWriter, LetterOrder, LetterProgress, LetterWriter, NewStoredLetter,
};

/// Order `ord-1` was dead-lettered, replayed by ada in replay 1, and failed again; its second letter is being replayed by bob.
const REPLAYED: &str = "
    INSERT INTO replays (id, state, actor, options, token, selected_to, began_at) VALUES
        (1, 'finished', 'ada', '{}', x'00', 9, 7500), (2, 'running', 'bob', '{}', x'01', 9, 9000),
        (3, 'finished', 'eve', '{}', x'02', 9, 9100);
    INSERT INTO replay_letters (replay_id, letter_id, key, state, code, marked_at, changed_at, ended_at, came_back_as) VALUES
        (1, 1, 'a', 'failed_again', 'card_expired', 7600, 8000, 8000, 2),
        (2, 2, 'b', 'published', NULL, 9200, 9300, NULL, NULL),
        (3, 1, NULL, 'skipped', 'replayed', NULL, 9100, NULL, NULL);
    UPDATE stored_dead_letters SET state = iif(id = 1, 'replayed', 'replaying');";

#[tokio::test]
async fn a_letter_and_a_trace_say_when_and_by_whom_it_was_replayed_and_what_came_of_it() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    let again = NewStoredLetter { failed_at: at(8_000), at: at(8_100), ..stored_letter("ord-1", 2) };
    ledger.store_letter(again).await.unwrap();
    ledger
        .record(dead_letter(crate::ledger::NewAttempt { failed_at: at(8_000), ..attempt("ord-1", "order", 0) }))
        .await
        .unwrap();
    other(&directory).execute_batch(REPLAYED).unwrap();

    let all = |filter| DeadLetterQuery { filter, after: Some(0), limit: 10, ..DeadLetterQuery::default() };
    let letters = ledger.dead_letters(all(DeadLetterFilter::default())).await.unwrap().letters;
    let first = letters[0].last_replay.as_ref().unwrap();
    assert_eq!(
        (first.replay, first.by.as_str(), first.outcome),
        (1, "ada", LetterProgress::FailedAgain),
        "not the one that skipped it"
    );
    assert_eq!((first.at, first.ended_at, first.came_back_as), (at(7_600), Some(at(8_000)), Some(2)));
    assert_eq!((letters[1].came_back_from, letters[0].came_back_from), (Some(1), None));
    let of_replay = DeadLetterFilter { replay: Some(2), ..DeadLetterFilter::default() };
    let found: Vec<_> =
        ledger.dead_letters(all(of_replay.clone())).await.unwrap().letters.iter().map(|letter| letter.id).collect();
    assert_eq!((found, ledger.dead_letter_groups(of_replay).await.unwrap().messages), (vec![2], 1));
    let replays = ledger.dead_letter(1).await.unwrap().unwrap().replays;
    assert_eq!(replays.iter().map(|replay| replay.replay).collect::<Vec<_>>(), [1, 3]);

    let trace = ledger.trace("ord-1").await.unwrap();
    let shown: Vec<_> = trace
        .steps
        .iter()
        .filter_map(|step| match &step.event {
            TraceEvent::DeadLettered { letter, .. } => Some((step.at.as_millisecond(), "dead-lettered", *letter)),
            TraceEvent::Replayed { letter, .. } => Some((step.at.as_millisecond(), "replayed", Some(*letter))),
            _ => None,
        })
        .collect();
    let first_time = [(7_000, "dead-lettered", Some(1)), (7_600, "replayed", Some(1))];
    // The fixture has recorded the second dead-lettering at 7 s.
    assert!(
        first_time.iter().all(|step| shown.contains(step)) && shown.contains(&(7_000, "dead-lettered", Some(2))),
        "{shown:?}"
    );
    assert_eq!(shown.last(), Some(&(9_200, "replayed", Some(2))));
    let under_way = (TracedMessage::Order, MessageState::UnderWay { since: at(9_200) });
    assert_eq!(trace.message_states(at(10_000))[0], under_way);
    assert_eq!(trace.replayed_in(), Some("order"));
    let serialized = serde_json::to_string(&trace).unwrap();
    let read: crate::ledger::trace::Trace = serde_json::from_str(&serialized).unwrap();
    assert_eq!(read, trace, "as a command reads it from a daemon");
    ledger.close().await;
}

#[tokio::test]
async fn an_edited_letter_says_who_has_edited_it_and_its_content_before_can_be_read() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    let before = ledger.dead_letter(1).await.unwrap().unwrap();
    assert!(before.edits.is_empty() && before.content.revision == 0);
    for (base, body) in [(0, "one"), (1, "two")] {
        let edit = LetterEdit {
            properties: None,
            letter: 1,
            base,
            body: body.into(),
            order: LetterOrder { id: Some("ord-1".to_owned()), ..LetterOrder::default() },
            identity: None,
            search: String::new(),
            whole_order: None,
            by: "ada".to_owned(),
            at: at(9_000 + base),
        };
        ledger.carry_out(LetterOperation::Edit(Box::new(edit))).await.unwrap();
    }
    let body = async |revision| {
        let detail = ledger.dead_letter_revision(1, revision).await.unwrap();
        detail.map(|detail| (detail.content.revision, String::from_utf8(detail.content.body).unwrap()))
    };
    assert_eq!(body(None).await, Some((2, "two".to_owned())));
    assert_eq!(body(Some(1)).await, Some((1, "one".to_owned())));
    assert_eq!(body(Some(0)).await.unwrap().1.into_bytes(), before.content.body);
    assert_eq!((body(Some(3)).await, body(Some(-1)).await), (None, None));
    let edits = ledger.dead_letter_revision(1, Some(0)).await.unwrap().unwrap().edits;
    let edits: Vec<_> =
        edits.iter().map(|edit| (edit.revision, edit.at.unwrap(), edit.by.as_deref().unwrap())).collect();
    assert_eq!(edits, [(1, at(9_000), "ada"), (2, at(9_001), "ada")]);
    ledger.close().await;
}
