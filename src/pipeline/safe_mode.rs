//! Safe mode: one delivery at a time while a message seems to kill the process or the connection at every delivery.
//!
//! Each time it does, the delivery counts of all other prefetched messages rise too, toward the broker's delivery limit.
//! Losses that the broker has caused, such as a lost quorum, raise the counts as well. They are subtracted.
//! Pure: a state machine that the pool feeds with its observations.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

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
/// This much of a delivery count is explained by the broker at most. A message that kills the connection slowly looks like a
/// loss that the broker caused, and its neighbours must not reach the delivery limit.
const MAX_EXPLAINED: u64 = 7;
/// How long a loss that the broker caused may explain a message's delivery count: longer than messages wait after an outage.
const EXPLAINS_FOR: Duration = Duration::from_secs(600);

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

/// A lost subscription.
#[derive(Debug, Clone, Copy)]
pub(super) struct LostSubscription {
    pub lived: Duration,
    /// Whether any of its deliveries was settled.
    pub settled: bool,
    /// Whether the broker ended it for a reason that no message can have caused.
    pub by_broker: bool,
}

/// The state machine.
#[derive(Debug, Default)]
pub(super) struct SafeMode {
    mode: Mode,
    /// Fruitless subscriptions in a row.
    fruitless: u32,
    /// When subscriptions were lost because of the broker, at most [`HIGHEST_COUNT`] of them, the latest last.
    broker_losses: VecDeque<Instant>,
}

impl SafeMode {
    /// Starts with safe mode on or off.
    pub(super) fn new(on: bool) -> Self {
        SafeMode { mode: if on { Mode::Safe { streak: 0 } } else { Mode::Normal }, ..SafeMode::default() }
    }

    pub(super) fn is_on(&self) -> bool {
        self.mode != Mode::Normal
    }

    /// A delivery arrived that was delivered `delivery_count` times before.
    pub(super) fn delivered(&mut self, delivery_count: u64, now: Instant) -> Change {
        let explained = match delivery_count {
            0..SUSPICIOUS_COUNT => 0,
            _ => {
                let recent = self.broker_losses.iter().filter(|at| now.duration_since(**at) < EXPLAINS_FOR);
                (recent.count() as u64).min(MAX_EXPLAINED)
            }
        };
        let suspicious = delivery_count <= HIGHEST_COUNT && delivery_count >= SUSPICIOUS_COUNT + explained;
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

    /// A subscription was lost. One that lived for long counts as lost because of the broker too: a message that kills the
    /// connection kills the next ones soon.
    pub(super) fn lost(&mut self, lost: LostSubscription, now: Instant) {
        let LostSubscription { lived, settled, by_broker } = lost;
        let is_short_lived = lived <= SHORT_LIVED;
        if by_broker || !is_short_lived {
            self.broker_losses.push_back(now);
            if self.broker_losses.len() as u64 > HIGHEST_COUNT {
                self.broker_losses.pop_front();
            }
        }
        self.fruitless = if settled || by_broker || !is_short_lived { 0 } else { self.fruitless + 1 };
        if self.fruitless >= FRUITLESS_SUBSCRIPTIONS && !self.is_on() {
            self.mode = Mode::Safe { streak: 0 };
        }
    }

    /// The broker could not be subscribed to, so it may have caused the losses before.
    pub(super) fn subscribe_failed(&mut self) {
        self.fruitless = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_message(milliseconds: u64) -> LostSubscription {
        LostSubscription { lived: Duration::from_millis(milliseconds), settled: false, by_broker: false }
    }

    #[test]
    fn a_delivery_that_was_delivered_three_times_before_turns_safe_mode_on() {
        let (mut safe, now) = (SafeMode::default(), Instant::now());
        assert_eq!(safe.delivered(2, now), Change::None);
        assert_eq!(safe.delivered(3, now), Change::Enter);
        assert!(safe.is_on());
    }

    #[test]
    fn safe_mode_ends_only_after_a_clear_streak() {
        let (mut safe, now) = (SafeMode::default(), Instant::now());
        safe.delivered(7, now);
        for _ in 1..CLEAR_STREAK {
            assert_eq!(safe.delivered(0, now), Change::None);
        }
        assert_eq!(safe.delivered(4, now), Change::None, "a suspicious delivery restarts the streak");
        for _ in 1..CLEAR_STREAK {
            assert_eq!(safe.delivered(0, now), Change::None);
        }
        assert_eq!(safe.delivered(0, now), Change::Leave);
        assert!(!safe.is_on());
    }

    #[test]
    fn connections_that_keep_dying_turn_safe_mode_on() {
        let (mut safe, now) = (SafeMode::default(), Instant::now());
        safe.lost(by_message(5), now);
        safe.lost(by_message(5), now);
        assert!(!safe.is_on());
        safe.lost(by_message(5), now);
        assert!(safe.is_on());
    }

    #[test]
    fn a_count_that_only_an_earlier_queue_can_have_reached_is_not_suspicious() {
        let (mut safe_mode, now) = (SafeMode::default(), Instant::now());
        assert_eq!(safe_mode.delivered(21, now), Change::None);
        assert_eq!(safe_mode.delivered(20, now), Change::Enter);
    }

    #[test]
    fn a_broker_that_restarts_now_and_then_does_not_turn_safe_mode_on() {
        let (mut safe, now) = (SafeMode::default(), Instant::now());
        for _ in 0..10 {
            safe.lost(by_message(600_000), now);
            safe.lost(LostSubscription { settled: true, ..by_message(5) }, now);
        }
        assert!(!safe.is_on());
    }

    #[test]
    fn a_cluster_that_has_lost_its_quorum_does_not_turn_safe_mode_on() {
        let (mut safe, now) = (SafeMode::default(), Instant::now());
        for outages in 1..=5 {
            safe.lost(LostSubscription { by_broker: true, ..by_message(5) }, now);
            safe.lost(by_message(5), now);
            safe.subscribe_failed();
            assert_eq!(safe.delivered(outages + SUSPICIOUS_COUNT - 1, now), Change::None);
        }
        assert_eq!(safe.delivered(5 + SUSPICIOUS_COUNT, now), Change::Enter, "more often than the outages explain");
    }

    #[test]
    fn an_old_outage_does_not_hide_a_message_that_kills_the_connection() {
        let (mut safe, start) = (SafeMode::default(), Instant::now());
        (0..100).for_each(|_| safe.lost(by_message(600_000), start));
        assert_eq!(safe.delivered(3, start), Change::None);
        assert_eq!(safe.delivered(3, start + EXPLAINS_FOR), Change::Enter);
    }
}
