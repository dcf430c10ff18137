//! What may be published to each queue now, and why a replay waits. It never publishes.

use std::collections::{BTreeMap, BTreeSet};

use super::decide::{Admission, Decision, Traffic};
use super::pace::{OpenQueues, Pace, QueueRates};
use super::waiting::{QueueAccess, WaitCause, Waiting};
use crate::ledger::{LetterProgress, Replay};

/// What all replays share.
pub(super) struct Queues<'r> {
    access: BTreeMap<String, QueueAccess>,
    pub traffic: Traffic,
    pub rates: &'r mut QueueRates,
}

impl<'r> Queues<'r> {
    /// Those of these replays. Letters that had no chance to be processed yet are not overdue from then on.
    pub fn new(
        replays: &mut [Replay],
        access: &dyn Fn(&str) -> QueueAccess,
        (rates, open): (&'r mut QueueRates, &mut OpenQueues),
    ) -> Self {
        let queues: BTreeSet<&String> =
            replays.iter().flat_map(|replay| replay.groups.iter().map(|group| &group.queue)).collect();
        let access: BTreeMap<String, QueueAccess> =
            queues.into_iter().map(|queue| (queue.clone(), access(queue))).collect();
        open.set(access.iter().filter(|(_, access)| **access == QueueAccess::Open).map(|(queue, _)| &**queue));
        open.forgive(replays);
        rates.set(replays);
        Queues { traffic: Traffic::of(replays), access, rates }
    }

    /// How many letters of a replay may be on their way to a queue.
    pub fn admission(&self, pace: &Pace, queue: &str) -> Admission {
        if pace.unanswered.contains(queue) || pace.refusal(queue).is_some() {
            return Admission::None;
        }
        match self.access.get(queue) {
            Some(QueueAccess::Closed(_)) => Admission::None,
            Some(QueueAccess::Trial(_)) => Admission::One,
            Some(QueueAccess::Open) | None => Admission::All,
        }
    }

    /// Why nothing is published to a queue.
    pub fn closed(&self, pace: &Pace, queue: &str) -> Option<Waiting> {
        match self.access.get(queue) {
            Some(QueueAccess::Closed(waiting)) => Some(waiting.clone()),
            Some(QueueAccess::Trial(_) | QueueAccess::Open) | None => pace
                .refusal(queue)
                .map(|text| Waiting { cause: WaitCause::Refused, text: text.to_owned() })
                .or_else(|| pace.unanswered.waiting(queue)),
        }
    }

    /// Why only one letter at a time is published to a queue.
    fn trial(&self, queue: &str) -> Option<Waiting> {
        match self.access.get(queue) {
            Some(QueueAccess::Trial(waiting)) => Some(waiting.clone()),
            Some(QueueAccess::Closed(_) | QueueAccess::Open) | None => None,
        }
    }
}

/// Why a replay that is being stopped waits.
pub(super) fn waiting_to_stop(replay: &Replay, (pace, queues): (&Pace, &Queues<'_>)) -> Option<Waiting> {
    let mut left = replay.groups.iter().filter(|group| group.count(&[LetterProgress::Publishing]) > 0);
    left.find_map(|group| queues.closed(pace, &group.queue))
}

/// Why a running replay waits, or some of its letters do.
pub(super) fn waiting_for(replay: &Replay, step: &Decision, (pace, queues): (&Pace, &Queues<'_>)) -> Option<Waiting> {
    use LetterProgress::{Publishing, Selected};
    // First the queues of what is to be published, then those of what is on its way.
    for states in [&[Selected, Publishing][..], LetterProgress::IN_FLIGHT] {
        let mut groups = replay.groups.iter().filter(|group| group.count(states) > 0);
        if let Some(waiting) = groups.find_map(|group| queues.closed(pace, &group.queue)) {
            return Some(waiting);
        }
    }
    let mut left = replay.groups.iter().filter(|group| group.count(&[Selected]) > 0);
    if *step == Decision::Wait
        && let Some(waiting) = left.find_map(|group| queues.trial(&group.queue))
    {
        return Some(waiting);
    }
    if replay.slow > 0 {
        let text = format!(
            "no outcome is seen yet of {} published more than a minute ago: their queue has a backlog, or an instance with another \
             ledger has processed them",
            replay.slow
        );
        return Some(Waiting { cause: WaitCause::Outcome, text });
    }
    if *step != Decision::Wait || replay.in_flight() > 0 {
        return None;
    }
    let mut left = replay.groups.iter().filter(|group| group.count(&[Selected]) > 0);
    let text = match left.any(|group| queues.traffic.is_in_flight(&group.queue)) {
        true => "another replay publishes to the same queue",
        false => "other replays wait for the outcomes of their first dead letters, which count for all queues together",
    };
    Some(Waiting { cause: WaitCause::OtherReplay, text: text.to_owned() })
}
