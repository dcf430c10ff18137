//! What a message's headers say about its earlier failures.
//!
//! Pure. A producer can send the same headers, so they count only on copies that orderd is proven to have published.

use std::time::Duration;

use jiff::Timestamp;

use super::{Failure, FailureKind};
use crate::message::{Delivery, ExchangeNames, HeaderValue, Headers, Provenance, names};

/// AMQP's limit, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// Where a message was when it first failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The queue. Retries return to it and to no other.
    pub queue: String,
    /// The exchange it was published to.
    pub exchange: String,
    /// The routing key it was published with.
    pub routing_key: String,
}

/// The failures of a message, as its headers in the failed-order queue state them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Where it first failed; `None` if neither orderd nor the broker's dead-lettering put the message there.
    pub origin: Option<Origin>,
    /// Delayed retries so far.
    pub retries: u32,
    /// When it first failed.
    pub first_failed_at: Timestamp,
    /// When it last failed.
    pub failed_at: Timestamp,
    /// The last failure.
    pub failure: Failure,
    /// Whether an earlier failure, before the last, was the delivery limit.
    pub hit_delivery_limit_before: bool,
    /// Whether the message had returned to its queue so that its steps are undone.
    pub is_undo: bool,
}

/// The delayed retries a message has had. A producer could send the header too, so it counts only on proven copies.
pub fn trusted_retry_count(delivery: &Delivery, provenance: Provenance<'_>) -> u32 {
    if provenance.is_copy { header_retries(&delivery.message.headers) } else { 0 }
}

fn header_retries(headers: &Headers) -> u32 {
    headers
        .get(names::RETRY_COUNT)
        .and_then(HeaderValue::as_u64)
        .map_or(0, |count| u32::try_from(count).unwrap_or(u32::MAX))
}

impl History {
    /// Reads the headers of a delivery of the failed-order queue.
    pub fn read(delivery: &Delivery, provenance: Provenance<'_>, now: Timestamp) -> Self {
        let trusted = if provenance.is_copy { &delivery.message.headers } else { &Headers::new() };
        let (retries, first_failed_at) = (header_retries(trusted), read_time(trusted, names::FIRST_FAILED_AT));
        let is_undo = trusted.get(names::UNDO) == Some(&HeaderValue::Bool(true));
        match BrokerDeath::newest(delivery) {
            // Dead-lettered by the broker itself. The failure headers of a copy are those of an earlier attempt.
            Some(death) => {
                let earlier = read_failure(trusted).map(|failure| failure.kind);
                History {
                    origin: Some(death.origin(trusted)),
                    retries,
                    first_failed_at: first_failed_at.unwrap_or(now),
                    failed_at: now,
                    failure: death.failure(),
                    hit_delivery_limit_before: earlier == Some(FailureKind::DeliveryLimit),
                    is_undo,
                }
            }
            None => {
                let unknown = || {
                    let reason = "not published by orderd and not dead-lettered by the broker";
                    Failure::new(FailureKind::Permanent, "unknown_failure", reason)
                };
                History {
                    origin: read_origin(trusted),
                    retries,
                    first_failed_at: first_failed_at.unwrap_or(now),
                    failed_at: read_time(trusted, names::FAILED_AT).unwrap_or(now),
                    failure: read_failure(trusted).unwrap_or_else(unknown),
                    hit_delivery_limit_before: false,
                    is_undo,
                }
            }
        }
    }
}

/// The newest entry of `x-death`, which RabbitMQ keeps first in the list. Copies never carry the header, so in the
/// failed-order queue it means that the broker itself dead-lettered the message from a work queue.
///
/// On RabbitMQ 3.10 a producer can send the header too. To reach this queue it uses `CC` or `BCC`, which keep the routing key,
/// while dead-lettering replaces it. A producer that may use the keys of failures can still forge it: its message is then
/// retried like any other message of that producer.
struct BrokerDeath<'a> {
    reason: &'a str,
    queue: &'a str,
    exchange: &'a str,
    routing_key: &'a str,
}

impl<'a> BrokerDeath<'a> {
    fn newest(delivery: &'a Delivery) -> Option<Self> {
        if !delivery.routing_key.starts_with(ExchangeNames::FAILED_KEY) {
            return None;
        }
        let HeaderValue::List(deaths) = delivery.message.headers.get(names::DEATH)? else { return None };
        let HeaderValue::Table(death) = deaths.first()? else { return None };
        let text = |name: &str| death.get(name).and_then(HeaderValue::as_text).map(cut_name);
        let routing_key = match death.get("routing-keys") {
            Some(HeaderValue::List(keys)) => keys.first().and_then(HeaderValue::as_text).map(cut_name),
            _ => None,
        };
        Some(BrokerDeath {
            reason: text("reason")?,
            queue: text("queue")?,
            exchange: text("exchange").unwrap_or_default(),
            routing_key: routing_key.unwrap_or_default(),
        })
    }

    fn failure(&self) -> Failure {
        let reason = format!("the broker dead-lettered it from queue {:?}: {}", self.queue, self.reason);
        // Any other reason is permanent: orderd rejects what it cannot publish a copy of.
        let kind = if self.reason == "delivery_limit" { FailureKind::DeliveryLimit } else { FailureKind::Permanent };
        Failure::new(kind, self.reason.replace('-', "_"), reason)
    }

    /// The trusted headers of a retried message name its first origin.
    fn origin(&self, trusted: &Headers) -> Origin {
        let first = read_origin(trusted);
        let (exchange, routing_key) = match first {
            Some(first) => (first.exchange, first.routing_key),
            None => (self.exchange.to_owned(), self.routing_key.to_owned()),
        };
        Origin { queue: self.queue.to_owned(), exchange, routing_key }
    }
}

/// AMQP's limit for names of queues and exchanges, and for routing keys. Only a forged header has a longer one.
fn cut_name(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME_BYTES)]
}

pub(super) fn read_origin(headers: &Headers) -> Option<Origin> {
    let text = |name: &str| headers.get(name).and_then(HeaderValue::as_text).map(|text| cut_name(text).to_owned());
    Some(Origin {
        queue: text(names::ORIGIN_QUEUE)?,
        exchange: text(names::ORIGIN_EXCHANGE).unwrap_or_default(),
        routing_key: text(names::ORIGIN_ROUTING_KEY).unwrap_or_default(),
    })
}

fn read_failure(headers: &Headers) -> Option<Failure> {
    let text = |name: &str| headers.get(name).and_then(HeaderValue::as_text);
    let kind = FailureKind::parse(text(names::FAILURE_KIND)?)?;
    let code = text(names::FAILURE_CODE).unwrap_or("unknown");
    let retry_after = headers.get(names::RETRY_AFTER).and_then(HeaderValue::as_u64).map(Duration::from_secs);
    Some(Failure::new(kind, code, text(names::FAILURE_REASON).unwrap_or_default()).with_retry_after(retry_after))
}

/// The time in a header; `None` if there is none.
pub fn read_time(headers: &Headers, name: &str) -> Option<Timestamp> {
    let seconds = headers.get(name)?.as_u64()?;
    Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
}
