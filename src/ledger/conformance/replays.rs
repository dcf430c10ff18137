//! Replays and changes of stored letters: which letters they claim, and what crashes and other processes may leave behind.
//!
//! The memory ledger has no replays: it is for tests of what works without them.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::dead_letters::without_id;
use super::{Ledger, accept, attempt, finish, order, rules_of, stored_letter};
use crate::ledger::report::{DeadLettered, GroupBy, PointInTime, ReportQuery};
use crate::ledger::{
    BeginAnswer, ChangeAnswer, ClaimedReplay, JournalEntry, JournalQuery, LedgerEntry, LeftOutLetter, LetterChange,
    LetterOperation, LetterProgress, LetterSelection, LetterState, MAX_ACTIVE_REPLAYS, NewDeadLetter, NewReplay,
    NewStoredLetter, OperationAnswer, PublishAnswer, Recorded, ReplayOptions, ReplayOutcome, ReplayState, StoreAnswer,
    ToPublish, ToSelect,
};

rules_of! { sqlite:
    a_letter_that_somebody_else_has_held_since_a_filter_found_it_is_not_discarded,
    of_two_processes_only_the_one_that_has_claimed_a_replay_publishes_and_all_copies_have_one_mark,
    a_letter_that_was_read_when_processes_ended_is_read_alone_and_those_after_it_do_not_count_as_read,
    a_letter_that_was_changed_since_a_filter_found_it_is_left_out_with_its_state_and_not_as_a_duplicate,
    a_letter_that_may_be_on_its_way_is_not_opened_and_its_late_outcome_closes_it,
    a_letter_that_the_broker_has_refused_from_the_first_time_on_is_open_again_and_a_late_outcome_closes_it,
    letters_are_counted_where_they_go_once_their_queue_is_another_one,
    no_more_letters_are_published_than_there_is_room_for_and_all_are_closed_whose_order_was_processed,
    a_stopped_replay_gives_back_what_it_has_not_published_and_keeps_the_rest_until_its_outcome,
    a_report_says_which_failed_orders_failed_again_or_were_discarded_and_what_became_of_their_dead_letters,
    letters_are_counted_by_queue_and_cause_in_each_state_without_counting_them_again,
    of_two_processes_one_carries_out_all_replays_and_no_more_begin_than_are_carried_out,
    the_journal_alone_says_who_replayed_which_letters_and_what_became_of_them,
    a_letter_without_an_outcome_is_released_or_erased_only_once_none_is_expected_any_more,
    a_replay_that_stopped_by_itself_is_among_what_is_unresolved,
    a_replay_that_a_person_stopped_is_not_among_what_is_unresolved
}

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn by(owner: &str) -> ClaimedReplay {
    ClaimedReplay { id: 1, owner: owner.to_owned() }
}

pub(super) async fn change(ledger: &dyn Ledger, change: LetterOperation) -> OperationAnswer {
    ledger.carry_out(change).await.unwrap()
}

/// Three letters, of which process `a` replays two.
pub(crate) async fn selected(ledger: &dyn Ledger) {
    selected_with_reason(ledger, "permanent").await;
}

pub(super) async fn selected_with_reason(ledger: &dyn Ledger, reason: &str) {
    for n in 1..=3 {
        let letter = NewStoredLetter { reason: reason.to_owned(), ..stored_letter(&format!("ord-{n}"), n) };
        ledger.store_letter(letter).await.unwrap();
    }
    let (selection, options) = (LetterSelection::Ids(vec![1, 2]), ReplayOptions::default());
    let new = NewReplay { by: "ada".to_owned(), selection, options, at: at(0) };
    let begun = change(ledger, LetterOperation::Begin(Box::new(new))).await;
    assert_eq!(begun, OperationAnswer::Begun(BeginAnswer { replay: 1 }));
    assert_eq!(claim(ledger, "a", 0).await, OperationAnswer::Done(true));
    let select = select(&[1, 2]);
    assert_eq!(change(ledger, select).await, OperationAnswer::Done(true));
}

fn select(letters: &[i64]) -> LetterOperation {
    let to_select = |letter: &i64| ToSelect { letter: *letter, queue: "order_queue".to_owned() };
    let letters = letters.iter().map(to_select).collect();
    LetterOperation::Select { replay: by("a"), letters, is_named: true, is_last: true, at: at(0) }
}

pub(super) fn skip(letter: i64, code: &'static str, is_unpublished: bool) -> LetterOperation {
    LetterOperation::Skip { replay: by("a"), letters: vec![LeftOutLetter { letter, code, is_unpublished }], at: at(2) }
}

pub(super) fn release(letter: i64, second: i64) -> LetterOperation {
    let (ids, change, by) = (vec![letter], LetterChange::Release, "ada".to_owned());
    LetterOperation::Letters { ids, change, states: Vec::new(), by, at: at(second) }
}

async fn claim(ledger: &dyn Ledger, owner: &str, second: i64) -> OperationAnswer {
    let owner = owner.to_owned();
    change(ledger, LetterOperation::Claim { replay: 1, owner, at: at(second), until: at(second + 10) }).await
}

pub(crate) async fn publish(ledger: &dyn Ledger, owner: &str, letter: i64, second: i64) -> PublishAnswer {
    let letters = vec![ToPublish { letter, order: None }];
    let begin = LetterOperation::BeginPublishing { replay: by(owner), letters, limit: 1, at: at(second) };
    let OperationAnswer::Publishing(mut answers) = change(ledger, begin).await else { panic!("an answer for each") };
    answers.remove(0)
}

pub(in crate::ledger) async fn state(ledger: &dyn Ledger, letter: i64) -> LetterState {
    ledger.dead_letter(letter).await.unwrap().unwrap().letter.state
}

pub(super) async fn count(ledger: &dyn Ledger, progress: LetterProgress) -> u64 {
    ledger.replay(1, at(0)).await.unwrap().unwrap().count(progress)
}

pub(super) async fn outcome(ledger: &dyn Ledger, key: &str, outcome: ReplayOutcome) -> Recorded {
    ledger.record(LedgerEntry::ReplayOutcome { key: key.to_owned(), outcome, code: None, at: at(50) }).await.unwrap()
}

async fn a_letter_that_somebody_else_has_held_since_a_filter_found_it_is_not_discarded(ledger: &dyn Ledger) {
    ledger.store_letter(stored_letter("ord-1", 1)).await.unwrap();
    let to = |change: LetterChange, states: &[LetterState]| {
        let (ids, states) = (vec![1], states.to_vec());
        LetterOperation::Letters { ids, change, states, by: "ada".to_owned(), at: at(1) }
    };
    let hold = to(LetterChange::Hold { note: "fraud".to_owned() }, &[LetterState::Open]);
    assert_eq!(change(ledger, hold).await, OperationAnswer::Letters(vec![ChangeAnswer::Changed]));
    let discard = |states| to(LetterChange::Discard { reason: "test".to_owned() }, states);
    let refused = ChangeAnswer::Refused(LetterState::Held);
    assert_eq!(change(ledger, discard(&[LetterState::Open])).await, OperationAnswer::Letters(vec![refused]));
    assert_eq!(state(ledger, 1).await, LetterState::Held);
    assert_eq!(
        change(ledger, discard(&[])).await,
        OperationAnswer::Letters(vec![ChangeAnswer::Changed]),
        "it is named"
    );
}

async fn of_two_processes_only_the_one_that_has_claimed_a_replay_publishes_and_all_copies_have_one_mark(
    ledger: &dyn Ledger,
) {
    selected(ledger).await;
    let first = publish(ledger, "a", 1, 1).await;
    let PublishAnswer::Publish { key, fingerprint, marked_at, is_first: true } = first else { panic!("{first:?}") };
    assert_eq!(claim(ledger, "b", 2).await, OperationAnswer::Done(false));
    assert_eq!(publish(ledger, "b", 2, 2).await, PublishAnswer::NotClaimed);
    // Its claim has ended.
    assert_eq!(claim(ledger, "b", 11).await, OperationAnswer::Done(true));
    assert_eq!(publish(ledger, "a", 2, 12).await, PublishAnswer::NotClaimed);
    let again = PublishAnswer::Publish { key, fingerprint, marked_at, is_first: false };
    assert_eq!(publish(ledger, "b", 1, 12).await, again, "the same key and the same mark");
    let (letters, due) = (vec![1], at(100));
    let published = |owner| LetterOperation::Published { replay: by(owner), letters: letters.clone(), at: at(13), due };
    assert_eq!(change(ledger, published("a")).await, OperationAnswer::Done(false), "b publishes it");
    assert_eq!(count(ledger, LetterProgress::Publishing).await, 1);
    assert_eq!(change(ledger, published("b")).await, OperationAnswer::Done(true));
    // Each process that ends while it reads a letter counts.
    let reading = |owner: &str, second| {
        let (replay, letters) = (by(owner), vec![2]);
        LetterOperation::Reading { replay, letters, has_ended: false, at: at(second) }
    };
    assert_eq!(change(ledger, reading("b", 13)).await, OperationAnswer::Reading(vec![0]));
    assert_eq!(change(ledger, reading("b", 13)).await, OperationAnswer::Reading(vec![0]));
    claim(ledger, "c", 30).await;
    assert_eq!(change(ledger, reading("c", 31)).await, OperationAnswer::Reading(vec![1]));
}

async fn a_letter_that_was_read_when_processes_ended_is_read_alone_and_those_after_it_do_not_count_as_read(
    ledger: &dyn Ledger,
) {
    selected(ledger).await;
    let read = async |owner: &str, second, letters: &[i64]| {
        claim(ledger, owner, second).await;
        let (replay, letters) = (by(owner), letters.to_vec());
        let reading = LetterOperation::Reading { replay, letters, has_ended: false, at: at(second) };
        let OperationAnswer::Reading(tries) = change(ledger, reading).await else { panic!("an answer") };
        tries
    };
    assert_eq!(read("a", 0, &[1, 2]).await, [0, 0]);
    // Each of these ends.
    assert_eq!(read("b", 20, &[1, 2]).await, [1], "alone");
    assert_eq!(read("c", 40, &[1, 2]).await, [2]);
    assert_eq!(read("c", 41, &[2]).await, [1], "only the first process has read both");
    // The one before it is read without it.
    assert_eq!(read("d", 60, &[3, 2]).await, [0]);
    assert_eq!(read("e", 80, &[2]).await, [2]);
    let end = LetterOperation::Reading { replay: by("e"), letters: vec![2], has_ended: true, at: at(81) };
    change(ledger, end).await;
    assert_eq!(read("f", 100, &[2]).await, [2], "this one has not ended");
}

async fn a_letter_that_was_changed_since_a_filter_found_it_is_left_out_with_its_state_and_not_as_a_duplicate(
    ledger: &dyn Ledger,
) {
    for n in 1..=2 {
        ledger.store_letter(stored_letter(&format!("ord-{n}"), n)).await.unwrap();
    }
    for (redelivered, session) in [(false, "a"), (true, "b")] {
        ledger.store_letter(without_id(session, redelivered)).await.unwrap();
    }
    let to = |id, change| {
        let (ids, states) = (vec![id], Vec::new());
        LetterOperation::Letters { ids, change, states, by: "ada".to_owned(), at: at(0) }
    };
    change(ledger, to(1, LetterChange::Hold { note: "fraud".to_owned() })).await;
    change(ledger, to(2, LetterChange::Discard { reason: "test".to_owned() })).await;
    let selection = LetterSelection::Filter { filter: Box::default(), up_to: 5 };
    let new = NewReplay { by: "ada".to_owned(), selection, options: ReplayOptions::default(), at: at(0) };
    change(ledger, LetterOperation::Begin(Box::new(new))).await;
    claim(ledger, "a", 0).await;
    let letters = (1..=5).map(|letter| ToSelect { letter, queue: "order_queue".to_owned() }).collect();
    let select = LetterOperation::Select { replay: by("a"), letters, is_named: false, is_last: true, at: at(0) };
    assert_eq!(change(ledger, select).await, OperationAnswer::Done(true));
    let replay = ledger.replay(1, at(0)).await.unwrap().unwrap();
    let expected = ["discarded", "held", "maybe_duplicate", "missing"].map(|code| (code.to_owned(), 1));
    assert_eq!((replay.skipped, replay.letters[&LetterProgress::Selected]), (expected.into(), 1));
}

async fn a_letter_that_may_be_on_its_way_is_not_opened_and_its_late_outcome_closes_it(ledger: &dyn Ledger) {
    selected(ledger).await;
    let PublishAnswer::Publish { key, .. } = publish(ledger, "a", 1, 1).await else { panic!("it is published") };
    for letter in [1, 2] {
        change(ledger, skip(letter, "no_queue", false)).await;
    }
    assert_eq!((state(ledger, 1).await, state(ledger, 2).await), (LetterState::Replaying, LetterState::Open));
    assert_eq!((count(ledger, LetterProgress::Unknown).await, count(ledger, LetterProgress::Skipped).await), (1, 1));
    let discard = |ids: Vec<i64>| {
        let change = LetterChange::Discard { reason: "test".to_owned() };
        LetterOperation::Letters { ids, change, states: Vec::new(), by: "ada".to_owned(), at: at(3) }
    };
    let refused = ChangeAnswer::Refused(LetterState::Replaying);
    assert_eq!(
        change(ledger, discard(vec![1, 3])).await,
        OperationAnswer::Letters(vec![refused, ChangeAnswer::Changed])
    );
    assert_eq!(outcome(ledger, &key, ReplayOutcome::Processed).await, Recorded::New);
    assert_eq!(outcome(ledger, &key, ReplayOutcome::FailedAgain).await, Recorded::Duplicate, "the first counts");
    assert_eq!(state(ledger, 1).await, LetterState::Replayed);
}

async fn a_letter_that_the_broker_has_refused_from_the_first_time_on_is_open_again_and_a_late_outcome_closes_it(
    ledger: &dyn Ledger,
) {
    selected(ledger).await;
    let PublishAnswer::Publish { key, .. } = publish(ledger, "a", 1, 1).await else { panic!("it is published") };
    change(ledger, skip(1, "refused", true)).await;
    assert_eq!((state(ledger, 1).await, count(ledger, LetterProgress::Skipped).await), (LetterState::Open, 1));
    assert_eq!(outcome(ledger, &key, ReplayOutcome::Processed).await, Recorded::New);
    assert_eq!((state(ledger, 1).await, count(ledger, LetterProgress::Skipped).await), (LetterState::Replayed, 0));
}

async fn letters_are_counted_where_they_go_once_their_queue_is_another_one(ledger: &dyn Ledger) {
    selected(ledger).await;
    publish(ledger, "a", 1, 1).await;
    let to = |letter| ToSelect { letter, queue: "carts".to_owned() };
    let moving = |owner| LetterOperation::Move { replay: by(owner), letters: vec![to(1), to(2), to(3)], at: at(2) };
    assert_eq!(change(ledger, moving("b")).await, OperationAnswer::Done(false));
    assert_eq!(change(ledger, moving("a")).await, OperationAnswer::Done(true));
    let groups = ledger.replay(1, at(2)).await.unwrap().unwrap().groups;
    let found: Vec<_> = groups.iter().map(|group| (&*group.queue, group.letters.clone())).collect();
    let expected = BTreeMap::from([(LetterProgress::Selected, 1), (LetterProgress::Publishing, 1)]);
    assert_eq!(found, [("carts", expected)]);
}

async fn no_more_letters_are_published_than_there_is_room_for_and_all_are_closed_whose_order_was_processed(
    ledger: &dyn Ledger,
) {
    selected(ledger).await;
    let order = order("ord-1");
    ledger.record(accept(order.clone())).await.unwrap();
    ledger.record(finish("ord-1")).await.unwrap();
    let to_publish = |letter, order| ToPublish { letter, order };
    let begin = |limit| {
        let letters = vec![to_publish(2, None), to_publish(1, Some(Box::new(order.clone())))];
        LetterOperation::BeginPublishing { replay: by("a"), letters, limit, at: at(1) }
    };
    let none = OperationAnswer::Publishing(vec![PublishAnswer::NoRoom, PublishAnswer::Closed]);
    assert_eq!(change(ledger, begin(0)).await, none);
    assert_eq!((count(ledger, LetterProgress::Selected).await, state(ledger, 1).await), (1, LetterState::Discarded));
    let one = change(ledger, begin(1)).await;
    let OperationAnswer::Publishing(one) = one else { panic!("{one:?}") };
    assert!(matches!(&one[..], [PublishAnswer::Publish { .. }, PublishAnswer::NotSelected]), "{one:?}");
}

async fn a_stopped_replay_gives_back_what_it_has_not_published_and_keeps_the_rest_until_its_outcome(
    ledger: &dyn Ledger,
) {
    selected(ledger).await;
    let PublishAnswer::Publish { key, .. } = publish(ledger, "a", 1, 1).await else { panic!("it is published") };
    let stop = || LetterOperation::Stop {
        replay: 1,
        by: Some("bob".to_owned()),
        reason: "requested",
        detail: None,
        at: at(2),
    };
    assert_eq!(change(ledger, stop()).await, OperationAnswer::Done(true));
    assert_eq!(publish(ledger, "a", 2, 3).await, PublishAnswer::NotSelected, "only what may be on its way");
    assert!(matches!(publish(ledger, "a", 1, 3).await, PublishAnswer::Publish { .. }));
    change(ledger, LetterOperation::GiveBack { replay: by("a"), limit: 10, at: at(3) }).await;
    assert_eq!(state(ledger, 2).await, LetterState::Open);
    // Nobody takes it, and an operator, who need not be the one who has started it, gives it up.
    assert_eq!(change(ledger, stop()).await, OperationAnswer::Done(true));
    let page = ledger.journal(JournalQuery { limit: 1, ..JournalQuery::default() }).await.unwrap();
    let JournalEntry { actor, subject, result, .. } = &page.entries[0];
    let recorded = (actor.as_str(), subject.to_string(), result.to_string());
    assert_eq!(recorded, ("bob", r#"{"ids":[1],"replay":1}"#.to_owned(), r#"{"unknown":1}"#.to_owned()));
    assert_eq!(
        change(ledger, LetterOperation::Finish { replay: by("a"), at: at(4) }).await,
        OperationAnswer::Done(true)
    );
    assert_eq!(ledger.replay(1, at(5)).await.unwrap().unwrap().state, ReplayState::Stopped);
    assert_eq!(change(ledger, release(1, 6)).await, OperationAnswer::Letters(vec![ChangeAnswer::Changed]));
    // It comes back twice after all: once it is stored, the second one is its duplicate.
    let again = |content| NewStoredLetter { replay_key: Some(key.clone()), ..stored_letter("ord-1", content) };
    assert_eq!(ledger.store_letter(again(11)).await.unwrap(), StoreAnswer::Stored(4));
    assert_eq!(ledger.store_letter(again(12)).await.unwrap(), StoreAnswer::Duplicate(4));
    assert_eq!((state(ledger, 1).await, count(ledger, LetterProgress::FailedAgain).await), (LetterState::Replayed, 1));
}

async fn a_report_says_which_failed_orders_failed_again_or_were_discarded_and_what_became_of_their_dead_letters(
    ledger: &dyn Ledger,
) {
    for id in ["ord-1", "ord-2", "ord-3"] {
        ledger.record(accept(order(id))).await.unwrap();
        let attempt = attempt(id, "order", 0);
        let (order, origin_queue) = (Some(Box::new(order(id))), None);
        let letter = NewDeadLetter { attempt, order, reason: "permanent", origin_queue, at: at(7) };
        ledger.record(LedgerEntry::DeadLetter(Box::new(letter))).await.unwrap();
    }
    let report = async || {
        let (since, until) = (PointInTime::At(at(0)), PointInTime::At(at(100_000)));
        ledger.report(ReportQuery { since, until, by: GroupBy::Status }, at(100_000)).await.unwrap()
    };
    let figures = async || {
        let report = report().await;
        let currency = &report.currencies[0];
        (currency.failed.figures.orders, currency.failed_again, currency.failed_discarded)
    };
    assert_eq!(figures().await, (3, 0, 0));
    let letters = async || {
        let DeadLettered { messages, unresolved, replayed, discarded, .. } = report().await.dead_lettered[0];
        (messages, unresolved, replayed, discarded)
    };
    assert_eq!(letters().await, (3, 0, 0, 0), "they are still in their queue");
    selected(ledger).await;
    assert_eq!(letters().await, (3, 3, 0, 0));
    let change_to = LetterChange::Discard { reason: "test".to_owned() };
    change(
        ledger,
        LetterOperation::Letters {
            ids: vec![3],
            change: change_to,
            states: Vec::new(),
            by: "ada".to_owned(),
            at: at(1),
        },
    )
    .await;
    let PublishAnswer::Publish { key: first, .. } = publish(ledger, "a", 1, 1).await else { panic!("it is published") };
    let PublishAnswer::Publish { key, .. } = publish(ledger, "a", 2, 1).await else { panic!("it is published") };
    outcome(ledger, &first, ReplayOutcome::FailedAgain).await;
    let again = NewStoredLetter { replay_key: Some(first), ..stored_letter("ord-1", 11) };
    assert_eq!(ledger.store_letter(again).await.unwrap(), StoreAnswer::Stored(4));
    ledger.record(finish("ord-2")).await.unwrap();
    outcome(ledger, &key, ReplayOutcome::Processed).await;
    assert_eq!(figures().await, (2, 1, 1), "one is processed");
    assert_eq!(letters().await, (3, 1, 1, 1));
}

async fn letters_are_counted_by_queue_and_cause_in_each_state_without_counting_them_again(ledger: &dyn Ledger) {
    selected(ledger).await;
    change(ledger, skip(2, "no_queue", false)).await;
    let PublishAnswer::Publish { key, .. } = publish(ledger, "a", 1, 1).await else { panic!("it is published") };
    let published = LetterOperation::Published { replay: by("a"), letters: vec![1], at: at(2), due: at(100) };
    change(ledger, published).await;
    let retrying = ReplayOutcome::Retrying { due: at(200) };
    for _ in 0..2 {
        outcome(ledger, &key, retrying.clone()).await;
    }
    let replay = ledger.replay(1, at(300)).await.unwrap().unwrap();
    assert_eq!(replay.letters, [(LetterProgress::Skipped, 1), (LetterProgress::Retrying, 1)].into());
    assert_eq!(replay.skipped, [("no_queue".to_owned(), 1)].into());
    assert_eq!((replay.overdue, replay.groups[0].overdue, replay.in_flight()), (1, 1, 0));
    assert_eq!((&*replay.groups[0].queue, replay.groups.len()), ("order_queue", 1), "one cause");
    let group = |cause: &str| Some(("order_queue".to_owned(), cause.to_owned()));
    let letters = |group| ledger.replay_letters(1, LetterProgress::Retrying, group, 0, 10);
    assert_eq!(letters(group(&replay.groups[0].cause)).await.unwrap().len(), 1);
    assert_eq!(letters(group("another")).await.unwrap(), []);
    outcome(ledger, &key, ReplayOutcome::Processed).await;
    // Nothing of a replay is removed before it has ended, and then all, although a letter is still open.
    ledger.prune(at(60)).await.unwrap();
    assert_eq!((state(ledger, 1).await, state(ledger, 2).await), (LetterState::Replayed, LetterState::Open));
    change(ledger, LetterOperation::Finish { replay: by("a"), at: at(5) }).await;
    while ledger.prune(at(60)).await.unwrap().more {}
    assert_eq!((ledger.replay(1, at(60)).await.unwrap(), state(ledger, 2).await), (None, LetterState::Open));
}

async fn of_two_processes_one_carries_out_all_replays_and_no_more_begin_than_are_carried_out(ledger: &dyn Ledger) {
    selected(ledger).await;
    let begin = || {
        let (selection, options) = (LetterSelection::Ids(vec![3]), ReplayOptions::default());
        LetterOperation::Begin(Box::new(NewReplay { by: "ada".to_owned(), selection, options, at: at(0) }))
    };
    let claim = |replay, owner: &str, second| {
        let (owner, until) = (owner.to_owned(), at(second + 10));
        LetterOperation::Claim { replay, owner, at: at(second), until }
    };
    assert_eq!(change(ledger, begin()).await, OperationAnswer::Begun(BeginAnswer { replay: 2 }));
    assert_eq!(change(ledger, claim(2, "b", 5)).await, OperationAnswer::Done(false), "their letters share a service");
    assert_eq!(change(ledger, claim(2, "a", 5)).await, OperationAnswer::Done(true));
    for _ in 2..MAX_ACTIVE_REPLAYS {
        assert!(matches!(change(ledger, begin()).await, OperationAnswer::Begun(_)));
    }
    assert_eq!(change(ledger, begin()).await, OperationAnswer::TooManyReplays);
    // One that was not yet given up by a process that has died.
    assert_eq!(change(ledger, claim(2, "b", 20)).await, OperationAnswer::Done(true));
}

async fn the_journal_alone_says_who_replayed_which_letters_and_what_became_of_them(ledger: &dyn Ledger) {
    selected(ledger).await;
    let PublishAnswer::Publish { key, .. } = publish(ledger, "a", 1, 1).await else { panic!("it is published") };
    let PublishAnswer::Publish { key: second, .. } = publish(ledger, "a", 2, 1).await else {
        panic!("it is published")
    };
    outcome(ledger, &key, ReplayOutcome::FailedAgain).await;
    assert_eq!(
        change(ledger, LetterOperation::Finish { replay: by("a"), at: at(5) }).await,
        OperationAnswer::Done(true)
    );
    outcome(ledger, &second, ReplayOutcome::Processed).await;
    let page = ledger.journal(JournalQuery { limit: 10, ..JournalQuery::default() }).await.unwrap();
    let text = |entry: &JournalEntry| format!("{}{}{}", entry.actor, entry.subject, entry.result);
    let entries: Vec<String> = page.entries.iter().rev().map(text).collect();
    assert_eq!(entries.len(), 4, "{entries:?}");
    assert!(entries.iter().all(|entry| entry.starts_with("ada")), "{entries:?}");
    assert!(entries[1].contains(r#""ids":[1,2]"#) && entries[1].contains("selected"), "{entries:?}");
    assert!(entries[2].contains(r#""failed_again":[1]"#) && entries[2].contains(r#""unknown":[2]"#), "{entries:?}");
    assert!(entries[3].contains(r#""ids":[2]"#) && entries[3].contains("processed"), "a late outcome: {entries:?}");
}

async fn a_letter_without_an_outcome_is_released_or_erased_only_once_none_is_expected_any_more(ledger: &dyn Ledger) {
    selected(ledger).await;
    publish(ledger, "a", 1, 1).await;
    change(ledger, LetterOperation::Published { replay: by("a"), letters: vec![1], at: at(2), due: at(100) }).await;
    let (by_person, reason) = (Some("bob".to_owned()), "requested");
    change(ledger, LetterOperation::Stop { replay: 1, by: by_person, reason, detail: None, at: at(3) }).await;
    change(ledger, LetterOperation::GiveBack { replay: by("a"), limit: 10, at: at(3) }).await;
    change(ledger, LetterOperation::Finish { replay: by("a"), at: at(4) }).await;
    let refused = ChangeAnswer::Refused(LetterState::Replaying);
    assert_eq!(change(ledger, release(1, 50)).await, OperationAnswer::Letters(vec![refused]), "it may be on its way");
    assert_eq!(change(ledger, release(1, 101)).await, OperationAnswer::Letters(vec![ChangeAnswer::Changed]));
    assert_eq!(state(ledger, 1).await, LetterState::Open);
}

async fn a_replay_that_stopped_by_itself_is_among_what_is_unresolved(ledger: &dyn Ledger) {
    let found = stopped_before_and_after_its_end(ledger, None, "too_many_failed").await;
    let reason = "too_many_failed".to_owned();
    assert_eq!(found, (vec![(1, reason.clone(), None)], vec![(1, reason, Some(at(7)))]));
}

async fn a_replay_that_a_person_stopped_is_not_among_what_is_unresolved(ledger: &dyn Ledger) {
    let found = stopped_before_and_after_its_end(ledger, Some("ada"), "requested").await;
    assert_eq!(found, (Vec::new(), Vec::new()));
}

type Stopped = Vec<(i64, String, Option<Timestamp>)>;

/// The stopped replays among what is unresolved, while one is stopping and once it has ended.
async fn stopped_before_and_after_its_end(
    ledger: &dyn Ledger,
    by_person: Option<&str>,
    reason: &'static str,
) -> (Stopped, Stopped) {
    selected(ledger).await;
    let (by_person, detail) = (by_person.map(str::to_owned), Some("text".to_owned()));
    change(ledger, LetterOperation::Stop { replay: 1, by: by_person, reason, detail, at: at(5) }).await;
    let stopped = async || {
        let stopped = ledger.unresolved_dead_letters().await.unwrap().stopped;
        stopped.into_iter().map(|replay| (replay.id, replay.reason, replay.at)).collect()
    };
    let before = stopped().await;
    change(ledger, LetterOperation::GiveBack { replay: by("a"), limit: 10, at: at(6) }).await;
    change(ledger, LetterOperation::Finish { replay: by("a"), at: at(7) }).await;
    (before, stopped().await)
}
