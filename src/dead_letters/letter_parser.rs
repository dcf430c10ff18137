//! Reads what a message in a dead letter queue says about itself: why it is there, where it failed, and which order it is.
//!
//! Pure. Headers are believed only on copies that orderd is proven to have published; everything else is shown as it came.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;

use super::fingerprint::{fingerprint, without_counts};
use super::message_json::{headers_json, properties_json};
use super::order::{Reading, order_of_event};
use super::reading::{KnownConsumers, LetterReading, Searched, first_provenance};
use crate::ledger::{Identification, LetterOrigin, LetterSource, MAX_SEARCH_BYTES, NewStoredLetter};
use crate::message::{Delivery, ExchangeNames, HeaderValue, Headers, Provenance, Sender, TrustedUsers, names};
use crate::recovery::{DeadLetterReason, History, MAX_REASON_BYTES};

/// A message that comes back this often without being settled may be what ends the process.
const SUSPICIOUS_DELIVERIES: u64 = 3;
/// The reason of a message that anyone has put into the dead letter queue.
const FOREIGN: &str = "foreign";
/// The reason of a message that matched no binding.
const UNROUTED: &str = "unrouted";
/// The reasons for which RabbitMQ dead-letters. Anyone can send another, in a header of its name.
const BROKER_REASONS: [&str; 4] = ["rejected", "expired", "maxlen", "delivery_limit"];
/// Another reason that a header gives as the broker's.
const OTHER: &str = "other";
/// As in the ledger's other tables: the queue that the message failed in has no consumer.
const UNKNOWN: &str = "unknown";

/// Reads messages.
#[derive(Debug, Clone)]
pub struct LetterParser {
    /// The names of the exchanges.
    pub names: Arc<ExchangeNames>,
    /// The broker users whose messages count as orderd's own.
    pub users: Arc<TrustedUsers>,
    /// The longest text that a body may have once it is decompressed, in bytes.
    pub max_body: usize,
    /// The consumers.
    pub consumers: watch::Receiver<KnownConsumers>,
}

/// Whether the body of a message is looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyAccess {
    /// It is.
    Parse,
    /// It is not: that has ended a process before.
    Skip,
}

/// Why a message is where it is.
struct Cause {
    origin: LetterOrigin,
    reason: String,
    code: String,
    failure_kind: Option<String>,
    failure_reason: Option<String>,
    /// The queue that the message failed in.
    queue: Option<String>,
    consumer: String,
    retries: u32,
    failed_at: Timestamp,
    /// When the broker dead-lettered it.
    died_at: Option<Timestamp>,
    /// Whether orderd has published it as a copy of a failed message.
    is_copy: bool,
}

impl LetterParser {
    /// Whether reading the body may be what ends the process, so that each attempt must be recorded.
    pub fn is_suspicious(delivery: &Delivery) -> bool {
        delivery.delivery_count() >= SUSPICIOUS_DELIVERIES
    }

    /// What is to be stored of a message. `session`: the subscription that received it.
    pub fn parse(
        &self,
        source: LetterSource,
        delivery: &Delivery,
        session: &str,
        access: BodyAccess,
        now: Timestamp,
    ) -> NewStoredLetter {
        let cause = self.cause(source, delivery, now);
        let (Reading { mut order, identity: identity_of_order }, event, text) = match access {
            BodyAccess::Parse => (
                self.order(delivery, &cause),
                delivery.message.cloud_event_identity(self.max_body),
                self.text(delivery),
            ),
            BodyAccess::Skip => (Reading::default(), None, None),
        };
        let provenance = Provenance { cloud_event: event.as_deref(), ..self.provenance(delivery, cause.is_copy) };
        let says_which = delivery.message.properties.message_id.as_deref().is_some_and(|id| !id.is_empty())
            || event.is_some()
            || cause.is_copy && delivery.message.headers.contains_key(names::IDENTITY);
        // Two messages with the same content are the same order, however often it was published.
        let identification =
            if says_which || identity_of_order.is_some() { Identification::ById } else { Identification::Unidentified };
        let identity = identity_of_order.or_else(|| says_which.then(|| delivery.identity(provenance)));
        if order.id.is_none() && provenance.sender == Sender::Own {
            order.id = identity.as_deref().and_then(order_of_event);
        }
        let message = &delivery.message;
        let published = without_counts(&message.headers);
        let queue = source.as_str();
        let searched = Searched {
            identity: identity.as_deref(),
            order: &order,
            message_id: message.properties.message_id.as_deref(),
            routing_key: &delivery.routing_key,
            code: &cause.code,
            failure_reason: cause.failure_reason.as_deref(),
            body: text.as_deref(),
        };
        NewStoredLetter {
            search: searched.text(),
            source,
            origin: cause.origin,
            reason: cause.reason,
            code: cause.code,
            failure_kind: cause.failure_kind,
            failure_reason: cause.failure_reason,
            consumer: cause.consumer,
            retries: cause.retries,
            identity,
            order,
            origin_queue: cause.queue,
            exchange: delivery.exchange.clone(),
            routing_key: delivery.routing_key.clone(),
            message_id: message.properties.message_id.clone(),
            user_id: message.properties.user_id.clone(),
            failed_at: cause.failed_at,
            died_at: cause.died_at,
            at: now,
            properties: properties_json(&message.properties).to_string(),
            headers: headers_json(&published).to_string(),
            body: message.body.clone(),
            fingerprint: fingerprint(queue, delivery),
            identification,
            redelivered: delivery.redelivered,
            unparsed: access == BodyAccess::Skip,
            replay_key: self.replay_key(delivery),
            session: session.to_owned(),
        }
    }

    fn cause(&self, source: LetterSource, delivery: &Delivery, now: Timestamp) -> Cause {
        let headers = &delivery.message.headers;
        let is_own = self.is_own(delivery);
        let death = newest_death(headers);
        let is_copy = is_own && headers.contains_key(names::FAILURE_KIND);
        let plain = |origin, reason: &str| Cause {
            origin,
            reason: reason.to_owned(),
            code: reason.to_owned(),
            failure_kind: None,
            failure_reason: None,
            queue: None,
            consumer: String::new(),
            retries: 0,
            failed_at: now,
            died_at: None,
            is_copy: false,
        };
        match (source, death) {
            (LetterSource::UnroutedQueue, _) => {
                plain(if is_own { LetterOrigin::Orderd } else { LetterOrigin::Others }, UNROUTED)
            }
            (LetterSource::DeadLetterQueue, None) if is_copy && delivery.exchange == *self.names.dead_letter => {
                let provenance = self.provenance(delivery, true);
                let reason = text(headers, names::DEAD_LETTER_REASON).unwrap_or(DeadLetterReason::NoOrigin.as_str());
                self.of_copy(delivery, provenance, LetterOrigin::Orderd, reason, now)
            }
            (LetterSource::DeadLetterQueue, None) => plain(LetterOrigin::Others, FOREIGN),
            (LetterSource::DeadLetterQueue, Some(death)) => {
                let reason = death.reason.replace('-', "_");
                let reason = BROKER_REASONS.into_iter().find(|known| *known == reason).unwrap_or(OTHER);
                if is_copy {
                    let provenance = self.provenance(delivery, true);
                    let cause = self.of_copy(delivery, provenance, LetterOrigin::Broker, reason, now);
                    return Cause { died_at: death.at, ..cause };
                }
                let by_key = delivery.routing_key.strip_prefix(ExchangeNames::FAILED_KEY);
                let by_key = by_key.and_then(|rest| rest.strip_prefix('.')).map(str::to_owned);
                Cause {
                    consumer: self.name_of(death.queue).or(by_key).unwrap_or_default(),
                    queue: Some(death.queue.to_owned()),
                    failed_at: death.at.unwrap_or(now),
                    died_at: death.at,
                    ..plain(LetterOrigin::Broker, reason)
                }
            }
        }
    }

    /// What the headers of a copy say.
    fn of_copy(
        &self,
        delivery: &Delivery,
        provenance: Provenance<'_>,
        origin: LetterOrigin,
        reason: &str,
        now: Timestamp,
    ) -> Cause {
        // The failure that orderd has recorded, not the broker's dead-lettering after it.
        let mut copy = delivery.clone();
        copy.message.headers.remove(names::DEATH);
        let History { origin: failed_in, retries, failed_at, failure, .. } = History::read(&copy, provenance, now);
        let queue = failed_in.map(|origin| origin.queue);
        Cause {
            origin,
            reason: reason.to_owned(),
            code: failure.code,
            failure_kind: Some(failure.kind.as_str().to_owned()),
            failure_reason: Some(failure.reason).filter(|reason| !reason.is_empty()),
            consumer: queue.as_deref().and_then(|queue| self.name_of(queue)).unwrap_or_else(|| UNKNOWN.to_owned()),
            queue,
            retries,
            failed_at,
            died_at: None,
            is_copy: true,
        }
    }

    fn order(&self, delivery: &Delivery, cause: &Cause) -> Reading {
        let consumers = self.consumers.borrow();
        LetterReading::new(&consumers, cause.queue.as_deref(), Some(&cause.consumer)).read(
            delivery,
            cause.is_copy,
            self.max_body,
        )
    }

    /// The text of the body, for a search.
    fn text(&self, delivery: &Delivery) -> Option<String> {
        let text = delivery.message.text(self.max_body).ok()?;
        Some(text[..text.floor_char_boundary(MAX_SEARCH_BYTES)].to_owned())
    }

    fn name_of(&self, queue: &str) -> Option<String> {
        self.consumers.borrow().get(queue).map(|consumer| consumer.name.to_string())
    }

    fn is_own(&self, delivery: &Delivery) -> bool {
        delivery.message.properties.user_id.as_deref().is_some_and(|user| self.users.contains(user))
    }

    /// What marks a message that was replayed: orderd's user has published it with this header.
    fn replay_key(&self, delivery: &Delivery) -> Option<String> {
        let key = text(&delivery.message.headers, names::REPLAY_ID).filter(|_| self.is_own(delivery))?;
        Some(cut(key).to_owned())
    }

    fn provenance<'a>(&self, delivery: &'a Delivery, is_copy: bool) -> Provenance<'a> {
        first_provenance(&delivery.message, is_copy, |user| self.users.contains(user))
    }
}

/// The newest entry of `x-death`.
struct Death<'a> {
    reason: &'a str,
    queue: &'a str,
    at: Option<Timestamp>,
}

fn newest_death(headers: &Headers) -> Option<Death<'_>> {
    let HeaderValue::List(deaths) = headers.get(names::DEATH)? else { return None };
    let HeaderValue::Table(death) = deaths.first()? else { return None };
    let at = death.get("time").and_then(HeaderValue::as_u64).and_then(|seconds| i64::try_from(seconds).ok());
    Some(Death {
        reason: cut(text(death, "reason")?),
        queue: cut(text(death, "queue")?),
        at: at.and_then(|seconds| Timestamp::from_second(seconds).ok()),
    })
}

fn text<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(HeaderValue::as_text)
}

/// Only a forged header is longer.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_REASON_BYTES)]
}

#[cfg(test)]
mod tests;
