//! The publications that replace a failed message: copies of it, with headers that record its failures.
//!
//! It only builds them; workers publish.

use std::sync::Arc;

use jiff::Timestamp;

use super::history::{read_origin, read_time};
use super::{ClaimedRun, DeadLetterReason, Delay, Failure, History, Origin, trusted_retry_count};
use crate::domain::OrderId;
use crate::message::{
    Delivery, ExchangeNames, HeaderValue, Headers, Message, Provenance, Publication, STRIPPED, names,
};

/// The most that a copy's properties and headers take, in bytes. They are sent in one frame, of 128 KiB by default; 2 KiB are
/// left for the frame's own fields and for what the publisher adds.
pub(super) const MAX_PROPERTIES_BYTES: usize = 126 * 1024;

/// The headers that are believed on copies and that a new copy may not set itself. What others send under these names is removed.
const NOT_OVERWRITTEN: [&str; 9] = [
    names::UNDO,
    names::CANCELS,
    names::RUN,
    names::REPLAYED_AT,
    names::REPLAY_ID,
    names::REPLAY_HISTORY,
    names::IDENTITY,
    names::HEADERS_DROPPED,
    names::HEADERS_DROPPED_NAMES,
];

/// The copy for the failed-order queue. `consumer` is the one whose handler failed, and `queue` the queue it consumes. `claimed`: the
/// run that this delivery has claimed.
pub fn copy_for_failure(
    delivery: &Delivery,
    provenance: Provenance<'_>,
    (consumer, queue): (&str, &str),
    (failure, claimed): (Failure, Option<&ClaimedRun>),
    names: &ExchangeNames,
    now: Timestamp,
) -> Publication {
    let headers = &delivery.message.headers;
    let first_origin = if provenance.is_copy { read_origin(headers) } else { None };
    let history = History {
        origin: Some(Origin {
            queue: queue.to_owned(),
            exchange: first_origin.as_ref().map_or_else(|| delivery.exchange.clone(), |origin| origin.exchange.clone()),
            routing_key: first_origin.map_or_else(|| delivery.routing_key.clone(), |origin| origin.routing_key),
        }),
        retries: trusted_retry_count(delivery, provenance),
        first_failed_at: read_time(headers, names::FIRST_FAILED_AT).filter(|_| provenance.is_copy).unwrap_or(now),
        failed_at: now,
        failure,
        hit_delivery_limit_before: false,
        is_undo: false,
    };
    let mut message = copy(delivery, provenance);
    set(&mut message.headers, names::RETRY_COUNT, retry_count(history.retries));
    set_failure(&mut message.headers, &history);
    if let Some(claimed) = claimed {
        set(&mut message.headers, names::RUN, claimed.header());
    }
    if let Some(retry_after) = history.failure.retry_after {
        let seconds = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
        set(&mut message.headers, names::RETRY_AFTER, HeaderValue::I64(i64::try_from(seconds).unwrap_or(i64::MAX)));
    }
    message.cut_headers(MAX_PROPERTIES_BYTES);
    Publication { exchange: Arc::clone(&names.orders), routing_key: ExchangeNames::failed_key(consumer), message }
}

/// The copy that waits in the retry queue of `queue` and `delay`.
pub fn copy_for_retry(
    delivery: &Delivery,
    provenance: Provenance<'_>,
    history: &History,
    queue: &str,
    delay: Delay,
    names: &ExchangeNames,
) -> Publication {
    let mut message = copy(delivery, provenance);
    set_failure(&mut message.headers, history);
    set(&mut message.headers, names::RETRY_COUNT, retry_count(history.retries.saturating_add(1)));
    message.cut_headers(MAX_PROPERTIES_BYTES);
    Publication { exchange: Arc::clone(&names.retry), routing_key: ExchangeNames::retry_queue(queue, delay), message }
}

/// Why a failed message returns to its queue without a delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReturnReason {
    /// Its consumer undoes its steps.
    Undo,
    /// Nothing proves that it has failed.
    Unproven,
}

/// The copy that returns to `queue`.
pub fn copy_for_return(
    delivery: &Delivery,
    provenance: Provenance<'_>,
    history: &History,
    (queue, reason): (&str, ReturnReason),
    names: &ExchangeNames,
) -> Publication {
    let mut message = copy(delivery, provenance);
    set_failure(&mut message.headers, history);
    set(&mut message.headers, names::RETRY_COUNT, retry_count(history.retries));
    match reason {
        ReturnReason::Undo => set(&mut message.headers, names::UNDO, HeaderValue::Bool(true)),
        ReturnReason::Unproven => {}
    }
    message.cut_headers(MAX_PROPERTIES_BYTES);
    Publication { exchange: Arc::clone(&names.requeue), routing_key: queue.to_owned(), message }
}

/// The order that a message cancels, if it is a copy that [`copy_of_cancellation`] has built, or one of that.
pub fn cancelled_order(delivery: &Delivery, provenance: Provenance<'_>) -> Option<OrderId> {
    let stated = delivery.message.headers.get(names::CANCELS).filter(|_| provenance.is_copy)?;
    OrderId::new(stated.as_text()?)
}

/// The copy of a cancellation for another queue. It has not failed. It states the order that it cancels, because the consumer of that
/// queue may read other ids from messages.
pub fn copy_of_cancellation(
    delivery: &Delivery,
    provenance: Provenance<'_>,
    (order, queue): (&OrderId, &str),
    names: &ExchangeNames,
) -> Publication {
    let mut message = copy(delivery, provenance);
    if !provenance.is_copy {
        // It becomes a copy, which is believed.
        let is_set = |name: &&str| [names::ORIGINAL_USER_ID, names::IDENTITY].contains(name);
        for name in names::ADDED.iter().filter(|name| !is_set(name)) {
            message.headers.remove(*name);
        }
        set(&mut message.headers, names::ORIGIN_QUEUE, queue.into());
        set(&mut message.headers, names::ORIGIN_EXCHANGE, delivery.exchange.as_str().into());
        set(&mut message.headers, names::ORIGIN_ROUTING_KEY, delivery.routing_key.as_str().into());
    }
    set(&mut message.headers, names::CANCELS, order.as_str().into());
    message.cut_headers(MAX_PROPERTIES_BYTES);
    Publication { exchange: Arc::clone(&names.requeue), routing_key: queue.to_owned(), message }
}

/// The copy for the dead letter queue.
pub fn copy_for_dead_letter(
    delivery: &Delivery,
    provenance: Provenance<'_>,
    history: &History,
    reason: DeadLetterReason,
    names: &ExchangeNames,
) -> Publication {
    let mut message = copy(delivery, provenance);
    set_failure(&mut message.headers, history);
    set(&mut message.headers, names::RETRY_COUNT, retry_count(history.retries));
    set(&mut message.headers, names::DEAD_LETTER_REASON, reason.as_str().into());
    message.headers.remove(names::UNDO);
    // Otherwise nothing is left to be undone. A person may give the message another id, which counts when it is replayed.
    if reason != DeadLetterReason::UndoFailed {
        message.headers.remove(names::RUN);
    }
    message.cut_headers(MAX_PROPERTIES_BYTES);
    let routing_key =
        history.origin.as_ref().map_or_else(|| delivery.routing_key.clone(), |origin| origin.routing_key.clone());
    Publication { exchange: Arc::clone(&names.dead_letter), routing_key, message }
}

/// A copy without what must not be published again: the broker's own headers, what only orderd may say of a message (a copy is
/// believed), and the expiration (it would block the head of a queue). The publisher states orderd's user in its `user_id`, so the original one is kept in a header, and so is the
/// identity of a message without a `message_id`.
pub(super) fn copy(delivery: &Delivery, provenance: Provenance<'_>) -> Message {
    let mut copy = delivery.message.clone();
    let forged: &[&str] = if provenance.is_copy { &[] } else { &NOT_OVERWRITTEN };
    for name in STRIPPED.iter().chain(forged) {
        copy.headers.remove(*name);
    }
    // About the last failure only.
    copy.headers.remove(names::RETRY_AFTER);
    copy.properties.expiration = None;
    let user = copy.properties.user_id.take().unwrap_or_default();
    if !provenance.is_copy {
        set(&mut copy.headers, names::ORIGINAL_USER_ID, HeaderValue::Text(user));
    }
    if provenance.cloud_event.is_none() && !delivery.has_message_id() {
        set(&mut copy.headers, names::IDENTITY, HeaderValue::Text(delivery.identity(provenance)));
    }
    copy
}

pub(super) fn time_value(at: Timestamp) -> HeaderValue {
    HeaderValue::Timestamp(u64::try_from(at.as_second()).unwrap_or(0))
}

pub(super) fn set(headers: &mut Headers, name: &str, value: HeaderValue) {
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
