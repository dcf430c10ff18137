//! The trait through which messages are published. `amqp` implements it, and `pipeline` uses it.
//!
//! Never names the AMQP client or a handler, so that neither depends on the other.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Message;

/// Publications that the broker has neither confirmed nor refused for this long are overdue: its queue has no majority, its
/// node is isolated, it has an alarm, or the connection loses what is sent over it.
pub const CONFIRMS_OVERDUE: Duration = Duration::from_secs(5);

/// How long a delivery waits for a ledger that cannot record, or for a broker that does not accept what it causes, before it is
/// released and the subscription is closed until the outage ends. Well below the broker's default acknowledgement timeout
/// (`consumer_timeout`, 30 min), after which it would close the channel, again and again, and count each time toward the delivery
/// limit.
pub const MAX_HOLD: Duration = Duration::from_secs(300);

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
    /// Publishes all of them, pipelined, and resolves once the broker has answered each one.
    ///
    /// If the connection is lost, this waits for the next one and publishes again what is unconfirmed. So the broker may
    /// receive a publication twice, but if this returns `Ok`, it has received each of them. Dropping the future stops the
    /// waiting, not the publishing.
    ///
    /// # Errors
    /// [`Unpublished`] names what was not accepted; the broker has confirmed the others, so they need not be published again.
    /// After a permanent error, nothing is known of the others. If some cannot be encoded, all of these are named, and none is published.
    fn publish(&self, publications: Arc<[Publication]>) -> BoxFuture<'static, Result<(), Unpublished>>;

    /// Resolves when the broker may accept what it refused before: the topology was declared again, an exchange that was missing
    /// exists again, or there is a new connection. Only what happens after the call counts. Cancel-safe.
    fn acceptance(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
}

/// What the broker did not accept of the publications of one call. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} publications were not accepted{}", .failures.len(), .failures.first().map(|(_, first)| format!("; the first: {first}")).unwrap_or_default())]
pub struct Unpublished {
    /// The index of each among the call's publications, and why it was not accepted.
    pub failures: Vec<(usize, PublishError)>,
}

impl Unpublished {
    /// The one publication with this index failed.
    pub fn one(index: usize, error: PublishError) -> Self {
        Unpublished { failures: vec![(index, error)] }
    }

    /// The error that another attempt cannot help, if there is one.
    pub fn permanent(&self) -> Option<&PublishError> {
        self.failures.iter().map(|(_, error)| error).find(|error| error.is_permanent())
    }

    /// The publications that failed, of those that the call published.
    pub fn rest(&self, publications: &Arc<[Publication]>) -> Arc<[Publication]> {
        if self.failures.len() == publications.len() {
            return Arc::clone(publications);
        }
        self.failures.iter().map(|(index, _)| publications[*index].clone()).collect()
    }

    /// The first error.
    pub fn into_first(self) -> PublishError {
        self.failures.into_iter().next().map_or(PublishError::Closed, |(_, error)| error)
    }
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
    /// The broker rejected it (`basic.nack`), for which it gives no reason. It may accept it at any time.
    #[error(
        "the broker rejected a message to exchange {exchange:?} with routing key {routing_key:?} (nack): a queue is full and \
         rejects what exceeds its limit, or has lost its leader"
    )]
    Nacked {
        /// The exchange it was published to.
        exchange: Arc<str>,
        /// The routing key it was published with.
        routing_key: String,
    },
    /// The broker closed the channel because of it, for example without permission.
    #[error("the broker refused a message to exchange {exchange:?} with routing key {routing_key:?}: {reply}")]
    Refused {
        /// The exchange it was published to.
        exchange: Arc<str>,
        /// The routing key it was published with.
        routing_key: String,
        /// The broker's reply, such as `403 ACCESS_REFUSED - …`.
        reply: String,
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

impl PublishError {
    /// Whether its exchange exists and no queue is bound for it, also not to the alternate exchange.
    pub fn is_without_queue(&self) -> bool {
        matches!(self, PublishError::Unroutable { reply, .. } if reply.starts_with("312"))
    }

    /// Whether another attempt cannot help.
    pub fn is_permanent(&self) -> bool {
        match self {
            PublishError::Invalid { .. } | PublishError::Closed => true,
            PublishError::Unroutable { .. } | PublishError::Nacked { .. } | PublishError::Refused { .. } => false,
        }
    }
}
