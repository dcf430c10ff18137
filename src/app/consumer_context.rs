//! What one consumer's workers need, made from its part of the configuration.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::warn;

use super::AppError;
use crate::config::{Config, Consumer};
use crate::handlers::{self, HandlerDeps, Route};
use crate::message::Publisher;
use crate::metrics::Counters;
use crate::pipeline::{ConsumerContext, OnFailure};
use crate::recovery::FAILED_HANDLER;

/// Which policy applies to failures in which queue.
pub(super) fn routes(config: &Config) -> BTreeMap<String, Route> {
    let work = config.consumers.iter().filter(|(_, consumer)| consumer.handler != FAILED_HANDLER);
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

/// Puts it together. `parts` are without faults, which are the consumer's own.
///
/// # Errors
/// [`AppError::UnknownHandler`].
pub(super) fn line(
    name: &str,
    consumer: &Consumer,
    parts: &HandlerDeps,
    publisher: Arc<dyn Publisher>,
    counters: Arc<Counters>,
) -> Result<ConsumerContext, AppError> {
    if let Some(faults) = consumer.faults {
        warn!(consumer = name, ?faults, "faults are injected on purpose: not for production");
    }
    let parts = HandlerDeps { faults: consumer.faults, ..parts.clone() };
    let handler =
        handlers::build(&consumer.handler, &parts).ok_or_else(|| AppError::UnknownHandler(consumer.handler.clone()))?;
    let on_failure = match consumer.handler.as_str() {
        FAILED_HANDLER => OnFailure::KeepRetrying,
        _ => OnFailure::Forward(consumer.retry.clone()),
    };
    Ok(ConsumerContext {
        consumer: name.into(),
        queue: consumer.queue.as_str().into(),
        handler,
        publisher,
        ledger: Arc::clone(&parts.ledger),
        names: Arc::clone(&parts.names),
        timeout: consumer.timeout,
        on_failure,
        counters,
    })
}
