//! What becomes of replayed letters, by the outcomes that consumers record and the copies that come back. See also `late_outcomes`.

use super::replays::{at, count, outcome, publish, selected, selected_with_reason, state};
use super::{Ledger, rules_of, stored_letter};
use crate::ledger::{
    LedgerEntry, LetterOrigin, LetterProgress, LetterState, NewStoredLetter, PublishAnswer, Recorded, ReplayOutcome,
};

rules_of! { sqlite:
    a_letter_that_failed_again_has_the_code_of_the_letter_that_was_stored_before,
    a_letter_that_failed_again_has_the_code_of_the_letter_that_is_stored_later,
    steps_that_a_replay_has_undone_count_as_undone_if_the_copy_is_stored_before_the_outcome,
    steps_that_a_replay_has_undone_count_as_undone_if_the_copy_is_stored_after_the_outcome,
    a_replayed_letter_counts_as_failed_again_if_its_steps_cannot_be_undone_again_or_the_broker_dead_letters_it,
    an_outcome_of_a_replay_in_another_ledger_is_not_recorded,
    a_replayed_notification_without_an_address_is_closed_and_not_counted_as_processed
}

async fn a_letter_that_failed_again_has_the_code_of_the_letter_that_was_stored_before(ledger: &dyn Ledger) {
    assert_has_code_of_stored(ledger, true).await;
}

async fn a_letter_that_failed_again_has_the_code_of_the_letter_that_is_stored_later(ledger: &dyn Ledger) {
    assert_has_code_of_stored(ledger, false).await;
}

async fn assert_has_code_of_stored(ledger: &dyn Ledger, is_stored_first: bool) {
    selected(ledger).await;
    let PublishAnswer::Publish { key, .. } = publish(ledger, "a", 1, 1).await else { panic!("it is published") };
    let stored = NewStoredLetter { replay_key: Some(key.clone()), ..stored_letter("ord-1", 11) };
    let failed = LedgerEntry::ReplayOutcome {
        key,
        outcome: ReplayOutcome::FailedAgain,
        code: Some(if is_stored_first { "undone".to_owned() } else { stored.code.clone() }),
        at: at(50),
    };
    if is_stored_first {
        ledger.store_letter(stored.clone()).await.unwrap();
        ledger.record(failed).await.unwrap();
    } else {
        ledger.record(failed).await.unwrap();
        ledger.store_letter(stored.clone()).await.unwrap();
    }
    let letters = ledger.replay_letters(1, LetterProgress::FailedAgain, None, 0, 10).await.unwrap();
    assert_eq!((letters[0].code.as_ref(), letters[0].came_back_as), (Some(&stored.code), Some(4)));
}

async fn steps_that_a_replay_has_undone_count_as_undone_if_the_copy_is_stored_before_the_outcome(ledger: &dyn Ledger) {
    assert_counts_as_undone(ledger, true).await;
}

async fn steps_that_a_replay_has_undone_count_as_undone_if_the_copy_is_stored_after_the_outcome(ledger: &dyn Ledger) {
    assert_counts_as_undone(ledger, false).await;
}

async fn assert_counts_as_undone(ledger: &dyn Ledger, is_stored_first: bool) {
    selected_with_reason(ledger, "undo_failed").await;
    let PublishAnswer::Publish { key, .. } = publish(ledger, "a", 1, 1).await else { panic!("it is published") };
    let copy = NewStoredLetter {
        reason: "retries_exhausted".to_owned(),
        replay_key: Some(key.clone()),
        ..stored_letter("ord-1", 11)
    };
    if is_stored_first {
        ledger.store_letter(copy).await.unwrap();
        assert_eq!(outcome(ledger, &key, ReplayOutcome::Undone).await, Recorded::Duplicate);
    } else {
        assert_eq!(outcome(ledger, &key, ReplayOutcome::Undone).await, Recorded::New);
        ledger.store_letter(copy).await.unwrap();
    }
    let letters = ledger.replay_letters(1, LetterProgress::Undone, None, 0, 10).await.unwrap();
    assert_eq!((letters[0].id, letters[0].came_back_as), (1, Some(4)));
    assert_eq!((count(ledger, LetterProgress::FailedAgain).await, state(ledger, 1).await), (0, LetterState::Replayed));
}

async fn a_replayed_letter_counts_as_failed_again_if_its_steps_cannot_be_undone_again_or_the_broker_dead_letters_it(
    ledger: &dyn Ledger,
) {
    selected_with_reason(ledger, "undo_failed").await;
    for (letter, reason, origin) in
        [(1, "undo_failed", LetterOrigin::Orderd), (2, "delivery_limit", LetterOrigin::Broker)]
    {
        let PublishAnswer::Publish { key, .. } = publish(ledger, "a", letter, 1).await else {
            panic!("it is published")
        };
        let (reason, replay_key) = (reason.to_owned(), Some(key));
        let content = 10 + u8::try_from(letter).unwrap();
        let copy = NewStoredLetter { reason, origin, replay_key, ..stored_letter(&format!("ord-{letter}"), content) };
        ledger.store_letter(copy).await.unwrap();
    }
    assert_eq!((count(ledger, LetterProgress::FailedAgain).await, count(ledger, LetterProgress::Undone).await), (2, 0));
}

async fn an_outcome_of_a_replay_in_another_ledger_is_not_recorded(ledger: &dyn Ledger) {
    let unknown = outcome(ledger, "1-of-another-ledger", ReplayOutcome::Processed).await;
    assert_eq!(unknown, Recorded::UnknownReplay);
}

async fn a_replayed_notification_without_an_address_is_closed_and_not_counted_as_processed(ledger: &dyn Ledger) {
    selected(ledger).await;
    let PublishAnswer::Publish { key, .. } = publish(ledger, "a", 1, 1).await else { panic!("it is published") };
    assert_eq!(outcome(ledger, &key, ReplayOutcome::NotDelivered).await, Recorded::New);
    assert_eq!(state(ledger, 1).await, LetterState::Replayed);
    assert_eq!(
        (count(ledger, LetterProgress::NotDelivered).await, count(ledger, LetterProgress::Processed).await),
        (1, 0)
    );
}
