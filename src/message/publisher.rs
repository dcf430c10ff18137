//! The trait through which messages are published. `amqp` implements it, and `pipeline` uses it.
//!
//! Never names the AMQP client or a handler, so that neither depends on the other.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::Message;

/// A message to be published.
#[derive(Debug, Clone)]
pub struct Publication {
    /// The exchange's name.
    pub exchange: Arc<str>,
    /// At most 255 bytes.
    pub routing_key: String,
    /// What is published; always persistent and mandatory.
    pub message: Message,
}

/// Publishes messages and waits for the broker's confirms.
pub trait Publisher: Send + Sync + 'static {
    /// Publishes all of them, pipelined, and resolves once the broker has confirmed every one.
    ///
    /// If the connection is lost, this waits for the next one and publishes again what is unconfirmed. So the broker may
    /// receive a publication twice, but if this returns `Ok`, it has received each of them. Dropping the future stops the
    /// waiting, not the publishing.
    ///
    /// # Errors
    /// The first failure. The other publications may or may not have been published.
    fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), PublishError>>;
}

/// Why a publication was not accepted by the broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// The broker returned it because no queue is bound for it.
    #[error("exchange {exchange:?} has no queue for routing key {routing_key:?}: {reply}")]
    Unroutable {
        /// The exchange it was published to.
        exchange: Arc<str>,
        /// The routing key it was published with.
        routing_key: String,
        /// The broker's reply, such as `312 NO_ROUTE`.
        reply: String,
    },
    /// The broker rejected it (`basic.nack`): its queue rejects publishes, or has lost its majority.
    #[error("the broker refused a message to exchange {exchange:?} with routing key {routing_key:?}")]
    Refused {
        /// The exchange it was published to.
        exchange: Arc<str>,
        /// The routing key it was published with.
        routing_key: String,
    },
    /// A name, header or body does not fit AMQP or the publisher's byte limit. Trying again cannot help.
    #[error("cannot encode a message for exchange {exchange:?}: {problem}")]
    Invalid {
        /// The exchange it was to be published to.
        exchange: Arc<str>,
        /// Which limit it breaks.
        problem: String,
    },
    /// The publisher has been closed.
    #[error("the publisher is closed")]
    Closed,
}
