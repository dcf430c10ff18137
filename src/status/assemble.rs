//! Puts the consumers' part of the status together from readings of their counters.
//!
//! Pure: no clock, no lock, no I/O.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::recent::Window;
use super::{Conservation, ConsumerStatus, FailureCount, Quantiles};
use crate::metrics::{CounterReading, Histogram, conservation};

/// What is known of one consumer.
#[derive(Debug, Clone)]
pub struct ConsumerReading {
    /// Its name.
    pub name: String,
    /// Its queue.
    pub queue: String,
    /// Workers configured.
    pub workers: u64,
    /// Deliveries one worker works on at a time.
    pub prefetch: u64,
    /// The delays of its retries; `None` for the consumer of failures, which has none.
    pub delays: Option<Vec<String>>,
    /// Since when it is paused, if it is.
    pub paused_since: Option<Timestamp>,
    /// Its counters.
    pub reading: CounterReading,
    /// What it did lately.
    pub window: Window,
}

/// All consumers. Retries and dead letters, which the consumer of failures counts, are told where they failed.
pub fn consumers(facts: &[ConsumerReading]) -> BTreeMap<String, ConsumerStatus> {
    facts.iter().map(|one| (one.name.clone(), consumer(one, facts))).collect()
}

/// One consumer among `all`.
pub fn consumer(facts: &ConsumerReading, all: &[ConsumerReading]) -> ConsumerStatus {
    let ConsumerReading { name, queue, reading, window, .. } = facts;
    let counts = &reading.counts;
    let mut retries = BTreeMap::new();
    let mut dead_letters = BTreeMap::new();
    for other in all {
        for ((_, delay), count) in other.reading.retries.iter().filter(|((whose, _), _)| **whose == **name) {
            *retries.entry(delay.to_string()).or_default() += count;
        }
        for ((_, reason), count) in other.reading.dead_letters.iter().filter(|((whose, _), _)| **whose == **name) {
            *dead_letters.entry(reason.as_str().to_owned()).or_default() += count;
        }
    }
    let failures = reading.failures.iter();
    ConsumerStatus {
        queue: queue.clone(),
        paused: facts.paused_since.is_some(),
        paused_since: facts.paused_since,
        subscribed: reading.pool.active_subscriptions > 0,
        draining: reading.pool.draining_subscriptions,
        workers_running: reading.pool.workers_running,
        workers_configured: facts.workers,
        prefetch: facts.prefetch,
        safe_mode: reading.pool.safe_mode,
        in_flight: counts.in_flight,
        oldest_in_flight_seconds: reading.oldest_in_flight.map(|age| age.as_secs_f64()),
        processed: counts.completed + counts.retried + counts.dead_lettered,
        duplicates: counts.duplicates,
        failed: counts.forwarded,
        failed_attempts: counts.failed_attempts,
        failures: failures
            .map(|((kind, code), count)| FailureCount { kind: kind.to_string(), code: code.clone(), count: *count })
            .collect(),
        retried: retries.values().sum(),
        retries,
        dead_lettered: dead_letters.values().sum(),
        dead_letters,
        restarts: counts.restarts,
        subscriptions: reading.pool.subscriptions,
        acks_per_second: window.acks_per_second,
        handling_seconds: quantiles(&window.handling),
        publish_to_ack_seconds: quantiles(&window.publish_to_ack),
        conservation: conservation(facts),
    }
}

fn conservation(facts: &ConsumerReading) -> Conservation {
    let counts = &facts.reading.counts;
    let problem = conservation::check(counts, &facts.reading.pool).err();
    Conservation {
        deliveries: counts.deliveries,
        succeeded: counts.completed + counts.duplicates,
        republished: counts.forwarded + counts.retried + counts.dead_lettered,
        released: counts.released,
        rejected: counts.rejected,
        in_flight: counts.in_flight,
        problem: problem.map(|problem| problem.to_string()),
    }
}

fn quantiles(histogram: &Histogram) -> Option<Quantiles> {
    let at = |share| histogram.quantile(share).map(|duration| duration.as_secs_f64());
    Some(Quantiles { p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)?, count: histogram.count() })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::Counters;
    use crate::recovery::DeadLetterReason;
    use crate::status::Recent;

    fn facts(name: &str) -> ConsumerReading {
        let reading = Counters::default().read();
        let window = Recent::default().window(name, Duration::ZERO, &reading);
        ConsumerReading {
            name: name.to_owned(),
            queue: format!("{name}_queue"),
            workers: 2,
            prefetch: 10,
            delays: Some(Vec::new()),
            paused_since: None,
            reading,
            window,
        }
    }

    #[test]
    fn retries_and_dead_letters_are_told_where_they_failed() {
        let mut failed = facts("failed");
        failed.reading.counts.retried = 5;
        failed.reading.counts.dead_lettered = 2;
        failed.reading.counts.deliveries = 7;
        failed.reading.retries = [(("order".into(), "10s".parse().unwrap()), 5)].into();
        let reason = DeadLetterReason::Malformed;
        failed.reading.dead_letters = [(("order".into(), reason), 1), (("unknown".into(), reason), 1)].into();
        let consumers = consumers(&[facts("order"), failed]);
        let (order, failed) = (&consumers["order"], &consumers["failed"]);
        assert_eq!((order.retried, &order.retries), (5, &[("10s".to_owned(), 5)].into()));
        assert_eq!((order.dead_lettered, &order.dead_letters), (1, &[("malformed".to_owned(), 1)].into()));
        assert_eq!((failed.processed, failed.retried, failed.dead_lettered), (7, 0, 0));
        assert_eq!(failed.conservation.republished, 7);
        assert_eq!(failed.conservation.problem, None);
    }

    #[test]
    fn a_delivery_that_vanished_is_told() {
        let mut order = facts("order");
        order.reading.counts.deliveries = 3;
        order.reading.counts.completed = 2;
        let problem = consumer(&order, &[]).conservation.problem;
        assert_eq!(problem.as_deref(), Some("1 deliveries are neither settled nor in flight"));
    }
}
