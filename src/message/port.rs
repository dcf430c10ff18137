//! The ports: how workers get deliveries, settle them and publish. `amqp` implements them, `worker` uses
//! them, and neither knows the other.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

use super::{Delivery, DeliveryId, Message};

/// A message on its way to an exchange.
#[derive(Debug, Clone)]
pub struct Publication {
    /// The exchange's name.
    pub exchange: Arc<str>,
    /// At most 255 bytes.
    pub routing_key: String,
    /// What is sent; always persistent and mandatory.
    pub message: Message,
}

/// Publishes and waits for the broker's word.
pub trait Publisher: Send + Sync + 'static {
    /// Publishes all of them, pipelined, and resolves once the broker has confirmed every one.
    ///
    /// Lost connections are waited out and what was not confirmed is sent again, so the broker may get a
    /// publication twice; it never gets none if this returns `Ok`. Dropping the future gives up waiting,
    /// not publishing.
    ///
    /// # Errors
    /// The first refusal among them; the others may or may not have been published.
    fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), PublishError>>;
}

/// Why a publication was not taken over by the broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No queue is bound for it: the broker sent it back.
    #[error("exchange {exchange:?} has no queue for routing key {routing_key:?}: {reply}")]
    Unroutable {
        /// Where it was published.
        exchange: Arc<str>,
        /// With which key.
        routing_key: String,
        /// The broker's reply, such as `312 NO_ROUTE`.
        reply: String,
    },
    /// The broker said no (`basic.nack`): a queue that rejects publishes, or lost its majority.
    #[error("the broker refused a message to exchange {exchange:?} with routing key {routing_key:?}")]
    Refused {
        /// Where it was published.
        exchange: Arc<str>,
        /// With which key.
        routing_key: String,
    },
    /// A name, header or body does not fit AMQP or the publisher's byte limit; it never will.
    #[error("cannot encode a message for exchange {exchange:?}: {problem}")]
    Invalid {
        /// Where it was to go.
        exchange: Arc<str>,
        /// Which limit it breaks.
        problem: String,
    },
    /// The publisher has been closed.
    #[error("the publisher is closed")]
    Closed,
}

/// Opens subscriptions to queues.
pub trait Consumer: Send + Sync + 'static {
    /// Consumes `queue` with at most `prefetch` unsettled deliveries. One attempt: the caller backs off.
    fn subscribe(&self, queue: &str, prefetch: u16) -> BoxFuture<'_, Result<Subscription, SubscribeError>>;
}

/// Why a queue could not be consumed now.
#[derive(Debug, thiserror::Error)]
#[error("cannot consume queue {queue:?}")]
pub struct SubscribeError {
    /// The queue's name.
    pub queue: String,
    /// What the network or the broker said.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// One epoch of consuming: ends with its channel or connection.
pub struct Subscription {
    /// What the broker hands out. Ends when the epoch has ended, or after [`Settler::cancel`] once all that
    /// had been handed out is yielded.
    pub deliveries: BoxStream<'static, Delivery>,
    /// Settles them.
    pub settler: Arc<dyn Settler>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}

/// What becomes of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// Done with: the broker may forget it (`basic.ack`).
    Ack,
    /// Back to its queue, for whoever comes next (`basic.nack` with requeue).
    Release,
    /// To its queue's dead letter exchange, by the broker itself (`basic.nack` without requeue): the last way out
    /// for what cannot be published again.
    Reject,
}

/// Settles the deliveries of one subscription.
pub trait Settler: Send + Sync + 'static {
    /// Takes note of a settlement and sends it soon, together with others. Of a past epoch: does nothing,
    /// the broker hands the message out again.
    fn settle(&self, delivery: DeliveryId, settlement: Settlement);

    /// Resolves when the epoch has ended: nothing settled from then on reaches the broker.
    fn ended(&self) -> BoxFuture<'static, ()>;

    /// Stops intake: the broker hands out nothing more, and `deliveries` ends after what it had handed out.
    fn cancel(&self) -> BoxFuture<'static, ()>;

    /// Stops intake as [`Settler::cancel`] does, for whoever will work on all that was handed out: at a moment, if there
    /// is one soon, at which nothing is on its way from the broker.
    fn wind_down(&self) -> BoxFuture<'static, ()>;

    /// Sends all settlements noted so far, waits until the broker has them, and closes the subscription.
    ///
    /// # Errors
    /// [`SettleError`] when the epoch ended before: what was settled last may be handed out again.
    fn close(&self) -> BoxFuture<'static, Result<(), SettleError>>;
}

/// The subscription was lost before its last settlements were known to have reached the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the subscription was lost before its last settlements reached the broker")]
pub struct SettleError;
