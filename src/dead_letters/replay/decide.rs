//! What a replay does next. Pure.
//!
//! The letters of one queue that had failed for one cause are a group. Of each group, one letter is published first, then ten. After
//! that, no more are in flight to a queue than may fail. Both count the letters of all replays that are active, since they share the
//! service behind the queue. First letters are in flight of as many groups as may fail, in all queues together. If all of these wait in
//! queues that nothing is published to, a few more are published to other queues, one at a time.

use std::collections::{BTreeMap, BTreeSet};

use crate::ledger::{LetterProgress, Replay, ReplayGroup};

/// The sizes of a canary: so many letters have been published, and have their outcome, before more are.
const CANARY: [u64; 2] = [1, 11];
/// The most letters that are published to a queue and have no outcome yet.
const MAX_IN_FLIGHT: u64 = 1_000;
/// As many may fail at least before a replay stops.
pub(super) const MIN_FAILURES: u64 = 10;
/// The most groups with letters in flight and no outcome yet, also if nothing is published to the queues of most of them.
const MAX_UNTRIED: u64 = 2 * MIN_FAILURES;

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

    /// Whether letters for this queue have no outcome yet.
    pub fn is_in_flight(&self, queue: &str) -> bool {
        self.queues.get(queue).is_some_and(|counts| counts.in_flight > 0)
    }

    /// How many groups have letters in flight to these queues, and no outcome yet. Of a canary, that is one letter each.
    fn untried(&self, is_counted: impl Fn(&str) -> bool) -> u64 {
        let untried = self.groups.iter().filter(|(_, group)| group.is_untried() && group.in_flight > 0);
        untried.filter(|((queue, _), _)| is_counted(queue)).count() as u64
    }

    /// Of how many more groups the first letters may be in flight. Each queue may have a few failures; however many queues there are, the
    /// first letters of all groups must not fail in more.
    fn untried_room(&self, admission: &dyn Fn(&str) -> Admission) -> u64 {
        let (all, of_admitted) = (self.untried(|_| true), self.untried(|queue| admission(queue) != Admission::None));
        match MIN_FAILURES.saturating_sub(all) {
            // Those in queues that nothing is published to may have no outcome for long.
            0 if of_admitted == 0 && all < MAX_UNTRIED => 1,
            room => room,
        }
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
    let mut of_untried = traffic.untried_room(admission);
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
