//! Safe mode: one delivery at a time while a message seems to kill the process or the connection at every delivery.
//!
//! Each time it does, the delivery counts of all other prefetched messages rise too, toward the broker's delivery limit.
//! Pure: a state machine that the pool feeds with its observations.

use std::time::Duration;

use crate::topology::DELIVERY_LIMIT;

/// A message that was delivered at least this often before is suspicious.
const SUSPICIOUS_COUNT: u64 = 3;
/// The highest delivery count that a message can reach in one queue. RabbitMQ 4.3 keeps the count of a message that it
/// dead-letters, so a higher one was reached in an earlier queue, and the message is no danger in this one.
const HIGHEST_COUNT: u64 = DELIVERY_LIMIT.unsigned_abs();
/// This many unsuspicious deliveries in a row end safe mode.
const CLEAR_STREAK: u32 = 20;
/// This many subscriptions in a row that were lost within [`SHORT_LIVED`] and settled nothing turn safe mode on: a message
/// may kill the connection before it is read.
const FRUITLESS_SUBSCRIPTIONS: u32 = 3;
/// See [`FRUITLESS_SUBSCRIPTIONS`].
const SHORT_LIVED: Duration = Duration::from_secs(5);

/// What the pool has to do after a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Nothing.
    None,
    /// Release what has not been started, and subscribe again with a prefetch of 1.
    Enter,
    /// Subscribe again with the full prefetch.
    Leave,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    #[default]
    Normal,
    Safe {
        /// Unsuspicious deliveries in a row.
        streak: u32,
    },
}

/// The state machine.
#[derive(Debug, Default)]
pub(super) struct SafeMode {
    mode: Mode,
    /// Fruitless subscriptions in a row.
    fruitless: u32,
}

impl SafeMode {
    /// Starts with safe mode on or off.
    pub(super) fn new(on: bool) -> Self {
        SafeMode { mode: if on { Mode::Safe { streak: 0 } } else { Mode::Normal }, fruitless: 0 }
    }

    pub(super) fn is_on(&self) -> bool {
        self.mode != Mode::Normal
    }

    /// A delivery arrived that was delivered `delivery_count` times before.
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

    /// A subscription was lost after `lived`. `settled`: whether any of its deliveries was settled.
    pub(super) fn lost(&mut self, lived: Duration, settled: bool) {
        self.fruitless = if settled || lived > SHORT_LIVED { 0 } else { self.fruitless + 1 };
        if self.fruitless >= FRUITLESS_SUBSCRIPTIONS && !self.is_on() {
            self.mode = Mode::Safe { streak: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_that_was_delivered_three_times_before_turns_safe_mode_on() {
        let mut safe = SafeMode::default();
        assert_eq!(safe.delivered(2), Change::None);
        assert_eq!(safe.delivered(3), Change::Enter);
        assert!(safe.is_on());
    }

    #[test]
    fn safe_mode_ends_only_after_a_clear_streak() {
        let mut safe = SafeMode::default();
        safe.delivered(7);
        for _ in 1..CLEAR_STREAK {
            assert_eq!(safe.delivered(0), Change::None);
        }
        assert_eq!(safe.delivered(4), Change::None, "a suspicious delivery restarts the streak");
        for _ in 1..CLEAR_STREAK {
            assert_eq!(safe.delivered(0), Change::None);
        }
        assert_eq!(safe.delivered(0), Change::Leave);
        assert!(!safe.is_on());
    }

    #[test]
    fn connections_that_keep_dying_turn_safe_mode_on() {
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
    fn a_broker_that_restarts_now_and_then_does_not_turn_safe_mode_on() {
        let mut safe = SafeMode::default();
        for _ in 0..10 {
            safe.lost(Duration::from_secs(600), false);
            safe.lost(Duration::from_millis(5), true);
        }
        assert!(!safe.is_on());
    }
}
