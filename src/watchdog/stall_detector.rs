//! Who is stuck: a worker that does not give its thread back, or a runtime in which no task gets its turn.
//!
//! Pure. Time is counted in looks and not by a clock, so that a process that was stopped and goes on is not blamed for
//! the time in between. Waiting is never being stuck: for the broker, for a confirm, for a handler that awaits.

use std::collections::BTreeMap;
use std::fmt;

use super::heartbeat::HeartbeatReading;

/// Who makes no progress.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stuck {
    /// A worker of this consumer has had a thread for too long: a handler that blocks or computes, or a deadlock.
    Worker {
        /// The consumer's name.
        consumer: String,
    },
    /// No task gets its turn: all threads are taken.
    Runtime,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stuck::Worker { consumer } => write!(f, "a worker of consumer {consumer} does not give its thread back"),
            Stuck::Runtime => f.write_str("no task gets its turn"),
        }
    }
}

/// A counter, and in how many looks it has not changed.
#[derive(Debug, Clone, Copy)]
struct Seen {
    count: u64,
    looks: u32,
}

impl Seen {
    /// What is known after one more look.
    fn after(before: Option<&Seen>, count: u64) -> Seen {
        let looks = before.filter(|seen| seen.count == count).map_or(0, |seen| seen.looks.saturating_add(1));
        Seen { count, looks }
    }
}

/// Remembers what it saw.
#[derive(Debug)]
pub(crate) struct StallDetector {
    /// Looks without a change that are one too many.
    patience: u32,
    runtime: Option<Seen>,
    workers: BTreeMap<u64, Seen>,
}

impl StallDetector {
    pub(crate) fn new(patience: u32) -> Self {
        StallDetector { patience: patience.max(1), runtime: None, workers: BTreeMap::new() }
    }

    /// One more look: who is stuck now, each named once.
    pub(crate) fn look(&mut self, runtime: u64, workers: &[HeartbeatReading]) -> Vec<Stuck> {
        let seen = Seen::after(self.runtime.as_ref(), runtime);
        self.runtime = Some(seen);
        let now = workers
            .iter()
            .map(|heartbeat| (heartbeat.id, Seen::after(self.workers.get(&heartbeat.id), heartbeat.count)));
        self.workers = now.collect();
        let is_stuck = |heartbeat: &&HeartbeatReading| {
            // Even: it waits for something, which it may do for as long as it likes.
            heartbeat.count % 2 == 1 && self.workers[&heartbeat.id].looks >= self.patience
        };
        let worker = |heartbeat: &HeartbeatReading| Stuck::Worker { consumer: heartbeat.consumer.clone() };
        let mut stuck: Vec<_> = workers.iter().filter(is_stuck).map(worker).collect();
        if seen.looks >= self.patience {
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
    fn a_worker_that_keeps_its_thread_is_stuck_and_named_and_one_that_waits_is_not() {
        let mut stall_detector = StallDetector::new(3);
        for look in 0..3 {
            assert_eq!(stall_detector.look(look, &[heartbeat(1, "order", 7), heartbeat(2, "priority", 8)]), []);
        }
        for look in 3..6 {
            let stuck = stall_detector.look(look, &[heartbeat(1, "order", 7), heartbeat(2, "priority", 8)]);
            assert_eq!(stuck, [worker("order")], "priority only waits");
        }
        assert_eq!(
            stall_detector.look(6, &[heartbeat(1, "order", 8), heartbeat(2, "priority", 8)]),
            [],
            "it went on after all"
        );
    }

    #[test]
    fn one_that_is_always_found_at_work_makes_progress_as_long_as_it_counts_on() {
        let mut stall_detector = StallDetector::new(2);
        for look in 0..20 {
            assert_eq!(stall_detector.look(look, &[heartbeat(1, "order", 2 * look + 1)]), []);
        }
    }

    #[test]
    fn a_runtime_that_does_not_count_on_is_stuck_with_whoever_holds_its_threads() {
        let mut stall_detector = StallDetector::new(2);
        let held = [heartbeat(1, "order", 3), heartbeat(2, "order", 5), heartbeat(3, "analytics", 6)];
        assert_eq!(stall_detector.look(4, &held), []);
        assert_eq!(stall_detector.look(4, &held), []);
        assert_eq!(stall_detector.look(4, &held), [worker("order"), Stuck::Runtime]);
        assert_eq!(stall_detector.look(4, &[]), [Stuck::Runtime], "nobody to blame");
        assert_eq!(stall_detector.look(5, &[]), []);
    }

    #[test]
    fn a_new_worker_is_not_blamed_for_one_that_ended() {
        let mut stall_detector = StallDetector::new(1);
        stall_detector.look(0, &[heartbeat(1, "order", 1)]);
        assert_eq!(stall_detector.look(1, &[heartbeat(1, "order", 1)]), [worker("order")]);
        assert_eq!(stall_detector.look(2, &[heartbeat(2, "order", 1)]), []);
    }
}
