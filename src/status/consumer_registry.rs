//! The consumers that the status covers, and their counters. The list changes with every reload and pause.
//!
//! Counters belong to a consumer's name: they continue when the consumer is changed, and when it is removed and added again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::config::{Consumer, Rate};
use crate::metrics::Counters;
use crate::pipeline::Intake;

/// One consumer and its counters.
#[derive(Debug, Clone)]
pub struct RegisteredConsumer {
    /// Its name.
    pub name: String,
    /// Its queue.
    pub queue: String,
    /// Configured workers; 0 if the consumer was removed and only finishes the deliveries it has received.
    pub workers: u64,
    /// Deliveries that one worker processes at a time.
    pub prefetch: u64,
    /// Its rate limit, such as `200/s`.
    pub rate_limit: Option<Rate>,
    /// The delays of its retries; `None` for the failed-order consumer.
    pub delays: Option<Vec<String>>,
    /// When it was paused; `None` if it is not paused.
    pub paused_since: Option<Timestamp>,
    /// It also drains a pool of its former queue, whose deliveries its counters include.
    pub drains_former_queue: bool,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// Whether its workers start deliveries; `None` if it has none.
    pub intake: Option<Intake>,
}

impl RegisteredConsumer {
    /// A consumer as configured, not paused.
    pub fn new(name: &str, consumer: &Consumer, counters: Arc<Counters>) -> Self {
        let delays = || consumer.retry.delays.iter().map(ToString::to_string).collect();
        RegisteredConsumer {
            name: name.to_owned(),
            queue: consumer.queue.clone(),
            workers: consumer.workers as u64,
            prefetch: u64::from(consumer.prefetch),
            rate_limit: consumer.rate_limit,
            delays: (!consumer.handles_failures()).then(delays),
            paused_since: None,
            drains_former_queue: false,
            counters,
            intake: None,
        }
    }
}

/// The present consumers, and the counters of all consumers since the daemon started.
#[derive(Debug, Default)]
pub(super) struct ConsumerRegistry {
    consumers: Mutex<Arc<[RegisteredConsumer]>>,
    counters: Mutex<BTreeMap<String, Arc<Counters>>>,
}

impl ConsumerRegistry {
    /// The present consumers.
    pub fn consumers(&self) -> Arc<[RegisteredConsumer]> {
        Arc::clone(&lock(&self.consumers))
    }

    /// Replaces the list of present consumers.
    pub fn set_consumers(&self, consumers: Vec<RegisteredConsumer>) {
        *lock(&self.consumers) = consumers.into();
    }

    /// The counters of a consumer. Creates them, at 0, when they are first requested.
    pub fn counters(&self, consumer: &str) -> Arc<Counters> {
        Arc::clone(lock(&self.counters).entry(consumer.to_owned()).or_default())
    }

    /// All counters, by the consumer's name.
    pub fn all_counters(&self) -> BTreeMap<String, Arc<Counters>> {
        lock(&self.counters).clone()
    }
}

/// A poisoned lock is used all the same: no panic leaves these values half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
