//! Messages, and deliveries of them.

use bytes::Bytes;

use super::header::{HeaderValue, Headers, names};

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
}
