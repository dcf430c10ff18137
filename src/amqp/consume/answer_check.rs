//! Whether the broker still answers on a connection that consumes: what orderd sends on it, acks, has no answer of its own, so
//! that a connection that loses them looks healthy while deliveries and heartbeats arrive.
//!
//! Pure: times are arguments. The receiver task sends the question, a `basic.qos` that changes nothing, and reports the answer.

use std::time::Duration;

use tokio::time::Instant;

/// How often the broker is asked, at most.
const INTERVAL: Duration = Duration::from_secs(2);
/// The connection is given up after this long without an answer. The broker may be slow, and a lost connection counts toward
/// the delivery limit.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// The questions of one connection.
#[derive(Debug, Default)]
pub struct AnswerCheck {
    /// Whether settlements were sent since the last question.
    settled: bool,
    last_asked: Option<Instant>,
    /// When the question that is not answered yet was sent.
    waiting_since: Option<Instant>,
}

impl AnswerCheck {
    /// Settlements were sent.
    pub fn settled(&mut self) {
        self.settled = true;
    }

    /// Whether to ask now.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let recently = self.last_asked.is_some_and(|asked| now.duration_since(asked) < INTERVAL);
        if !self.settled || recently || self.waiting_since.is_some() {
            return false;
        }
        (self.settled, self.last_asked, self.waiting_since) = (false, Some(now), Some(now));
        true
    }

    /// An answer arrived. Returns whether one was awaited.
    pub fn answered(&mut self) -> bool {
        self.waiting_since.take().is_some()
    }

    /// Nothing could be received until now, for a reason of orderd's own.
    pub fn not_receiving(&mut self, now: Instant) {
        self.waiting_since = self.waiting_since.map(|_| now);
    }

    /// How long the broker has not answered.
    pub fn waiting(&self, now: Instant) -> Duration {
        self.waiting_since.map_or(Duration::ZERO, |since| now.duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_is_asked_only_after_settlements_and_not_again_before_its_answer() {
        let (mut check, start) = (AnswerCheck::default(), Instant::now());
        assert!(!check.is_due(start), "nothing was sent");
        check.settled();
        assert!(check.is_due(start) && !check.is_due(start));
        check.settled();
        let later = start + 5 * INTERVAL;
        assert!(!check.is_due(later));
        assert_eq!(check.waiting(later), 5 * INTERVAL);
        assert!(check.answered() && !check.answered());
        assert_eq!(check.waiting(later), Duration::ZERO);
        assert!(check.is_due(later));
        assert!(check.answered());
        check.settled();
        assert!(!check.is_due(later + INTERVAL / 2), "too soon");
    }
}
