//! What a message's headers say about its failures, and the copies that carry the headers on.

use std::sync::Arc;

use jiff::Timestamp;

use super::{DeadLetterReason, Delay, Failure, FailureKind};
use crate::message::{Delivery, ExchangeNames, HeaderValue, Headers, Message, Publication, STRIPPED, names};

/// Where a message was when it first failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The queue; retries return to it and to no other.
    pub queue: String,
    /// The exchange it had come through.
    pub exchange: String,
    /// The key it had been published with.
    pub routing_key: String,
}

/// The failures of a message, as read in the failed-order queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Unknown for messages that neither orderd nor the broker's dead-lettering put there.
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
}

/// The delayed retries a message has had, as far as its delivery can be believed: a producer could send the
/// header too, so it counts only on what came through the requeue exchange.
pub fn believed_retries(delivery: &Delivery, names: &ExchangeNames) -> u32 {
    if *delivery.exchange == *names.requeue { header_retries(&delivery.message.headers) } else { 0 }
}

fn header_retries(headers: &Headers) -> u32 {
    headers
        .get(names::RETRY_COUNT)
        .and_then(HeaderValue::as_u64)
        .map_or(0, |count| u32::try_from(count).unwrap_or(u32::MAX))
}

impl History {
    /// Reads the headers of a delivery of the failed-order queue.
    pub fn read(delivery: &Delivery, names: &ExchangeNames, now: Timestamp) -> Self {
        let headers = &delivery.message.headers;
        match BrokerDeath::newest(headers) {
            // The broker's own dead-lettering. The failure headers are those of an earlier attempt if the message
            // had come through the requeue exchange, else a producer's, and not believed.
            Some(death) => {
                let believed = if *death.exchange == *names.requeue { headers } else { &Headers::new() };
                let earlier = read_failure(believed).map(|failure| failure.kind);
                History {
                    origin: Some(death.origin(believed)),
                    retries: header_retries(believed),
                    first_failed_at: read_time(believed, names::FIRST_FAILED_AT).unwrap_or(now),
                    failed_at: now,
                    failure: death.failure(),
                    hit_delivery_limit_before: earlier == Some(FailureKind::DeliveryLimit),
                }
            }
            None => {
                let unknown = || Failure::new(FailureKind::Permanent, "unknown_failure", "no failure headers");
                History {
                    origin: read_origin(headers),
                    retries: header_retries(headers),
                    first_failed_at: read_time(headers, names::FIRST_FAILED_AT).unwrap_or(now),
                    failed_at: read_time(headers, names::FAILED_AT).unwrap_or(now),
                    failure: read_failure(headers).unwrap_or_else(unknown),
                    hit_delivery_limit_before: false,
                }
            }
        }
    }
}

/// The newest entry of `x-death`, which RabbitMQ keeps at the list's head. Copies never carry the header, so
/// in the failed-order queue it means that the broker itself dead-lettered the message from a work queue.
struct BrokerDeath<'a> {
    reason: &'a str,
    queue: &'a str,
    exchange: &'a str,
    routing_key: &'a str,
}

impl<'a> BrokerDeath<'a> {
    fn newest(headers: &'a Headers) -> Option<Self> {
        let HeaderValue::List(deaths) = headers.get(names::DEATH)? else { return None };
        let HeaderValue::Table(death) = deaths.first()? else { return None };
        let text = |name: &str| death.get(name).and_then(HeaderValue::as_text);
        let routing_key = match death.get("routing-keys") {
            Some(HeaderValue::List(keys)) => keys.first().and_then(HeaderValue::as_text),
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
        // Whatever else makes the broker give a message up (orderd rejects what it cannot copy) stays as it is.
        let kind = if self.reason == "delivery_limit" { FailureKind::DeliveryLimit } else { FailureKind::Permanent };
        Failure::new(kind, self.reason.replace('-', "_"), reason)
    }

    /// A retried message has its first origin in its believed headers.
    fn origin(&self, believed: &Headers) -> Origin {
        let first = read_origin(believed);
        let (exchange, routing_key) = match first {
            Some(first) => (first.exchange, first.routing_key),
            None => (self.exchange.to_owned(), self.routing_key.to_owned()),
        };
        Origin { queue: self.queue.to_owned(), exchange, routing_key }
    }
}

fn read_origin(headers: &Headers) -> Option<Origin> {
    let text = |name: &str| headers.get(name).and_then(HeaderValue::as_text).map(str::to_owned);
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
    Some(Failure::new(kind, code, text(names::FAILURE_REASON).unwrap_or_default()))
}

fn read_time(headers: &Headers, name: &str) -> Option<Timestamp> {
    let seconds = headers.get(name)?.as_u64()?;
    Timestamp::from_second(i64::try_from(seconds).ok()?).ok()
}

fn time_value(at: Timestamp) -> HeaderValue {
    HeaderValue::Timestamp(u64::try_from(at.as_second()).unwrap_or(0))
}

/// A copy without what must not be published again: the broker's marks, the expiration (it would block a
/// queue's head) and the user id (the broker would check it against ours).
fn copy(message: &Message) -> Message {
    let mut copy = message.clone();
    for name in STRIPPED {
        copy.headers.remove(*name);
    }
    copy.properties.expiration = None;
    if let Some(user) = copy.properties.user_id.take() {
        copy.headers.entry(names::ORIGINAL_USER_ID.to_owned()).or_insert(HeaderValue::Text(user));
    }
    copy
}

fn set(headers: &mut Headers, name: &str, value: HeaderValue) {
    headers.insert(name.to_owned(), value);
}

fn set_failure(headers: &mut Headers, history: &History) {
    let failure = &history.failure;
    set(headers, names::FAILURE_KIND, failure.kind.as_str().into());
    set(headers, names::FAILURE_CODE, failure.code.as_str().into());
    set(headers, names::FAILURE_REASON, failure.reason.as_str().into());
    set(headers, names::FIRST_FAILED_AT, time_value(history.first_failed_at));
    set(headers, names::FAILED_AT, time_value(history.failed_at));
    if let Some(origin) = &history.origin {
        set(headers, names::ORIGIN_QUEUE, origin.queue.as_str().into());
        set(headers, names::ORIGIN_EXCHANGE, origin.exchange.as_str().into());
        set(headers, names::ORIGIN_ROUTING_KEY, origin.routing_key.as_str().into());
    }
}

fn retry_count(retries: u32) -> HeaderValue {
    HeaderValue::I64(retries.into())
}

/// The copy that tells the failed-order consumer of a failure in `queue`, whose consumer is `consumer`.
pub fn copy_for_failure(
    delivery: &Delivery,
    (consumer, queue): (&str, &str),
    failure: Failure,
    names: &ExchangeNames,
    now: Timestamp,
) -> Publication {
    let headers = &delivery.message.headers;
    let retried = *delivery.exchange == *names.requeue;
    let first = if retried { read_origin(headers) } else { None };
    let history = History {
        origin: Some(Origin {
            queue: queue.to_owned(),
            exchange: first.as_ref().map_or_else(|| delivery.exchange.clone(), |origin| origin.exchange.clone()),
            routing_key: first.map_or_else(|| delivery.routing_key.clone(), |origin| origin.routing_key),
        }),
        retries: believed_retries(delivery, names),
        first_failed_at: read_time(headers, names::FIRST_FAILED_AT).filter(|_| retried).unwrap_or(now),
        failed_at: now,
        failure,
        hit_delivery_limit_before: false,
    };
    let mut message = copy(&delivery.message);
    set(&mut message.headers, names::RETRY_COUNT, retry_count(history.retries));
    set_failure(&mut message.headers, &history);
    Publication { exchange: Arc::clone(&names.orders), routing_key: ExchangeNames::failed_key(consumer), message }
}

/// The copy that waits for its retry in `queue`'s retry queue of this delay.
pub fn copy_for_retry(
    delivery: &Delivery,
    history: &History,
    queue: &str,
    delay: Delay,
    names: &ExchangeNames,
) -> Publication {
    let mut message = copy(&delivery.message);
    set_failure(&mut message.headers, history);
    set(&mut message.headers, names::RETRY_COUNT, retry_count(history.retries.saturating_add(1)));
    Publication { exchange: Arc::clone(&names.retry), routing_key: ExchangeNames::retry_queue(queue, delay), message }
}

/// The copy that is dead-lettered for a person.
pub fn copy_for_dead_letter(
    delivery: &Delivery,
    history: &History,
    reason: DeadLetterReason,
    names: &ExchangeNames,
) -> Publication {
    let mut message = copy(&delivery.message);
    set_failure(&mut message.headers, history);
    set(&mut message.headers, names::RETRY_COUNT, retry_count(history.retries));
    set(&mut message.headers, names::DEAD_LETTER_REASON, reason.as_str().into());
    let routing_key =
        history.origin.as_ref().map_or_else(|| delivery.routing_key.clone(), |origin| origin.routing_key.clone());
    Publication { exchange: Arc::clone(&names.dead_letter), routing_key, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::DeliveryId;

    fn now() -> Timestamp {
        Timestamp::from_second(1_000).unwrap()
    }

    fn delivery(exchange: &str, routing_key: &str, headers: Headers) -> Delivery {
        Delivery {
            id: DeliveryId { epoch: 1, tag: 1 },
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            redelivered: false,
            message: Message { headers, ..Message::default() },
        }
    }

    fn received(publication: Publication) -> Delivery {
        let Publication { exchange, routing_key, message } = publication;
        Delivery { message, ..delivery(&exchange, &routing_key, Headers::new()) }
    }

    fn failed(delivery: &Delivery, at: i64) -> History {
        let failure = Failure::new(FailureKind::Transient, "busy", "try later");
        let at = Timestamp::from_second(at).unwrap();
        let copy = copy_for_failure(delivery, ("order", "order_queue"), failure, &ExchangeNames::new("orders"), at);
        assert_eq!(copy.routing_key, "order.failed.order");
        History::read(&received(copy), &ExchangeNames::new("orders"), now())
    }

    #[test]
    fn a_failure_remembers_where_it_happened() {
        let history = failed(&delivery("orders", "order.normal.created", Headers::new()), 500);
        let origin = history.origin.unwrap();
        assert_eq!(
            (origin.queue.as_str(), origin.exchange.as_str(), origin.routing_key.as_str()),
            ("order_queue", "orders", "order.normal.created")
        );
        assert_eq!(history.retries, 0);
        assert_eq!(history.first_failed_at.as_second(), 500);
        assert_eq!(history.failure.code, "busy");
    }

    #[test]
    fn a_retried_message_keeps_its_first_origin_and_counts_on() {
        let names = ExchangeNames::new("orders");
        let first = delivery("orders", "order.normal.created", Headers::new());
        let history = failed(&first, 500);
        let delay = "10s".parse().unwrap();
        let retry = copy_for_retry(&first, &history, "order_queue", delay, &names);
        assert_eq!((&*retry.exchange, retry.routing_key.as_str()), ("orders.retry", "order_queue.retry.10s"));
        let back = Delivery { message: retry.message, ..delivery("orders.requeue", "order_queue", Headers::new()) };
        assert_eq!(believed_retries(&back, &names), 1);
        let again = failed(&back, 600);
        assert_eq!(again.retries, 1);
        assert_eq!(again.first_failed_at.as_second(), 500);
        assert_eq!(again.failed_at.as_second(), 600);
        assert_eq!(again.origin.unwrap().routing_key, "order.normal.created");
    }

    #[test]
    fn a_producers_retry_count_is_not_believed() {
        let forged = Headers::from([
            (names::RETRY_COUNT.to_owned(), HeaderValue::I64(99)),
            (names::FIRST_FAILED_AT.to_owned(), HeaderValue::Timestamp(1)),
            (names::ORIGIN_QUEUE.to_owned(), "elsewhere".into()),
        ]);
        let history = failed(&delivery("orders", "order.normal.created", forged), 500);
        assert_eq!(history.retries, 0);
        assert_eq!(history.first_failed_at.as_second(), 500);
        assert_eq!(history.origin.unwrap().queue, "order_queue");
    }

    fn broker_death(exchange: &str) -> (String, HeaderValue) {
        let death = Headers::from([
            ("reason".to_owned(), "delivery_limit".into()),
            ("queue".to_owned(), "order_queue".into()),
            ("exchange".to_owned(), exchange.into()),
            ("routing-keys".to_owned(), HeaderValue::List(vec!["order.normal.created".into()])),
        ]);
        (names::DEATH.to_owned(), HeaderValue::List(vec![HeaderValue::Table(death)]))
    }

    #[test]
    fn the_brokers_own_dead_lettering_is_a_failure_like_any_other() {
        let dead = delivery("orders", "order.failed.order", Headers::from([broker_death("orders")]));
        let history = History::read(&dead, &ExchangeNames::new("orders"), now());
        assert_eq!(history.failure.kind, FailureKind::DeliveryLimit);
        assert_eq!(history.origin.unwrap().queue, "order_queue");
        assert!(!history.hit_delivery_limit_before);
    }

    #[test]
    fn a_producers_failure_headers_are_not_believed_at_the_brokers_dead_lettering() {
        let forged = Headers::from([
            broker_death("orders"),
            (names::RETRY_COUNT.to_owned(), HeaderValue::I64(99)),
            (names::FAILURE_KIND.to_owned(), "delivery_limit".into()),
            (names::FIRST_FAILED_AT.to_owned(), HeaderValue::Timestamp(1)),
        ]);
        let history =
            History::read(&delivery("orders", "order.failed.order", forged), &ExchangeNames::new("orders"), now());
        assert_eq!((history.retries, history.hit_delivery_limit_before), (0, false));
        assert_eq!(history.first_failed_at, now());
    }

    #[test]
    fn a_second_delivery_limit_is_recognised() {
        let names = ExchangeNames::new("orders");
        let dead = delivery("orders", "order.failed.order", Headers::from([broker_death("orders")]));
        let history = History::read(&dead, &names, now());
        let retry = copy_for_retry(&dead, &history, "order_queue", "1s".parse().unwrap(), &names);
        assert!(!retry.message.headers.contains_key(names::DEATH), "a copied x-death can make a broker drop it");
        let mut again = received(retry);
        again.message.headers.extend([broker_death("orders.requeue")]);
        let history = History::read(&again, &names, now());
        assert!(history.hit_delivery_limit_before);
        assert_eq!(history.retries, 1);
        assert_eq!(history.origin.unwrap().routing_key, "order.normal.created");
    }

    #[test]
    fn a_copy_keeps_what_the_sender_set_and_drops_what_the_broker_did() {
        let mut original = delivery("orders", "order.normal.created", Headers::new());
        original.message.properties.message_id = Some("m-1".to_owned());
        original.message.properties.correlation_id = Some("c-1".to_owned());
        original.message.properties.user_id = Some("shop".to_owned());
        original.message.properties.expiration = Some("60000".to_owned());
        let sent = [("tenant", "north"), ("CC", "elsewhere"), (names::ACQUIRED_COUNT, "1")];
        original.message.headers.extend(sent.map(|(name, value)| (name.to_owned(), value.into())));
        let copy = super::copy(&original.message);
        assert_eq!(copy.properties.message_id.as_deref(), Some("m-1"));
        assert_eq!(copy.properties.correlation_id.as_deref(), Some("c-1"));
        assert_eq!((copy.properties.expiration, copy.properties.user_id), (None, None));
        let kept: Vec<_> = copy.headers.keys().map(String::as_str).collect();
        assert_eq!(kept, ["tenant", names::ORIGINAL_USER_ID]);
    }

    #[test]
    fn a_stray_message_has_no_origin() {
        let stray = delivery("orders", "order.failed.by.hand", Headers::new());
        let history = History::read(&stray, &ExchangeNames::new("orders"), now());
        assert_eq!(history.origin, None);
    }
}
