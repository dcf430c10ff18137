//! What lasts and should not: remembers since when, and tells what begins and what ends. Pure: times are arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::view::{Finding, FindingKind};

/// A moment, on both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Since some fixed moment; never goes back.
    pub elapsed: Duration,
    /// For people.
    pub wall: Timestamp,
}

/// What was seen of one queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// Which queue.
    pub queue: String,
    /// What.
    pub kind: FindingKind,
    /// How many messages, where that is known.
    pub messages: Option<u64>,
    /// For people.
    pub detail: String,
}

/// What has begun and ended since it was asked before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Findings that are new.
    pub begun: Vec<Finding>,
    /// Findings that hold no more.
    pub ended: Vec<Finding>,
}

#[derive(Debug)]
struct Entry {
    since: Moment,
    sight: Observation,
    /// Whether it is a finding by now, and told.
    told: bool,
    /// When it is forgotten; `None`: when it is seen no more.
    until: Option<Duration>,
}

/// The findings, and what may become one.
#[derive(Debug, Default)]
pub struct Findings {
    entries: BTreeMap<(String, FindingKind), Entry>,
    changes: Changes,
}

impl Findings {
    /// A condition holds: a finding once it has held for `patience`.
    pub fn holds(&mut self, sight: Observation, now: Moment, patience: Duration) {
        let entry = self.entry(sight, now);
        if !entry.told && now.elapsed >= entry.since.elapsed.saturating_add(patience) {
            entry.told = true;
            let begun = finding(entry);
            self.changes.begun.push(begun);
        }
    }

    /// A condition does not hold.
    pub fn is_not(&mut self, queue: &str, kind: FindingKind) {
        if let Some(entry) = self.entries.remove(&(queue.to_owned(), kind))
            && entry.told
        {
            self.changes.ended.push(finding(&entry));
        }
    }

    /// Something has happened: a finding at once, until it has not happened again for `remembered`. Its messages add up.
    pub fn happened(&mut self, mut sight: Observation, now: Moment, remembered: Duration) {
        let before = self.entries.get(&(sight.queue.clone(), sight.kind)).and_then(|entry| entry.sight.messages);
        sight.messages = sight.messages.map(|more| more.saturating_add(before.unwrap_or(0)));
        self.entry(sight.clone(), now).until = Some(now.elapsed.saturating_add(remembered));
        self.holds(sight, now, Duration::ZERO);
    }

    /// Nothing could be seen for a while: what was not yet a finding may have ended unseen.
    pub fn interrupted(&mut self) {
        self.entries.retain(|_, entry| entry.told);
    }

    /// What has begun and ended since the last call.
    pub fn changes(&mut self, now: Moment) -> Changes {
        let over = |entry: &Entry| entry.until.is_some_and(|until| now.elapsed >= until);
        let gone: Vec<_> = self.entries.iter().filter(|(_, entry)| over(entry)).map(|(key, _)| key.clone()).collect();
        for (queue, kind) in gone {
            self.is_not(&queue, kind);
        }
        std::mem::take(&mut self.changes)
    }

    /// All findings, by queue and kind.
    pub fn all(&self) -> Vec<Finding> {
        self.entries.values().filter(|entry| entry.told).map(finding).collect()
    }

    fn entry(&mut self, sight: Observation, now: Moment) -> &mut Entry {
        let key = (sight.queue.clone(), sight.kind);
        let fresh = || Entry { since: now, sight: sight.clone(), told: false, until: None };
        let entry = self.entries.entry(key).or_insert_with(fresh);
        entry.sight = sight;
        entry
    }
}

fn finding(entry: &Entry) -> Finding {
    let Observation { queue, kind, messages, detail } = entry.sight.clone();
    Finding { queue, kind, since: entry.since.wall, messages, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn at(second: i64) -> Moment {
        Moment { elapsed: Duration::from_secs(second.unsigned_abs()), wall: Timestamp::from_second(second).unwrap() }
    }

    fn sight(messages: u64) -> Observation {
        let (queue, kind) = ("q".to_owned(), FindingKind::NoConsumer);
        Observation { queue, kind, messages: Some(messages), detail: String::new() }
    }

    /// Seconds at which findings began, and how many messages they have.
    fn told(findings: &[Finding]) -> Vec<(i64, u64)> {
        findings.iter().map(|finding| (finding.since.as_second(), finding.messages.unwrap())).collect()
    }

    #[test]
    fn a_condition_is_a_finding_once_it_has_lasted_and_is_told_once() {
        let mut findings = Findings::default();
        findings.holds(sight(1), at(100), MINUTE);
        findings.holds(sight(2), at(159), MINUTE);
        assert_eq!((findings.all(), findings.changes(at(159))), (vec![], Changes::default()));
        findings.holds(sight(3), at(160), MINUTE);
        assert_eq!(told(&findings.changes(at(160)).begun), [(100, 3)]);
        findings.holds(sight(4), at(170), MINUTE);
        assert_eq!(findings.changes(at(170)), Changes::default());
        assert_eq!(told(&findings.all()), [(100, 4)]);
        findings.is_not("q", FindingKind::NoConsumer);
        assert_eq!(told(&findings.changes(at(171)).ended), [(100, 4)]);
        assert!(findings.all().is_empty());
    }

    #[test]
    fn a_condition_that_comes_and_goes_is_no_finding() {
        let mut findings = Findings::default();
        for second in 0..300 {
            if second % 50 == 0 {
                findings.is_not("q", FindingKind::NoConsumer);
            }
            findings.holds(sight(1), at(second), MINUTE);
        }
        assert_eq!(findings.changes(at(300)), Changes::default());
    }

    #[test]
    fn what_was_not_seen_does_not_count_as_lasting() {
        let mut findings = Findings::default();
        findings.holds(sight(1), at(0), MINUTE);
        findings.interrupted();
        findings.holds(sight(1), at(600), MINUTE);
        assert_eq!(findings.changes(at(600)), Changes::default());
    }

    #[test]
    fn an_event_is_a_finding_at_once_adds_up_and_is_forgotten_after_a_while() {
        let mut findings = Findings::default();
        findings.happened(sight(3), at(0), MINUTE);
        assert_eq!(told(&findings.changes(at(0)).begun), [(0, 3)]);
        findings.happened(sight(2), at(50), MINUTE);
        assert_eq!(findings.changes(at(109)), Changes::default());
        assert_eq!(told(&findings.all()), [(0, 5)]);
        assert_eq!(told(&findings.changes(at(110)).ended), [(0, 5)]);
    }
}
