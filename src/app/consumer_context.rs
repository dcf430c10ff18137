//! Builds what one consumer's workers need from the consumer's settings.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::warn;

use super::AppError;
use crate::config::Consumer;
use crate::handlers::{self, HandlerDeps, Route};
use crate::message::Publisher;
use crate::metrics::Counters;
use crate::pipeline::{ConsumerContext, OnFailure};
use crate::recovery::FAILED_HANDLER;

/// How failures are retried, by the queue they happened in.
pub(super) fn routes(consumers: &BTreeMap<String, Consumer>) -> BTreeMap<String, Route> {
    let work = consumers.iter().filter(|(_, consumer)| consumer.handler != FAILED_HANDLER);
    work.map(|(name, consumer)| {
        let route = Route {
            consumer: name.as_str().into(),
            policy: consumer.retry.clone(),
            carries_orders: consumer.handler == handlers::ORDER,
        };
        (consumer.queue.clone(), route)
    })
    .collect()
}

/// `deps` contain no injected faults; those are the consumer's own.
///
/// # Errors
/// [`AppError::UnknownHandler`].
pub(super) fn consumer_context(
    name: &str,
    consumer: &Consumer,
    deps: &HandlerDeps,
    publisher: Arc<dyn Publisher>,
    counters: Arc<Counters>,
) -> Result<ConsumerContext, AppError> {
    if let Some(faults) = consumer.faults {
        warn!(consumer = name, ?faults, "faults are injected on purpose: not for production");
    }
    let deps = HandlerDeps { faults: consumer.faults, ..deps.clone() };
    let handler =
        handlers::build(&consumer.handler, &deps).ok_or_else(|| AppError::UnknownHandler(consumer.handler.clone()))?;
    let on_failure = match consumer.handler.as_str() {
        FAILED_HANDLER => OnFailure::KeepRetrying,
        _ => OnFailure::Forward(consumer.retry.clone()),
    };
    Ok(ConsumerContext {
        consumer: name.into(),
        queue: consumer.queue.as_str().into(),
        handler,
        publisher,
        ledger: Arc::clone(&deps.ledger),
        names: Arc::clone(&deps.names),
        timeout: consumer.timeout,
        on_failure,
        counters,
    })
}
