//! Application headers: a lossless form of AMQP's field table, and the names of the headers that have a meaning to orderd.
//!
//! Pure.

use std::collections::BTreeMap;

use bytes::Bytes;

/// A header's name: at most 255 bytes, AMQP's limit.
pub type HeaderName = String;

/// Application headers, ordered by name.
pub type Headers = BTreeMap<HeaderName, HeaderValue>;

/// A value of an AMQP field table, with its type as sent, so that consumers see no difference in a copy.
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
    /// `D`: digits, and how many of them follow the decimal point.
    Decimal {
        /// Digits after the decimal point.
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

/// What a value contains: other values, or none.
#[derive(Debug, Clone, Copy)]
pub enum HeaderContent<'v> {
    /// No other values. `bytes`: the length of a text or of bytes, 0 for what has a fixed size.
    Scalar {
        /// The length.
        bytes: usize,
    },
    /// A list of values.
    List(&'v [HeaderValue]),
    /// A table of headers.
    Table(&'v Headers),
}

impl HeaderValue {
    /// What it contains.
    pub fn content(&self) -> HeaderContent<'_> {
        match self {
            HeaderValue::Text(text) => HeaderContent::Scalar { bytes: text.len() },
            HeaderValue::Bytes(bytes) => HeaderContent::Scalar { bytes: bytes.len() },
            HeaderValue::List(values) => HeaderContent::List(values),
            HeaderValue::Table(headers) => HeaderContent::Table(headers),
            HeaderValue::Bool(_)
            | HeaderValue::I8(_)
            | HeaderValue::U8(_)
            | HeaderValue::I16(_)
            | HeaderValue::U16(_)
            | HeaderValue::I32(_)
            | HeaderValue::U32(_)
            | HeaderValue::I64(_)
            | HeaderValue::F32(_)
            | HeaderValue::F64(_)
            | HeaderValue::Decimal { .. }
            | HeaderValue::Timestamp(_)
            | HeaderValue::Void => HeaderContent::Scalar { bytes: 0 },
        }
    }

    /// The value as text, if it is text.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            HeaderValue::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value as an integer of at least 0, whatever its integer type: producers in other languages use different types.
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

/// Names of headers that have a meaning to orderd or to the broker.
pub mod names {
    /// Delayed retries so far (long).
    pub const RETRY_COUNT: &str = "x-retry-count";
    /// The queue a message was in when it first failed.
    pub const ORIGIN_QUEUE: &str = "x-origin-queue";
    /// The routing key of the message when it first failed.
    pub const ORIGIN_ROUTING_KEY: &str = "x-origin-routing-key";
    /// The exchange that the message had been published to when it first failed.
    pub const ORIGIN_EXCHANGE: &str = "x-origin-exchange";
    /// See [`crate::recovery::FailureKind`].
    pub const FAILURE_KIND: &str = "x-failure-kind";
    /// The failure's stable code.
    pub const FAILURE_CODE: &str = "x-failure-code";
    /// The failure's text, at most 1 KiB.
    pub const FAILURE_REASON: &str = "x-failure-reason";
    /// How long the service that failed asked to wait before the next call, in whole seconds (long).
    pub const RETRY_AFTER: &str = "x-retry-after";
    /// The message is back in its queue so that its steps are undone (boolean).
    pub const UNDO: &str = "x-undo";
    /// The run of steps that the message has claimed.
    pub const RUN: &str = "x-run";
    /// On a cancellation that another consumer has passed on: the id of the order that it cancels.
    pub const CANCELS: &str = "x-cancels";
    /// When the message first failed (timestamp).
    pub const FIRST_FAILED_AT: &str = "x-first-failed-at";
    /// When the message last failed (timestamp).
    pub const FAILED_AT: &str = "x-failed-at";
    /// When a dead letter was replayed (timestamp), set by the one who replays it as orderd's user.
    pub const REPLAYED_AT: &str = "x-replayed-at";
    /// On a dead letter that orderd has published again, and on all copies of it: the same on each, and on no other message.
    pub const REPLAY_ID: &str = "x-replay-id";
    /// The failures for which the message was replayed, the last ones (array of tables).
    pub const REPLAY_HISTORY: &str = "x-replay-history";
    /// Why the message was dead-lettered.
    pub const DEAD_LETTER_REASON: &str = "x-dead-letter-reason";
    /// The `user_id` of the message as it was first published, empty if it had none. A copy's own `user_id` is orderd's.
    pub const ORIGINAL_USER_ID: &str = "x-original-user-id";
    /// On a copy of a message without a `message_id`: the identity that orderd gave to the message.
    pub const IDENTITY: &str = "x-identity";
    /// How many of the sender's headers were removed from the copies of a message so far, because they did not fit (long).
    pub const HEADERS_DROPPED: &str = "x-headers-dropped";
    /// The names of the headers removed from this copy, the largest first, as far as they fit 255 bytes.
    pub const HEADERS_DROPPED_NAMES: &str = "x-headers-dropped-names";
    /// The headers that orderd adds to copies.
    pub const ADDED: &[&str] = &[
        RETRY_COUNT,
        ORIGIN_QUEUE,
        ORIGIN_ROUTING_KEY,
        ORIGIN_EXCHANGE,
        FAILURE_KIND,
        FAILURE_CODE,
        FAILURE_REASON,
        RETRY_AFTER,
        UNDO,
        RUN,
        CANCELS,
        FIRST_FAILED_AT,
        FAILED_AT,
        REPLAYED_AT,
        REPLAY_ID,
        REPLAY_HISTORY,
        DEAD_LETTER_REASON,
        ORIGINAL_USER_ID,
        IDENTITY,
        HEADERS_DROPPED,
        HEADERS_DROPPED_NAMES,
    ];
    /// The broker's history of dead-lettering (array of tables).
    pub const DEATH: &str = "x-death";
    /// A quorum queue's count of earlier deliveries.
    pub const DELIVERY_COUNT: &str = "x-delivery-count";
    /// RabbitMQ 4.x's count of acquisitions.
    pub const ACQUIRED_COUNT: &str = "x-acquired-count";
}

/// Headers that are removed from every copy: those that the broker sets, and those that add routes. On RabbitMQ 3.10, a
/// copied `x-death` can make the broker drop a message as a cycle.
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
