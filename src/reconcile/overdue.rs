//! Tells whether messages stay in a retry queue past its delay, from counts alone. Pure: times are arguments.
//!
//! A queue is first in, first out, and its messages bear no times that the API tells. So a mark is set: of what is in the
//! queue once delay and slack have passed since the mark, everything was published after it, or is overdue. The broker
//! tells counts up to `lag` late, so publications are counted `lag` longer than the messages they explain.

use std::time::Duration;

/// Watches one retry queue.
#[derive(Debug)]
pub struct Overdue {
    /// The queue's delay, and what the broker may take longer for handing on and telling.
    due_after: Duration,
    lag: Duration,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The queue was empty, or its publications are not known.
    Idle,
    /// Waiting until all that is in the queue now must have left.
    Marked { at: Duration, published: u64 },
    /// That time has passed, and `waiting` were there then. Waiting until all that explains them is told.
    Ripe { at: Duration, published: u64, waiting: u64 },
}

impl Overdue {
    /// For a queue with this delay on a broker that tells counts up to `lag` late.
    pub fn new(delay: Duration, lag: Duration) -> Self {
        Overdue { due_after: delay.saturating_add(2 * lag), lag, stage: Stage::Idle }
    }

    /// Takes what the broker told at one time. Returns how many messages are overdue, at least, once that can be told;
    /// `None` leaves it at what was returned before.
    pub fn read(&mut self, now: Duration, waiting: Option<u64>, published: Option<u64>) -> Option<u64> {
        let (Some(waiting), Some(published)) = (waiting, published) else { return None };
        if waiting == 0 {
            self.stage = Stage::Idle;
            return Some(0);
        }
        match self.stage {
            Stage::Marked { published: before, .. } | Stage::Ripe { published: before, .. } if published < before => {
                // The broker counts anew.
                self.stage = Stage::Marked { at: now, published };
                None
            }
            Stage::Idle => {
                self.stage = Stage::Marked { at: now, published };
                None
            }
            Stage::Marked { at, published } => {
                if now >= at.saturating_add(self.due_after) {
                    self.stage = Stage::Ripe { at: now, published, waiting };
                }
                None
            }
            Stage::Ripe { at, published: before, waiting: then } => {
                if now < at.saturating_add(self.lag) {
                    return None;
                }
                self.stage = Stage::Marked { at: now, published };
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

    /// What is told of readings `(second, waiting, published)`.
    fn told(readings: &[(u64, u64, u64)]) -> Vec<Option<u64>> {
        let mut overdue = Overdue::new(Duration::from_secs(DELAY), Duration::from_secs(LAG));
        let read = |&(at, waiting, published): &(u64, u64, u64)| {
            overdue.read(Duration::from_secs(at), Some(waiting), Some(published))
        };
        readings.iter().map(read).collect()
    }

    #[test]
    fn messages_that_stay_past_the_delay_are_overdue() {
        assert_eq!(told(&[(0, 7, 7), (15, 7, 7), (20, 7, 7), (25, 7, 7)]), [None, None, None, Some(7)]);
    }

    #[test]
    fn messages_that_come_and_go_in_time_are_not() {
        // One a second, each for ten seconds: there are always ten.
        let readings: Vec<_> = (0..100).map(|second| (second, 10, 10 + second)).collect();
        assert!(told(&readings).into_iter().flatten().all(|overdue| overdue == 0));
    }

    #[test]
    fn counts_of_publications_that_come_late_explain_what_is_waiting() {
        // A hundred arrive just before the reading that counts; their publications are told a lag later.
        let readings = [(0, 1, 1), (20, 100, 1), (22, 100, 1), (25, 100, 101), (30, 0, 101)];
        assert_eq!(told(&readings), [None, None, None, Some(0), Some(0)]);
    }

    #[test]
    fn new_messages_do_not_hide_old_ones() {
        assert_eq!(told(&[(0, 7, 7), (20, 12, 12), (25, 13, 13)]), [None, None, Some(6)]);
    }

    #[test]
    fn an_emptied_queue_is_told_at_once_and_a_reset_begins_anew() {
        assert_eq!(told(&[(0, 7, 7), (20, 7, 7), (25, 7, 7), (26, 0, 7)]).last(), Some(&Some(0)));
        assert_eq!(told(&[(0, 7, 70), (20, 7, 0), (25, 7, 0), (30, 0, 7)]), [None, None, None, Some(0)]);
    }

    #[test]
    fn nothing_is_told_without_statistics() {
        let mut overdue = Overdue::new(Duration::from_secs(DELAY), Duration::from_secs(LAG));
        for second in 0..100 {
            assert_eq!(overdue.read(Duration::from_secs(second), Some(7), None), None);
        }
    }
}
