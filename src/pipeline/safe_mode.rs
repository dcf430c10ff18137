//! Safe mode: one delivery at a time while something seems to kill whoever holds it.
//!
//! A message that kills the process, or the connection, at every delivery drags all prefetched neighbours along
//! toward the broker's delivery limit. Pure: a state machine fed with what the pool sees.

use std::time::Duration;

use crate::topology::DELIVERY_LIMIT;

/// Deliveries that came back this often look suspicious.
const SUSPICIOUS_COUNT: u64 = 3;
/// No queue hands a message out that has come back to it more often. RabbitMQ 4.3 lets a message that it dead-letters keep
/// its count, so a higher one tells of the queue before: what has hit the delivery limit there is no danger here.
const HIGHEST_COUNT: u64 = DELIVERY_LIMIT.unsigned_abs();
/// So many unsuspicious deliveries in a row end safe mode.
const CLEAR_STREAK: u32 = 20;
/// Subscriptions lost in a row, each soon and before anything was settled, look like a killer that cannot even be read.
const FRUITLESS_EPOCHS: u32 = 3;
/// "Soon", for the rule above.
const SOON: Duration = Duration::from_secs(5);

/// What the pool is to do after an observation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Go on.
    None,
    /// Give back what has not been started, subscribe again with a prefetch of 1.
    Enter,
    /// Subscribe again with the full prefetch.
    Leave,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    #[default]
    Normal,
    Safe {
        streak: u32,
    },
}

#[derive(Debug, Default)]
pub(super) struct SafeMode {
    mode: Mode,
    fruitless: u32,
}

impl SafeMode {
    /// On from the beginning, or not.
    pub(super) fn beginning(on: bool) -> Self {
        SafeMode { mode: if on { Mode::Safe { streak: 0 } } else { Mode::Normal }, fruitless: 0 }
    }

    pub(super) fn is_on(&self) -> bool {
        self.mode != Mode::Normal
    }

    /// A delivery arrived that had been handed out `delivery_count` times before.
    pub(super) fn delivered(&mut self, delivery_count: u64) -> Change {
        let suspicious = (SUSPICIOUS_COUNT..=HIGHEST_COUNT).contains(&delivery_count);
        match (&mut self.mode, suspicious) {
            (Mode::Normal, false) => Change::None,
            (Mode::Normal, true) => {
                self.mode = Mode::Safe { streak: 0 };
                Change::Enter
            }
            (Mode::Safe { streak }, true) => {
                *streak = 0;
                Change::None
            }
            (Mode::Safe { streak }, false) => {
                *streak += 1;
                if *streak < CLEAR_STREAK {
                    return Change::None;
                }
                self.mode = Mode::Normal;
                Change::Leave
            }
        }
    }

    /// A subscription was lost after `lived`; `settled` says whether anything was settled in it.
    pub(super) fn lost(&mut self, lived: Duration, settled: bool) {
        self.fruitless = if settled || lived > SOON { 0 } else { self.fruitless + 1 };
        if self.fruitless >= FRUITLESS_EPOCHS && !self.is_on() {
            self.mode = Mode::Safe { streak: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_that_came_back_three_times_turns_it_on() {
        let mut safe = SafeMode::default();
        assert_eq!(safe.delivered(2), Change::None);
        assert_eq!(safe.delivered(3), Change::Enter);
        assert!(safe.is_on());
    }

    #[test]
    fn it_ends_only_after_a_clear_streak() {
        let mut safe = SafeMode::default();
        safe.delivered(7);
        for _ in 1..CLEAR_STREAK {
            assert_eq!(safe.delivered(0), Change::None);
        }
        assert_eq!(safe.delivered(4), Change::None, "a suspicious one begins the streak anew");
        for _ in 1..CLEAR_STREAK {
            assert_eq!(safe.delivered(0), Change::None);
        }
        assert_eq!(safe.delivered(0), Change::Leave);
        assert!(!safe.is_on());
    }

    #[test]
    fn connections_that_keep_dying_turn_it_on() {
        let mut safe = SafeMode::default();
        safe.lost(Duration::from_millis(5), false);
        safe.lost(Duration::from_millis(5), false);
        assert!(!safe.is_on());
        safe.lost(Duration::from_millis(5), false);
        assert!(safe.is_on());
    }

    #[test]
    fn a_count_that_only_an_earlier_queue_can_have_reached_is_not_suspicious() {
        let mut safe_mode = SafeMode::default();
        assert_eq!(safe_mode.delivered(21), Change::None);
        assert_eq!(safe_mode.delivered(20), Change::Enter);
    }

    #[test]
    fn a_broker_that_restarts_now_and_then_does_not() {
        let mut safe = SafeMode::default();
        for _ in 0..10 {
            safe.lost(Duration::from_secs(600), false);
            safe.lost(Duration::from_millis(5), true);
        }
        assert!(!safe.is_on());
    }
}
