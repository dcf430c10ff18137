//! Builds, from the settings of a consumer, what its workers need.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::{Consumer, MessageKind};
use crate::handlers::{self, HandlerDeps, Route};
use crate::message::Publisher;
use crate::metrics::Counters;
use crate::pipeline::{ConsumerContext, OnFailure};

/// How failures are retried, by the work queue they happened in.
pub(super) fn routes(consumers: &BTreeMap<String, Consumer>) -> BTreeMap<String, Route> {
    let work = consumers.iter().filter(|(_, consumer)| !consumer.handles_failures());
    work.map(|(name, consumer)| {
        let route = Route {
            consumer: name.as_str().into(),
            policy: consumer.retry.clone(),
            carries_orders: consumer.messages == MessageKind::Order,
        };
        (consumer.queue.clone(), route)
    })
    .collect()
}

/// Builds the consumer's context, with a handler of its own.
pub(super) fn consumer_context(
    name: &str,
    consumer: &Consumer,
    deps: &HandlerDeps,
    publisher: Arc<dyn Publisher>,
    counters: Arc<Counters>,
) -> ConsumerContext {
    let on_failure =
        if consumer.handles_failures() { OnFailure::KeepRetrying } else { OnFailure::Forward(consumer.retry.clone()) };
    ConsumerContext {
        consumer: name.into(),
        queue: consumer.queue.as_str().into(),
        handler: handlers::build(name, &consumer.handler_settings, deps),
        publisher,
        ledger: Arc::clone(&deps.ledger),
        names: Arc::clone(&deps.names),
        timeout: consumer.timeout,
        on_failure,
        counters,
    }
}
