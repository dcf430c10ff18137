//! Messages, deliveries, and the identity of a message.
//!
//! Pure. Never changes what was received.

use std::borrow::Cow;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::exchange_names::ExchangeNames;
use super::header::{HeaderValue, Headers, names};
use crate::domain::{BodyError, body_text};

/// Longest message id that is used as an identity, in bytes. With a suffix such as `/analytics/failed` it must fit AMQP's
/// limit of 255 bytes.
const MAX_IDENTITY_BYTES: usize = 200;

/// A message: properties, headers and body. A clone shares the body.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// The AMQP properties that orderd keeps.
    pub properties: Properties,
    /// Application headers.
    pub headers: Headers,
    /// The payload, untouched.
    pub body: Bytes,
}

impl Message {
    /// The body as text, decompressed if `content_encoding` says so.
    ///
    /// # Errors
    /// [`BodyError`].
    pub fn text(&self) -> Result<Cow<'_, str>, BodyError> {
        body_text(&self.body, self.properties.content_encoding.as_deref())
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
    /// The broker checks it against the publishing connection's user, so it is never republished.
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

    /// The identity of a message that is not an order: its message id or, without one, a hash of its first routing key and its
    /// body. Two such messages with the same key and body are the same message. A message id that is too long to derive
    /// other ids from is replaced by its hash.
    pub fn identity(&self) -> String {
        match self.message.properties.message_id.as_deref() {
            Some(id) if (1..=MAX_IDENTITY_BYTES).contains(&id.len()) => id.to_owned(),
            None | Some("") => hash(&[self.first_routing_key().as_bytes(), b"\0", &self.message.body]),
            Some(long) => hash(&[long.as_bytes()]),
        }
    }
}

fn hash(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    parts.iter().for_each(|part| digest.update(part));
    let hex: String = digest.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(message_id: Option<&str>, body: &'static str) -> Delivery {
        let properties = Properties { message_id: message_id.map(str::to_owned), ..Properties::default() };
        Delivery {
            id: DeliveryId { connection: 1, tag: 1 },
            exchange: "orders".to_owned(),
            routing_key: "order.notification.email".to_owned(),
            redelivered: false,
            message: Message { properties, headers: Headers::new(), body: body.into() },
        }
    }

    #[test]
    fn an_empty_message_id_is_no_identity() {
        assert_ne!(delivery(Some(""), "a").identity(), delivery(Some(""), "b").identity());
        assert_eq!(delivery(Some(""), "a").identity(), delivery(None, "a").identity());
        assert_eq!(delivery(Some("m-1"), "a").identity(), "m-1");
    }

    #[test]
    fn an_identity_is_short_enough_to_derive_message_ids_from() {
        assert!(delivery(Some(&"x".repeat(255)), "a").identity().len() < 50);
    }

    #[test]
    fn a_retried_message_keeps_its_identity() {
        let mut back = delivery(None, "a");
        let first = back.identity();
        back.routing_key = "notification_queue".to_owned();
        back.message.headers.insert(names::ORIGIN_ROUTING_KEY.to_owned(), "order.notification.email".into());
        assert_eq!(back.identity(), first);
    }
}
