//! Detects messages that stay in a retry queue past its delay, from message counts alone. Pure: times are arguments.
//!
//! A retry queue is first in, first out, and the API does not report how old its messages are. So the detector marks a
//! moment. Once the delay and some slack have passed since the mark, every message in the queue was either published
//! after the mark or is overdue. The broker reports counts up to `lag` late, so publications are counted for `lag`
//! longer than the messages that they explain.

use std::time::Duration;

/// The state of one retry queue.
#[derive(Debug)]
pub struct OverdueDetector {
    /// The queue's delay plus the time that the broker may need to move messages on and to report it.
    due_after: Duration,
    lag: Duration,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No mark is set: the queue was empty, or its publications are unknown.
    Idle,
    /// A mark is set; waiting until every message that was in the queue then must have left.
    Marked { at: Duration, published: u64 },
    /// That time has passed, and `waiting` messages were in the queue; now waiting for late reports of their publication.
    Due { at: Duration, published: u64, waiting: u64 },
}

impl OverdueDetector {
    /// For a queue with this delay, on a broker that reports counts up to `lag` late.
    pub fn new(delay: Duration, lag: Duration) -> Self {
        OverdueDetector { due_after: delay.saturating_add(2 * lag), lag, phase: Phase::Idle }
    }

    /// Takes one answer of the broker: how many messages are in the queue, and how many have ever been published into it.
    /// Returns how many messages are overdue, at least; `None` means that the previous result still holds.
    pub fn record(&mut self, now: Duration, waiting: Option<u64>, published: Option<u64>) -> Option<u64> {
        let (Some(waiting), Some(published)) = (waiting, published) else { return None };
        if waiting == 0 {
            self.phase = Phase::Idle;
            return Some(0);
        }
        match self.phase {
            Phase::Marked { published: before, .. } | Phase::Due { published: before, .. } if published < before => {
                // The broker's statistics were reset.
                self.phase = Phase::Marked { at: now, published };
                None
            }
            Phase::Idle => {
                self.phase = Phase::Marked { at: now, published };
                None
            }
            Phase::Marked { at, published } => {
                if now >= at.saturating_add(self.due_after) {
                    self.phase = Phase::Due { at: now, published, waiting };
                }
                None
            }
            Phase::Due { at, published: before, waiting: then } => {
                if now < at.saturating_add(self.lag) {
                    return None;
                }
                self.phase = Phase::Marked { at: now, published };
                Some(then.saturating_sub(published - before))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: u64 = 10;
    const LAG: u64 = 5;

    /// The result of each answer `(second, waiting, published)`.
    fn results(readings: &[(u64, u64, u64)]) -> Vec<Option<u64>> {
        let mut detector = OverdueDetector::new(Duration::from_secs(DELAY), Duration::from_secs(LAG));
        let read = |&(at, waiting, published): &(u64, u64, u64)| {
            detector.record(Duration::from_secs(at), Some(waiting), Some(published))
        };
        readings.iter().map(read).collect()
    }

    #[test]
    fn messages_that_stay_past_the_delay_are_overdue() {
        assert_eq!(results(&[(0, 7, 7), (15, 7, 7), (20, 7, 7), (25, 7, 7)]), [None, None, None, Some(7)]);
    }

    #[test]
    fn messages_that_leave_in_time_are_not_overdue() {
        // One a second, each for ten seconds: there are always ten.
        let readings: Vec<_> = (0..100).map(|second| (second, 10, 10 + second)).collect();
        assert!(results(&readings).into_iter().flatten().all(|overdue| overdue == 0));
    }

    #[test]
    fn publications_that_are_reported_late_explain_waiting_messages() {
        // A hundred arrive just before the reading that counts; their publications are reported one lag later.
        let readings = [(0, 1, 1), (20, 100, 1), (22, 100, 1), (25, 100, 101), (30, 0, 101)];
        assert_eq!(results(&readings), [None, None, None, Some(0), Some(0)]);
    }

    #[test]
    fn new_messages_do_not_hide_old_ones() {
        assert_eq!(results(&[(0, 7, 7), (20, 12, 12), (25, 13, 13)]), [None, None, Some(6)]);
    }

    #[test]
    fn an_emptied_queue_is_reported_at_once_and_a_reset_starts_over() {
        assert_eq!(results(&[(0, 7, 7), (20, 7, 7), (25, 7, 7), (26, 0, 7)]).last(), Some(&Some(0)));
        assert_eq!(results(&[(0, 7, 70), (20, 7, 0), (25, 7, 0), (30, 0, 7)]), [None, None, None, Some(0)]);
    }

    #[test]
    fn without_statistics_there_is_no_result() {
        let mut detector = OverdueDetector::new(Duration::from_secs(DELAY), Duration::from_secs(LAG));
        for second in 0..100 {
            assert_eq!(detector.record(Duration::from_secs(second), Some(7), None), None);
        }
    }
}
