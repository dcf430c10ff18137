//! Makes findings from differences between the broker and the topology: what is missing, what has other properties, and
//! which policies would lose messages. Pure: times are arguments.

use std::collections::{BTreeMap, btree_map};
use std::time::Duration;

use super::audit::Audit;
use super::broker_view::{Finding, FindingKind};
use super::findings::{FindingChanges, Moment};
use crate::topology::Object;

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Object(Object),
    /// The effective policies of some queues, by name.
    Policies(Vec<String>),
}

type Key = (Subject, FindingKind);

/// All current findings about the topology.
#[derive(Debug, Default)]
pub(super) struct TopologyFindings {
    current: BTreeMap<Key, Finding>,
    /// When the findings about what was declared again end.
    restored_until: BTreeMap<Object, Duration>,
    changes: FindingChanges,
}

impl TopologyFindings {
    /// Replaces the findings by those of a new comparison. `declare`: whether orderd declares what is missing.
    pub fn record(&mut self, audit: &Audit, declare: bool, now: Moment) {
        let observed = observations(audit, declare, now);
        // A policy that the broker has not reported is neither there nor gone.
        let is_unknown = |finding: &Finding| finding.queues.iter().any(|name| audit.unknown_policies.contains(name));
        self.end(|key, finding| match key.1 {
            FindingKind::Redeclared => false,
            FindingKind::DangerousPolicy if is_unknown(finding) => false,
            _ => !observed.contains_key(key),
        });
        for (key, finding) in observed {
            self.begin(key, finding);
        }
    }

    /// The whole topology has been declared, so nothing is missing.
    pub fn record_complete(&mut self) {
        self.end(|(_, kind), _| kind.is_missing_object());
    }

    /// These objects did not exist and have been declared again.
    pub fn record_restored(&mut self, restored: Vec<Object>, now: Moment, retention: Duration) {
        for object in restored {
            let lost = match object {
                Object::Queue(_) => "; the messages that it held are lost",
                Object::Exchange(_) | Object::Binding { .. } => "",
            };
            let detail = format!("{object} was deleted and has been declared again{lost}: find out what deletes it");
            self.restored_until.insert(object.clone(), now.elapsed.saturating_add(retention));
            let finding = Finding::about(&object, FindingKind::Redeclared, now.wall, detail);
            self.begin((Subject::Object(object), FindingKind::Redeclared), finding);
        }
    }

    /// Returns what has begun and ended since the previous call.
    pub fn take_changes(&mut self, now: Moment) -> FindingChanges {
        let over: Vec<_> = self
            .restored_until
            .iter()
            .filter(|(_, end)| now.elapsed >= **end)
            .map(|(object, _)| object.clone())
            .collect();
        for object in over {
            self.restored_until.remove(&object);
            let ended = (Subject::Object(object), FindingKind::Redeclared);
            self.end(|key, _| *key == ended);
        }
        std::mem::take(&mut self.changes)
    }

    /// All current findings.
    pub fn all(&self) -> impl Iterator<Item = Finding> {
        self.current.values().cloned()
    }

    fn begin(&mut self, key: Key, new: Finding) {
        match self.current.entry(key) {
            btree_map::Entry::Occupied(mut known) => {
                let known = known.get_mut();
                (known.detail, known.queues) = (new.detail, new.queues);
            }
            btree_map::Entry::Vacant(entry) => {
                entry.insert(new.clone());
                self.changes.begun.push(new);
            }
        }
    }

    fn end(&mut self, is_over: impl Fn(&Key, &Finding) -> bool) {
        let ended = self.current.extract_if(.., |key, finding| is_over(key, finding));
        self.changes.ended.extend(ended.map(|(_, finding)| finding));
    }
}

/// The findings of a comparison. Several differences of one object are one finding, and so is one policy for many queues.
fn observations(audit: &Audit, declare: bool, now: Moment) -> BTreeMap<Key, Finding> {
    let mut observed: BTreeMap<Key, Finding> = BTreeMap::new();
    let mut add = |object: Object, kind, detail: String| {
        let new = Finding::about(&object, kind, now.wall, detail);
        match observed.entry((Subject::Object(object), kind)) {
            btree_map::Entry::Occupied(mut known) => {
                let known = &mut known.get_mut().detail;
                *known = format!("{known}; {}", new.detail);
            }
            btree_map::Entry::Vacant(entry) => drop(entry.insert(new)),
        }
    };
    for object in &audit.missing {
        let (kind, effect) = match object {
            Object::Exchange(_) => (FindingKind::ExchangeMissing, "what is published to it is refused"),
            Object::Queue(_) => (FindingKind::QueueMissing, "the messages that it held are lost"),
            Object::Binding { .. } => (FindingKind::BindingMissing, "messages do not reach the queue"),
        };
        let remedy = if declare {
            "orderd declares it again; if that fails, the log says why"
        } else {
            "topology.declare is false, so create it yourself, as `orderd check` prints it"
        };
        add(object.clone(), kind, format!("{object} does not exist, {effect}: {remedy}"));
    }
    for mismatch in &audit.mismatches {
        let kind = match mismatch.object {
            Object::Exchange(_) => FindingKind::ExchangeMismatch,
            Object::Queue(_) | Object::Binding { .. } => FindingKind::QueueMismatch,
        };
        let effect = match mismatch.argument.as_str() {
            "alternate-exchange" => "messages that match no binding are lost",
            _ => "messages may be lost or go elsewhere",
        };
        let remedy = "orderd deletes nothing: drain and delete it, then run `orderd reload`";
        add(mismatch.object.clone(), kind, format!("{mismatch}, {effect}: {remedy}"));
    }
    for short in &audit.short_consumer_timeouts {
        let detail = format!("{short}: it takes back what is held longer, and dead-letters it after 20 times");
        add(Object::Queue(short.queue.clone()), FindingKind::ShortConsumerTimeout, detail);
    }
    for policy in &audit.dangerous_policies {
        let detail = format!("{policy}: change or remove the policy; with it, orderd does not start again");
        let queues = policy.queues().into_iter().map(str::to_owned).collect();
        let finding = Finding::about_policy(policy.policies.join(" and "), queues, now.wall, detail);
        observed.insert((Subject::Policies(policy.policies.clone()), FindingKind::DangerousPolicy), finding);
    }
    observed
}

#[cfg(test)]
mod tests {
    use super::super::audit::{DangerousPolicy, DangerousSetting, Mismatch};
    use super::*;

    fn at(second: i64) -> Moment {
        let wall = jiff::Timestamp::from_second(second).unwrap();
        Moment { elapsed: Duration::from_secs(second.unsigned_abs()), wall }
    }

    fn kinds(findings: &TopologyFindings) -> Vec<(FindingKind, Option<String>)> {
        findings.all().map(|finding| (finding.kind, Some(finding.subject().to_owned()))).collect()
    }

    fn policy() -> DangerousPolicy {
        DangerousPolicy {
            policies: vec!["p".into()],
            settings: vec![DangerousSetting {
                key: "overflow".into(),
                value: "drop-head".into(),
                effect: "deletes",
                queues: vec!["q".into(), "r".into()],
            }],
        }
    }

    #[test]
    fn what_is_missing_or_differs_is_a_finding_until_it_is_not() {
        let mut findings = TopologyFindings::default();
        let mismatch = Mismatch {
            object: Object::Exchange("orders".into()),
            argument: "alternate-exchange".into(),
            expected: Some("\"orders.unrouted\"".into()),
            actual: None,
        };
        let audit = Audit {
            missing: vec![Object::Queue("q".into()), Object::Exchange("x".into())],
            mismatches: vec![mismatch],
            dangerous_policies: vec![policy()],
            ..Audit::default()
        };
        findings.record(&audit, false, at(1));
        let expected = [
            (FindingKind::ExchangeMismatch, Some("orders".to_owned())),
            (FindingKind::ExchangeMissing, Some("x".to_owned())),
            (FindingKind::QueueMissing, Some("q".to_owned())),
            (FindingKind::DangerousPolicy, Some("p".to_owned())),
        ];
        assert_eq!(kinds(&findings), expected);
        assert_eq!(findings.take_changes(at(1)).begun.len(), 4);
        findings.record(&audit, false, at(2));
        assert_eq!(findings.take_changes(at(2)), FindingChanges::default());
        findings.record_complete();
        assert_eq!(findings.take_changes(at(3)).ended.len(), 2);
        findings.record(&Audit::default(), false, at(4));
        assert_eq!((kinds(&findings), findings.take_changes(at(4)).ended.len()), (vec![], 2));
    }

    #[test]
    fn a_policy_stays_a_finding_while_the_broker_does_not_report_policies() {
        let mut findings = TopologyFindings::default();
        findings.record(&Audit { dangerous_policies: vec![policy()], ..Audit::default() }, true, at(1));
        findings.record(&Audit { unknown_policies: vec!["q".into()], ..Audit::default() }, true, at(2));
        assert_eq!(kinds(&findings), [(FindingKind::DangerousPolicy, Some("p".to_owned()))]);
    }

    #[test]
    fn what_was_declared_again_is_a_finding_for_a_while() {
        let mut findings = TopologyFindings::default();
        findings.record_restored(vec![Object::Queue("q".into())], at(1), Duration::from_secs(10));
        findings.record(&Audit::default(), true, at(2));
        findings.record_complete();
        let _ = findings.take_changes(at(10));
        assert_eq!(kinds(&findings), [(FindingKind::Redeclared, Some("q".to_owned()))]);
        assert_eq!(findings.take_changes(at(11)).ended.len(), 1);
    }
}
