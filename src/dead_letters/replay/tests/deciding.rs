//! Decisions about what a replay does next, for counts that the test chooses.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::super::decide::{Admission, Decision, GroupBatch, MIN_FAILURES, Traffic, decide};
use crate::ledger::LetterProgress::{FailedAgain, Processed, Published, Publishing, Retrying, Selected, Unknown};
use crate::ledger::{LetterProgress, Replay, ReplayGroup, ReplayOptions, ReplayState};

type Group<'a> = (&'a str, &'a str, &'a [(LetterProgress, u64)]);

fn replay_of(groups: &[Group<'_>]) -> Replay {
    let groups: Vec<ReplayGroup> = groups
        .iter()
        .map(|(queue, cause, letters)| ReplayGroup {
            queue: (*queue).to_owned(),
            cause: (*cause).to_owned(),
            letters: letters.iter().copied().collect(),
            overdue: 0,
        })
        .collect();
    let mut letters = BTreeMap::new();
    for (progress, count) in groups.iter().flat_map(|group| &group.letters) {
        *letters.entry(*progress).or_default() += count;
    }
    let count = |progress| letters.get(&progress).copied().unwrap_or(0);
    Replay {
        id: 1,
        state: ReplayState::Running,
        by: "ada".to_owned(),
        options: ReplayOptions::default(),
        began_at: Timestamp::UNIX_EPOCH,
        ended_at: None,
        end_reason: None,
        end_detail: None,
        stopped_by: None,
        skipped: BTreeMap::new(),
        overdue: 0,
        slow: 0,
        recent: (count(Processed) + count(FailedAgain)).min(100),
        recent_failed: count(FailedAgain).min(100),
        letters,
        groups,
    }
}

/// A replay with one group.
pub(in super::super) fn replay(letters: &[(LetterProgress, u64)]) -> Replay {
    replay_of(&[("orders", "http_402", letters)])
}

fn decide_alone(replay: &Replay) -> Decision {
    decide(replay, &Traffic::of(std::slice::from_ref(replay)), &|_| Admission::All)
}

fn decision(letters: &[(LetterProgress, u64)]) -> Decision {
    decide_alone(&replay(letters))
}

fn batch(queue: &str, cause: &str, progress: LetterProgress, room: u64) -> GroupBatch {
    GroupBatch { queue: queue.to_owned(), cause: cause.to_owned(), progress, room }
}

fn new(room: u64) -> Decision {
    Decision::Publish(vec![batch("orders", "http_402", Selected, room)])
}

#[test]
fn one_letter_then_ten_are_published_and_awaited_before_the_rest() {
    assert_eq!(decision(&[(Selected, 10_000)]), new(1));
    assert_eq!(decision(&[(Selected, 9_999), (Published, 1)]), Decision::Wait);
    assert_eq!(decision(&[(Selected, 9_999), (Retrying, 1)]), Decision::Wait);
    assert_eq!(decision(&[(Selected, 9_999), (Processed, 1)]), new(10));
    assert_eq!(decision(&[(Selected, 4), (Processed, 1)]), new(4));
    assert_eq!(decision(&[(Selected, 9_989), (Processed, 4), (Published, 7)]), Decision::Wait);
    // Then no more are in flight than may fail.
    assert_eq!(decision(&[(Selected, 9_989), (Processed, 11)]), new(10));
    assert_eq!(decision(&[(Selected, 9_978), (Processed, 14), (Published, 8)]), new(2));
    assert_eq!(decision(&[(Selected, 5_000), (Processed, 4_600), (Published, 400)]), new(60));
    assert_eq!(decision(&[(Processed, 10_000)]), Decision::Finish);
    assert_eq!(decision(&[(Processed, 9_999), (Published, 1)]), Decision::Wait);
    let mut all_at_once = replay(&[(Selected, 10_000)]);
    all_at_once.options.canary = false;
    assert_eq!(decide_alone(&all_at_once), new(1_000));
}

#[test]
fn of_each_cause_and_each_queue_one_letter_is_published_before_more_of_it() {
    let all = [
        ("orders", "http_402", &[(Selected, 9_989)][..]),
        ("orders", "processed_meanwhile", &[(Selected, 50), (Processed, 11)][..]),
        ("carts", "http_402", &[(Selected, 5), (Processed, 1)][..]),
    ];
    let expected = vec![
        batch("orders", "http_402", Selected, 1),
        batch("carts", "http_402", Selected, 5),
        batch("orders", "processed_meanwhile", Selected, 9),
    ];
    assert_eq!(decide_alone(&replay_of(&all)), Decision::Publish(expected), "ten may fail in all of the queue");
    let waiting = [("orders", "a", &[(Selected, 9), (Published, 1)][..]), ("orders", "b", &[(Selected, 3)][..])];
    assert_eq!(decide_alone(&replay_of(&waiting)), Decision::Publish(vec![batch("orders", "b", Selected, 1)]));
    let many: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let many: Vec<Group<'_>> = many.iter().map(|cause| ("orders", &**cause, &[(Selected, 9)][..])).collect();
    let Decision::Publish(batches) = decide_alone(&replay_of(&many)) else { panic!("they are published") };
    assert_eq!(batches.iter().map(|batch| batch.room).sum::<u64>(), MIN_FAILURES);
}

#[test]
fn of_more_queues_than_letters_may_fail_no_more_are_tried_at_once() {
    let queues: Vec<String> = (0..25).map(|n| n.to_string()).collect();
    let replay_with = |first: &[(LetterProgress, u64)], tried: usize| {
        let letters = |n: usize| if n < tried { first } else { &[(Selected, 400)][..] };
        let groups = queues.iter().enumerate().map(|(n, queue)| (&**queue, "http_402", letters(n)));
        replay_of(&groups.collect::<Vec<_>>())
    };
    let rooms = |replay: &Replay| match decide_alone(replay) {
        Decision::Publish(batches) => batches.iter().map(|batch| batch.room).collect(),
        Decision::Wait | Decision::Stop | Decision::Finish => Vec::new(),
    };
    assert_eq!(rooms(&replay_with(&[], 0)), [1; 10]);
    assert_eq!(rooms(&replay_with(&[(Selected, 399), (Published, 1)], 7)), [1; 3]);
    assert_eq!(decide_alone(&replay_with(&[(Selected, 399), (Retrying, 1)], 10)), Decision::Wait);
    // All ten have failed: nothing else was published.
    assert_eq!(decide_alone(&replay_with(&[(Selected, 399), (FailedAgain, 1)], 10)), Decision::Stop);
    // Those whose cause is repaired go on beside the next ones.
    let next = rooms(&replay_with(&[(Selected, 399), (Processed, 1)], 10));
    assert_eq!((next.iter().filter(|room| **room == 1).count(), next.len()), (10, 20));
}

#[test]
fn several_replays_at_once_have_one_canary_for_a_service_and_no_more_in_flight_than_one() {
    let waits = |_: &str| Admission::All;
    let new_one = || replay(&[(Selected, 100)]);
    let mut traffic = Traffic::of(&[new_one(), new_one(), new_one()]);
    let first = decide(&new_one(), &traffic, &waits);
    let Decision::Publish(batches) = &first else { panic!("{first:?}") };
    assert_eq!(first, new(1));
    traffic.published(&batches[0], 1);
    assert_eq!(decide(&new_one(), &traffic, &waits), Decision::Wait);

    let old_one = replay(&[(Selected, 100), (Processed, 50), (Published, 4)]);
    let traffic = Traffic::of(&[old_one, new_one()]);
    assert_eq!(decide(&new_one(), &traffic, &waits), new(6), "the cause is known to be repaired");
    // One that bears failures does not stop the others for ever.
    let bears = replay(&[(Processed, 11), (FailedAgain, 500)]);
    assert_eq!(decide(&new_one(), &Traffic::of(&[bears, new_one()]), &waits), new(1));
}

#[test]
fn a_queue_that_nothing_is_published_to_does_not_keep_up_the_letters_of_others() {
    let both = [
        ("orders", "a", &[(Selected, 100), (Publishing, 2)][..]),
        ("carts", "a", &[(Selected, 100), (Publishing, 1)][..]),
        ("carts", "b", &[(Selected, 100)][..]),
    ];
    let (replay, waits) =
        (replay_of(&both), |queue: &str| if queue == "orders" { Admission::None } else { Admission::All });
    let traffic = Traffic::of(std::slice::from_ref(&replay));
    assert_eq!(decide(&replay, &traffic, &waits), Decision::Publish(vec![batch("carts", "a", Publishing, 1)]));
    let (replay, waits) =
        (
            replay_of(&[both[0], both[2]]),
            |queue: &str| if queue == "orders" { Admission::None } else { Admission::All },
        );
    let traffic = Traffic::of(std::slice::from_ref(&replay));
    assert_eq!(decide(&replay, &traffic, &waits), Decision::Publish(vec![batch("carts", "b", Selected, 1)]));
    assert_eq!(decide(&replay, &traffic, &|_| Admission::None), Decision::Wait);
}

#[test]
fn causes_that_wait_in_a_closed_queue_do_not_keep_the_letters_of_other_queues_waiting() {
    let causes: Vec<String> = (0..10).map(|n| format!("http_{n}")).collect();
    let mut groups: Vec<Group<'_>> =
        causes.iter().map(|cause| ("orders", &**cause, &[(Selected, 9), (Published, 1)][..])).collect();
    groups.extend([("carts", "a", &[(Selected, 9)][..]), ("carts", "b", &[(Selected, 9)])]);
    let decided = |groups: &[Group<'_>], orders: Admission| {
        let replay = replay_of(groups);
        let admission = move |queue: &str| if queue == "orders" { orders } else { Admission::All };
        decide(&replay, &Traffic::of(std::slice::from_ref(&replay)), &admission)
    };
    assert_eq!(decided(&groups, Admission::All), Decision::Wait, "all may fail");
    let one = |cause| Decision::Publish(vec![batch("carts", cause, Selected, 1)]);
    assert_eq!(decided(&groups, Admission::None), one("a"));
    let tried = &[(Selected, 8), (Published, 1)];
    groups[10].2 = tried;
    assert_eq!(decided(&groups, Admission::None), Decision::Wait, "one at a time");
    groups[10].2 = &[(Processed, 9)];
    assert_eq!(decided(&groups, Admission::None), one("b"));
    // However many queues are closed, not many more may fail once they are open.
    let queues: Vec<String> = (0..10).map(|n| format!("queue_{n}")).collect();
    groups.extend(queues.iter().map(|queue| (&**queue, "a", &tried[..])));
    let replay = replay_of(&groups);
    let admission = |queue: &str| if queue == "carts" { Admission::All } else { Admission::None };
    assert_eq!(decide(&replay, &Traffic::of(std::slice::from_ref(&replay)), &admission), Decision::Wait);
}

#[test]
fn while_a_service_is_tried_one_letter_is_on_its_way_and_shows_whether_it_is_available() {
    let trial = |replay: &Replay| decide(replay, &Traffic::of(std::slice::from_ref(replay)), &|_| Admission::One);
    assert_eq!(trial(&replay(&[(Selected, 100)])), new(1));
    assert_eq!(trial(&replay(&[(Selected, 100), (Processed, 50)])), new(1));
    assert_eq!(trial(&replay(&[(Selected, 100), (Processed, 50), (Retrying, 1)])), Decision::Wait);
    let mut all_at_once = replay(&[(Selected, 100)]);
    all_at_once.options.canary = false;
    assert_eq!(trial(&all_at_once), new(1));
}

#[test]
fn while_a_service_is_tried_one_of_those_that_a_crash_left_half_published_is_published_again() {
    let groups = |published: u64| {
        let (first, second) = ([(Publishing, 20), (Published, published)], [(Publishing, 12)]);
        replay_of(&[("orders", "a", &first), ("orders", "b", &second), ("carts", "a", &second)])
    };
    let trial = |replay: &Replay| {
        let admission = |queue: &str| if queue == "orders" { Admission::One } else { Admission::All };
        decide(replay, &Traffic::of(std::slice::from_ref(replay)), &admission)
    };
    let carts = batch("carts", "a", Publishing, 12);
    let expected = vec![batch("orders", "a", Publishing, 1), carts.clone()];
    assert_eq!(trial(&groups(0)), Decision::Publish(expected));
    assert_eq!(trial(&groups(1)), Decision::Publish(vec![carts]));
}

#[test]
fn a_replay_that_has_failed_does_not_wait_for_a_canary_in_a_queue_that_is_closed() {
    let both = [
        ("orders", "a", &[(Selected, 99), (FailedAgain, 1)][..]),
        ("carts", "a", &[(Selected, 9), (Published, 1)][..]),
    ];
    let replay = replay_of(&both);
    let decided = |carts: Admission| {
        let admission = move |queue: &str| if queue == "carts" { carts } else { Admission::All };
        decide(&replay, &Traffic::of(std::slice::from_ref(&replay)), &admission)
    };
    assert_eq!(decided(Admission::All), Decision::Wait);
    assert_eq!(decided(Admission::None), Decision::Stop);
}

#[test]
fn a_few_letters_without_an_outcome_do_not_stop_a_replay_of_which_thousands_were_processed() {
    let unseen = |processed, unknown| decision(&[(Selected, 100), (Processed, processed), (Unknown, unknown)]);
    assert!(matches!(unseen(9_000, 12), Decision::Publish(_)));
    assert_eq!(unseen(9_000, 1_001), Decision::Stop);
    assert_eq!(unseen(90, 11), Decision::Stop);
    let mut both = replay(&[(Selected, 100), (Processed, 900), (Unknown, 60)]);
    both.recent_failed = 5;
    assert_eq!(decide_alone(&both), Decision::Stop, "5 % of 900, and all of 60");
}

#[test]
fn a_replay_whose_cause_is_still_there_stops_after_at_most_ten_failures() {
    assert_eq!(decision(&[(Selected, 9_999), (FailedAgain, 1)]), Decision::Stop);
    assert_eq!(decision(&[(Selected, 9_989), (Processed, 1), (FailedAgain, 9), (Published, 1)]), Decision::Wait);
    assert_eq!(decision(&[(Selected, 9_989), (Processed, 1), (FailedAgain, 10)]), Decision::Stop);
    assert_eq!(decision(&[(Selected, 9_989), (Processed, 10), (FailedAgain, 1)]), new(9), "one in eleven may");
    assert_eq!(decision(&[(Selected, 9_979), (Processed, 11), (FailedAgain, 2), (Published, 8)]), Decision::Stop);
    assert_eq!(decision(&[(Selected, 9_999), (Unknown, 1)]), Decision::Stop, "nothing was seen of it");
    let mut broken_again = replay(&[(Selected, 1_000), (Processed, 5_000), (FailedAgain, 11)]);
    (broken_again.recent, broken_again.recent_failed) = (100, 11);
    assert_eq!(decide_alone(&broken_again), Decision::Stop, "the latest outcomes count");
    let mut overdue = replay(&[(Selected, 9_999), (Published, 1)]);
    (overdue.overdue, overdue.groups[0].overdue) = (1, 1);
    assert_eq!(decide_alone(&overdue), Decision::Stop);
    overdue.options.stop_at = 100;
    assert_eq!(decide_alone(&overdue), new(10), "it does not wait for ever");
    overdue.letters.remove(&Selected);
    overdue.groups[0].letters.remove(&Selected);
    assert_eq!(decide_alone(&overdue), Decision::Finish);
}

#[test]
fn a_replay_that_bears_failures_goes_on_after_many_of_them() {
    let mut bears = replay(&[(Selected, 1_000), (Processed, 900), (FailedAgain, 100)]);
    bears.recent_failed = 10;
    assert_eq!(decide_alone(&bears), new(1), "exactly as many as may have failed, long ago");
    let mut all = replay(&[(Selected, 1_000), (FailedAgain, 20)]);
    all.options.stop_at = 100;
    assert_eq!(decide_alone(&all), new(1));
}

#[test]
fn what_a_crash_left_half_published_comes_first_unless_too_many_have_failed() {
    let again = Decision::Publish(vec![batch("orders", "http_402", Publishing, 3)]);
    assert_eq!(decision(&[(Selected, 9_999), (Publishing, 3)]), again);
    assert_eq!(decision(&[(Selected, 9_999), (Publishing, 3), (FailedAgain, 5)]), Decision::Stop);
}
