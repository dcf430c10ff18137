//! Messages and deliveries.
//!
//! Pure. Never changes what was received.

use std::borrow::Cow;

use bytes::Bytes;

use super::exchange_names::ExchangeNames;
use super::header::{HeaderValue, Headers, names};
use crate::domain::{BodyError, body_text, decompressed_length};

/// A message: properties, headers and body. A clone shares the body.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// The AMQP properties that orderd keeps.
    pub properties: Properties,
    /// Application headers.
    pub headers: Headers,
    /// The payload, untouched.
    pub body: Bytes,
    /// How many bytes of the payload are missing from `body`, which then holds only its beginning: the payload is larger than
    /// `broker.max_body`. Such a message is never published again.
    pub missing_bytes: usize,
}

impl Message {
    /// The body as text, decompressed if `content_encoding` says so; the decompressed text may have `max` bytes.
    ///
    /// # Errors
    /// [`BodyError`].
    pub fn text(&self, max: usize) -> Result<Cow<'_, str>, BodyError> {
        body_text(&self.body, self.properties.content_encoding.as_deref(), max)
    }

    /// What the body takes once it is decompressed, in bytes, but `max` at most; 0 if it is not compressed.
    pub fn decompressed_length(&self, max: usize) -> usize {
        decompressed_length(&self.body, self.properties.content_encoding.as_deref(), max)
    }
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
    /// Set by the application.
    pub correlation_id: Option<String>,
    /// Set by the application.
    pub reply_to: Option<String>,
    /// Per-message TTL in milliseconds, as text. Never republished: it would block the head of a queue.
    pub expiration: Option<String>,
    /// The message's identity if the body has none.
    pub message_id: Option<String>,
    /// Seconds since the Unix epoch.
    pub timestamp: Option<u64>,
    /// The AMQP `type` property.
    pub message_type: Option<String>,
    /// The broker user that published the message, verified by the broker. What orderd publishes states orderd's user, so copies
    /// have the original in a header.
    pub user_id: Option<String>,
    /// Set by the application.
    pub app_id: Option<String>,
}

/// Identifies a delivery by the connection it came on and its tag. Settling it after that connection has ended does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeliveryId {
    /// The number of the connection, unique in this process.
    pub connection: u64,
    /// The broker's delivery tag: 1, 2, 3, … on its channel.
    pub tag: u64,
}

/// A message delivered to this process, to be settled exactly once.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Identifies it when it is settled.
    pub id: DeliveryId,
    /// The exchange it was last published to. Empty for the default exchange.
    pub exchange: String,
    /// The key it was last published with.
    pub routing_key: String,
    /// The broker's hint that it may have been delivered before. Says nothing about identity.
    pub redelivered: bool,
    /// The message.
    pub message: Message,
}

impl Delivery {
    /// How often the broker has delivered this message before, from the quorum queue's `x-delivery-count`; 0 on a first
    /// delivery.
    pub fn delivery_count(&self) -> u64 {
        self.message.headers.get(names::DELIVERY_COUNT).and_then(HeaderValue::as_u64).unwrap_or(0)
    }

    /// The routing key the message was first published with.
    ///
    /// orderd republishes a message with another routing key: the name of its queue after a retry, or a key that begins with
    /// [`ExchangeNames::FAILED_KEY`] after a failure. Such copies have the first key in a header. On other messages, that
    /// header was set by the producer and is ignored.
    pub fn first_routing_key(&self) -> &str {
        let is_copy = !self.routing_key.contains('.') || self.routing_key.starts_with(ExchangeNames::FAILED_KEY);
        let origin = self.message.headers.get(names::ORIGIN_ROUTING_KEY).and_then(HeaderValue::as_text);
        origin.filter(|_| is_copy).unwrap_or(&self.routing_key)
    }
}
