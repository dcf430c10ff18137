//! Turns observations into findings: a condition becomes a finding once it has lasted for some time, an event at once.
//! Remembers when each began, and reports findings that begin and end. Pure: times are arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::broker_view::{Finding, FindingKind};
use crate::topology::Object;

/// One moment on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic time since the poller was created; used for all arithmetic.
    pub elapsed: Duration,
    /// Wall-clock time, for display only.
    pub wall: Timestamp,
}

/// One problem observed on one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The queue's name.
    pub queue: String,
    /// The kind of problem.
    pub kind: FindingKind,
    /// How many messages are affected; `None` if that is unknown.
    pub messages: Option<u64>,
    /// An explanation for the operator.
    pub detail: String,
}

/// Findings that began and ended since the previous call.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FindingChanges {
    /// New findings.
    pub begun: Vec<Finding>,
    /// Findings that no longer hold.
    pub ended: Vec<Finding>,
}

/// An observation that is a finding, or may become one.
#[derive(Debug)]
struct TrackedObservation {
    since: Moment,
    observation: Observation,
    /// Whether it has lasted long enough to be a finding, and has been reported as one.
    reported: bool,
    /// When an event's finding ends. `None` for a condition, which ends when it is cleared.
    expires_at: Option<Duration>,
}

/// All current findings and the observations that may become findings.
#[derive(Debug, Default)]
pub struct Findings {
    tracked: BTreeMap<(String, FindingKind), TrackedObservation>,
    changes: FindingChanges,
}

impl Findings {
    /// Records that a condition holds. It becomes a finding once it has held for `min_duration`.
    pub fn record_condition(&mut self, observation: Observation, now: Moment, min_duration: Duration) {
        let tracked = self.track(observation, now);
        if !tracked.reported && now.elapsed >= tracked.since.elapsed.saturating_add(min_duration) {
            tracked.reported = true;
            let begun = finding(tracked);
            self.changes.begun.push(begun);
        }
    }

    /// Records that a condition does not hold any more.
    pub fn clear(&mut self, queue: &str, kind: FindingKind) {
        if let Some(tracked) = self.tracked.remove(&(queue.to_owned(), kind))
            && tracked.reported
        {
            self.changes.ended.push(finding(&tracked));
        }
    }

    /// Records an event. It is a finding at once, and remains one until `retention` has passed without another event of its
    /// kind. The message counts of repeated events are added up.
    pub fn record_event(&mut self, mut observation: Observation, now: Moment, retention: Duration) {
        let key = (observation.queue.clone(), observation.kind);
        let before = self.tracked.get(&key).and_then(|tracked| tracked.observation.messages);
        observation.messages = observation.messages.map(|more| more.saturating_add(before.unwrap_or(0)));
        self.track(observation.clone(), now).expires_at = Some(now.elapsed.saturating_add(retention));
        self.record_condition(observation, now, Duration::ZERO);
    }

    /// Forgets conditions that are not findings yet: while the API did not answer, they may have ended.
    pub fn discard_unreported(&mut self) {
        self.tracked.retain(|_, tracked| tracked.reported);
    }

    /// Returns what has begun and ended since the previous call.
    pub fn take_changes(&mut self, now: Moment) -> FindingChanges {
        let is_over = |tracked: &TrackedObservation| tracked.expires_at.is_some_and(|end| now.elapsed >= end);
        let over = self.tracked.iter().filter(|(_, tracked)| is_over(tracked));
        let over: Vec<_> = over.map(|(key, _)| key.clone()).collect();
        for (queue, kind) in over {
            self.clear(&queue, kind);
        }
        std::mem::take(&mut self.changes)
    }

    /// All current findings, sorted by queue and kind.
    pub fn all(&self) -> Vec<Finding> {
        self.tracked.values().filter(|tracked| tracked.reported).map(finding).collect()
    }

    fn track(&mut self, observation: Observation, now: Moment) -> &mut TrackedObservation {
        let key = (observation.queue.clone(), observation.kind);
        let new =
            || TrackedObservation { since: now, observation: observation.clone(), reported: false, expires_at: None };
        let tracked = self.tracked.entry(key).or_insert_with(new);
        tracked.observation = observation;
        tracked
    }
}

fn finding(tracked: &TrackedObservation) -> Finding {
    let Observation { queue, kind, messages, detail } = tracked.observation.clone();
    Finding { messages, ..Finding::about(&Object::Queue(queue), kind, tracked.since.wall, detail) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(second: i64) -> Moment {
        Moment { elapsed: Duration::from_secs(second.unsigned_abs()), wall: Timestamp::from_second(second).unwrap() }
    }

    fn observation(messages: u64) -> Observation {
        let (queue, kind) = ("q".to_owned(), FindingKind::NoConsumer);
        Observation { queue, kind, messages: Some(messages), detail: String::new() }
    }

    /// The second at which each finding began, and its number of messages.
    fn since_and_messages(findings: &[Finding]) -> Vec<(i64, u64)> {
        findings.iter().map(|finding| (finding.since.as_second(), finding.messages.unwrap())).collect()
    }

    #[test]
    fn a_condition_becomes_a_finding_once_it_has_lasted_and_is_reported_once() {
        let mut findings = Findings::default();
        findings.record_condition(observation(1), at(100), MINUTE);
        findings.record_condition(observation(2), at(159), MINUTE);
        assert_eq!((findings.all(), findings.take_changes(at(159))), (vec![], FindingChanges::default()));
        findings.record_condition(observation(3), at(160), MINUTE);
        assert_eq!(since_and_messages(&findings.take_changes(at(160)).begun), [(100, 3)]);
        findings.record_condition(observation(4), at(170), MINUTE);
        assert_eq!(findings.take_changes(at(170)), FindingChanges::default());
        assert_eq!(since_and_messages(&findings.all()), [(100, 4)]);
        findings.clear("q", FindingKind::NoConsumer);
        assert_eq!(since_and_messages(&findings.take_changes(at(171)).ended), [(100, 4)]);
        assert!(findings.all().is_empty());
    }

    #[test]
    fn a_condition_that_comes_and_goes_is_not_a_finding() {
        let mut findings = Findings::default();
        for second in 0..300 {
            if second % 50 == 0 {
                findings.clear("q", FindingKind::NoConsumer);
            }
            findings.record_condition(observation(1), at(second), MINUTE);
        }
        assert_eq!(findings.take_changes(at(300)), FindingChanges::default());
    }

    #[test]
    fn time_without_answers_does_not_count_toward_a_conditions_duration() {
        let mut findings = Findings::default();
        findings.record_condition(observation(1), at(0), MINUTE);
        findings.discard_unreported();
        findings.record_condition(observation(1), at(600), MINUTE);
        assert_eq!(findings.take_changes(at(600)), FindingChanges::default());
    }

    #[test]
    fn an_event_is_a_finding_at_once_adds_up_and_expires() {
        let mut findings = Findings::default();
        findings.record_event(observation(3), at(0), MINUTE);
        assert_eq!(since_and_messages(&findings.take_changes(at(0)).begun), [(0, 3)]);
        findings.record_event(observation(2), at(50), MINUTE);
        assert_eq!(findings.take_changes(at(109)), FindingChanges::default());
        assert_eq!(since_and_messages(&findings.all()), [(0, 5)]);
        assert_eq!(since_and_messages(&findings.take_changes(at(110)).ended), [(0, 5)]);
    }
}
