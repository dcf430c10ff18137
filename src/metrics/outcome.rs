//! How a delivery ended: what its handler did with it, and how it was settled. Values only.

use std::sync::Arc;

use crate::message::Settlement;
use crate::recovery::{DeadLetterReason, Delay};

/// What a handler did with a delivery that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandlerOutcome {
    /// Its effects are recorded.
    Completed,
    /// Its effects had been recorded before.
    Duplicate,
    /// It is the cancellation of an order, which is carried out, or kept until the order arrives.
    Cancelled,
    /// It is an order that was cancelled before it was processed.
    Prevented,
    /// It is a notification for an order without an address: recorded, and not delivered.
    Skipped,
    /// A failed message was sent to a retry queue.
    Retried {
        /// The consumer that failed; `None` if the queue it failed in is unknown.
        consumer: Option<Arc<str>>,
        /// The delay of that queue.
        delay: Delay,
    },
    /// A failed message was sent back to its queue: its steps are undone there, or nothing proved that it had failed. Or a
    /// cancellation was sent to the queue of the consumer that has called the steps of its order.
    Returned,
    /// A failed message was dead-lettered.
    DeadLettered {
        /// The consumer that failed; `None` if the queue it failed in is unknown.
        consumer: Option<Arc<str>>,
        /// Why it is not retried.
        reason: DeadLetterReason,
        /// Which one.
        letter: Arc<DeadLetterFacts>,
    },
    /// A failed message is recorded as dead-lettered, and rejected, so that the broker itself dead-letters it: orderd cannot
    /// publish a copy of it.
    DeadLetteredByBroker {
        /// The consumer that failed; `None` if the queue it failed in is unknown.
        consumer: Option<Arc<str>>,
        /// Why it is not retried.
        reason: DeadLetterReason,
        /// Which one.
        letter: Arc<DeadLetterFacts>,
    },
}

/// What identifies a dead letter for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLetterFacts {
    /// The code of the last failure.
    pub code: String,
    /// The message's identity, such as the order's id.
    pub identity: String,
}

/// How a delivery ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeliveryOutcome {
    /// Its handler succeeded: acked, unless the broker is to dead-letter it.
    Handled(HandlerOutcome),
    /// Acked: its handler failed, and a copy in the failed-order queue is confirmed.
    Forwarded,
    /// Requeued, or redelivered by the broker because the subscription was lost.
    Released,
    /// Rejected: the broker dead-letters it.
    Rejected,
}

impl DeliveryOutcome {
    /// How it is settled with the broker.
    pub(crate) fn settlement(&self) -> Settlement {
        match self {
            DeliveryOutcome::Rejected | DeliveryOutcome::Handled(HandlerOutcome::DeadLetteredByBroker { .. }) => {
                Settlement::Reject
            }
            DeliveryOutcome::Handled(
                HandlerOutcome::Completed
                | HandlerOutcome::Duplicate
                | HandlerOutcome::Cancelled
                | HandlerOutcome::Prevented
                | HandlerOutcome::Skipped
                | HandlerOutcome::Retried { .. }
                | HandlerOutcome::Returned
                | HandlerOutcome::DeadLettered { .. },
            )
            | DeliveryOutcome::Forwarded => Settlement::Ack,
            DeliveryOutcome::Released => Settlement::Release,
        }
    }
}
