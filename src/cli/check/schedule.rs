//! When a message that keeps failing is retried, and how long it takes at most until it is dead-lettered. Pure.

use std::time::Duration;

use serde::Serialize;

use crate::message::ExchangeNames;
use crate::recovery::RetryPolicy;

/// When a message that keeps failing is retried, and how long it takes at most until it is dead-lettered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RetrySchedule {
    /// Immediate retries of each delivery.
    pub immediate: u32,
    /// Delayed retries, in order.
    pub delayed: Vec<DelayedRetry>,
    /// A message is dead-lettered once its first failure is older than this.
    #[serde(rename = "max_age_ms", serialize_with = "millis")]
    pub max_age: Duration,
    /// Maximum number of calls of the handler: 1 + `immediate` for each delivery.
    pub attempts: u32,
    /// The sum of the delays.
    #[serde(rename = "total_delay_ms", serialize_with = "millis")]
    pub total_delay: Duration,
    /// Longest time from the first attempt to dead-lettering, if every attempt takes until its deadline. Waiting for a free
    /// worker is not included.
    #[serde(rename = "worst_case_ms", serialize_with = "millis")]
    pub worst_case: Duration,
}

/// One delayed retry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DelayedRetry {
    /// The delay.
    #[serde(rename = "delay_ms", serialize_with = "millis")]
    pub delay: Duration,
    /// The sum of the delays up to this one: when the retry happens if attempts take no time.
    #[serde(rename = "after_ms", serialize_with = "millis")]
    pub after: Duration,
    /// The retry queue in which the message waits.
    pub queue: String,
}

pub(super) fn millis<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

pub(super) fn optional_millis<S: serde::Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => millis(duration, serializer),
        None => serializer.serialize_none(),
    }
}

impl RetrySchedule {
    /// The schedule for messages of `queue` under a policy. `timeout` is the handler's deadline.
    pub fn new(queue: &str, policy: &RetryPolicy, timeout: Duration) -> Self {
        let mut after = Duration::ZERO;
        let delayed: Vec<DelayedRetry> = policy
            .delays
            .iter()
            .map(|delay| {
                after += delay.as_duration();
                DelayedRetry { delay: delay.as_duration(), after, queue: ExchangeNames::retry_queue(queue, *delay) }
            })
            .collect();
        let deliveries = u32::try_from(delayed.len()).unwrap_or(u32::MAX).saturating_add(1);
        let attempts = deliveries.saturating_mul(policy.immediate.saturating_add(1));
        RetrySchedule {
            immediate: policy.immediate,
            delayed,
            max_age: policy.max_age,
            attempts,
            total_delay: after,
            worst_case: after.saturating_add(timeout.saturating_mul(attempts)),
        }
    }
}
