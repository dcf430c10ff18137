//! What a replay does next. Pure.
//!
//! The letters of one queue that had failed for one cause are a group. Of each group, one letter is published first, then ten. After
//! that, no more are in flight to a queue than may fail. Both count the letters of all replays that are active, since they share the
//! service behind the queue. First letters are in flight of as many groups as may fail, in all queues together.

use std::collections::{BTreeMap, BTreeSet};

use crate::ledger::{LetterProgress, Replay, ReplayGroup};

/// The sizes of a canary: so many letters have been published, and have their outcome, before more are.
const CANARY: [u64; 2] = [1, 11];
/// The most letters that are published to a queue and have no outcome yet.
const MAX_IN_FLIGHT: u64 = 1_000;
/// As many may fail at least before a replay stops.
const MIN_FAILURES: u64 = 10;

/// What a running replay does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// These may be published, in this order.
    Publish(Vec<GroupBatch>),
    /// Outcomes are awaited, or queues.
    Wait,
    /// Too many have failed again.
    Stop,
    /// Nothing is left to do.
    Finish,
}

/// How many letters may be on their way to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// As many as the pace allows.
    All,
    /// One: it shows whether a service is available again.
    One,
    /// None.
    None,
}

/// Letters of one group that may be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GroupBatch {
    /// The group's queue.
    pub queue: String,
    /// Its cause.
    pub cause: String,
    /// `Selected`; or `Publishing`: those may have been published before a crash, and are published again.
    pub progress: LetterProgress,
    /// How many.
    pub room: u64,
}

impl GroupBatch {
    fn new(group: &ReplayGroup, progress: LetterProgress, room: u64) -> Self {
        GroupBatch { queue: group.queue.clone(), cause: group.cause.clone(), progress, room }
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    published: u64,
    in_flight: u64,
    /// Those in flight that may not have been published.
    half_published: u64,
    ended: u64,
    failed: u64,
}

impl Counts {
    /// Whether no letter has had its outcome, so that all may fail.
    fn is_untried(self) -> bool {
        self.ended == 0
    }
}

/// The letters of all active replays, by queue and by group.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    queues: BTreeMap<String, Counts>,
    groups: BTreeMap<(String, String), Counts>,
}

impl Traffic {
    /// That of these replays.
    pub fn of(replays: &[Replay]) -> Self {
        use LetterProgress::{Cancelled, FailedAgain, NotDelivered, Processed, Undone, Unknown};
        let mut traffic = Traffic::default();
        for group in replays.iter().flat_map(|replay| &replay.groups) {
            let failed = group.count(&[FailedAgain]);
            let ended = group.count(&[Processed, NotDelivered, Cancelled, Undone]) + failed;
            let published = ended + group.count(&[Unknown]) + group.count(LetterProgress::IN_FLIGHT);
            let (in_flight, half_published) = (group.in_flight(), group.count(&[LetterProgress::Publishing]));
            let counts = Counts { published, in_flight, half_published, ended, failed };
            traffic.add(&group.queue, &group.cause, counts);
        }
        traffic
    }

    /// So many of a group are published now.
    pub fn published(&mut self, batch: &GroupBatch, letters: u64) {
        let counts = Counts { published: letters, in_flight: letters, ..Counts::default() };
        self.add(&batch.queue, &batch.cause, counts);
    }

    fn add(&mut self, queue: &str, cause: &str, more: Counts) {
        let of_queue = self.queues.entry(queue.to_owned()).or_default();
        let of_group = self.groups.entry((queue.to_owned(), cause.to_owned())).or_default();
        for counts in [of_queue, of_group] {
            counts.published += more.published;
            counts.in_flight += more.in_flight;
            counts.half_published += more.half_published;
            counts.ended += more.ended;
            counts.failed += more.failed;
        }
    }

    /// Whether a letter that was published to this queue has no outcome yet.
    fn is_on_its_way(&self, queue: &str) -> bool {
        self.queues.get(queue).is_some_and(|counts| counts.in_flight > counts.half_published)
    }

    /// How many groups have letters in flight, and no outcome yet. Of a canary, that is one letter each.
    fn untried(&self) -> u64 {
        self.groups.values().filter(|group| group.is_untried() && group.in_flight > 0).count() as u64
    }

    fn of_group(&self, group: &ReplayGroup) -> Counts {
        self.groups.get(&(group.queue.clone(), group.cause.clone())).copied().unwrap_or_default()
    }
}

/// Decides. `admission`: how many letters may be on their way to a queue now.
pub(super) fn decide(replay: &Replay, traffic: &Traffic, admission: &dyn Fn(&str) -> Admission) -> Decision {
    use LetterProgress::{Publishing, Selected};
    if has_failed(replay) {
        // Of a canary, all outcomes are awaited.
        let waits = replay.count(Publishing) == 0 && awaits_canary(replay, traffic, admission);
        return if waits { Decision::Wait } else { Decision::Stop };
    }
    if replay.count(Selected) + replay.in_flight() == 0 {
        return Decision::Finish;
    }
    let ready = || replay.groups.iter().filter(|group| admission(&group.queue) != Admission::None);
    let mut batches = again(ready(), traffic, admission);
    if batches.is_empty() {
        batches = new_batches(replay, traffic, admission, ready());
    }
    if batches.is_empty() { Decision::Wait } else { Decision::Publish(batches) }
}

/// Of these groups, what may have been published, and is published again. While a service is tried, one letter of a queue, if no other
/// is on its way.
pub(super) fn again<'g>(
    groups: impl Iterator<Item = &'g ReplayGroup>,
    traffic: &Traffic,
    admission: &dyn Fn(&str) -> Admission,
) -> Vec<GroupBatch> {
    let mut tried = BTreeSet::new();
    let batches = groups.filter_map(|group| {
        let half_published = group.count(&[LetterProgress::Publishing]);
        let room = match admission(&group.queue) {
            Admission::All => half_published,
            Admission::One if half_published == 0 || traffic.is_on_its_way(&group.queue) => 0,
            Admission::One => u64::from(tried.insert(&group.queue)),
            Admission::None => 0,
        };
        (room > 0).then(|| GroupBatch::new(group, LetterProgress::Publishing, room))
    });
    batches.collect()
}

/// What may be published for the first time: of groups in the canary first.
fn new_batches<'g>(
    replay: &Replay,
    traffic: &Traffic,
    admission: &dyn Fn(&str) -> Admission,
    groups: impl Iterator<Item = &'g ReplayGroup>,
) -> Vec<GroupBatch> {
    let mut groups: Vec<(&ReplayGroup, u64)> = groups
        .filter(|group| group.count(&[LetterProgress::Selected]) > 0)
        .map(|group| (group, if replay.options.canary { canary_room(traffic.of_group(group)) } else { MAX_IN_FLIGHT }))
        .filter(|(_, room)| *room > 0)
        .collect();
    groups.sort_by_key(|(_, room)| *room);
    let mut rooms: BTreeMap<&str, u64> = BTreeMap::new();
    // Each queue may have a few failures. However many queues there are, the first letters of all groups must not fail in more.
    let mut of_untried = MIN_FAILURES.saturating_sub(traffic.untried());
    let mut batches = Vec::new();
    for (group, room) in groups {
        let counts = traffic.queues.get(&group.queue).copied().unwrap_or_default();
        let of_queue = rooms.entry(&group.queue).or_insert_with(|| match admission(&group.queue) {
            Admission::All => queue_room(replay, counts),
            Admission::One => 1_u64.saturating_sub(counts.in_flight),
            Admission::None => 0,
        });
        let mut room = room.min(*of_queue).min(group.count(&[LetterProgress::Selected]));
        if replay.options.canary && traffic.of_group(group).is_untried() {
            room = room.min(of_untried);
            of_untried -= room;
        }
        *of_queue -= room;
        if room > 0 {
            batches.push(GroupBatch::new(group, LetterProgress::Selected, room));
        }
    }
    batches
}

/// How many of a group may be published because of its canary.
fn canary_room(group: Counts) -> u64 {
    match CANARY.into_iter().find(|size| group.published < *size) {
        Some(size) if group.in_flight == 0 => size - group.published,
        Some(_) => 0,
        None if group.published == CANARY[1] && group.in_flight > 0 => 0,
        None => MAX_IN_FLIGHT,
    }
}

/// How many more may be in flight to a queue: of all that are, not more may fail than a replay bears; a few in any case.
fn queue_room(replay: &Replay, queue: Counts) -> u64 {
    if !replay.options.canary {
        return MAX_IN_FLIGHT.saturating_sub(queue.in_flight);
    }
    #[expect(clippy::cast_precision_loss, reason = "far fewer letters than an f64 can count")]
    let share = queue.ended as f64 * f64::from(replay.options.stop_at) / 100.0;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is not negative")]
    let may_fail = (share as u64).max(MIN_FAILURES).saturating_sub(queue.failed);
    // Those that failed long ago do not count when it is decided whether to stop, so it must not wait for ever.
    may_fail.clamp(1, MAX_IN_FLIGHT).saturating_sub(queue.in_flight)
}

/// Whether outcomes of a canary are missing. In a queue that nothing is published to, they may be for long.
fn awaits_canary(replay: &Replay, traffic: &Traffic, admission: &dyn Fn(&str) -> Admission) -> bool {
    let is_canary = |group: &&ReplayGroup| {
        traffic.of_group(group).published <= CANARY[1] && admission(&group.queue) != Admission::None
    };
    replay.options.canary && replay.groups.iter().filter(is_canary).any(|group| group.in_flight() > 0)
}

/// Whether the share of failures is too large: that of the latest outcomes. One of which nothing was seen in time counts as failed, among
/// all outcomes, since it is not known when it had its own.
fn has_failed(replay: &Replay) -> bool {
    use LetterProgress::{Cancelled, FailedAgain, NotDelivered, Processed, Undone, Unknown};
    let ended: u64 =
        [Processed, NotDelivered, Cancelled, Undone, FailedAgain].into_iter().map(|state| replay.count(state)).sum();
    let unseen = replay.count(Unknown) + replay.overdue;
    let (recent, recent_failed) = (replay.recent.max(1), replay.recent_failed);
    // recent_failed / recent is the share of those with an outcome: ended / (ended + unseen) of all.
    let failed = recent_failed * ended + unseen * recent;
    failed * 100 > u64::from(replay.options.stop_at) * recent * (ended + unseen)
}

#[cfg(test)]
pub(super) use tests::replay as replay_with;

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::ledger::LetterProgress::{FailedAgain, Processed, Published, Publishing, Retrying, Selected, Unknown};
    use crate::ledger::{ReplayOptions, ReplayState};

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

    pub fn replay(letters: &[(LetterProgress, u64)]) -> Replay {
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
}
