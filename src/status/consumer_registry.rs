//! What the admin pages and the watch know of each consumer, while consumers come, change and go.
//!
//! Counters belong to a consumer's name: they go on counting over its changes, and when it is removed and comes back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::config::Consumer;
use crate::metrics::Counters;

/// One consumer and its counters.
#[derive(Debug, Clone)]
pub struct RegisteredConsumer {
    /// Its name.
    pub name: String,
    /// Its queue.
    pub queue: String,
    /// Workers configured; 0 of one that was removed and finishes what it was handed.
    pub workers: u64,
    /// Deliveries one worker works on at a time.
    pub prefetch: u64,
    /// The delays of its retries; `None` for the consumer of failures.
    pub delays: Option<Vec<String>>,
    /// Since when it is paused, if it is.
    pub paused_since: Option<Timestamp>,
    /// Whether its counters also count what it still finishes of another queue.
    pub drains_elsewhere: bool,
    /// What it counts.
    pub counters: Arc<Counters>,
}

impl RegisteredConsumer {
    /// A consumer as configured.
    pub fn new(name: &str, consumer: &Consumer, counters: Arc<Counters>) -> Self {
        let delays = || consumer.retry.delays.iter().map(ToString::to_string).collect();
        RegisteredConsumer {
            name: name.to_owned(),
            queue: consumer.queue.clone(),
            workers: consumer.workers as u64,
            prefetch: u64::from(consumer.prefetch),
            delays: (!consumer.handles_failures()).then(delays),
            paused_since: None,
            drains_elsewhere: false,
            counters,
        }
    }
}

/// The consumers of the moment, and the counters of all there ever were.
#[derive(Debug, Default)]
pub(super) struct ConsumerRegistry {
    watched: Mutex<Arc<[RegisteredConsumer]>>,
    counters: Mutex<BTreeMap<String, Arc<Counters>>>,
}

impl ConsumerRegistry {
    pub fn watched(&self) -> Arc<[RegisteredConsumer]> {
        Arc::clone(&lock(&self.watched))
    }

    pub fn show(&self, consumers: Vec<RegisteredConsumer>) {
        *lock(&self.watched) = consumers.into();
    }

    /// The counters of a consumer; they begin at 0 when they are asked for first.
    pub fn counters(&self, consumer: &str) -> Arc<Counters> {
        Arc::clone(lock(&self.counters).entry(consumer.to_owned()).or_default())
    }

    /// All counters, by name.
    pub fn all(&self) -> BTreeMap<String, Arc<Counters>> {
        lock(&self.counters).clone()
    }
}

/// Nothing here panics half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
