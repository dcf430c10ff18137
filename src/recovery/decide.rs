//! Decides what happens to a failed message: immediate retry, delayed retry or dead letter.
//!
//! Pure: a table from policy, failure and earlier attempts to an [`Action`]. No clock, no randomness, no I/O; the worker
//! and the failed-order handler carry the action out.

use jiff::{SignedDuration, Timestamp};

use super::{Delay, Failure, FailureKind, History, RetryPolicy};

/// What happens next to a failed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The worker calls the handler again at once.
    RetryNow,
    /// The worker publishes it to the failed-order queue, whose consumer decides on the delayed retry.
    Forward,
    /// The worker keeps the delivery and calls the handler again after a back-off, until it succeeds.
    KeepRetrying,
    /// It goes to the retry queue of this delay, from which it returns to the queue it failed in.
    RetryAfter(Delay),
    /// It goes to the dead letter queue.
    DeadLetter(DeadLetterReason),
}

/// Where the decision is made, with the attempts that were made before.
#[derive(Debug, Clone, Copy)]
pub enum DecisionPoint<'a> {
    /// In a worker of the queue it failed in.
    Worker {
        /// Immediate retries of this delivery so far.
        immediate_retries: u32,
    },
    /// In a worker of the failed-order queue whose own handler failed. No other consumer takes over its failures.
    FailedOrderWorker,
    /// In the handler of the failed-order queue, which decides on the failures of all other queues.
    FailedOrderQueue(&'a History),
}

/// Why a message was dead-lettered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeadLetterReason {
    /// It cannot be decoded.
    Malformed,
    /// It breaks a rule.
    Permanent,
    /// Every retry failed.
    RetriesExhausted,
    /// Its first failure is older than the policy's `max_age`.
    TooOld,
    /// It reached the broker's delivery limit twice, or once when no retry was left.
    DeliveryLimit,
    /// The queue it failed in is unknown, so there is nowhere to retry it.
    NoOrigin,
    /// What its steps have done cannot be undone. A person has to do it.
    UndoFailed,
}

impl DeadLetterReason {
    /// Every reason.
    pub const ALL: [DeadLetterReason; 7] = [
        DeadLetterReason::Malformed,
        DeadLetterReason::Permanent,
        DeadLetterReason::RetriesExhausted,
        DeadLetterReason::TooOld,
        DeadLetterReason::DeliveryLimit,
        DeadLetterReason::NoOrigin,
        DeadLetterReason::UndoFailed,
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
            DeadLetterReason::UndoFailed => "undo_failed",
        }
    }

    /// Parses the value of `x-dead-letter-reason`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == text)
    }
}

/// Decides what happens next to a failed message. `policy` is that of the queue it failed in; `None` where that queue is
/// unknown, and for the failed-order queue, which has none.
///
/// Only transient failures are retried at once, and not those of a service that said when to call it again.
pub fn decide(policy: Option<&RetryPolicy>, failure: &Failure, at: DecisionPoint<'_>, now: Timestamp) -> Action {
    match at {
        DecisionPoint::FailedOrderWorker => Action::KeepRetrying,
        DecisionPoint::Worker { immediate_retries } => {
            let allowed = policy.map_or(0, |policy| policy.immediate);
            let is_soon_enough = failure.retry_after.is_none();
            let retry = failure.kind == FailureKind::Transient && is_soon_enough && immediate_retries < allowed;
            if retry { Action::RetryNow } else { Action::Forward }
        }
        DecisionPoint::FailedOrderQueue(history) => match delayed_retry(policy, failure, history, now) {
            Ok(delay) => Action::RetryAfter(delay),
            Err(reason) => Action::DeadLetter(reason),
        },
    }
}

/// The delay of the next delayed retry, or the reason why there is none.
///
/// A message that reached the delivery limit is retried like a transient failure: it may only have been prefetched along
/// with one that kills the process. Reaching the limit a second time dead-letters it.
fn delayed_retry(
    policy: Option<&RetryPolicy>,
    failure: &Failure,
    history: &History,
    now: Timestamp,
) -> Result<Delay, DeadLetterReason> {
    let policy = policy.ok_or(DeadLetterReason::NoOrigin)?;
    let exhausted = match failure.kind {
        FailureKind::Malformed => return Err(DeadLetterReason::Malformed),
        FailureKind::Permanent => return Err(DeadLetterReason::Permanent),
        FailureKind::DeliveryLimit if history.hit_delivery_limit_before => return Err(DeadLetterReason::DeliveryLimit),
        FailureKind::DeliveryLimit => DeadLetterReason::DeliveryLimit,
        FailureKind::Transient | FailureKind::TimedOut | FailureKind::Panicked => DeadLetterReason::RetriesExhausted,
    };
    let left =
        usize::try_from(history.retries).ok().and_then(|retries| policy.delays.get(retries..)).unwrap_or_default();
    let delay = match failure.retry_after {
        None => left.first(),
        Some(wanted) => left.iter().find(|delay| delay.as_duration() >= wanted).or(left.iter().max()),
    };
    let delay = delay.ok_or(exhausted)?;
    // A first failure in the future (a clock that was set back) makes the age negative, so it is never too old.
    let age = now.duration_since(history.first_failed_at);
    if age > SignedDuration::try_from(policy.max_age).unwrap_or(SignedDuration::MAX) {
        return Err(DeadLetterReason::TooOld);
    }
    Ok(*delay)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The time of every decision, in seconds since the Unix epoch.
    const NOW: i64 = 1_000_000;

    fn seconds(seconds: u64) -> Delay {
        Delay::new(Duration::from_secs(seconds)).unwrap()
    }

    fn policy() -> RetryPolicy {
        RetryPolicy { immediate: 1, delays: vec![seconds(1), seconds(10)], max_age: Duration::from_secs(3600) }
    }

    fn failure(kind: FailureKind) -> Failure {
        Failure::new(kind, "code", "reason")
    }

    /// After this many delayed retries, `age` seconds after the first failure.
    fn history(kind: FailureKind, retries: u32, age: i64) -> History {
        History {
            origin: None,
            retries,
            first_failed_at: Timestamp::from_second(NOW - age).unwrap(),
            failed_at: Timestamp::from_second(NOW).unwrap(),
            failure: failure(kind),
            hit_delivery_limit_before: false,
            is_undo: false,
        }
    }

    fn decided(policy: Option<&RetryPolicy>, kind: FailureKind, at: DecisionPoint<'_>) -> Action {
        decide(policy, &failure(kind), at, Timestamp::from_second(NOW).unwrap())
    }

    #[test]
    fn the_decision_table() {
        use Action::{DeadLetter, Forward, KeepRetrying, RetryNow};
        use DeadLetterReason as Reason;
        use FailureKind::*;
        /// The decision point of a row.
        #[derive(Debug)]
        enum At {
            /// Immediate retries so far.
            Worker(u32),
            FailedOrderWorker,
            /// Delayed retries so far, and the age of the first failure in seconds.
            Queue(u32, i64),
            /// Like `Queue`, for a message that reached the delivery limit before.
            QueueAfterLimit(u32, i64),
        }
        use At::{FailedOrderWorker, Queue, QueueAfterLimit, Worker};
        let retry_after = |s| Action::RetryAfter(seconds(s));
        let (known, unknown) = (Some(policy()), None);
        for (policy, kind, at, expected) in [
            // In a worker: one immediate retry, of transient failures only.
            (&known, Transient, Worker(0), RetryNow),
            (&known, Transient, Worker(1), Forward),
            (&known, Transient, Worker(u32::MAX), Forward),
            (&known, TimedOut, Worker(0), Forward),
            (&known, Panicked, Worker(0), Forward),
            (&known, Malformed, Worker(0), Forward),
            (&known, Permanent, Worker(0), Forward),
            (&known, DeliveryLimit, Worker(0), Forward),
            (&unknown, Transient, Worker(0), Forward),
            // The failed-order consumer's own failures, whatever they are.
            (&unknown, Transient, FailedOrderWorker, KeepRetrying),
            (&unknown, Permanent, FailedOrderWorker, KeepRetrying),
            (&unknown, Panicked, FailedOrderWorker, KeepRetrying),
            (&known, TimedOut, FailedOrderWorker, KeepRetrying),
            // In the failed-order queue: two delayed retries, within an hour.
            (&known, Transient, Queue(0, 0), retry_after(1)),
            (&known, Transient, Queue(1, 5), retry_after(10)),
            (&known, Transient, Queue(2, 20), DeadLetter(Reason::RetriesExhausted)),
            (&known, Transient, Queue(u32::MAX, 0), DeadLetter(Reason::RetriesExhausted)),
            (&known, TimedOut, Queue(0, 0), retry_after(1)),
            (&known, TimedOut, Queue(2, 0), DeadLetter(Reason::RetriesExhausted)),
            (&known, Panicked, Queue(1, 0), retry_after(10)),
            (&known, Panicked, Queue(2, 0), DeadLetter(Reason::RetriesExhausted)),
            (&known, DeliveryLimit, Queue(0, 0), retry_after(1)),
            (&known, DeliveryLimit, Queue(2, 0), DeadLetter(Reason::DeliveryLimit)),
            (&known, DeliveryLimit, QueueAfterLimit(1, 0), DeadLetter(Reason::DeliveryLimit)),
            (&known, Transient, QueueAfterLimit(1, 0), retry_after(10)),
            (&known, Transient, Queue(0, 3600), retry_after(1)),
            (&known, Transient, Queue(0, 3601), DeadLetter(Reason::TooOld)),
            (&known, Transient, Queue(0, -50), retry_after(1)),
            (&known, Malformed, Queue(0, 0), DeadLetter(Reason::Malformed)),
            (&known, Permanent, Queue(0, 0), DeadLetter(Reason::Permanent)),
            (&unknown, Transient, Queue(0, 0), DeadLetter(Reason::NoOrigin)),
            (&unknown, Permanent, Queue(0, 0), DeadLetter(Reason::NoOrigin)),
        ] {
            let earlier = match at {
                Queue(retries, age) => history(kind, retries, age),
                QueueAfterLimit(retries, age) => {
                    History { hit_delivery_limit_before: true, ..history(kind, retries, age) }
                }
                Worker(_) | FailedOrderWorker => history(kind, 0, 0),
            };
            let point = match at {
                Worker(immediate_retries) => DecisionPoint::Worker { immediate_retries },
                FailedOrderWorker => DecisionPoint::FailedOrderWorker,
                Queue(..) | QueueAfterLimit(..) => DecisionPoint::FailedOrderQueue(&earlier),
            };
            assert_eq!(decided(policy.as_ref(), kind, point), expected, "{kind} at {at:?}, policy {policy:?}");
        }
    }

    #[test]
    fn a_second_delivery_limit_is_dead_lettered() {
        let again = History { hit_delivery_limit_before: true, ..history(FailureKind::DeliveryLimit, 1, 0) };
        let action = decided(Some(&policy()), FailureKind::DeliveryLimit, DecisionPoint::FailedOrderQueue(&again));
        assert_eq!(action, Action::DeadLetter(DeadLetterReason::DeliveryLimit));
    }

    #[test]
    fn the_time_that_a_service_asks_for_skips_immediate_retries_and_chooses_the_delay() {
        let delays = ["1s", "10s", "2s", "1m"].map(|delay| delay.parse().unwrap());
        let policy = RetryPolicy { delays: delays.to_vec(), ..policy() };
        let now = Timestamp::from_second(NOW).unwrap();
        let after = |wanted, retries| {
            let failure = failure(FailureKind::Transient).with_retry_after(Some(Duration::from_millis(wanted)));
            let worker = DecisionPoint::Worker { immediate_retries: 0 };
            assert_eq!(decide(Some(&policy), &failure, worker, now), Action::Forward);
            let history = history(FailureKind::Transient, retries, 0);
            decide(Some(&policy), &failure, DecisionPoint::FailedOrderQueue(&history), now)
        };
        for (wanted, retries, chosen) in
            [(0, 0, 1), (1_000, 0, 1), (1_001, 0, 10), (30_000, 0, 60), (90_000, 0, 60), (1_500, 2, 2), (90_000, 3, 60)]
        {
            assert_eq!(after(wanted, retries), Action::RetryAfter(seconds(chosen)), "{wanted} ms after {retries}");
        }
        assert_eq!(after(1_000, 4), Action::DeadLetter(DeadLetterReason::RetriesExhausted));
    }

    #[test]
    fn without_an_origin_there_is_nowhere_to_retry() {
        let history = history(FailureKind::Transient, 0, 0);
        let action = decided(None, FailureKind::Transient, DecisionPoint::FailedOrderQueue(&history));
        assert_eq!(action, Action::DeadLetter(DeadLetterReason::NoOrigin));
    }
}
