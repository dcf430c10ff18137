//! Assembles the status of the consumers from readings of their counters.
//!
//! Pure: no clock, no lock, no I/O.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::channels::channel_statuses;
use super::quantiles::quantiles;
use super::recent::RecentActivity;
use super::{
    BreakerStatus, Conservation, ConsumerStatus, ConsumerStepStatus, FailureCount, OtherConsumer, SenderCounts,
};
use crate::config::Rate;
use crate::ledger::StepAction;
use crate::metrics::{CallEnd, CounterReading, StepReading, conservation};
use crate::steps::BreakerReading;

/// A registered consumer with a reading of its counters.
#[derive(Debug, Clone)]
pub struct ConsumerReading {
    /// Its name.
    pub name: String,
    /// Its queue.
    pub queue: String,
    /// Configured workers; 0 if the consumer was removed and only finishes the deliveries it has received.
    pub workers: u64,
    /// Deliveries that one worker processes at a time.
    pub prefetch: u64,
    /// Its rate limit.
    pub rate_limit: Option<Rate>,
    /// The circuit breakers of its steps and notification channels.
    pub breakers: Vec<BreakerReading>,
    /// The delays of its retries; `None` for the failed-order consumer, which has none.
    pub delays: Option<Vec<String>>,
    /// When it was paused; `None` if it is not paused.
    pub paused_since: Option<Timestamp>,
    /// Its counters since the daemon started.
    pub reading: CounterReading,
    /// What it did over the last minute.
    pub recent: RecentActivity,
}

/// The status of all consumers, by name.
pub fn consumer_statuses(readings: &[ConsumerReading]) -> BTreeMap<String, ConsumerStatus> {
    readings.iter().map(|consumer| (consumer.name.clone(), consumer_status(consumer, readings))).collect()
}

/// Failures whose consumer is not among the readings.
pub fn other_consumers(readings: &[ConsumerReading]) -> BTreeMap<String, OtherConsumer> {
    let is_other = |name: &str| !readings.iter().any(|consumer| consumer.name == *name);
    let mut others: BTreeMap<String, OtherConsumer> = BTreeMap::new();
    for ConsumerReading { reading, .. } in readings {
        for ((failed, delay), count) in reading.retries.iter().filter(|((failed, _), _)| is_other(failed)) {
            *others.entry(failed.to_string()).or_default().retries.entry(delay.to_string()).or_default() += count;
        }
        for ((failed, reason), count) in reading.dead_letters.iter().filter(|((failed, _), _)| is_other(failed)) {
            let other = others.entry(failed.to_string()).or_default();
            *other.dead_letters.entry(reason.as_str().to_owned()).or_default() += count;
        }
    }
    others
}

/// The status of one consumer among `all`. Retries and dead letters are counted by the failed-order consumer, and shown
/// with the consumer that failed.
pub fn consumer_status(consumer: &ConsumerReading, all: &[ConsumerReading]) -> ConsumerStatus {
    let ConsumerReading { name, queue, reading, recent, .. } = consumer;
    let counts = &reading.counts;
    let mut retries = BTreeMap::new();
    let mut dead_letters = BTreeMap::new();
    for other in all {
        for ((_, delay), count) in other.reading.retries.iter().filter(|((failed, _), _)| **failed == **name) {
            *retries.entry(delay.to_string()).or_default() += count;
        }
        for ((_, reason), count) in other.reading.dead_letters.iter().filter(|((failed, _), _)| **failed == **name) {
            *dead_letters.entry(reason.as_str().to_owned()).or_default() += count;
        }
    }
    let failures = reading.failures.iter();
    ConsumerStatus {
        queue: queue.clone(),
        paused: consumer.paused_since.is_some(),
        paused_since: consumer.paused_since,
        subscribed: reading.pool.active_subscriptions > 0,
        subscribe_error: reading.subscribe_error.clone(),
        silent: reading.silent && reading.pool.active_subscriptions > 0,
        address: reading.address.as_deref().filter(|_| reading.pool.active_subscriptions > 0).map(str::to_owned),
        publish_error: reading.broker_problems.publish_error.clone(),
        ack_timeouts: reading.broker_problems.ack_timeouts,
        ack_timeout: reading.broker_problems.ack_timeout.clone(),
        unanswered_seconds: reading.pool.unanswered.as_secs(),
        draining: reading.pool.draining_subscriptions,
        workers_running: reading.pool.workers_running,
        workers_configured: consumer.workers,
        prefetch: consumer.prefetch,
        rate_limit: consumer.rate_limit.map(|limit| limit.to_string()),
        breakers: consumer.breakers.iter().map(|breaker| (breaker.name.to_string(), breaker_status(breaker))).collect(),
        safe_mode: reading.pool.safe_mode,
        in_flight: counts.in_flight,
        oldest_in_flight_seconds: reading.oldest_in_flight.map(|age| age.as_secs_f64()),
        processed: counts.completed + counts.retried + counts.returned + counts.dead_lettered,
        duplicates: counts.duplicates,
        cancelled: counts.cancelled,
        prevented: counts.prevented,
        skipped: counts.skipped,
        failed: counts.forwarded,
        failed_attempts: counts.failed_attempts,
        failures: failures
            .map(|((kind, code), count)| FailureCount { kind: kind.to_string(), code: code.clone(), count: *count })
            .collect(),
        retried: retries.values().sum(),
        retries,
        dead_lettered: dead_letters.values().sum(),
        dead_letters,
        senders: SenderCounts {
            without_message_id: counts.without_message_id,
            implausible_timestamps: counts.implausible_timestamps,
            unproven: counts.unproven,
            headers_dropped: counts.headers_dropped,
        },
        steps: reading.steps.iter().map(|((step, action), reading)| step_status(step, *action, reading)).collect(),
        channels: channel_statuses(&reading.channels, &consumer.breakers),
        restarts: counts.restarts,
        subscriptions: reading.pool.subscriptions,
        acks_per_second: recent.acks_per_second,
        handling_seconds: quantiles(&recent.handling),
        publish_to_ack_seconds: quantiles(&recent.publish_to_ack),
        conservation: conservation(consumer),
    }
}

fn step_status(step: &str, action: StepAction, reading: &StepReading) -> ConsumerStepStatus {
    let ended = |end| reading.ended.get(&end).copied().unwrap_or(0);
    ConsumerStepStatus {
        step: step.to_owned(),
        action: action.as_str().to_owned(),
        in_flight: reading.in_flight,
        done: ended(CallEnd::Done),
        failed: ended(CallEnd::Failed),
        refused: ended(CallEnd::Refused),
        abandoned: ended(CallEnd::Abandoned),
        call_seconds: quantiles(&reading.durations),
    }
}

fn breaker_status(breaker: &BreakerReading) -> BreakerStatus {
    let BreakerReading {
        consumer: _,
        kind: _,
        name: _,
        state,
        since,
        openings,
        calls,
        failures,
        waiting,
        last_failure,
        last_code: _,
    } = breaker;
    BreakerStatus {
        state: state.as_str().to_owned(),
        since: *since,
        openings: *openings,
        calls: *calls,
        failures: *failures,
        waiting: *waiting as u64,
        last_failure: last_failure.clone(),
    }
}

fn conservation(consumer: &ConsumerReading) -> Conservation {
    let counts = &consumer.reading.counts;
    let problem = conservation::check(counts, &consumer.reading.pool).err();
    Conservation {
        deliveries: counts.deliveries,
        succeeded: counts.succeeded(),
        republished: counts.forwarded + counts.retried + counts.returned + counts.dead_lettered,
        released: counts.released,
        rejected: counts.rejected,
        in_flight: counts.in_flight,
        problem: problem.map(|problem| problem.to_string()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::Counters;
    use crate::recovery::DeadLetterReason;
    use crate::status::recent::RecentSamples;

    /// A consumer with two workers that has received nothing yet.
    pub(in crate::status) fn reading(name: &str) -> ConsumerReading {
        let reading = Counters::default().read();
        let recent = RecentSamples::default().activity(name, Duration::ZERO, &reading);
        ConsumerReading {
            name: name.to_owned(),
            queue: format!("{name}_queue"),
            workers: 2,
            prefetch: 10,
            rate_limit: None,
            breakers: Vec::new(),
            delays: Some(Vec::new()),
            paused_since: None,
            reading,
            recent,
        }
    }

    #[test]
    fn retries_and_dead_letters_are_shown_with_the_consumer_that_failed() {
        let mut failed = reading("failed");
        failed.reading.counts.retried = 5;
        failed.reading.counts.dead_lettered = 2;
        failed.reading.counts.deliveries = 7;
        failed.reading.retries = [(("order".into(), "10s".parse().unwrap()), 5)].into();
        let reason = DeadLetterReason::Malformed;
        failed.reading.dead_letters = [(("order".into(), reason), 1), (("unknown".into(), reason), 1)].into();
        let readings = [reading("order"), failed];
        let unknown = OtherConsumer { dead_letters: [("malformed".to_owned(), 1)].into(), ..OtherConsumer::default() };
        assert_eq!(other_consumers(&readings), [("unknown".to_owned(), unknown)].into(), "none is missing");
        let consumers = consumer_statuses(&readings);
        let (order, failed) = (&consumers["order"], &consumers["failed"]);
        assert_eq!((order.retried, &order.retries), (5, &[("10s".to_owned(), 5)].into()));
        assert_eq!((order.dead_lettered, &order.dead_letters), (1, &[("malformed".to_owned(), 1)].into()));
        assert_eq!((failed.processed, failed.retried, failed.dead_lettered), (7, 0, 0));
        assert_eq!(failed.conservation.republished, 7);
        assert_eq!(failed.conservation.problem, None);
    }

    #[test]
    fn a_lost_delivery_is_a_conservation_problem() {
        let mut order = reading("order");
        order.reading.counts.deliveries = 3;
        order.reading.counts.completed = 2;
        let problem = consumer_status(&order, &[]).conservation.problem;
        assert_eq!(problem.as_deref(), Some("1 deliveries are neither settled nor in flight"));
    }
}
