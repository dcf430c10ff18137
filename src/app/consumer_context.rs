//! Builds, from the settings of a consumer, what its workers need.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::config::Consumer;
use crate::handlers::{self, HandlerConsumer, HandlerDeps, OriginConsumer};
use crate::ledger::{Ledger, LedgerWriter, StepAction};
use crate::message::Publisher;
use crate::metrics::Counters;
use crate::notify::channel_routes;
use crate::pipeline::{
    ConsumerContext, DecompressedBytes, Intake, OnFailure, PublishOutage, RateLimiter, UnidentifiedDeliveries,
};

/// The consumers in which messages can fail, by queue: all but the failed-order consumer.
pub(super) fn origin_consumers(consumers: &BTreeMap<String, Consumer>) -> BTreeMap<String, OriginConsumer> {
    let work = consumers.iter().filter(|(_, consumer)| !consumer.handles_failures());
    work.map(|(name, consumer)| {
        let origin_consumer = OriginConsumer {
            name: name.as_str().into(),
            policy: consumer.retry.clone(),
            format: consumer.format.clone(),
            has_steps: consumer.handler_settings.has_key("steps"),
            is_configured: true,
        };
        (consumer.queue.clone(), origin_consumer)
    })
    .collect()
}

/// What belongs to one consumer and changes while it runs.
pub(super) struct ConsumerState {
    pub unidentified: Arc<UnidentifiedDeliveries>,
    pub counters: Arc<Counters>,
    pub rate_limiter: Arc<RateLimiter>,
}

/// Builds the consumer's context, with a handler of its own.
pub(super) fn consumer_context(
    name: &str,
    consumer: &Consumer,
    deps: &HandlerDeps,
    ledger: &Arc<dyn Ledger>,
    publisher: Arc<dyn Publisher>,
    state: ConsumerState,
) -> ConsumerContext {
    let ConsumerState { unidentified, counters, rate_limiter } = state;
    let on_failure =
        if consumer.handles_failures() { OnFailure::KeepRetrying } else { OnFailure::Forward(consumer.retry.clone()) };
    add_steps(consumer, &counters);
    counters.channels().configure(channel_routes(&consumer.notify));
    let format = consumer.format.clone().unwrap_or_default();
    let handler = handlers::build(
        HandlerConsumer { name, workers: consumer.workers },
        &consumer.handler_settings,
        &HandlerDeps {
            format: format.clone(),
            notify: consumer.notify.clone(),
            default_channel: consumer
                .default_channel
                .as_deref()
                .map_or_else(|| Arc::clone(&deps.default_channel), Arc::from),
            ..deps.clone()
        },
    );
    ConsumerContext {
        consumer: name.into(),
        queue: consumer.queue.as_str().into(),
        intake: Intake::new(ledger.state(), handler.gates(), rate_limiter),
        handler,
        publisher,
        ledger: Arc::clone(ledger) as Arc<dyn LedgerWriter>,
        outage: PublishOutage::default(),
        names: Arc::clone(&deps.names),
        bindings: consumer.bindings.clone(),
        users: Arc::clone(&deps.users),
        unidentified,
        max_body: deps.max_body,
        decompressed: DecompressedBytes::new(deps.max_body),
        format,
        timeout: consumer.timeout,
        on_failure,
        counters,
    }
}

/// Makes the consumer's steps known to its counters, so that they are shown before their first call.
fn add_steps(consumer: &Consumer, counters: &Counters) {
    let keys = consumer.handler_settings.keys();
    for step in keys.get("steps").and_then(Value::as_array).into_iter().flatten() {
        let Some(name) = step["name"].as_str() else { continue };
        let name = Arc::from(name);
        counters.steps().add(&name, StepAction::Do);
        if step.get("undo").is_some() {
            counters.steps().add(&name, StepAction::Undo);
        }
    }
}
