//! The traits through which messages are consumed: subscribing, and settling deliveries. `amqp` implements them, and
//! `pipeline` uses them.
//!
//! Never names the AMQP client or a handler, so that neither depends on the other.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::{CONFIRMS_OVERDUE, Delivery, DeliveryId};

/// Opens subscriptions to queues.
pub trait Consumer: Send + Sync + 'static {
    /// Consumes `queue` with at most `prefetch` unsettled deliveries. Makes one attempt: the caller backs off.
    fn subscribe(&self, queue: &str, prefetch: u16) -> BoxFuture<'_, Result<Subscription, SubscribeError>>;
}

/// Why a queue cannot be consumed.
#[derive(Debug, thiserror::Error)]
#[error("cannot consume from queue {queue:?}")]
pub struct SubscribeError {
    /// The queue's name.
    pub queue: String,
    /// The cause, such as the broker's refusal.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// A consumer on a connection of its own. Ends with that connection.
pub struct Subscription {
    /// What the broker delivers. Ends when the connection has ended or, after [`Settler::cancel`], once everything delivered
    /// until then has been yielded.
    pub deliveries: BoxStream<'static, Delivery>,
    /// Settles them.
    pub settler: Arc<dyn Settler>,
    /// The address of the broker's node that it is connected to, as in `broker.addresses`.
    pub address: Arc<str>,
    /// Whether the broker has been silent for longer than a living one is.
    pub silent: Arc<AtomicBool>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

/// How a delivery is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Processed: the broker removes it from the queue (`basic.ack`).
    Ack,
    /// Requeued, for any consumer (`basic.nack` with requeue).
    Release,
    /// Dead-lettered by the broker itself (`basic.nack` without requeue): the last resort for a message that cannot be
    /// republished.
    Reject,
}

/// Why a subscription was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LossCause {
    /// A delivery was not settled within the broker's acknowledgement timeout (`consumer_timeout`), which is this long. Where the
    /// broker does not state it, this is how long the delivery was held.
    AckTimeout(Duration),
    /// Anything else, in words.
    Other(String),
}

/// A broker that has not answered for this long although settlements were sent is a reason not to be ready.
pub const ANSWERS_OVERDUE: Duration = CONFIRMS_OVERDUE;

/// Settles the deliveries of one subscription.
pub trait Settler: Send + Sync + 'static {
    /// Records a settlement, which is sent shortly afterwards, together with others. Does nothing if the delivery came on an
    /// earlier connection, because the broker redelivers it.
    fn settle(&self, delivery: DeliveryId, settlement: Settlement);

    /// Resolves when the connection has ended, with the cause. Later settlements do not reach the broker.
    fn ended(&self) -> BoxFuture<'static, LossCause>;

    /// How long the broker has not answered although settlements were sent: one direction of the connection may be lost.
    fn unanswered(&self) -> Duration {
        Duration::ZERO
    }

    /// Whether the broker has ended the connection for a reason that no message can have caused, such as its shutdown or a lost
    /// quorum. `false` while the connection is open.
    fn was_ended_by_broker(&self) -> bool;

    /// Cancels the consumer: the broker delivers nothing more, and `deliveries` ends after what was delivered before.
    fn cancel(&self) -> BoxFuture<'static, ()>;

    /// Like [`Settler::cancel`], but first waits, for a short time at most, until no delivery is on its way from the broker.
    /// For callers that will process everything delivered.
    fn cancel_when_idle(&self) -> BoxFuture<'static, ()>;

    /// Sends all settlements recorded so far, waits until the broker has applied them, and closes the subscription.
    ///
    /// # Errors
    /// [`SettleError`] if the connection ended before that: the broker may redeliver what was settled last.
    fn close(&self) -> BoxFuture<'static, Result<(), SettleError>>;
}

/// The subscription was lost before the broker was known to have received its last settlements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the subscription was lost before its last settlements reached the broker")]
pub struct SettleError;
