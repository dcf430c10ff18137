//! What a dead letter, a list and a trace say about replays and edits.

use super::super::SqliteLedger;
use super::{directory, other};
use crate::ledger::conformance::{at, attempt, dead_letter, stored_letter};
use crate::ledger::trace::{MessageState, StoredCopy, TraceEvent, TracedMessage};
use crate::ledger::{
    DeadLetterFilter, DeadLetterQuery, FailedDelivery, LedgerEntry, LedgerMaintenance, LedgerReader, LedgerWriter,
    LetterEdit, LetterOperation, LetterOperationWriter, LetterOrder, LetterProgress, LetterState, LetterWriter,
    NewAttempt, NewStoredLetter,
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
    let of_third = DeadLetterFilter { replay: Some(3), ..DeadLetterFilter::default() };
    let skipped = ledger.dead_letters(all(of_third)).await.unwrap().letters;
    let shown = skipped[0].last_replay.as_ref().map(|replay| (replay.replay, replay.outcome));
    assert_eq!(shown, Some((3, LetterProgress::Skipped)), "what the replay that is asked for has done");
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
async fn a_trace_still_says_that_an_undo_had_failed_once_a_replay_has_undone_the_steps() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let reason = "undo_failed".to_owned();
    let failed = NewStoredLetter { reason, failed_at: at(6_500), at: at(7_000), ..stored_letter("ord-1", 1) };
    ledger.store_letter(failed).await.unwrap();
    // The record of it has the first failure now, as after the undo.
    let attempt = NewAttempt { failed_at: at(6_500), ..attempt("ord-1", "order", 0) };
    ledger.record(dead_letter(attempt)).await.unwrap();
    // What is undone is dead-lettered with its first failure, of long before.
    let undone = NewStoredLetter { failed_at: at(1_000), at: at(8_100), ..stored_letter("ord-1", 2) };
    ledger.store_letter(undone).await.unwrap();
    other(&directory).execute_batch(REPLAYED).unwrap();
    let trace = ledger.trace("ord-1").await.unwrap();
    let shown: Vec<_> = trace
        .steps
        .iter()
        .filter_map(|step| match &step.event {
            TraceEvent::DeadLettered { letter, reason, .. } => {
                Some((step.at.as_millisecond(), letter.unwrap(), reason.as_str()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(shown, [(7_000, 1, "undo_failed"), (8_100, 2, "permanent")]);
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
    let bytes = async |revision| ledger.dead_letter_bytes(1, revision).await.unwrap();
    assert_eq!((bytes(None).await, bytes(Some(0)).await), (Some(3), Some(before.content.body.len() as u64)));
    assert_eq!((bytes(Some(3)).await, ledger.dead_letter_bytes(2, None).await.unwrap()), (None, None));
    assert_eq!((body(Some(3)).await, body(Some(-1)).await), (None, None));
    let edits = ledger.dead_letter_revision(1, Some(0)).await.unwrap().unwrap().edits;
    let edits: Vec<_> =
        edits.iter().map(|edit| (edit.revision, edit.at.unwrap(), edit.by.as_deref().unwrap())).collect();
    assert_eq!(edits, [(1, at(9_000), "ada"), (2, at(9_001), "ada")]);
    ledger.close().await;
}

#[tokio::test]
async fn a_letter_and_a_trace_show_the_attempts_before_and_after_each_replay_and_those_of_a_replay_that_waits() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let failed = |replay: Option<&str>, retry_count, failed_at| NewAttempt {
        replay: replay.map(str::to_owned),
        failed_at: at(failed_at),
        ..attempt("ord-1", "order", retry_count)
    };
    ledger.record(dead_letter(failed(None, 0, 7_000))).await.unwrap();
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    ledger.record(dead_letter(failed(Some("a"), 0, 8_000))).await.unwrap();
    let again = NewStoredLetter { failed_at: at(8_000), at: at(8_100), ..stored_letter("ord-1", 2) };
    ledger.store_letter(again).await.unwrap();
    // The second replay is another message; another ledger's replay is one without a number.
    for attempt in [failed(Some("b"), 0, 9_000), failed(Some("b"), 1, 12_000), failed(Some("other"), 0, 5_000)] {
        ledger.record(LedgerEntry::Attempt(Box::new(attempt))).await.unwrap();
    }
    other(&directory).execute_batch(REPLAYED).unwrap();
    for id in [1, 2] {
        let attempts = ledger.dead_letter(id).await.unwrap().unwrap().attempts;
        let shown: Vec<_> =
            attempts.iter().map(|attempt| (attempt.at.as_millisecond(), attempt.replay, attempt.retries)).collect();
        let expected =
            [(5_000, None, 0), (7_000, None, 0), (8_000, Some(1), 0), (9_000, Some(2), 0), (12_000, Some(2), 1)];
        assert_eq!(shown, expected, "{id}");
    }
    let trace = ledger.trace("ord-1").await.unwrap();
    let failed = trace.steps.iter().filter_map(|step| match step.event {
        TraceEvent::Failed { replay, retries, .. } => Some((replay, retries)),
        _ => None,
    });
    assert_eq!(
        failed.collect::<Vec<_>>(),
        [(None, 0), (None, 0), (Some(1), 0), (Some(2), 0), (Some(2), 1)],
        "{trace:?}"
    );
    let waits = MessageState::Waiting {
        consumer: "order".to_owned(),
        delay: "10s".to_owned(),
        since: at(12_000),
        due_at: at(22_000),
    };
    assert_eq!(trace.message_states(at(13_000))[0], (TracedMessage::Order, waits));
    ledger.close().await;
}

#[tokio::test]
async fn of_very_many_attempts_a_letter_and_a_trace_show_the_latest() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    let attempts =
        "INSERT INTO attempts SELECT 'ord-1', 'order', value, 0, 'transient', 'http_503', '', '10s', value * 1000
                    FROM (WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < 1003)
                          SELECT value FROM n)";
    other(&directory).execute_batch(attempts).unwrap();
    let shown = ledger.dead_letter(1).await.unwrap().unwrap().attempts;
    assert_eq!((shown.len(), shown[0].at, shown[999].at), (1_000, at(4_000), at(1_003_000)));
    let trace = ledger.trace("ord-1").await.unwrap();
    assert_eq!(trace.steps.iter().filter(|step| matches!(step.event, TraceEvent::Failed { .. })).count(), 1_000);
    ledger.close().await;
}

#[tokio::test]
async fn the_letter_of_a_notification_shows_the_deliveries_that_failed_and_that_of_an_order_none() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    let id = "ord-1/notification/processed";
    let failed = |provider: &str, failed_at| FailedDelivery {
        channel: "email".to_owned(),
        provider: provider.to_owned(),
        recipient: Some("a…@example.com".to_owned()),
        kind: "permanent",
        code: "smtp_550".to_owned(),
        reason: "550 no such customer".to_owned(),
        at: at(failed_at),
    };
    let failed = vec![failed("email", 6_000), failed("backup", 6_001)];
    let released = LedgerEntry::ReleaseNotification { id: id.to_owned(), owner: "a".into(), failed };
    ledger.record(released).await.unwrap();
    let notification = NewStoredLetter {
        consumer: "notification".to_owned(),
        order: LetterOrder { id: Some("ord-1".to_owned()), ..LetterOrder::default() },
        ..stored_letter(id, 1)
    };
    ledger.store_letter(notification).await.unwrap();
    // An order of this id.
    ledger.store_letter(stored_letter(id, 2)).await.unwrap();
    let deliveries = ledger.dead_letter(1).await.unwrap().unwrap().deliveries;
    let shown: Vec<_> = deliveries
        .iter()
        .map(|delivery| (delivery.channel.as_str(), delivery.provider.as_str(), delivery.recipient.as_deref()))
        .collect();
    let recipient = Some("a…@example.com");
    assert_eq!(shown, [("email", "email", recipient), ("email", "backup", recipient)]);
    assert!(ledger.dead_letter(2).await.unwrap().unwrap().deliveries.is_empty());
    ledger.close().await;
}

#[tokio::test]
async fn a_letter_and_a_trace_say_in_which_round_a_step_was_called() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    let calls =
        "INSERT INTO steps (scope, identity, step, action, round, is_current, position, undoable, status, attempts,
                                    first_retry, uncertain, result, started_at, called_at, finished_at) VALUES
        ('', 'ord-1', 'charge', 'do', 1, 0, 0, 1, 'done', 1, 0, 0, '1', 1000, 1000, 1100),
        ('', 'ord-1', 'charge', 'undo', 1, 0, 0, 1, 'done', 2, 0, 0, NULL, 2000, 2000, 2100),
        ('', 'ord-1', 'charge', 'do', 2, 1, 0, 1, 'called', 1, 0, 0, NULL, 3000, 3000, NULL)";
    other(&directory).execute_batch(calls).unwrap();
    let steps = ledger.dead_letter(1).await.unwrap().unwrap().steps;
    let shown: Vec<_> = steps.iter().map(|step| (step.action.as_str(), step.round, step.duration_ms)).collect();
    assert_eq!(shown, [("do", 1, Some(100)), ("undo", 1, Some(100)), ("do", 2, None)]);
    let trace = ledger.trace("ord-1").await.unwrap();
    let called = trace.steps.iter().filter_map(|step| match &step.event {
        TraceEvent::StepCalled { action, round, status, .. } => Some((action.as_str(), *round, status.as_str())),
        _ => None,
    });
    assert_eq!(called.collect::<Vec<_>>(), [("do", 1, "done"), ("undo", 1, "done"), ("do", 2, "called")]);
    ledger.close().await;
}

#[tokio::test]
async fn an_order_that_an_edit_replaced_is_traced_with_its_dead_letter_and_without_the_replays_of_the_other_order() {
    let directory = directory();
    let ledger = SqliteLedger::open(directory.path()).unwrap();
    ledger.record(dead_letter(attempt("ord-1", "order", 0))).await.unwrap();
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    let edit = LetterEdit {
        properties: None,
        letter: 1,
        base: 0,
        body: "{}".into(),
        order: LetterOrder { id: Some("ord-2".to_owned()), ..LetterOrder::default() },
        identity: Some("ord-2".to_owned()),
        search: String::new(),
        whole_order: None,
        by: "ada".to_owned(),
        at: at(7_500),
    };
    ledger.carry_out(LetterOperation::Edit(Box::new(edit))).await.unwrap();
    other(&directory).execute_batch(REPLAYED).unwrap();
    let events = async |order: &str| {
        let steps = ledger.trace(order).await.unwrap().steps;
        let event = |event: &TraceEvent| match event {
            TraceEvent::DeadLettered { letter, .. } => format!("dead-lettered as {letter:?}"),
            TraceEvent::Replayed { letter, .. } => format!("replayed {letter}"),
            TraceEvent::Failed { .. } => "failed".to_owned(),
            other => panic!("{other:?}"),
        };
        steps.iter().map(|step| event(&step.event)).collect::<Vec<_>>()
    };
    assert_eq!(events("ord-1").await, ["failed", "dead-lettered as Some(1)"]);
    assert!(events("ord-2").await.contains(&"replayed 1".to_owned()));
    for (order, edited_to) in [("ord-1", Some("ord-2")), ("ord-2", None)] {
        let letters = ledger.dead_letters(StoredCopy::query(order)).await.unwrap().letters;
        let copies = |message| StoredCopy::of_message(order, message, &letters);
        let expected = StoredCopy { id: 1, state: LetterState::Replayed, edited_to: edited_to.map(str::to_owned) };
        assert_eq!(copies(TracedMessage::Order), [expected], "{order}");
        assert_eq!(copies(TracedMessage::Notification), [], "{order}");
    }
    ledger.close().await;
}
