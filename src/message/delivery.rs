//! Messages, and deliveries of them.

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::header::{HeaderValue, Headers, names};
use super::route::Names;

/// What a producer sent: properties, headers and body. A clone shares the body.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// The AMQP properties that orderd keeps.
    pub properties: Properties,
    /// Application headers.
    pub headers: Headers,
    /// The payload, untouched.
    pub body: Bytes,
}

/// AMQP 0-9-1 message properties, except the delivery mode: everything orderd publishes is persistent (2).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties {
    /// MIME type of the body.
    pub content_type: Option<String>,
    /// MIME encoding of the body.
    pub content_encoding: Option<String>,
    /// 0 to 255.
    pub priority: Option<u8>,
    /// Chosen by the application.
    pub correlation_id: Option<String>,
    /// Chosen by the application.
    pub reply_to: Option<String>,
    /// Per-message TTL in milliseconds, as text. Never republished: it would block a queue's head.
    pub expiration: Option<String>,
    /// The message's identity where the body has none.
    pub message_id: Option<String>,
    /// Seconds since the Unix epoch.
    pub timestamp: Option<u64>,
    /// The AMQP `type` property.
    pub message_type: Option<String>,
    /// The broker checks it against the publishing connection's user, so it is never republished.
    pub user_id: Option<String>,
    /// Chosen by the application.
    pub app_id: Option<String>,
}

/// Names one delivery on one channel of one epoch. Settling it after its epoch has ended does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeliveryId {
    /// Counts the subscriptions of this process; never reused.
    pub epoch: u64,
    /// The broker's delivery tag: 1, 2, 3, … on its channel.
    pub tag: u64,
}

/// One message handed to this process, to be settled exactly once.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// What to settle it by.
    pub id: DeliveryId,
    /// The exchange it was last published to; empty for the default exchange.
    pub exchange: String,
    /// The key it was last published with.
    pub routing_key: String,
    /// The broker's hint that it may have been delivered before. Says nothing about identity.
    pub redelivered: bool,
    /// What was sent.
    pub message: Message,
}

impl Delivery {
    /// How often the broker has handed this message out before, from the quorum queue's `x-delivery-count`;
    /// 0 on a first delivery.
    pub fn delivery_count(&self) -> u64 {
        self.message.headers.get(names::DELIVERY_COUNT).and_then(HeaderValue::as_u64).unwrap_or(0)
    }

    /// The key the message was first published with. What comes back from a retry has its queue's name for a
    /// key, a failure one that says so, and both carry the first key in a header. On other messages that header
    /// is a producer's, and not believed.
    pub fn first_routing_key(&self) -> &str {
        let copied = !self.routing_key.contains('.') || self.routing_key.starts_with(Names::FAILED_KEY);
        let origin = self.message.headers.get(names::ORIGIN_ROUTING_KEY).and_then(HeaderValue::as_text);
        origin.filter(|_| copied).unwrap_or(&self.routing_key)
    }

    /// The identity of a message that is not an order: its message id, else a hash of its first routing key
    /// and its body, so that the same text under the same key is the same message.
    pub fn identity(&self) -> String {
        self.message.properties.message_id.clone().unwrap_or_else(|| {
            let digest = Sha256::new()
                .chain_update(self.first_routing_key())
                .chain_update([0])
                .chain_update(&self.message.body)
                .finalize();
            let hex: String = digest[..16].iter().map(|byte| format!("{byte:02x}")).collect();
            format!("sha256:{hex}")
        })
    }
}
