//! Counts what a consumer has done since the daemon started.
//!
//! A delivery is counted as in flight when it is received, and moved to its outcome when it is settled, each in one step
//! under one lock. So every reading is consistent: each delivery is counted exactly once, unless it was lost or settled
//! twice. It never decides anything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use slab::Slab;
use tokio::time::Instant;

use super::broker_problems::BrokerProblems;
use super::channel_counters::ChannelCounters;
use super::counter_reading::{CounterReading, DeadLettersOfCode, DeliveryCounts, PoolState};
use super::failed_undos::FailedUndos;
use super::histogram::Histogram;
use super::outcome::{DeadLetterFacts, DeliveryOutcome, HandlerOutcome};
use super::publish_to_ack::publish_to_ack;
use super::step_counters::StepCounters;
use crate::recovery::{DeadLetterReason, Delay, Failure, FailureKind};
use crate::watchdog::Heartbeats;

/// Bucket bounds of handling times.
const HANDLING_BOUNDS: [Duration; 20] = [
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(300),
    Duration::from_secs(900),
];
/// Bucket bounds of the time from publishing to the ack. AMQP timestamps are whole seconds, so none is below one.
const PUBLISH_TO_ACK_BOUNDS: [Duration; 14] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(3),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(300),
    Duration::from_secs(600),
    Duration::from_secs(1800),
    Duration::from_secs(3600),
    Duration::from_secs(21_600),
    Duration::from_secs(86_400),
];
/// Failure codes counted separately, since a metric's labels must have few values.
const MAX_CODES: usize = 64;
/// The code under which all further ones are counted.
const OTHER_CODE: &str = "other";
/// The consumer of a failure from an unknown queue.
const UNKNOWN_CONSUMER: &str = "unknown";

/// When deliveries were received: one reading of both clocks for all that arrived together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceivedAt {
    monotonic: Instant,
    wall: SystemTime,
}

impl ReceivedAt {
    pub(crate) fn now() -> Self {
        ReceivedAt { monotonic: Instant::now(), wall: SystemTime::now() }
    }
}

/// Identifies a delivery in flight.
#[derive(Debug)]
pub(crate) struct InFlightKey(usize);

/// Counts of one consumer.
#[derive(Debug, Default)]
pub struct Counters {
    state: Mutex<CounterState>,
    heartbeats: Heartbeats,
    broker_problems: BrokerProblems,
    steps: StepCounters,
    channels: ChannelCounters,
}

#[derive(Debug)]
struct CounterState {
    counts: DeliveryCounts,
    subscribe_error: Option<String>,
    /// The node that the latest subscription is on.
    address: Option<Arc<str>>,
    /// Whether that node sends nothing.
    silent: Arc<AtomicBool>,
    /// When each delivery in flight was received: one entry for each live `DeliveryGuard`.
    in_flight: Slab<Instant>,
    handling: Histogram,
    publish_to_ack: Histogram,
    failures: BTreeMap<(FailureKind, String), u64>,
    retries: BTreeMap<(Arc<str>, Delay), u64>,
    dead_letters: BTreeMap<(Arc<str>, DeadLetterReason), u64>,
    dead_letter_codes: BTreeMap<(Arc<str>, DeadLetterReason, String), DeadLettersOfCode>,
    failed_undos: FailedUndos,
    pool: PoolState,
    /// [`PoolState::unanswered`] of each subscription, by its number, where it is not zero.
    unanswered: BTreeMap<u64, Duration>,
}

impl CounterState {
    fn set_unanswered(&mut self, subscription: u64, unanswered: Duration) {
        match unanswered.is_zero() {
            true => self.unanswered.remove(&subscription),
            false => self.unanswered.insert(subscription, unanswered),
        };
        self.pool.unanswered = self.unanswered.values().max().copied().unwrap_or_default();
    }

    fn dead_lettered(&mut self, consumer: Arc<str>, reason: DeadLetterReason, letter: &DeadLetterFacts) {
        *self.dead_letters.entry((Arc::clone(&consumer), reason)).or_default() += 1;
        let mut key = (consumer, reason, letter.code.clone());
        if self.dead_letter_codes.len() >= MAX_CODES && !self.dead_letter_codes.contains_key(&key) {
            key.2 = OTHER_CODE.to_owned();
        }
        let of_code = self.dead_letter_codes.entry(key).or_default();
        of_code.count += 1;
        of_code.last.clone_from(&letter.identity);
    }
}

impl Default for CounterState {
    fn default() -> Self {
        CounterState {
            counts: DeliveryCounts::default(),
            subscribe_error: None,
            address: None,
            silent: Arc::default(),
            in_flight: Slab::new(),
            handling: Histogram::new(&HANDLING_BOUNDS),
            publish_to_ack: Histogram::new(&PUBLISH_TO_ACK_BOUNDS),
            failures: BTreeMap::new(),
            retries: BTreeMap::new(),
            dead_letters: BTreeMap::new(),
            dead_letter_codes: BTreeMap::new(),
            failed_undos: FailedUndos::default(),
            pool: PoolState::default(),
            unanswered: BTreeMap::new(),
        }
    }
}

impl Counters {
    fn lock(&self) -> MutexGuard<'_, CounterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a received delivery as in flight.
    pub(crate) fn received(&self, received_at: ReceivedAt) -> InFlightKey {
        let mut state = self.lock();
        state.counts.deliveries += 1;
        InFlightKey(state.in_flight.insert(received_at.monotonic))
    }

    /// Moves a delivery from in flight to its outcome. `published` is the message's timestamp, in seconds since the Unix
    /// epoch.
    pub(crate) fn finish(
        &self,
        key: &InFlightKey,
        outcome: &DeliveryOutcome,
        received_at: ReceivedAt,
        published: Option<u64>,
    ) {
        let handled = match outcome {
            DeliveryOutcome::Released
            | DeliveryOutcome::Rejected
            | DeliveryOutcome::Handled(HandlerOutcome::DeadLetteredByBroker { .. }) => None,
            DeliveryOutcome::Handled(_) | DeliveryOutcome::Forwarded => Some(received_at.monotonic.elapsed()),
        };
        let mut state = self.lock();
        state.in_flight.try_remove(key.0);
        if let Some(handled) = handled {
            state.handling.add(handled);
        }
        match outcome {
            DeliveryOutcome::Handled(HandlerOutcome::Completed) => {
                state.counts.completed += 1;
                let duration = handled.and_then(|handled| publish_to_ack(published?, received_at.wall + handled));
                match duration {
                    Some(duration) => state.publish_to_ack.add(duration),
                    None => state.counts.implausible_timestamps += u64::from(published.is_some()),
                }
            }
            DeliveryOutcome::Handled(HandlerOutcome::Duplicate) => state.counts.duplicates += 1,
            DeliveryOutcome::Handled(HandlerOutcome::Cancelled) => state.counts.cancelled += 1,
            DeliveryOutcome::Handled(HandlerOutcome::Prevented) => state.counts.prevented += 1,
            DeliveryOutcome::Handled(HandlerOutcome::Skipped) => state.counts.skipped += 1,
            DeliveryOutcome::Handled(HandlerOutcome::Retried { consumer, delay }) => {
                state.counts.retried += 1;
                *state.retries.entry((consumer_label(consumer), *delay)).or_default() += 1;
            }
            DeliveryOutcome::Handled(HandlerOutcome::Returned) => state.counts.returned += 1,
            DeliveryOutcome::Handled(HandlerOutcome::DeadLettered { consumer, reason, letter }) => {
                state.counts.dead_lettered += 1;
                state.failed_undos.count(*reason);
                state.dead_lettered(consumer_label(consumer), *reason, letter);
            }
            // Rejected as far as the delivery is concerned: the broker counts no ack for it.
            DeliveryOutcome::Handled(HandlerOutcome::DeadLetteredByBroker { consumer, reason, letter }) => {
                state.counts.rejected += 1;
                state.failed_undos.count(*reason);
                state.dead_lettered(consumer_label(consumer), *reason, letter);
            }
            DeliveryOutcome::Forwarded => state.counts.forwarded += 1,
            DeliveryOutcome::Released => state.counts.released += 1,
            DeliveryOutcome::Rejected => state.counts.rejected += 1,
        }
    }

    /// The dead letters whose steps could not be undone (failed-order consumer only).
    pub fn failed_undos(&self) -> FailedUndos {
        self.lock().failed_undos
    }

    /// Counts a failed attempt.
    pub(crate) fn attempt_failed(&self, failure: &Failure) {
        let mut state = self.lock();
        state.counts.failed_attempts += 1;
        let known = state.failures.len() < MAX_CODES
            || state.failures.keys().any(|(kind, code)| *kind == failure.kind && *code == failure.code);
        let code = if known { failure.code.clone() } else { OTHER_CODE.to_owned() };
        *state.failures.entry((failure.kind, code)).or_default() += 1;
    }

    /// Counts a delivery without a `message_id`. Returns whether it is the first one.
    pub(crate) fn without_message_id(&self) -> bool {
        let count = &mut self.lock().counts.without_message_id;
        *count += 1;
        *count == 1
    }

    /// Counts a delivery that claims to be orderd's own, without the proof. Returns whether it is the first one.
    pub(crate) fn unproven(&self) -> bool {
        let count = &mut self.lock().counts.unproven;
        *count += 1;
        *count == 1
    }

    /// Counts a failure whose copy lacks some of the sender's headers.
    pub(crate) fn headers_dropped(&self) {
        self.lock().counts.headers_dropped += 1;
    }

    /// Counts a restart of the pool or of a worker.
    pub fn restarted(&self) {
        self.lock().counts.restarts += 1;
    }

    /// Counts a subscription with this capacity, on this node of the broker, until the guard is dropped.
    pub(crate) fn subscription_opened(
        self: &Arc<Self>,
        capacity: u64,
        address: Arc<str>,
        silent: Arc<AtomicBool>,
    ) -> SubscriptionGuard {
        let mut state = self.lock();
        state.subscribe_error = None;
        (state.address, state.silent) = (Some(address), silent);
        state.pool.active_subscriptions += 1;
        state.pool.capacity += capacity;
        state.pool.subscriptions += 1;
        let number = state.pool.subscriptions;
        SubscriptionGuard { counters: Arc::clone(self), number, capacity, is_draining: false }
    }

    /// Records why the last attempt to subscribe failed.
    pub(crate) fn subscribe_failed(&self, error: String) {
        self.lock().subscribe_error = Some(error);
    }

    /// What the broker does that keeps the consumer from making progress.
    pub(crate) fn broker_problems(&self) -> &BrokerProblems {
        &self.broker_problems
    }

    /// The calls of its steps.
    pub fn steps(&self) -> &StepCounters {
        &self.steps
    }

    /// What its notification channels have delivered.
    pub fn channels(&self) -> &ChannelCounters {
        &self.channels
    }

    /// Counts a running worker until the guard is dropped.
    pub(crate) fn worker_started(self: &Arc<Self>) -> WorkerGuard {
        self.lock().pool.workers_running += 1;
        WorkerGuard { counters: Arc::clone(self) }
    }

    /// The heartbeats of the running workers. They have their own lock, since a stuck worker may hold the lock of the counts.
    pub fn heartbeats(&self) -> &Heartbeats {
        &self.heartbeats
    }

    /// Sets whether safe mode is on.
    pub(crate) fn set_safe_mode(&self, on: bool) {
        self.lock().pool.safe_mode = on;
    }

    /// The counts at one instant.
    pub fn counts(&self) -> DeliveryCounts {
        let state = self.lock();
        DeliveryCounts { in_flight: state.in_flight.len() as u64, ..state.counts }
    }

    /// The state of the consumer's pools.
    pub fn pool(&self) -> PoolState {
        self.lock().pool
    }

    /// Everything, at one instant. Takes time proportional to the deliveries in flight.
    pub fn read(&self) -> CounterReading {
        let state = self.lock();
        CounterReading {
            counts: DeliveryCounts { in_flight: state.in_flight.len() as u64, ..state.counts },
            pool: state.pool,
            subscribe_error: state.subscribe_error.clone(),
            address: state.address.clone(),
            silent: state.silent.load(Ordering::Relaxed),
            broker_problems: self.broker_problems.read(),
            oldest_in_flight: state.in_flight.iter().map(|(_, received)| received.elapsed()).max(),
            handling: state.handling.clone(),
            publish_to_ack: state.publish_to_ack.clone(),
            failures: state.failures.clone(),
            retries: state.retries.clone(),
            dead_letters: state.dead_letters.clone(),
            dead_letter_codes: state.dead_letter_codes.clone(),
            steps: self.steps.read(),
            channels: self.channels.read(),
        }
    }
}

fn consumer_label(consumer: &Option<Arc<str>>) -> Arc<str> {
    consumer.clone().unwrap_or_else(|| UNKNOWN_CONSUMER.into())
}

/// Counts one subscription until it is dropped.
#[derive(Debug)]
pub(crate) struct SubscriptionGuard {
    counters: Arc<Counters>,
    number: u64,
    capacity: u64,
    is_draining: bool,
}

impl SubscriptionGuard {
    /// How long the broker has not answered on this subscription's connection although settlements were sent on it.
    pub fn set_unanswered(&self, unanswered: Duration) {
        self.counters.lock().set_unanswered(self.number, unanswered);
    }

    /// Counts the subscription as draining from now on: it receives no new deliveries.
    pub fn start_draining(&mut self) {
        if !std::mem::replace(&mut self.is_draining, true) {
            let pool = &mut self.counters.lock().pool;
            (pool.active_subscriptions, pool.draining_subscriptions) =
                (pool.active_subscriptions - 1, pool.draining_subscriptions + 1);
        }
    }
}

impl Drop for SubscriptionGuard {
    fn drop(&mut self) {
        let mut state = self.counters.lock();
        state.set_unanswered(self.number, Duration::ZERO);
        let pool = &mut state.pool;
        *(if self.is_draining { &mut pool.draining_subscriptions } else { &mut pool.active_subscriptions }) -= 1;
        pool.capacity -= self.capacity;
    }
}

/// Counts one running worker until it is dropped.
#[derive(Debug)]
pub(crate) struct WorkerGuard {
    counters: Arc<Counters>,
}

impl Drop for WorkerGuard {
    fn drop(&mut self) {
        self.counters.lock().pool.workers_running -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_past_the_limit_are_counted_as_other() {
        let counters = Counters::default();
        for n in 0..MAX_CODES + 5 {
            counters.attempt_failed(&Failure::new(FailureKind::Transient, format!("code-{n}"), ""));
        }
        counters.attempt_failed(&Failure::new(FailureKind::Transient, "code-0", ""));
        let failures = counters.read().failures;
        assert_eq!(failures.len(), MAX_CODES + 1);
        assert_eq!(failures[&(FailureKind::Transient, "code-0".to_owned())], 2);
        assert_eq!(failures[&(FailureKind::Transient, OTHER_CODE.to_owned())], 5);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_delivery_in_flight_is_the_one_received_first() {
        let counters = Counters::default();
        let (first, received_at) = (counters.received(ReceivedAt::now()), ReceivedAt::now());
        tokio::time::advance(Duration::from_secs(5)).await;
        let second = counters.received(ReceivedAt::now());
        assert_eq!(counters.read().oldest_in_flight, Some(Duration::from_secs(5)));
        counters.finish(&first, &DeliveryOutcome::Handled(HandlerOutcome::Completed), received_at, None);
        assert_eq!(counters.read().oldest_in_flight, Some(Duration::ZERO));
        assert_eq!(counters.read().handling.sum(), Duration::from_secs(5));
        counters.finish(&second, &DeliveryOutcome::Released, ReceivedAt::now(), None);
        assert_eq!(counters.read().oldest_in_flight, None);
        assert_eq!(counters.read().handling.count(), 1, "a released delivery is not counted as handled");
    }

    #[test]
    fn settling_twice_is_a_surplus_and_never_settling_stays_in_flight() {
        let counters = Counters::default();
        let key = counters.received(ReceivedAt::now());
        counters.finish(&key, &DeliveryOutcome::Forwarded, ReceivedAt::now(), None);
        counters.finish(&key, &DeliveryOutcome::Released, ReceivedAt::now(), None);
        let counts = counters.counts();
        assert_eq!((counts.deliveries, counts.accounted_for(), counts.in_flight), (1, 2, 0));

        let counters = Counters::default();
        let _lost = counters.received(ReceivedAt::now());
        assert_eq!((counters.counts().accounted_for(), counters.counts().in_flight), (1, 1));
    }
}
