//! What a consumer has done since the daemon started, counted.
//!
//! A delivery is entered when it is taken from the broker and moved to its ending when it is let go of, each in
//! one step under one lock. So every reading is consistent: there is no instant at which a delivery is in two
//! places or in none, unless it was lost or settled twice. It never decides anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use slab::Slab;
use tokio::time::Instant;

use super::histogram::Histogram;
use super::outcome::{DeliveryOutcome, HandlerOutcome};
use crate::recovery::{DeadLetterReason, Delay, Failure, FailureKind};
use crate::watchdog::Heartbeats;

/// Bounds of handling times.
const HANDLING: [Duration; 20] = [
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
/// Bounds of the time from publishing to done. AMQP timestamps are whole seconds, so none is below one.
const PUBLISH_TO_ACK: [Duration; 14] = [
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
/// A timestamp that lies further in the future is no time of publishing: some producers write milliseconds.
const CLOCKS_APART: Duration = Duration::from_secs(60);
/// Failure codes told apart; a metric's labels must have few values.
const MOST_CODES: usize = 64;
/// The code that stands for all further ones.
const OTHER_CODE: &str = "other";
/// The consumer of a failure from a queue that nobody knows.
const UNKNOWN: &str = "unknown";

/// When deliveries were taken: one reading of both clocks for all that were taken together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReceivedAt {
    at: Instant,
    wall: SystemTime,
}

impl ReceivedAt {
    pub(crate) fn now() -> Self {
        ReceivedAt { at: Instant::now(), wall: SystemTime::now() }
    }
}

/// Names a delivery in hand to the counters.
#[derive(Debug)]
pub(crate) struct InFlightKey(usize);

/// Counts of one consumer.
#[derive(Debug, Default)]
pub struct Counters {
    books: Mutex<CounterState>,
    heartbeats: Heartbeats,
}

#[derive(Debug)]
struct CounterState {
    counts: DeliveryCounts,
    /// When each delivery in hand was taken: as many as there are live `DeliveryGuard`.
    in_hand: Slab<Instant>,
    handling: Histogram,
    publish_to_ack: Histogram,
    failures: BTreeMap<(FailureKind, String), u64>,
    retries: BTreeMap<(Arc<str>, Delay), u64>,
    dead_letters: BTreeMap<(Arc<str>, DeadLetterReason), u64>,
    pool: PoolState,
}

impl Default for CounterState {
    fn default() -> Self {
        CounterState {
            counts: DeliveryCounts::default(),
            in_hand: Slab::new(),
            handling: Histogram::new(&HANDLING),
            publish_to_ack: Histogram::new(&PUBLISH_TO_ACK),
            failures: BTreeMap::new(),
            retries: BTreeMap::new(),
            dead_letters: BTreeMap::new(),
            pool: PoolState::default(),
        }
    }
}

/// The counts at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeliveryCounts {
    /// Deliveries taken from the broker.
    pub deliveries: u64,
    /// Acked because their effects were recorded.
    pub completed: u64,
    /// Acked because their effects had been recorded before.
    pub duplicates: u64,
    /// Attempts that failed, immediate retries included.
    pub failed_attempts: u64,
    /// Acked because the failure was handed to the failed-order queue.
    pub forwarded: u64,
    /// Failures sent to a retry queue (failed-order consumer only).
    pub retried: u64,
    /// Failures dead-lettered (failed-order consumer only).
    pub dead_lettered: u64,
    /// Given back to the broker; also what was in hand when a subscription was lost.
    pub released: u64,
    /// Left to the broker to dead-letter, because no copy could be published.
    pub rejected: u64,
    /// Restarts of workers and of the pool.
    pub restarts: u64,
    /// In hand now: the number of live `DeliveryGuard`, counted apart from the endings.
    pub in_flight: u64,
}

impl DeliveryCounts {
    /// Deliveries whose whereabouts are known: as many as were taken, unless some were lost or doubled.
    pub fn accounted(&self) -> u64 {
        self.settled() + self.released + self.rejected + self.in_flight
    }

    /// Deliveries acked, each with what replaces it recorded or confirmed.
    pub fn settled(&self) -> u64 {
        self.completed + self.duplicates + self.forwarded + self.retried + self.dead_lettered
    }
}

/// How a consumer's pool is doing, and those it had before that still finish their work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolState {
    /// Subscriptions that take deliveries in: one, or none while there is no connection.
    pub active_subscriptions: u64,
    /// Subscriptions of retired pools, which only finish what they were handed.
    pub draining_subscriptions: u64,
    /// Deliveries that all of these may be handed at a time.
    pub capacity: u64,
    /// Subscriptions made; each has a connection of its own.
    pub subscriptions: u64,
    /// Workers that run now; one in safe mode.
    pub workers_running: u64,
    /// Whether deliveries are worked on one at a time, since something kills whoever holds them.
    pub safe_mode: bool,
}

impl PoolState {
    /// Whether there is a subscription whose deliveries are worked on.
    pub fn is_serving(&self) -> bool {
        self.active_subscriptions + self.draining_subscriptions > 0
    }
}

/// Everything a consumer has counted, at one instant.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The counts.
    pub counts: DeliveryCounts,
    /// The pool.
    pub pool: PoolState,
    /// How long the oldest delivery in hand has been there.
    pub oldest: Option<Duration>,
    /// From taken to acked, of what was acked.
    pub handling: Histogram,
    /// From the message's AMQP timestamp, which is in whole seconds, to acked with its effects recorded: up to a
    /// second more than it took. Messages without a timestamp are not counted.
    pub publish_to_ack: Histogram,
    /// Failed attempts by kind and code.
    pub failures: BTreeMap<(FailureKind, String), u64>,
    /// Delayed retries by the consumer that failed and the delay (failed-order consumer only).
    pub retries: BTreeMap<(Arc<str>, Delay), u64>,
    /// Dead-lettered messages by the consumer that failed and the reason (failed-order consumer only).
    pub dead_letters: BTreeMap<(Arc<str>, DeadLetterReason), u64>,
}

impl Counters {
    fn books(&self) -> MutexGuard<'_, CounterState> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters a delivery.
    pub(crate) fn taken(&self, taken: ReceivedAt) -> InFlightKey {
        let mut books = self.books();
        books.counts.deliveries += 1;
        InFlightKey(books.in_hand.insert(taken.at))
    }

    /// Moves a delivery from in hand to its ending. `published` is the message's timestamp, in seconds since the
    /// Unix epoch.
    pub(crate) fn finish(
        &self,
        flight: &InFlightKey,
        ending: &DeliveryOutcome,
        taken: ReceivedAt,
        published: Option<u64>,
    ) {
        let handled = match ending {
            DeliveryOutcome::Handled(_) | DeliveryOutcome::Forwarded => Some(taken.at.elapsed()),
            DeliveryOutcome::Released | DeliveryOutcome::Rejected => None,
        };
        let mut books = self.books();
        books.in_hand.try_remove(flight.0);
        if let Some(handled) = handled {
            books.handling.add(handled);
        }
        match ending {
            DeliveryOutcome::Handled(HandlerOutcome::Completed) => {
                books.counts.completed += 1;
                let done = handled.and_then(|handled| publish_to_ack(published?, taken.wall + handled));
                if let Some(after) = done {
                    books.publish_to_ack.add(after);
                }
            }
            DeliveryOutcome::Handled(HandlerOutcome::Duplicate) => books.counts.duplicates += 1,
            DeliveryOutcome::Handled(HandlerOutcome::Retried { consumer, delay }) => {
                books.counts.retried += 1;
                *books.retries.entry((whose(consumer), *delay)).or_default() += 1;
            }
            DeliveryOutcome::Handled(HandlerOutcome::DeadLettered { consumer, reason }) => {
                books.counts.dead_lettered += 1;
                *books.dead_letters.entry((whose(consumer), *reason)).or_default() += 1;
            }
            DeliveryOutcome::Forwarded => books.counts.forwarded += 1,
            DeliveryOutcome::Released => books.counts.released += 1,
            DeliveryOutcome::Rejected => books.counts.rejected += 1,
        }
    }

    /// Counts a failed attempt.
    pub(crate) fn failed(&self, failure: &Failure) {
        let mut books = self.books();
        books.counts.failed_attempts += 1;
        let known = books.failures.len() < MOST_CODES
            || books.failures.keys().any(|(kind, code)| *kind == failure.kind && *code == failure.code);
        let code = if known { failure.code.clone() } else { OTHER_CODE.to_owned() };
        *books.failures.entry((failure.kind, code)).or_default() += 1;
    }

    /// Counts a restart of the pool or of a worker.
    pub fn restarted(&self) {
        self.books().counts.restarts += 1;
    }

    /// Notes a subscription of so many slots that is worked on from now until the guard is dropped.
    pub(crate) fn serving(self: &Arc<Self>, slots: u64) -> Serving {
        let mut books = self.books();
        books.pool.active_subscriptions += 1;
        books.pool.capacity += slots;
        books.pool.subscriptions += 1;
        Serving { counters: Arc::clone(self), slots, is_draining: false }
    }

    /// Notes a worker that runs from now until the guard is dropped.
    pub(crate) fn working(self: &Arc<Self>) -> Working {
        self.books().pool.workers_running += 1;
        Working { counters: Arc::clone(self) }
    }

    /// The heartbeats of the workers that run now. They are apart from the counts: a worker that is stuck may hold those.
    pub fn heartbeats(&self) -> &Heartbeats {
        &self.heartbeats
    }

    /// Notes whether safe mode is on.
    pub(crate) fn safe_mode(&self, on: bool) {
        self.books().pool.safe_mode = on;
    }

    /// The counts, all of one instant.
    pub fn counts(&self) -> DeliveryCounts {
        let books = self.books();
        DeliveryCounts { in_flight: books.in_hand.len() as u64, ..books.counts }
    }

    /// How its pools are doing.
    pub fn pool(&self) -> PoolState {
        self.books().pool
    }

    /// Everything, all of one instant. Looks at each delivery in hand.
    pub fn read(&self) -> Reading {
        let books = self.books();
        Reading {
            counts: DeliveryCounts { in_flight: books.in_hand.len() as u64, ..books.counts },
            pool: books.pool,
            oldest: books.in_hand.iter().map(|(_, taken)| *taken).min().map(|taken| taken.elapsed()),
            handling: books.handling.clone(),
            publish_to_ack: books.publish_to_ack.clone(),
            failures: books.failures.clone(),
            retries: books.retries.clone(),
            dead_letters: books.dead_letters.clone(),
        }
    }
}

fn whose(consumer: &Option<Arc<str>>) -> Arc<str> {
    consumer.clone().unwrap_or_else(|| UNKNOWN.into())
}

/// From publishing to done; `None` if the timestamp is no time of publishing.
fn publish_to_ack(published: u64, done: SystemTime) -> Option<Duration> {
    let published = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(published))?;
    match done.duration_since(published) {
        Ok(after) => Some(after),
        Err(early) if early.duration() <= CLOCKS_APART => Some(Duration::ZERO),
        Err(_) => None,
    }
}

/// A subscription that is worked on until this is dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    counters: Arc<Counters>,
    slots: u64,
    is_draining: bool,
}

impl Serving {
    /// It takes nothing in any more.
    pub fn drains(&mut self) {
        if !std::mem::replace(&mut self.is_draining, true) {
            let pool = &mut self.counters.books().pool;
            (pool.active_subscriptions, pool.draining_subscriptions) =
                (pool.active_subscriptions - 1, pool.draining_subscriptions + 1);
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let pool = &mut self.counters.books().pool;
        *(if self.is_draining { &mut pool.draining_subscriptions } else { &mut pool.active_subscriptions }) -= 1;
        pool.capacity -= self.slots;
    }
}

/// A worker that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Working {
    counters: Arc<Counters>,
}

impl Drop for Working {
    fn drop(&mut self) {
        self.counters.books().pool.workers_running -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_timestamp_far_in_the_future_is_no_time_of_publishing() {
        assert_eq!(publish_to_ack(1000, at(1007)), Some(Duration::from_secs(7)));
        assert_eq!(publish_to_ack(1030, at(1000)), Some(Duration::ZERO), "clocks that are a little apart");
        assert_eq!(publish_to_ack(1_700_000_000_000, at(1_700_000_000)), None, "milliseconds");
        assert_eq!(publish_to_ack(u64::MAX, at(0)), None);
    }

    #[test]
    fn codes_past_the_limit_are_counted_as_other() {
        let counters = Counters::default();
        for n in 0..MOST_CODES + 5 {
            counters.failed(&Failure::new(FailureKind::Transient, format!("code-{n}"), ""));
        }
        counters.failed(&Failure::new(FailureKind::Transient, "code-0", ""));
        let failures = counters.read().failures;
        assert_eq!(failures.len(), MOST_CODES + 1);
        assert_eq!(failures[&(FailureKind::Transient, "code-0".to_owned())], 2);
        assert_eq!(failures[&(FailureKind::Transient, OTHER_CODE.to_owned())], 5);
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_delivery_in_hand_is_the_one_taken_first() {
        let counters = Counters::default();
        let (first, taken) = (counters.taken(ReceivedAt::now()), ReceivedAt::now());
        tokio::time::advance(Duration::from_secs(5)).await;
        let second = counters.taken(ReceivedAt::now());
        assert_eq!(counters.read().oldest, Some(Duration::from_secs(5)));
        counters.finish(&first, &DeliveryOutcome::Handled(HandlerOutcome::Completed), taken, None);
        assert_eq!(counters.read().oldest, Some(Duration::ZERO));
        assert_eq!(counters.read().handling.sum(), Duration::from_secs(5));
        counters.finish(&second, &DeliveryOutcome::Released, ReceivedAt::now(), None);
        assert_eq!(counters.read().oldest, None);
        assert_eq!(counters.read().handling.count(), 1, "what was given back was not handled");
    }

    #[test]
    fn letting_go_twice_is_a_surplus_and_never_letting_go_stays_in_flight() {
        let counters = Counters::default();
        let flight = counters.taken(ReceivedAt::now());
        counters.finish(&flight, &DeliveryOutcome::Forwarded, ReceivedAt::now(), None);
        counters.finish(&flight, &DeliveryOutcome::Released, ReceivedAt::now(), None);
        let counts = counters.counts();
        assert_eq!((counts.deliveries, counts.accounted(), counts.in_flight), (1, 2, 0));

        let counters = Counters::default();
        let _lost = counters.taken(ReceivedAt::now());
        assert_eq!((counters.counts().accounted(), counters.counts().in_flight), (1, 1));
    }
}
