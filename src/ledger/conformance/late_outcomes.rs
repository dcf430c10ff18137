//! Outcomes of replayed letters that are recorded late, in another order than usual, or by a clock that was set back.

use jiff::Timestamp;

use super::replays::{change, count, outcome, publish, release, selected, selected_with_reason, skip, state};
use super::{Ledger, rules_of, stored_letter};
use crate::ledger::{
    ClaimedReplay, LedgerEntry, LetterEdit, LetterOperation, LetterOrder, LetterProgress, LetterSelection,
    LetterSource, LetterState, NewReplay, NewStoredLetter, OperationAnswer, PublishAnswer, Recorded, ReplayOptions,
    ReplayOutcome, ToPublish, ToSelect,
};

rules_of! { sqlite:
    a_late_outcome_of_an_earlier_content_leaves_an_edited_letter_open,
    a_letter_that_has_an_outcome_is_not_opened_again_when_its_next_replay_is_stopped,
    a_letter_that_has_an_outcome_is_not_opened_again_when_its_next_replay_skips_it,
    an_edited_letter_is_open_again_when_its_next_replay_is_stopped_although_its_earlier_content_has_an_outcome,
    an_undo_that_failed_again_counts_as_failed_again_if_its_copy_was_unroutable,
    a_letter_that_was_skipped_and_came_back_after_all_is_counted_once,
    failures_after_the_clock_was_set_back_are_among_the_latest_outcomes
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn by_a(id: i64) -> ClaimedReplay {
    ClaimedReplay { id, owner: "a".to_owned() }
}

/// Process `a` replays these letters.
async fn replay(ledger: &dyn Ledger, id: i64, letters: &[i64]) {
    let new = NewReplay {
        by: "ada".to_owned(),
        selection: LetterSelection::Ids(letters.to_vec()),
        options: ReplayOptions::default(),
        at: at(0),
    };
    change(ledger, LetterOperation::Begin(Box::new(new))).await;
    let claim = LetterOperation::Claim { replay: id, owner: "a".to_owned(), at: at(0), until: at(10) };
    assert_eq!(change(ledger, claim).await, OperationAnswer::Done(true));
    let to_select = |letter: &i64| ToSelect { letter: *letter, queue: "order_queue".to_owned() };
    let letters = letters.iter().map(to_select).collect();
    let select = LetterOperation::Select { replay: by_a(id), letters, is_named: true, is_last: true, at: at(0) };
    assert_eq!(change(ledger, select).await, OperationAnswer::Done(true));
}

/// The key of letter 1, whose replay has ended without an outcome and which is open again.
async fn released(ledger: &dyn Ledger) -> String {
    selected(ledger).await;
    let PublishAnswer::Publish { key, .. } = publish(ledger, "a", 1, 1).await else { panic!("it is published") };
    change(ledger, skip(2, "no_queue", false)).await;
    change(ledger, LetterOperation::Finish { replay: by_a(1), at: at(2) }).await;
    change(ledger, release(1, 3)).await;
    assert_eq!(state(ledger, 1).await, LetterState::Open);
    key
}

async fn edit(ledger: &dyn Ledger) {
    let edit = LetterEdit {
        letter: 1,
        base: 0,
        body: "{}".into(),
        properties: None,
        order: LetterOrder { id: Some("ord-1".to_owned()), ..LetterOrder::default() },
        identity: None,
        search: String::new(),
        whole_order: None,
        by: "ada".to_owned(),
        // The clock was set back.
        at: at(0),
    };
    change(ledger, LetterOperation::Edit(Box::new(edit))).await;
}

async fn stop(ledger: &dyn Ledger, replay: i64) {
    let (by_person, reason) = (Some("bob".to_owned()), "requested");
    change(ledger, LetterOperation::Stop { replay, by: by_person, reason, detail: None, at: at(5) }).await;
    change(ledger, LetterOperation::GiveBack { replay: by_a(replay), limit: 10, at: at(5) }).await;
}

async fn a_late_outcome_of_an_earlier_content_leaves_an_edited_letter_open(ledger: &dyn Ledger) {
    let key = released(ledger).await;
    edit(ledger).await;
    assert_eq!(outcome(ledger, &key, ReplayOutcome::Processed).await, Recorded::New);
    assert_eq!((state(ledger, 1).await, count(ledger, LetterProgress::Processed).await), (LetterState::Open, 1));
}

async fn a_letter_that_has_an_outcome_is_not_opened_again_when_its_next_replay_is_stopped(ledger: &dyn Ledger) {
    let key = released(ledger).await;
    replay(ledger, 2, &[1]).await;
    let again = NewStoredLetter { replay_key: Some(key), ..stored_letter("ord-1", 11) };
    ledger.store_letter(again).await.unwrap();
    assert_eq!(state(ledger, 1).await, LetterState::Replaying);
    stop(ledger, 2).await;
    assert_eq!((state(ledger, 1).await, state(ledger, 4).await), (LetterState::Replayed, LetterState::Open));
}

async fn a_letter_that_has_an_outcome_is_not_opened_again_when_its_next_replay_skips_it(ledger: &dyn Ledger) {
    let key = released(ledger).await;
    replay(ledger, 2, &[1]).await;
    outcome(ledger, &key, ReplayOutcome::Processed).await;
    let LetterOperation::Skip { letters, at, .. } = skip(1, "no_queue", false) else { unreachable!("it is one") };
    change(ledger, LetterOperation::Skip { replay: by_a(2), letters, at }).await;
    assert_eq!(state(ledger, 1).await, LetterState::Replayed);
}

async fn an_edited_letter_is_open_again_when_its_next_replay_is_stopped_although_its_earlier_content_has_an_outcome(
    ledger: &dyn Ledger,
) {
    let key = released(ledger).await;
    edit(ledger).await;
    replay(ledger, 2, &[1]).await;
    outcome(ledger, &key, ReplayOutcome::Processed).await;
    stop(ledger, 2).await;
    assert_eq!(state(ledger, 1).await, LetterState::Open);
}

async fn an_undo_that_failed_again_counts_as_failed_again_if_its_copy_was_unroutable(ledger: &dyn Ledger) {
    selected_with_reason(ledger, "undo_failed").await;
    let PublishAnswer::Publish { key, .. } = publish(ledger, "a", 1, 1).await else { panic!("it is published") };
    let copy = NewStoredLetter {
        source: LetterSource::UnroutedQueue,
        reason: "unrouted".to_owned(),
        replay_key: Some(key),
        ..stored_letter("ord-1", 11)
    };
    ledger.store_letter(copy).await.unwrap();
    assert_eq!((count(ledger, LetterProgress::FailedAgain).await, count(ledger, LetterProgress::Undone).await), (1, 0));
}

async fn a_letter_that_was_skipped_and_came_back_after_all_is_counted_once(ledger: &dyn Ledger) {
    selected(ledger).await;
    let PublishAnswer::Publish { key, .. } = publish(ledger, "a", 1, 1).await else { panic!("it is published") };
    change(ledger, skip(1, "refused", true)).await;
    let again = NewStoredLetter { replay_key: Some(key), ..stored_letter("ord-1", 11) };
    ledger.store_letter(again.clone()).await.unwrap();
    let replay = ledger.replay(1, at(3)).await.unwrap().unwrap();
    assert_eq!(replay.letters, [(LetterProgress::Selected, 1), (LetterProgress::FailedAgain, 1)].into());
    assert!(replay.skipped.is_empty(), "{:?}", replay.skipped);
    let letters = ledger.replay_letters(1, LetterProgress::FailedAgain, None, 0, 10).await.unwrap();
    assert_eq!((letters[0].code.as_ref(), letters[0].came_back_as), (Some(&again.code), Some(4)));
}

async fn failures_after_the_clock_was_set_back_are_among_the_latest_outcomes(ledger: &dyn Ledger) {
    const LETTERS: u8 = 150;
    for n in 1..=LETTERS {
        ledger.store_letter(stored_letter(&format!("ord-{n}"), n)).await.unwrap();
    }
    let ids: Vec<i64> = (1..=LETTERS).map(i64::from).collect();
    replay(ledger, 1, &ids).await;
    let letters = ids.iter().map(|letter| ToPublish { letter: *letter, order: None }).collect();
    let begin = LetterOperation::BeginPublishing { replay: by_a(1), letters, limit: ids.len(), at: at(1) };
    let OperationAnswer::Publishing(answers) = change(ledger, begin).await else { panic!("an answer for each") };
    let keys = answers.into_iter().map(|answer| match answer {
        PublishAnswer::Publish { key, .. } => key,
        other => panic!("it is published: {other:?}"),
    });
    // The first letters fail last.
    for (n, key) in keys.enumerate().collect::<Vec<_>>().into_iter().rev() {
        let (outcome, second) =
            if n < 10 { (ReplayOutcome::FailedAgain, 500) } else { (ReplayOutcome::Processed, 1_000) };
        ledger.record(LedgerEntry::ReplayOutcome { key, outcome, code: None, at: at(second) }).await.unwrap();
    }
    let replay = ledger.replay(1, at(501)).await.unwrap().unwrap();
    assert_eq!((replay.recent, replay.recent_failed), (100, 10));
}
