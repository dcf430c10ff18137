//! Why a replay waits: values only.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The kinds of reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitCause {
    /// The queue's consumer is paused.
    Paused,
    /// The queue's consumer has no subscription.
    NoSubscription,
    /// A circuit breaker of the queue's consumer is not closed.
    CircuitBreaker,
    /// The broker does not accept what is published.
    Refused,
    /// The broker has not confirmed what was published.
    Unconfirmed,
    /// Another replay publishes to the same queue, or waits for as many first outcomes as all replays together may.
    OtherReplay,
    /// No outcome is seen.
    Outcome,
    /// The ledger's disk is nearly full.
    DiskSpace,
}

impl WaitCause {
    /// All of them.
    pub const ALL: [WaitCause; 8] = [
        WaitCause::Paused,
        WaitCause::NoSubscription,
        WaitCause::CircuitBreaker,
        WaitCause::Refused,
        WaitCause::Unconfirmed,
        WaitCause::OtherReplay,
        WaitCause::Outcome,
        WaitCause::DiskSpace,
    ];

    /// Its name in the status and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            WaitCause::Paused => "paused",
            WaitCause::NoSubscription => "no_subscription",
            WaitCause::CircuitBreaker => "circuit_breaker",
            WaitCause::Refused => "refused",
            WaitCause::Unconfirmed => "unconfirmed",
            WaitCause::OtherReplay => "other_replay",
            WaitCause::Outcome => "outcome",
            WaitCause::DiskSpace => "disk_space",
        }
    }
}

/// What may be published to a queue now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueAccess {
    /// Its consumer processes it.
    Open,
    /// One letter at a time: it shows whether a service is available again.
    Trial(Waiting),
    /// Nothing.
    Closed(Waiting),
}

/// Why a replay waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The kind of reason.
    pub cause: WaitCause,
    /// The reason, for people.
    pub text: String,
}
