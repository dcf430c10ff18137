//! The publications of the events that a step's answer asks for, and the trait to publish them. Pure.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sha2::{Digest, Sha256};

use super::request::RunInput;
use super::service::StepEvent;
use crate::message::{ExchangeNames, HeaderValue, Headers, Message, Properties, Publication, PublishError};
use crate::topology::pattern;

/// Longest message id, in bytes: AMQP's limit.
const MAX_ID_BYTES: usize = 255;

/// Keys that a step never uses: failures, and the events about orders that only orderd itself publishes.
const RESERVED: [&str; 4] =
    ["order.failed.#", "order.analytics.processed", "order.analytics.failed", "order.analytics.cancelled"];

/// Publishes the events of a step's answer.
pub trait EventPublisher: Send + Sync {
    /// Publishes them, and resolves once the broker has confirmed all of them.
    ///
    /// # Errors
    /// Another attempt cannot help.
    fn publish(&self, events: Arc<[Publication]>) -> BoxFuture<'_, Result<(), PublishError>>;
}

/// Whether only orderd itself publishes with this routing key.
pub(super) fn is_reserved(routing_key: &str) -> bool {
    RESERVED.iter().any(|reserved| pattern::matches(reserved, routing_key))
}

/// One publication for each event. A repeated call gives its events the same message ids.
pub(super) fn publications(
    events: &[StepEvent],
    idempotency_key: &str,
    input: &RunInput<'_>,
    names: &ExchangeNames,
) -> Arc<[Publication]> {
    let trace = [("traceparent", input.trace.traceparent), ("tracestate", input.trace.tracestate)];
    let headers: Headers = trace
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), HeaderValue::Text(value?.to_owned()))))
        .collect();
    let publication = |(index, event): (usize, &StepEvent)| {
        let properties = Properties {
            content_type: Some("application/json".to_owned()),
            message_id: Some(message_id(idempotency_key, index)),
            correlation_id: Some(input.key.identity.clone()),
            ..Properties::default()
        };
        let body = Bytes::copy_from_slice(event.body.get().as_bytes());
        Publication {
            exchange: Arc::clone(&names.orders),
            routing_key: event.routing_key.clone(),
            message: Message { properties, headers: headers.clone(), body, missing_bytes: 0 },
        }
    };
    events.iter().enumerate().map(publication).collect()
}

fn message_id(idempotency_key: &str, index: usize) -> String {
    let id = format!("{idempotency_key}/event/{}", index + 1);
    if id.len() <= MAX_ID_BYTES {
        return id;
    }
    let digits: String = Sha256::digest(&id).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}
