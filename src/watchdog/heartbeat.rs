//! Heartbeats: counters that show which tasks are being polled right now, and whether the poll ever returns.
//!
//! A heartbeat is one counter, odd while its task is being polled. It costs two additions per poll, and one poll serves
//! many deliveries. It reads no clock and never decides what is stuck.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The heartbeats of a group of tasks; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats(Arc<HeartbeatRegistry>);

#[derive(Debug, Default)]
struct HeartbeatRegistry {
    live: Mutex<BTreeMap<u64, Arc<AtomicU64>>>,
}

/// The next heartbeat id. Ids are unique in the process, so a new task is never mistaken for one that ended.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// One reading of one heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatReading {
    /// Unique in the process.
    pub id: u64,
    /// The consumer that the worker belongs to; empty for the runtime.
    pub consumer: String,
    /// Odd while the task is being polled; changes with every poll.
    pub count: u64,
}

/// Registration of one task's heartbeat; dropping it removes the heartbeat.
#[derive(Debug)]
pub struct HeartbeatGuard {
    id: u64,
    count: Arc<AtomicU64>,
    registry: Arc<HeartbeatRegistry>,
}

impl HeartbeatRegistry {
    fn live(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<AtomicU64>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heartbeats {
    /// Registers a new heartbeat.
    pub fn register(&self) -> HeartbeatGuard {
        let (id, count) = (NEXT_ID.fetch_add(1, Ordering::Relaxed), Arc::new(AtomicU64::new(0)));
        self.0.live().insert(id, Arc::clone(&count));
        HeartbeatGuard { id, count, registry: Arc::clone(&self.0) }
    }

    /// Reads all registered heartbeats, labelled with this consumer.
    pub fn read(&self, consumer: &str) -> Vec<HeartbeatReading> {
        let read = |(id, count): (&u64, &Arc<AtomicU64>)| HeartbeatReading {
            id: *id,
            consumer: consumer.to_owned(),
            count: count.load(Ordering::Relaxed),
        };
        self.0.live().iter().map(read).collect()
    }
}

impl HeartbeatGuard {
    /// Runs a task and counts its polls.
    pub async fn track<F: Future>(self, task: F) -> F::Output {
        let mut task = std::pin::pin!(task);
        std::future::poll_fn(|context| {
            let _poll = self.begin_poll();
            task.as_mut().poll(context)
        })
        .await
    }

    /// Counts one poll, for a task whose only purpose is to show that it is scheduled.
    pub(crate) fn beat(&self) {
        drop(self.begin_poll());
    }

    /// Makes the counter odd until the guard is dropped, which a panic does as well.
    fn begin_poll(&self) -> PollGuard<'_> {
        self.count.fetch_add(1, Ordering::Relaxed);
        PollGuard(&self.count)
    }
}

struct PollGuard<'a>(&'a AtomicU64);

impl Drop for PollGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for HeartbeatGuard {
    fn drop(&mut self) {
        self.registry.live().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn counts(heartbeats: &Heartbeats) -> Vec<u64> {
        heartbeats.read("order").iter().map(|heartbeat| heartbeat.count).collect()
    }

    #[test]
    fn a_heartbeat_is_odd_only_while_its_task_is_polled_and_is_removed_with_it() {
        let heartbeats = Heartbeats::default();
        let inner = heartbeats.clone();
        let mut task = Box::pin(heartbeats.register().track(async move {
            let at_first = counts(&inner);
            tokio::task::yield_now().await;
            (at_first, counts(&inner))
        }));
        assert!(task.as_mut().now_or_never().is_none());
        assert_eq!(counts(&heartbeats), [2]);
        assert_eq!(task.as_mut().now_or_never(), Some((vec![1], vec![3])));
        drop(task);
        assert_eq!(counts(&heartbeats), [0; 0]);
    }

    #[test]
    fn a_task_that_panicked_does_not_appear_to_be_running() {
        let heartbeats = Heartbeats::default();
        let heartbeat = heartbeats.register();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _poll = heartbeat.begin_poll();
            panic!("in a poll");
        }));
        assert!(panicked.is_err());
        assert_eq!(counts(&heartbeats), [2]);
    }
}
