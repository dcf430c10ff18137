//! Application headers: the AMQP field table without loss, and the names orderd gives meaning to.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A header's name: at most 255 bytes, as AMQP bounds it.
pub type HeaderName = String;

/// Application headers, in the order of their names.
pub type Headers = BTreeMap<HeaderName, HeaderValue>;

/// One value of an AMQP field table, in the type it was sent in, so that a copy is the same to its reader.
#[derive(Debug, Clone, PartialEq)]
pub enum HeaderValue {
    /// `t`
    Bool(bool),
    /// `b`
    I8(i8),
    /// `B`
    U8(u8),
    /// `s`
    I16(i16),
    /// `u`
    U16(u16),
    /// `I`
    I32(i32),
    /// `i`
    U32(u32),
    /// `l`
    I64(i64),
    /// `f`
    F32(f32),
    /// `d`
    F64(f64),
    /// `D`: digits and how many of them follow the point.
    Decimal {
        /// Digits behind the point.
        scale: u8,
        /// All digits.
        digits: i32,
    },
    /// `S`
    Text(String),
    /// `x`
    Bytes(Bytes),
    /// `A`
    List(Vec<HeaderValue>),
    /// `F`
    Table(Headers),
    /// `T`, seconds since the Unix epoch.
    Timestamp(u64),
    /// `V`
    Void,
}

impl HeaderValue {
    /// The value as text, if it is text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            HeaderValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value as a whole number of at least 0, whatever integer type it came in. Producers in other
    /// languages choose types of their own.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            HeaderValue::I8(v) => v.try_into().ok(),
            HeaderValue::U8(v) => Some(v.into()),
            HeaderValue::I16(v) => v.try_into().ok(),
            HeaderValue::U16(v) => Some(v.into()),
            HeaderValue::I32(v) => v.try_into().ok(),
            HeaderValue::U32(v) => Some(v.into()),
            HeaderValue::I64(v) => v.try_into().ok(),
            HeaderValue::Timestamp(v) => Some(v),
            _ => None,
        }
    }
}

impl From<&str> for HeaderValue {
    fn from(text: &str) -> Self {
        HeaderValue::Text(text.to_owned())
    }
}

/// Header names with a meaning to orderd or to the broker.
pub mod names {
    /// Delayed retries so far (long).
    pub const RETRY_COUNT: &str = "x-retry-count";
    /// The queue a message was in when it first failed.
    pub const ORIGIN_QUEUE: &str = "x-origin-queue";
    /// The routing key it had then.
    pub const ORIGIN_ROUTING_KEY: &str = "x-origin-routing-key";
    /// The exchange it had come through then.
    pub const ORIGIN_EXCHANGE: &str = "x-origin-exchange";
    /// See [`crate::recovery::FailureKind`].
    pub const FAILURE_KIND: &str = "x-failure-kind";
    /// Stable code of the failure.
    pub const FAILURE_CODE: &str = "x-failure-code";
    /// Text of the failure, at most 1 KiB.
    pub const FAILURE_REASON: &str = "x-failure-reason";
    /// When it first failed (timestamp).
    pub const FIRST_FAILED_AT: &str = "x-first-failed-at";
    /// When it last failed (timestamp).
    pub const FAILED_AT: &str = "x-failed-at";
    /// Why it was dead-lettered.
    pub const DEAD_LETTER_REASON: &str = "x-dead-letter-reason";
    /// The `user_id` property of a copy, which the broker would check.
    pub const ORIGINAL_USER_ID: &str = "x-original-user-id";
    /// The broker's history of dead-lettering (array of tables).
    pub const DEATH: &str = "x-death";
    /// Quorum queues' count of earlier deliveries.
    pub const DELIVERY_COUNT: &str = "x-delivery-count";
    /// RabbitMQ 4.x' count of acquisitions.
    pub const ACQUIRED_COUNT: &str = "x-acquired-count";
}

/// Headers that no copy carries: the broker's own marks and routing extras. On RabbitMQ 3.10 a copied
/// `x-death` can make the broker drop a message as a cycle.
pub const STRIPPED: &[&str] = &[
    names::DEATH,
    "x-first-death-exchange",
    "x-first-death-queue",
    "x-first-death-reason",
    "x-last-death-exchange",
    "x-last-death-queue",
    "x-last-death-reason",
    names::DELIVERY_COUNT,
    names::ACQUIRED_COUNT,
    "CC",
    "BCC",
];
