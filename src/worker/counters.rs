//! What a pool has done since it started, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one consumer; all only grow.
#[derive(Debug, Default)]
pub struct Counters {
    /// Deliveries taken from the broker.
    pub deliveries: AtomicU64,
    /// Acked because their effects were recorded.
    pub completed: AtomicU64,
    /// Acked because their effects had been recorded before.
    pub duplicates: AtomicU64,
    /// Attempts that failed, immediate retries included.
    pub failed_attempts: AtomicU64,
    /// Acked because the failure was handed to the failed-order queue.
    pub forwarded: AtomicU64,
    /// Failures sent to a retry queue (failed-order consumer only).
    pub retried: AtomicU64,
    /// Failures parked (failed-order consumer only).
    pub parked: AtomicU64,
    /// Given back to the broker.
    pub released: AtomicU64,
    /// Left to the broker to dead-letter, because no copy could be published.
    pub rejected: AtomicU64,
    /// Restarts of workers and of the pool.
    pub restarts: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // the fields are those of `Counters`
pub struct Tally {
    pub deliveries: u64,
    pub completed: u64,
    pub duplicates: u64,
    pub failed_attempts: u64,
    pub forwarded: u64,
    pub retried: u64,
    pub parked: u64,
    pub released: u64,
    pub rejected: u64,
    pub restarts: u64,
}

impl Counters {
    /// Adds one.
    pub(super) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a restart of the pool.
    pub fn restarted(&self) {
        Self::count(&self.restarts);
    }

    /// Reads all counters; each is exact, but they are not read at one instant.
    pub fn tally(&self) -> Tally {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Tally {
            deliveries: read(&self.deliveries),
            completed: read(&self.completed),
            duplicates: read(&self.duplicates),
            failed_attempts: read(&self.failed_attempts),
            forwarded: read(&self.forwarded),
            retried: read(&self.retried),
            parked: read(&self.parked),
            released: read(&self.released),
            rejected: read(&self.rejected),
            restarts: read(&self.restarts),
        }
    }
}
