//! Judges what the broker tells against what must be and against orderd's own counts. Pure: answers, counts and times
//! are arguments.
//!
//! What is held against what, for as long as connections last and no other instance consumes the queue too:
//! ```text
//! work queue       acked at the broker      = deliveries that its consumer's workers have done with
//!                  delivered by the broker  = deliveries that its consumer has received
//!                  unacked at the broker    = deliveries in the workers' hands, when nothing moves
//! failed queue     published into it        ≥ failures handed on by all consumers
//! retry queues     published into them      ≥ retries by the consumer of failures
//! dead_letter_queue published into it       ≥ messages dead-lettered by the consumer of failures
//! ```

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::balance::{Balance, Gap, Reading, Rule};
use super::findings::{Changes, Findings, Moment, Observation};
use super::overdue::Overdue;
use super::roles::Roles;
use super::view::{BrokerView, Finding, FindingKind, QueueRole, QueueView};
use crate::management::Detail;
use crate::metrics::DeliveryCounts;
use crate::recovery::Delay;
use crate::topology::ExchangeNames;

/// After the broker's count has gone back, so many readings may only bring it back to where it was.
const SETTLING: u32 = 8;
/// The balance of all retry queues together.
const RETRY_QUEUES: &str = "*.retry.*";

/// How patient the reconciler is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How old the broker's statistics may be at the most; also how long a condition must last to be a finding.
    /// RabbitMQ collects every 5 s, each node for itself, and keeps answers for some seconds.
    pub lag: Duration,
    /// How long something that happened stays a finding.
    pub remembered: Duration,
    /// How long a round of asking all queues for their details takes.
    pub details_every: Duration,
}

impl Limits {
    /// A minute for statistics, so that a `collect_statistics_interval` of 30 s does no harm; ten minutes; half a minute.
    pub const DEFAULT: Limits = Limits {
        lag: Duration::from_secs(60),
        remembered: Duration::from_secs(600),
        details_every: Duration::from_secs(30),
    };
}

/// orderd's own counts at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LocalCounts {
    /// The consumers' counts, by queue.
    pub counts: BTreeMap<String, DeliveryCounts>,
    /// Since when the consumers are paused that are, by queue.
    pub paused: BTreeMap<String, Timestamp>,
    /// The number of the publisher's connection.
    pub publisher_connection: u64,
}

/// Acked, for whatever reason.
fn acked(counts: &DeliveryCounts) -> u64 {
    counts.completed + counts.duplicates + counts.forwarded + counts.retried + counts.dead_lettered
}

/// In the workers' hands.
fn held(counts: &DeliveryCounts) -> u64 {
    counts.deliveries.saturating_sub(acked(counts) + counts.released + counts.rejected)
}

/// One consumed queue.
struct Consumed {
    acked: Balance,
    delivered: Balance,
    /// Whether orderd's is the only consumer. A quorum queue's `consumers` also counts who holds messages taken by
    /// `basic.get`.
    is_sole: bool,
    /// How often it was found not to be: other instances' acks are in the broker's counts from then on.
    shared: u64,
    /// Taken otherwise, as last told, and how many readings are not to be trusted yet.
    otherwise: Option<(u64, u32)>,
    /// orderd's counts, and since when they have been the same.
    still: (DeliveryCounts, Duration),
}

/// One retry queue.
struct Waiting {
    overdue: Overdue,
    /// How many were overdue when last told.
    late: u64,
    /// When asked, and how many were published into it.
    published: (Duration, Option<u64>),
}

/// Keeps what judging needs to remember.
pub struct Reconciler {
    limits: Limits,
    /// How the tags of this instance's own consumers begin, and no other's.
    tag_prefix: String,
    failed_queue: String,
    consumed: BTreeMap<String, Consumed>,
    /// By the queue that orderd publishes into.
    entering: BTreeMap<String, Balance>,
    waiting: BTreeMap<String, Waiting>,
    paused: BTreeMap<String, Timestamp>,
    /// Dead letters held, as last told.
    dead_letters: BTreeMap<String, u64>,
    findings: Findings,
}

impl Reconciler {
    pub(super) fn new(roles: &Roles, limits: Limits, tag_prefix: String) -> Self {
        let failed_queue = roles.failed_queue().to_owned();
        let entering = [failed_queue.as_str(), RETRY_QUEUES, ExchangeNames::DEAD_LETTER_QUEUE];
        Reconciler {
            limits,
            tag_prefix,
            entering: entering
                .into_iter()
                .map(|queue| (queue.to_owned(), Balance::new(limits.lag, Rule::AtLeast)))
                .collect(),
            failed_queue,
            consumed: BTreeMap::new(),
            waiting: BTreeMap::new(),
            paused: BTreeMap::new(),
            dead_letters: BTreeMap::new(),
            findings: Findings::default(),
        }
    }

    /// Takes note of orderd's own counts.
    pub(super) fn own(&mut self, now: Moment, own: &LocalCounts) {
        self.paused.clone_from(&own.paused);
        let reading = |count| Reading { from: now.elapsed, at: now.elapsed, own: count, broker: None };
        for (queue, counts) in &own.counts {
            let consumed = consumed(&mut self.consumed, queue, self.limits.lag);
            if consumed.still.0 != *counts {
                consumed.still = (*counts, now.elapsed);
            }
            let gap = consumed.acked.read(reading(acked(counts)));
            report_acked(&mut self.findings, queue, gap, now, self.limits);
            let gap = consumed.delivered.read(reading(counts.deliveries));
            report_delivered(&mut self.findings, queue, gap, now, self.limits);
        }
        for queue in [self.failed_queue.clone(), RETRY_QUEUES.to_owned(), ExchangeNames::DEAD_LETTER_QUEUE.to_owned()] {
            self.enters(&queue, reading(self.sent(&queue, own)), now);
        }
    }

    /// How many messages orderd knows to be published into one of the queues it publishes into.
    fn sent(&self, queue: &str, own: &LocalCounts) -> u64 {
        let failures = own.counts.get(&self.failed_queue).copied().unwrap_or_default();
        match queue {
            RETRY_QUEUES => failures.retried,
            ExchangeNames::DEAD_LETTER_QUEUE => failures.dead_lettered,
            _ => own.counts.values().map(|counts| counts.forwarded).sum(),
        }
    }

    fn enters(&mut self, queue: &str, reading: Reading, now: Moment) {
        let Some(balance) = self.entering.get_mut(queue) else { return };
        if let Some(Gap::Fewer(messages)) = balance.read(reading) {
            let detail = "the broker confirmed publications that it did not count into the queue".to_owned();
            let (queue, kind) = (queue.to_owned(), FindingKind::PublishesMissing);
            let sight = Observation { queue, kind, messages: Some(messages), detail };
            self.findings.happened(sight, now, self.limits.remembered);
        }
    }

    /// Judges fresh totals, asked for at `asked`.
    pub(super) fn totals(&mut self, asked: Duration, now: Moment, view: &BrokerView, roles: &Roles) {
        for queue in roles.declared() {
            let sight = view.missing_queues.iter().any(|missing| missing == queue).then(|| {
                let detail = "the queue is not there: it was deleted after the start".to_owned();
                Observation { queue: queue.to_owned(), kind: FindingKind::QueueMissing, messages: None, detail }
            });
            self.lasts(queue, FindingKind::QueueMissing, sight, now, self.limits.lag);
        }
        for (name, queue) in &view.queues {
            if let QueueRole::Work { consumer } = &queue.role {
                let unheld = self.not_held(asked, name, queue, consumer);
                let (idle, paused) = match self.paused.get(name) {
                    Some(since) => (None, waits_for_resumption(name, queue, consumer, *since)),
                    None => (unconsumed(name, queue), None),
                };
                self.lasts(name, FindingKind::NoConsumer, idle, now, self.limits.lag);
                self.lasts(name, FindingKind::ConsumerPaused, paused, now, Duration::ZERO);
                self.lasts(name, FindingKind::UnackedNotHeld, unheld, now, self.limits.lag);
            }
        }
    }

    /// What the broker waits for, although orderd has done with all it got, and has not moved for longer than the
    /// broker's counts are old.
    fn not_held(&self, asked: Duration, name: &str, queue: &QueueView, consumer: &str) -> Option<Observation> {
        let consumed = self.consumed.get(name)?;
        let (counts, since) = &consumed.still;
        let is_still = asked >= since.saturating_add(self.limits.lag);
        let (unacked, held) = (queue.unacked?, held(counts));
        (is_still && consumed.is_sole && unacked > held).then(|| Observation {
            queue: name.to_owned(),
            kind: FindingKind::UnackedNotHeld,
            messages: Some(unacked - held),
            detail: format!(
                "{unacked} messages are unacked, of which consumer {consumer:?} holds {held}; the others are handed out \
                 again when its connection ends"
            ),
        })
    }

    /// Judges the answer about one queue, asked for at `asked`.
    pub(super) fn detail(
        &mut self,
        asked: Duration,
        now: Moment,
        name: &str,
        role: &QueueRole,
        detail: &Detail,
        own: &LocalCounts,
    ) {
        match role {
            QueueRole::Work { .. } => {
                self.consumed_detail(asked, now, name, detail, own);
                self.held_back(now, name, detail.dead_letters_held, FindingKind::DeadLettersHeld);
            }
            QueueRole::Retry { delay, .. } => {
                self.waiting_detail(asked, now, name, delay, detail);
                self.retries_entered(now, own);
            }
            QueueRole::DeadLetter | QueueRole::Unrouted => {}
        }
        if let (true, Some(stats)) = (self.entering.contains_key(name), &detail.stats) {
            let broker = stats.counted.published.map(|count| (own.publisher_connection.to_string(), count));
            let reading = Reading { from: asked, at: now.elapsed, own: self.sent(name, own), broker };
            self.enters(name, reading, now);
        }
    }

    fn consumed_detail(&mut self, asked: Duration, now: Moment, name: &str, detail: &Detail, own: &LocalCounts) {
        let consumed = consumed(&mut self.consumed, name, self.limits.lag);
        let sole = sole_tag(detail, &self.tag_prefix);
        consumed.is_sole = sole.is_some();
        // The tag is another for each connection. What is counted while others consume too is compared with nothing:
        // each such reading is a context of its own, and begins another one for the time after it.
        consumed.shared += u64::from(!consumed.is_sole);
        let context = format!("{} {}", sole.unwrap_or("shared"), consumed.shared);
        let counted = detail.stats.map(|stats| stats.counted).unwrap_or_default();
        let Some(counts) = own.counts.get(name) else { return };
        if let Some(count) = counted.taken_otherwise {
            let more = taken(&mut consumed.otherwise, count);
            if more > 0 {
                let detail = "somebody else takes messages from the queue, with basic.get or without acks".to_owned();
                let (queue, kind) = (name.to_owned(), FindingKind::TakenOtherwise);
                let sight = Observation { queue, kind, messages: Some(more), detail };
                self.findings.happened(sight, now, self.limits.remembered);
            }
        }
        let reading = |own, count: Option<u64>| {
            let broker = count.or((!consumed.is_sole).then_some(0)).map(|count| (context.clone(), count));
            Reading { from: asked, at: now.elapsed, own, broker }
        };
        let (read_acked, read_delivered) =
            (reading(acked(counts), counted.acked), reading(counts.deliveries, counted.delivered));
        let gap = consumed.acked.read(read_acked);
        report_acked(&mut self.findings, name, gap, now, self.limits);
        let gap = consumed.delivered.read(read_delivered);
        report_delivered(&mut self.findings, name, gap, now, self.limits);
    }

    fn waiting_detail(&mut self, asked: Duration, now: Moment, name: &str, delay: &str, detail: &Detail) {
        let Ok(delay) = delay.parse::<Delay>() else { return };
        let lag = self.limits.lag;
        let waiting = self.waiting.entry(name.to_owned()).or_insert_with(|| Waiting {
            overdue: Overdue::new(delay.as_duration(), lag),
            late: 0,
            published: (asked, None),
        });
        let published = detail.stats.and_then(|stats| stats.counted.published);
        waiting.published = (asked, published);
        let there = detail.ready.map(|ready| ready + detail.dead_letters_held.unwrap_or(0));
        waiting.late = waiting.overdue.read(now.elapsed, there, published).unwrap_or(waiting.late);
        if waiting.late == 0 {
            self.held_back(now, name, detail.dead_letters_held, FindingKind::RetriesOverdue);
        } else {
            let kind = FindingKind::RetriesOverdue;
            let sight = Observation {
                queue: name.to_owned(),
                kind,
                messages: Some(waiting.late),
                detail: format!("messages are in the queue for longer than its delay of {delay}"),
            };
            self.lasts(name, kind, Some(sight), now, Duration::ZERO);
        }
    }

    /// Messages that the broker is to hand on: busy if their number goes up and down, stuck if it never falls. The
    /// broker itself tries again every 180 s.
    fn held_back(&mut self, now: Moment, name: &str, count: Option<u64>, kind: FindingKind) {
        let count = count.unwrap_or(0);
        let before = self.dead_letters.insert(name.to_owned(), count).unwrap_or(0);
        let sight = (count > 0 && count >= before).then(|| Observation {
            queue: name.to_owned(),
            kind,
            messages: Some(count),
            detail: "the broker cannot hand the messages on: the queue they go to refuses them, or is not bound"
                .to_owned(),
        });
        self.lasts(name, kind, sight, now, 3 * self.limits.lag);
    }

    /// All retry queues together, since orderd counts their messages together. A queue that nothing was ever published
    /// into has no statistics.
    fn retries_entered(&mut self, now: Moment, own: &LocalCounts) {
        let counts = || self.waiting.values().map(|waiting| waiting.published);
        if counts().all(|(_, count)| count.is_none()) {
            return;
        }
        let from = counts().map(|(asked, _)| asked).min().unwrap_or(now.elapsed);
        let sum = counts().filter_map(|(_, count)| count).sum();
        let queues: Vec<_> = self.waiting.keys().map(String::as_str).collect();
        let context = format!("{} {}", own.publisher_connection, queues.join(" "));
        let own = self.sent(RETRY_QUEUES, own);
        self.enters(RETRY_QUEUES, Reading { from, at: now.elapsed, own, broker: Some((context, sum)) }, now);
    }

    /// A queue is gone: nothing of it is remembered.
    pub(super) fn gone(&mut self, name: &str) {
        self.waiting.remove(name);
        self.dead_letters.remove(name);
        for kind in FindingKind::ALL.into_iter().filter(|kind| *kind != FindingKind::QueueMissing) {
            self.findings.is_not(name, kind);
        }
    }

    /// The broker has not answered.
    pub(super) fn interrupted(&mut self) {
        self.findings.interrupted();
    }

    /// What has begun and ended since the last call.
    pub(super) fn changes(&mut self, now: Moment) -> Changes {
        self.findings.changes(now)
    }

    /// All that is found.
    pub(super) fn findings(&self) -> Vec<Finding> {
        self.findings.all()
    }

    fn lasts(&mut self, queue: &str, kind: FindingKind, sight: Option<Observation>, now: Moment, patience: Duration) {
        match sight {
            Some(sight) => self.findings.holds(sight, now, patience),
            None => self.findings.is_not(queue, kind),
        }
    }
}

fn consumed<'m>(all: &'m mut BTreeMap<String, Consumed>, queue: &str, lag: Duration) -> &'m mut Consumed {
    all.entry(queue.to_owned()).or_insert_with(|| Consumed {
        acked: Balance::new(lag, Rule::Equal),
        delivered: Balance::new(lag, Rule::Equal),
        is_sole: false,
        shared: 0,
        otherwise: None,
        still: (DeliveryCounts::default(), Duration::ZERO),
    })
}

/// The tag of the queue's only consumer, if that is orderd's own.
fn sole_tag<'d>(detail: &'d Detail, prefix: &str) -> Option<&'d str> {
    match detail.consumer_tags.as_deref() {
        Some([tag]) if tag.starts_with(prefix) => Some(tag),
        Some(_) | None => None,
    }
}

fn unconsumed(name: &str, queue: &QueueView) -> Option<Observation> {
    let ready = queue.ready.filter(|ready| *ready > 0)?;
    (queue.consumers == Some(0)).then(|| Observation {
        queue: name.to_owned(),
        kind: FindingKind::NoConsumer,
        messages: Some(ready),
        detail: "messages wait and nobody consumes the queue".to_owned(),
    })
}

fn waits_for_resumption(name: &str, queue: &QueueView, consumer: &str, since: Timestamp) -> Option<Observation> {
    let ready = queue.ready.filter(|ready| *ready > 0)?;
    // Another instance may not be paused, and then they wait for nobody's resumption.
    queue.consumers.is_none_or(|consumers| consumers == 0).then(|| Observation {
        queue: name.to_owned(),
        kind: FindingKind::ConsumerPaused,
        messages: Some(ready),
        detail: format!(
            "messages wait, for consumer {consumer:?} is paused since {since:.0}; `orderd resume {consumer}` goes on"
        ),
    })
}

/// How many more were taken otherwise than when last told.
fn taken(known: &mut Option<(u64, u32)>, count: u64) -> u64 {
    let (before, untrusted) = known.unwrap_or((count, 0));
    let untrusted = if count < before { SETTLING } else { untrusted.saturating_sub(1) };
    *known = Some((count, untrusted));
    if untrusted == 0 { count.saturating_sub(before) } else { 0 }
}

fn report_acked(findings: &mut Findings, queue: &str, gap: Option<Gap>, now: Moment, limits: Limits) {
    let (kind, messages, detail) = match gap {
        Some(Gap::More(messages)) => {
            let detail = "the broker counts more acks than orderd has sent: messages were taken by somebody else";
            (FindingKind::AckedByOthers, messages, detail)
        }
        Some(Gap::Fewer(messages)) => {
            let detail = "the broker counts fewer acks than orderd has sent, though the connection was not lost";
            (FindingKind::AcksMissing, messages, detail)
        }
        None => return,
    };
    let sight = Observation { queue: queue.to_owned(), kind, messages: Some(messages), detail: detail.to_owned() };
    findings.happened(sight, now, limits.remembered);
}

fn report_delivered(findings: &mut Findings, queue: &str, gap: Option<Gap>, now: Moment, limits: Limits) {
    match gap {
        Some(Gap::More(messages)) => {
            let detail =
                "the broker handed out more messages than orderd received; they come again when the connection ends";
            let (queue, kind) = (queue.to_owned(), FindingKind::DeliveriesMissing);
            let sight = Observation { queue, kind, messages: Some(messages), detail: detail.to_owned() };
            findings.happened(sight, now, limits.remembered);
        }
        // orderd cannot have received what was not handed out: the broker has lost some of its statistics.
        Some(Gap::Fewer(_)) | None => {}
    }
}

#[cfg(test)]
#[path = "reconciler_tests.rs"]
mod tests;
