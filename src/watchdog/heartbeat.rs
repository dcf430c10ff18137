//! Heartbeats: which tasks run on a thread right now, and whether they ever give it back.
//!
//! A heartbeat is one counter, odd while its task is being polled. It costs two additions for each poll, which serves many
//! deliveries, and reads no clock.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The heartbeats of some tasks. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats(Arc<Registry>);

#[derive(Debug, Default)]
struct Registry {
    live: Mutex<BTreeMap<u64, Arc<AtomicU64>>>,
}

/// Names of heartbeats: unique in the process, so that a new task is never taken for one that ended.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// One reading of one heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeartbeatReading {
    /// Which; unique in the process.
    pub id: u64,
    /// The consumer whose worker it is.
    pub consumer: String,
    /// Odd while the task is being polled; changes with every poll.
    pub count: u64,
}

/// A task's own end of its heartbeat. Dropped, the heartbeat is gone.
#[derive(Debug)]
pub struct HeartbeatGuard {
    id: u64,
    count: Arc<AtomicU64>,
    registry: Arc<Registry>,
}

impl Registry {
    fn live(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<AtomicU64>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heartbeats {
    /// A new heartbeat.
    pub fn register(&self) -> HeartbeatGuard {
        let (id, count) = (NEXT.fetch_add(1, Ordering::Relaxed), Arc::new(AtomicU64::new(0)));
        self.0.live().insert(id, Arc::clone(&count));
        HeartbeatGuard { id, count, registry: Arc::clone(&self.0) }
    }

    /// All that are live now, as those of this consumer.
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
    /// Runs a task with this heartbeat.
    pub async fn around<F: Future>(self, task: F) -> F::Output {
        let mut task = std::pin::pin!(task);
        std::future::poll_fn(|context| {
            let _turn = self.turn();
            task.as_mut().poll(context)
        })
        .await
    }

    /// Counts on, for a task that only shows that it gets its turn.
    pub(crate) fn beat(&self) {
        drop(self.turn());
    }

    /// From here until the guard is dropped, by a panic too, the task has the thread.
    fn turn(&self) -> Turn<'_> {
        self.count.fetch_add(1, Ordering::Relaxed);
        Turn(&self.count)
    }
}

struct Turn<'a>(&'a AtomicU64);

impl Drop for Turn<'_> {
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
    fn a_pulse_is_odd_only_while_its_task_is_polled_and_gone_with_it() {
        let heartbeats = Heartbeats::default();
        let inside = heartbeats.clone();
        let mut task = Box::pin(heartbeats.register().around(async move {
            let at_first = counts(&inside);
            tokio::task::yield_now().await;
            (at_first, counts(&inside))
        }));
        assert!(task.as_mut().now_or_never().is_none());
        assert_eq!(counts(&heartbeats), [2]);
        assert_eq!(task.as_mut().now_or_never(), Some((vec![1], vec![3])));
        drop(task);
        assert_eq!(counts(&heartbeats), [0; 0]);
    }

    #[test]
    fn a_task_that_panics_does_not_look_as_if_it_still_ran() {
        let heartbeats = Heartbeats::default();
        let beating = heartbeats.register();
        let died = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _turn = beating.turn();
            panic!("dies");
        }));
        assert!(died.is_err());
        assert_eq!(counts(&heartbeats), [2]);
    }
}
