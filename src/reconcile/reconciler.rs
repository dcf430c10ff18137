//! Compares the broker's answers with the topology and with orderd's own counts, and keeps the findings. Pure: answers,
//! counts and times are arguments.
//!
//! What is compared, as long as no connection is lost and no other instance consumes the same queue:
//! ```text
//! work queue        acked at the broker      = deliveries acked by its consumer
//!                   delivered by the broker  = deliveries received by its consumer
//!                   unacked at the broker    = deliveries in flight in its workers, while nothing changes
//! failed queue      published into it        ≥ failures forwarded by all consumers
//! retry queues      published into them      ≥ retries of the failed-order consumer
//! dead_letter_queue published into it        ≥ dead letters of the failed-order consumer
//! ```

mod observations;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::broker_view::{BrokerView, Finding, FindingKind, QueueRole, QueueView};
use super::count_comparison::{CountComparison, CountRelation, CountSample, Gap};
use super::findings::{FindingChanges, Findings, Moment, Observation};
use super::overdue_detector::OverdueDetector;
use super::queue_roles::QueueRoles;
use crate::management::Detail;
use crate::metrics::{CollectorReading, DeliveryCounts, FailedUndos};
use crate::recovery::Delay;
use crate::topology::ExchangeNames;
use observations::{ack_gap, delivery_gap, failed_undos, no_consumer, not_collected, paused_consumer};

/// After a counter went back, its growth is ignored for this many answers, because it may only return to its former value.
const ANSWERS_AFTER_RESET: u32 = 8;
/// The name under which all retry queues are compared together.
const RETRY_QUEUES: &str = "*.retry.*";

/// Time limits of the reconciliation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The maximum age of the broker's statistics. Also how long a condition must last to become a finding. Each RabbitMQ
    /// node collects its statistics every 5 s, and answers are cached for a few seconds more.
    pub lag: Duration,
    /// How long an event remains a finding.
    pub event_retention: Duration,
    /// How long one round of requests for the details of every queue takes.
    pub details_every: Duration,
}

impl Limits {
    /// A lag of one minute tolerates a `collect_statistics_interval` of 30 s.
    pub const DEFAULT: Limits = Limits {
        lag: Duration::from_secs(60),
        event_retention: Duration::from_secs(600),
        details_every: Duration::from_secs(30),
    };
}

/// orderd's own counts at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LocalCounts {
    /// The delivery counts of each consumer, by queue.
    pub counts: BTreeMap<String, DeliveryCounts>,
    /// When each paused consumer was paused, by queue.
    pub paused: BTreeMap<String, Timestamp>,
    /// The dead letters of all consumers whose steps could not be undone.
    pub failed_undos: FailedUndos,
    /// The number of the publisher's connection; counts of different connections are not compared.
    pub publisher_connection: u64,
    /// What the collectors of dead letters that are to run have done, by queue.
    pub collectors: BTreeMap<String, CollectorReading>,
}

/// What is remembered about one work queue.
struct ConsumedQueue {
    acked: CountComparison,
    delivered: CountComparison,
    /// Whether this instance is the only consumer. A quorum queue's `consumers` also counts clients that hold messages
    /// taken with `basic.get`.
    is_sole_consumer: bool,
    /// How many answers showed other consumers. Counts before and after such an answer are not compared, because the
    /// broker's counters include the acks of other instances.
    shared_answers: u64,
    /// Messages taken by other clients, as last reported, and for how many more answers their growth is ignored.
    taken_by_others: Option<(u64, u32)>,
    /// orderd's counts, and the time of their last change.
    unchanged_since: (DeliveryCounts, Duration),
}

impl ConsumedQueue {
    fn new(lag: Duration) -> Self {
        ConsumedQueue {
            acked: CountComparison::new(lag, CountRelation::Equal),
            delivered: CountComparison::new(lag, CountRelation::Equal),
            is_sole_consumer: false,
            shared_answers: 0,
            taken_by_others: None,
            unchanged_since: (DeliveryCounts::default(), Duration::ZERO),
        }
    }

    /// Records the total of messages taken by other clients, and returns by how many it has grown.
    fn newly_taken_by_others(&mut self, total: u64) -> u64 {
        let (before, ignored_answers) = self.taken_by_others.unwrap_or((total, 0));
        let ignored_answers = if total < before { ANSWERS_AFTER_RESET } else { ignored_answers.saturating_sub(1) };
        self.taken_by_others = Some((total, ignored_answers));
        if ignored_answers == 0 { total.saturating_sub(before) } else { 0 }
    }
}

/// What is remembered about one retry queue.
struct RetryQueue {
    detector: OverdueDetector,
    /// How many messages were overdue according to the detector's last result.
    overdue: u64,
    /// When the queue was last asked about, and how many messages had been published into it.
    published: (Duration, Option<u64>),
}

/// Compares answers with expectations over time.
pub struct Reconciler {
    limits: Limits,
    /// The prefix of this instance's consumer tags. No other instance has the same.
    tag_prefix: String,
    failed_queue: String,
    consumed: BTreeMap<String, ConsumedQueue>,
    /// Compares publishes, by the queue that orderd publishes into.
    publishes: BTreeMap<String, CountComparison>,
    retry_queues: BTreeMap<String, RetryQueue>,
    paused: BTreeMap<String, Timestamp>,
    collected: BTreeSet<String>,
    /// Unconfirmed dead letters of each queue, as last reported.
    dead_letters: BTreeMap<String, u64>,
    findings: Findings,
}

impl Reconciler {
    pub(super) fn new(roles: &QueueRoles, limits: Limits, tag_prefix: String) -> Self {
        let failed_queue = roles.failed_queue().to_owned();
        let published = [failed_queue.as_str(), RETRY_QUEUES, ExchangeNames::DEAD_LETTER_QUEUE];
        let comparison = |queue: &str| (queue.to_owned(), CountComparison::new(limits.lag, CountRelation::AtLeast));
        Reconciler {
            limits,
            tag_prefix,
            publishes: published.into_iter().map(comparison).collect(),
            failed_queue,
            consumed: BTreeMap::new(),
            retry_queues: BTreeMap::new(),
            paused: BTreeMap::new(),
            collected: BTreeSet::new(),
            dead_letters: BTreeMap::new(),
            findings: Findings::default(),
        }
    }

    /// Records orderd's own counts.
    pub(super) fn record_local_counts(&mut self, now: Moment, local: &LocalCounts) {
        self.paused.clone_from(&local.paused);
        let undos = failed_undos(local.failed_undos, now.wall);
        self.update_condition(ExchangeNames::DEAD_LETTER_QUEUE, FindingKind::UndoFailed, undos, now, Duration::ZERO);
        for queue in self.collected.iter().filter(|queue| !local.collectors.contains_key(*queue)) {
            self.findings.clear(queue, FindingKind::NotCollected);
        }
        self.collected = local.collectors.keys().cloned().collect();
        for (queue, collector) in &local.collectors {
            let kept = not_collected(queue, collector);
            self.update_condition(queue, FindingKind::NotCollected, kept, now, Duration::ZERO);
        }
        let sample = |own| CountSample { asked_at: now.elapsed, read_at: now.elapsed, own, broker: None };
        for (queue, counts) in &local.counts {
            let consumed = self.consumed.entry(queue.clone()).or_insert_with(|| ConsumedQueue::new(self.limits.lag));
            if consumed.unchanged_since.0 != *counts {
                consumed.unchanged_since = (*counts, now.elapsed);
            }
            let acked = consumed.acked.add(sample(counts.acked()));
            let delivered = consumed.delivered.add(sample(counts.deliveries));
            self.record_event(ack_gap(queue, acked), now);
            self.record_event(delivery_gap(queue, delivered), now);
        }
        for queue in [self.failed_queue.clone(), RETRY_QUEUES.to_owned(), ExchangeNames::DEAD_LETTER_QUEUE.to_owned()] {
            self.compare_publishes(&queue, sample(self.confirmed_publishes(&queue, local)), now);
        }
    }

    /// How many messages the broker has confirmed to orderd for one of the queues that it publishes into.
    fn confirmed_publishes(&self, queue: &str, local: &LocalCounts) -> u64 {
        let failures = local.counts.get(&self.failed_queue).copied().unwrap_or_default();
        match queue {
            RETRY_QUEUES => failures.retried,
            ExchangeNames::DEAD_LETTER_QUEUE => failures.dead_lettered,
            _ => local.counts.values().map(|counts| counts.forwarded).sum(),
        }
    }

    fn compare_publishes(&mut self, queue: &str, sample: CountSample, now: Moment) {
        let Some(comparison) = self.publishes.get_mut(queue) else { return };
        if let Some(Gap::Fewer(messages)) = comparison.add(sample) {
            let observation = Observation {
                queue: queue.to_owned(),
                kind: FindingKind::PublishesMissing,
                messages: Some(messages),
                detail: "the broker confirmed publishes that it did not count into the queue".to_owned(),
            };
            self.record_event(Some(observation), now);
        }
    }

    /// Evaluates a full answer with the totals of all queues, requested at `asked_at`.
    pub(super) fn compare_totals(&mut self, asked_at: Duration, now: Moment, view: &BrokerView) {
        for (name, queue) in &view.queues {
            if matches!(queue.role, QueueRole::DeadLetter | QueueRole::Unrouted) {
                let idle = no_consumer(name, queue).filter(|_| self.collected.contains(name));
                self.update_condition(name, FindingKind::NoConsumer, idle, now, self.limits.lag);
            }
            if let QueueRole::Work { consumer } = &queue.role {
                let not_held = self.unacked_not_held(asked_at, name, queue, consumer);
                let (idle, paused) = match self.paused.get(name) {
                    Some(since) => (None, paused_consumer(name, queue, consumer, *since)),
                    None => (no_consumer(name, queue), None),
                };
                self.update_condition(name, FindingKind::NoConsumer, idle, now, self.limits.lag);
                self.update_condition(name, FindingKind::ConsumerPaused, paused, now, Duration::ZERO);
                self.update_condition(name, FindingKind::UnackedNotHeld, not_held, now, self.limits.lag);
            }
        }
    }

    /// Unacked messages that orderd does not hold. Reported only if orderd's counts have not changed for `lag`, since the
    /// broker's answer may be that old.
    fn unacked_not_held(
        &self,
        asked_at: Duration,
        name: &str,
        queue: &QueueView,
        consumer: &str,
    ) -> Option<Observation> {
        let consumed = self.consumed.get(name)?;
        let (counts, since) = &consumed.unchanged_since;
        let is_unchanged = asked_at >= since.saturating_add(self.limits.lag);
        let finished = counts.acked() + counts.released + counts.rejected;
        let (unacked, held) = (queue.unacked?, counts.deliveries.saturating_sub(finished));
        (is_unchanged && consumed.is_sole_consumer && unacked > held).then(|| Observation {
            queue: name.to_owned(),
            kind: FindingKind::UnackedNotHeld,
            messages: Some(unacked - held),
            detail: format!(
                "{unacked} messages are unacked, but consumer {consumer:?} holds only {held}; the broker redelivers the \
                 others when the connection closes"
            ),
        })
    }

    /// Evaluates the details of one queue, requested at `asked_at`.
    pub(super) fn compare_detail(
        &mut self,
        asked_at: Duration,
        now: Moment,
        name: &str,
        role: &QueueRole,
        detail: &Detail,
        local: &LocalCounts,
    ) {
        match role {
            QueueRole::Work { .. } => {
                self.compare_consumed_queue(asked_at, now, name, detail, local);
                self.check_dead_letters(now, name, detail.dead_letters_held, FindingKind::DeadLettersHeld);
            }
            QueueRole::Retry { delay, .. } => {
                self.compare_retry_queue(asked_at, now, name, delay, detail);
                self.compare_retry_publishes(now, local);
            }
            QueueRole::DeadLetter | QueueRole::Unrouted => {}
        }
        if let (true, Some(stats)) = (self.publishes.contains_key(name), &detail.stats) {
            let broker = stats.counted.published.map(|count| (local.publisher_connection.to_string(), count));
            let own = self.confirmed_publishes(name, local);
            self.compare_publishes(name, CountSample { asked_at, read_at: now.elapsed, own, broker }, now);
        }
    }

    fn compare_consumed_queue(
        &mut self,
        asked_at: Duration,
        now: Moment,
        name: &str,
        detail: &Detail,
        local: &LocalCounts,
    ) {
        let consumed = self.consumed.entry(name.to_owned()).or_insert_with(|| ConsumedQueue::new(self.limits.lag));
        let tag = sole_consumer_tag(detail, &self.tag_prefix);
        consumed.is_sole_consumer = tag.is_some();
        // Each connection has its own tag. While other instances consume too, nothing is compared: each such answer has a
        // context of its own, and the answers after it have a new one.
        consumed.shared_answers += u64::from(!consumed.is_sole_consumer);
        let context = format!("{} {}", tag.unwrap_or("shared"), consumed.shared_answers);
        let counted = detail.stats.map(|stats| stats.counted).unwrap_or_default();
        let Some(counts) = local.counts.get(name) else { return };
        let is_sole_consumer = consumed.is_sole_consumer;
        let sample = |own, count: Option<u64>| {
            let broker = count.or((!is_sole_consumer).then_some(0)).map(|count| (context.clone(), count));
            CountSample { asked_at, read_at: now.elapsed, own, broker }
        };
        let taken = counted.taken_by_others.map_or(0, |total| consumed.newly_taken_by_others(total));
        let acked = consumed.acked.add(sample(counts.acked(), counted.acked));
        let delivered = consumed.delivered.add(sample(counts.deliveries, counted.delivered));
        let taken = (taken > 0).then(|| Observation {
            queue: name.to_owned(),
            kind: FindingKind::TakenByOthers,
            messages: Some(taken),
            detail: "another client takes messages from the queue, with basic.get or without acks".to_owned(),
        });
        self.record_event(taken, now);
        self.record_event(ack_gap(name, acked), now);
        self.record_event(delivery_gap(name, delivered), now);
    }

    fn compare_retry_queue(&mut self, asked_at: Duration, now: Moment, name: &str, delay: &str, detail: &Detail) {
        let Ok(delay) = delay.parse::<Delay>() else { return };
        let lag = self.limits.lag;
        let queue = self.retry_queues.entry(name.to_owned()).or_insert_with(|| RetryQueue {
            detector: OverdueDetector::new(delay.as_duration(), lag),
            overdue: 0,
            published: (asked_at, None),
        });
        let published = detail.stats.and_then(|stats| stats.counted.published);
        queue.published = (asked_at, published);
        let waiting = detail.ready.map(|ready| ready + detail.dead_letters_held.unwrap_or(0));
        queue.overdue = queue.detector.record(now.elapsed, waiting, published).unwrap_or(queue.overdue);
        let kind = FindingKind::RetriesOverdue;
        if queue.overdue == 0 {
            self.check_dead_letters(now, name, detail.dead_letters_held, kind);
        } else {
            let observation = Observation {
                queue: name.to_owned(),
                kind,
                messages: Some(queue.overdue),
                detail: format!("messages have been in the queue for longer than its delay of {delay}"),
            };
            self.update_condition(name, kind, Some(observation), now, Duration::ZERO);
        }
    }

    /// Checks the number of messages that the broker has not dead-lettered yet. It rises and falls while dead-lettering
    /// works. If it never falls, dead-lettering does not work. The broker itself retries every 180 s.
    fn check_dead_letters(&mut self, now: Moment, name: &str, count: Option<u64>, kind: FindingKind) {
        let count = count.unwrap_or(0);
        let before = self.dead_letters.insert(name.to_owned(), count).unwrap_or(0);
        let stuck = (count > 0 && count >= before).then(|| Observation {
            queue: name.to_owned(),
            kind,
            messages: Some(count),
            detail: "the broker cannot move the messages on: the target queue refuses them or is not bound".to_owned(),
        });
        self.update_condition(name, kind, stuck, now, 3 * self.limits.lag);
    }

    /// Compares the publishes of all retry queues together, because orderd has one count for them all. A queue has no
    /// statistics until something is published into it.
    fn compare_retry_publishes(&mut self, now: Moment, local: &LocalCounts) {
        let counts = || self.retry_queues.values().map(|queue| queue.published);
        if counts().all(|(_, count)| count.is_none()) {
            return;
        }
        let asked_at = counts().map(|(asked_at, _)| asked_at).min().unwrap_or(now.elapsed);
        let sum = counts().filter_map(|(_, count)| count).sum();
        let queues: Vec<_> = self.retry_queues.keys().map(String::as_str).collect();
        let context = format!("{} {}", local.publisher_connection, queues.join(" "));
        let own = self.confirmed_publishes(RETRY_QUEUES, local);
        let sample = CountSample { asked_at, read_at: now.elapsed, own, broker: Some((context, sum)) };
        self.compare_publishes(RETRY_QUEUES, sample, now);
    }

    /// Forgets a queue that no longer exists.
    pub(super) fn forget_queue(&mut self, name: &str) {
        self.retry_queues.remove(name);
        self.dead_letters.remove(name);
        for kind in FindingKind::ALL {
            self.findings.clear(name, kind);
        }
    }

    /// Records that the broker did not answer.
    pub(super) fn record_interruption(&mut self) {
        self.findings.discard_unreported();
    }

    /// Returns the findings that began and ended since the previous call.
    pub(super) fn take_changes(&mut self, now: Moment) -> FindingChanges {
        self.findings.take_changes(now)
    }

    /// All current findings.
    pub(super) fn findings(&self) -> Vec<Finding> {
        self.findings.all()
    }

    fn record_event(&mut self, observation: Option<Observation>, now: Moment) {
        if let Some(observation) = observation {
            self.findings.record_event(observation, now, self.limits.event_retention);
        }
    }

    fn update_condition(
        &mut self,
        queue: &str,
        kind: FindingKind,
        observation: Option<Observation>,
        now: Moment,
        min_duration: Duration,
    ) {
        match observation {
            Some(observation) => self.findings.record_condition(observation, now, min_duration),
            None => self.findings.clear(queue, kind),
        }
    }
}

/// The tag of the queue's only consumer, if it is one of this instance.
fn sole_consumer_tag<'d>(detail: &'d Detail, prefix: &str) -> Option<&'d str> {
    match detail.consumer_tags.as_deref() {
        Some([tag]) if tag.starts_with(prefix) => Some(tag),
        Some(_) | None => None,
    }
}

#[cfg(test)]
mod tests;
