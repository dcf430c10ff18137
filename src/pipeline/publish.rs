//! Publishes what a delivery causes until the broker has confirmed all of it.
//!
//! Publishes again only what was not accepted, after a back-off. Never counts a refusal as the delivery's failure.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::consumer_context::ConsumerContext;
use crate::backoff::Backoff;
use crate::message::{Publication, PublishError};
use crate::telemetry::RepeatedLog;

/// Waits before publishing again what the broker did not accept: it may take a person to restore a binding or an exchange.
const REFUSED_BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(60) };

/// Waits after a `basic.nack`: a full queue may have room again at any time, and nothing announces it.
const NACKED_BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(5) };
/// All deliveries of a consumer that wait after a `basic.nack` publish about this often a second, however many they are.
const NACKED_A_SECOND: u32 = 20;

/// How long an event of a step's answer may have no queue before the step fails: bindings that got lost are declared again within
/// this time.
const UNROUTABLE_EVENT_TIME: Duration = Duration::from_secs(5);

/// Refusals by consumer, exchange, routing key and kind of error.
static REFUSALS: RepeatedLog = RepeatedLog::new();

/// Publishes the messages, and publishes again those that the broker did not accept, until it has confirmed all of them. After
/// the consumer's [`ConsumerContext::max_hold`], begins a [`PublishOutage`](super::PublishOutage), and never returns: the pool
/// drops the future, which releases the delivery.
///
/// # Errors
/// [`PublishError::Invalid`] and [`PublishError::Closed`]: another attempt cannot help.
pub(super) async fn publish(context: &ConsumerContext, publications: Arc<[Publication]>) -> Result<(), PublishError> {
    publish_within(context, publications, Duration::MAX).await
}

/// Like [`publish`], for events whose routing keys a service chose: one that no queue is bound for must not stop the consumer.
///
/// # Errors
/// Also [`PublishError::Unroutable`], if some event has no queue for some seconds.
pub(super) async fn publish_step_events(
    context: &ConsumerContext,
    events: Arc<[Publication]>,
) -> Result<(), PublishError> {
    publish_within(context, events, UNROUTABLE_EVENT_TIME).await
}

async fn publish_within(
    context: &ConsumerContext,
    publications: Arc<[Publication]>,
    unroutable_time: Duration,
) -> Result<(), PublishError> {
    if publications.is_empty() {
        return Ok(());
    }
    let mut rest = publications;
    match timeout(context.max_hold(), publish_rest(context, &mut rest, unroutable_time)).await {
        Ok(outcome) => outcome,
        Err(_) => {
            context.outage.begin(rest);
            std::future::pending().await
        }
    }
}

/// Like [`publish`], without a time limit. `rest`: what is not accepted yet. Cancel-safe.
pub(super) async fn publish_until_accepted(
    context: &ConsumerContext,
    rest: &mut Arc<[Publication]>,
) -> Result<(), PublishError> {
    publish_rest(context, rest, Duration::MAX).await
}

/// `unroutable_time`: how long a message without a queue is published again.
async fn publish_rest(
    context: &ConsumerContext,
    rest: &mut Arc<[Publication]>,
    unroutable_time: Duration,
) -> Result<(), PublishError> {
    let began = Instant::now();
    let mut acceptance = None;
    let mut refused = None;
    for attempt in 0.. {
        let Err(unpublished) = context.publisher.publish(Arc::clone(rest)).await else {
            if attempt > 0 {
                log_end(context, rest);
                context.outage.accepted_after_refusal();
            }
            return Ok(());
        };
        if let Some(error) = unpublished.permanent() {
            return Err(error.clone());
        }
        if let Some((_, error)) = unpublished.failures.iter().find(|(_, error)| error.is_without_queue())
            && began.elapsed() >= unroutable_time
        {
            return Err(error.clone());
        }
        for (_, error) in &unpublished.failures {
            log_refusal(context, error);
        }
        let refused = refused.get_or_insert_with(|| context.counters.broker_problems().refused());
        if let Some((_, error)) = unpublished.failures.first() {
            refused.set_error(error.to_string());
        }
        *rest = unpublished.rest(rest);
        let any_nacked = unpublished.failures.iter().any(|(_, error)| matches!(error, PublishError::Nacked { .. }));
        let wait = match any_nacked {
            true => nacked_wait(attempt, refused.waiting()),
            false => REFUSED_BACKOFF.wait(attempt, fastrand::f64()),
        };
        let waiting = acceptance.take().unwrap_or_else(|| context.publisher.acceptance());
        // Cancel-safe: all only wait.
        tokio::select! {
            () = sleep(wait) => {}
            () = waiting => {}
            () = context.outage.another_was_accepted(), if any_nacked => {}
        }
        // Before the next attempt, so that nothing is missed between its refusal and the wait.
        acceptance = Some(context.publisher.acceptance());
    }
    unreachable!("the loop above ends by returning")
}

/// How long to wait after a `basic.nack`, if so many deliveries of the consumer wait.
fn nacked_wait(attempt: u32, waiting: u64) -> Duration {
    let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
    let max = NACKED_BACKOFF.max.max(Duration::from_secs(2) * waiting / NACKED_A_SECOND);
    Backoff { max, ..NACKED_BACKOFF }.wait(attempt, fastrand::f64())
}

/// Logs a refusal, once per cause. The publications that wait for the same cause are counted.
fn log_refusal(context: &ConsumerContext, error: &PublishError) {
    let Some(destination) = destination(error) else { return };
    let Some(due) = REFUSALS.occurred((&context.consumer, destination)) else { return };
    let repeated = due.repeated;
    warn!(consumer = %context.consumer, %error, repeated, "the broker does not accept a message; retrying until it does");
}

fn log_end(context: &ConsumerContext, published: &[Publication]) {
    for Publication { exchange, routing_key, .. } in published {
        if let Some(refusals) = REFUSALS.ended((&context.consumer, (&**exchange, routing_key.as_str()))) {
            let (consumer, routing_key) = (&context.consumer, routing_key.as_str());
            info!(%consumer, %exchange, routing_key, refusals, "the broker accepts the messages again");
        }
    }
}

fn destination(error: &PublishError) -> Option<(&str, &str)> {
    match error {
        PublishError::Unroutable { exchange, routing_key, .. }
        | PublishError::Nacked { exchange, routing_key }
        | PublishError::Refused { exchange, routing_key, .. } => Some((exchange, routing_key)),
        PublishError::Invalid { .. } | PublishError::Closed => None,
    }
}
