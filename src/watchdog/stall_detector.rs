//! Decides which tasks are stuck: a worker that does not yield its thread, or a runtime in which no task is scheduled.
//!
//! Pure: no clock, no I/O. Time is counted in checks, so that the time during which a process was suspended does not
//! count. A task that waits is never stuck, whether for the broker, for a confirm or in a handler that awaits.

use std::collections::BTreeMap;
use std::fmt;

use super::heartbeat::HeartbeatReading;

/// A task, or the runtime, that makes no progress.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stuck {
    /// A worker of this consumer has been in one poll for too long: a handler that blocks or computes, or a deadlock.
    Worker {
        /// The consumer's name.
        consumer: String,
    },
    /// No task is scheduled: all threads are blocked.
    Runtime,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stuck::Worker { consumer } => write!(f, "a worker of consumer {consumer} does not yield its thread"),
            Stuck::Runtime => f.write_str("the runtime schedules no task"),
        }
    }
}

/// A counter, and the number of checks in a row in which it has not changed.
#[derive(Debug, Clone, Copy)]
struct Unchanged {
    count: u64,
    checks: u32,
}

impl Unchanged {
    /// The state after one more check.
    fn after(before: Option<&Unchanged>, count: u64) -> Unchanged {
        let checks = before.filter(|last| last.count == count).map_or(0, |last| last.checks.saturating_add(1));
        Unchanged { count, checks }
    }
}

/// Compares heartbeats from check to check.
#[derive(Debug)]
pub(super) struct StallDetector {
    /// Checks without a change after which a task is stuck.
    max_unchanged: u32,
    runtime: Option<Unchanged>,
    workers: BTreeMap<u64, Unchanged>,
}

impl StallDetector {
    pub(super) fn new(max_unchanged: u32) -> Self {
        StallDetector { max_unchanged: max_unchanged.max(1), runtime: None, workers: BTreeMap::new() }
    }

    /// One check. Returns what is stuck now, sorted, each consumer once.
    pub(super) fn check(&mut self, runtime: u64, workers: &[HeartbeatReading]) -> Vec<Stuck> {
        let runtime = Unchanged::after(self.runtime.as_ref(), runtime);
        self.runtime = Some(runtime);
        self.workers = workers
            .iter()
            .map(|heartbeat| (heartbeat.id, Unchanged::after(self.workers.get(&heartbeat.id), heartbeat.count)))
            .collect();
        let is_stuck = |heartbeat: &&HeartbeatReading| {
            // An even count means that the task waits, which may take any time.
            heartbeat.count % 2 == 1 && self.workers[&heartbeat.id].checks >= self.max_unchanged
        };
        let worker = |heartbeat: &HeartbeatReading| Stuck::Worker { consumer: heartbeat.consumer.clone() };
        let mut stuck: Vec<_> = workers.iter().filter(is_stuck).map(worker).collect();
        if runtime.checks >= self.max_unchanged {
            stuck.push(Stuck::Runtime);
        }
        stuck.sort();
        stuck.dedup();
        stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(id: u64, consumer: &str, count: u64) -> HeartbeatReading {
        HeartbeatReading { id, consumer: consumer.to_owned(), count }
    }

    fn worker(consumer: &str) -> Stuck {
        Stuck::Worker { consumer: consumer.to_owned() }
    }

    #[test]
    fn a_worker_that_does_not_yield_is_stuck_and_one_that_waits_is_not() {
        let mut detector = StallDetector::new(3);
        for check in 0..3 {
            assert_eq!(detector.check(check, &[heartbeat(1, "order", 7), heartbeat(2, "priority", 8)]), []);
        }
        for check in 3..6 {
            let stuck = detector.check(check, &[heartbeat(1, "order", 7), heartbeat(2, "priority", 8)]);
            assert_eq!(stuck, [worker("order")], "priority only waits");
        }
        assert_eq!(
            detector.check(6, &[heartbeat(1, "order", 8), heartbeat(2, "priority", 8)]),
            [],
            "it has made progress"
        );
    }

    #[test]
    fn a_worker_that_is_polled_at_every_check_is_not_stuck_while_its_count_changes() {
        let mut detector = StallDetector::new(2);
        for check in 0..20 {
            assert_eq!(detector.check(check, &[heartbeat(1, "order", 2 * check + 1)]), []);
        }
    }

    #[test]
    fn a_runtime_whose_count_stops_is_stuck_together_with_the_workers_that_block_it() {
        let mut detector = StallDetector::new(2);
        let blocked = [heartbeat(1, "order", 3), heartbeat(2, "order", 5), heartbeat(3, "analytics", 6)];
        assert_eq!(detector.check(4, &blocked), []);
        assert_eq!(detector.check(4, &blocked), []);
        assert_eq!(detector.check(4, &blocked), [worker("order"), Stuck::Runtime]);
        assert_eq!(detector.check(4, &[]), [Stuck::Runtime], "no worker blocks it");
        assert_eq!(detector.check(5, &[]), []);
    }

    #[test]
    fn a_new_worker_is_not_mistaken_for_one_that_ended() {
        let mut detector = StallDetector::new(1);
        detector.check(0, &[heartbeat(1, "order", 1)]);
        assert_eq!(detector.check(1, &[heartbeat(1, "order", 1)]), [worker("order")]);
        assert_eq!(detector.check(2, &[heartbeat(2, "order", 1)]), []);
    }
}
