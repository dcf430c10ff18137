//! The retry decision.

use jiff::Timestamp;

use super::{Delay, FailureKind, History, RetryPolicy};

/// What becomes of a failed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Back to its queue after a delay.
    Retry(Delay),
    /// To the dead letter queue, for a person.
    DeadLetter(DeadLetterReason),
}

/// Why a message was dead-lettered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeadLetterReason {
    /// It cannot be read.
    Malformed,
    /// It breaks a rule.
    Permanent,
    /// Every retry failed.
    RetriesExhausted,
    /// Its first failure lies further back than the policy's `max_age`.
    TooOld,
    /// It was handed out too often without being settled, again after a retry.
    DeliveryLimit,
    /// It is not known which queue it failed in, so there is nowhere to retry it.
    NoOrigin,
}

impl DeadLetterReason {
    /// All reasons.
    pub const ALL: [DeadLetterReason; 6] = [
        DeadLetterReason::Malformed,
        DeadLetterReason::Permanent,
        DeadLetterReason::RetriesExhausted,
        DeadLetterReason::TooOld,
        DeadLetterReason::DeliveryLimit,
        DeadLetterReason::NoOrigin,
    ];

    /// The value of `x-dead-letter-reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            DeadLetterReason::Malformed => "malformed",
            DeadLetterReason::Permanent => "permanent",
            DeadLetterReason::RetriesExhausted => "retries_exhausted",
            DeadLetterReason::TooOld => "too_old",
            DeadLetterReason::DeliveryLimit => "delivery_limit",
            DeadLetterReason::NoOrigin => "no_origin",
        }
    }
}

/// Decides what becomes of a failed message. `policy` is that of the queue it failed in, `None` where that
/// queue is unknown.
///
/// A message that hit the delivery limit gets its retries like a transient failure, for it may be an innocent
/// neighbour of one that kills the process; hitting the limit a second time dead-letters it.
pub fn decide(policy: Option<&RetryPolicy>, history: &History, now: Timestamp) -> Decision {
    let Some(policy) = policy else {
        return Decision::DeadLetter(DeadLetterReason::NoOrigin);
    };
    let exhausted = match history.failure.kind {
        FailureKind::Malformed => return Decision::DeadLetter(DeadLetterReason::Malformed),
        FailureKind::Permanent => return Decision::DeadLetter(DeadLetterReason::Permanent),
        FailureKind::DeliveryLimit if history.hit_delivery_limit_before => {
            return Decision::DeadLetter(DeadLetterReason::DeliveryLimit);
        }
        FailureKind::DeliveryLimit => DeadLetterReason::DeliveryLimit,
        FailureKind::Transient | FailureKind::TimedOut | FailureKind::Panicked => DeadLetterReason::RetriesExhausted,
    };
    let Some(delay) = usize::try_from(history.retries).ok().and_then(|retries| policy.delays.get(retries)) else {
        return Decision::DeadLetter(exhausted);
    };
    // A first failure in the future (a clock set back) makes the age negative: not too old.
    let age = now.duration_since(history.first_failed_at);
    if age > jiff::SignedDuration::try_from(policy.max_age).unwrap_or(jiff::SignedDuration::MAX) {
        return Decision::DeadLetter(DeadLetterReason::TooOld);
    }
    Decision::Retry(*delay)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::recovery::Failure;

    fn seconds(seconds: u64) -> Delay {
        Delay::new(Duration::from_secs(seconds)).unwrap()
    }

    fn policy() -> RetryPolicy {
        RetryPolicy { immediate: 1, delays: vec![seconds(1), seconds(10)], max_age: Duration::from_secs(3600) }
    }

    fn history(kind: FailureKind, retries: u32, age: i64) -> History {
        History {
            origin: None,
            retries,
            first_failed_at: Timestamp::from_second(1_000_000 - age).unwrap(),
            failed_at: Timestamp::from_second(1_000_000).unwrap(),
            failure: Failure::new(kind, "code", "reason"),
            hit_delivery_limit_before: false,
        }
    }

    fn decided(kind: FailureKind, retries: u32, age: i64) -> Decision {
        decide(Some(&policy()), &history(kind, retries, age), Timestamp::from_second(1_000_000).unwrap())
    }

    #[test]
    fn the_decision_table() {
        use DeadLetterReason as Reason;
        use FailureKind::*;
        let retry = |s| Decision::Retry(seconds(s));
        for (kind, retries, age, expected) in [
            (Transient, 0, 0, retry(1)),
            (Transient, 1, 5, retry(10)),
            (Transient, 2, 20, Decision::DeadLetter(Reason::RetriesExhausted)),
            (TimedOut, 0, 0, retry(1)),
            (TimedOut, 2, 0, Decision::DeadLetter(Reason::RetriesExhausted)),
            (Panicked, 1, 0, retry(10)),
            (Panicked, 2, 0, Decision::DeadLetter(Reason::RetriesExhausted)),
            (DeliveryLimit, 0, 0, retry(1)),
            (DeliveryLimit, 2, 0, Decision::DeadLetter(Reason::DeliveryLimit)),
            (Transient, 0, 3600, retry(1)),
            (Transient, 0, 3601, Decision::DeadLetter(Reason::TooOld)),
            (Transient, 0, -50, retry(1)),
            (Malformed, 0, 0, Decision::DeadLetter(Reason::Malformed)),
            (Permanent, 0, 0, Decision::DeadLetter(Reason::Permanent)),
            (Transient, u32::MAX, 0, Decision::DeadLetter(Reason::RetriesExhausted)),
        ] {
            assert_eq!(decided(kind, retries, age), expected, "{kind} after {retries} retries at age {age}");
        }
    }

    #[test]
    fn a_second_delivery_limit_is_dead_lettered() {
        let again = History { hit_delivery_limit_before: true, ..history(FailureKind::DeliveryLimit, 1, 0) };
        let now = Timestamp::from_second(1_000_000).unwrap();
        assert_eq!(decide(Some(&policy()), &again, now), Decision::DeadLetter(DeadLetterReason::DeliveryLimit));
    }

    #[test]
    fn without_an_origin_there_is_nowhere_to_retry() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let history = history(FailureKind::Transient, 0, 0);
        assert_eq!(decide(None, &history, now), Decision::DeadLetter(DeadLetterReason::NoOrigin));
    }
}
