//! Publishes what a delivery causes until the broker has confirmed all of it.
//!
//! Publishes again only what was not accepted, after a back-off. Never counts a refusal as the delivery's failure.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::consumer_context::ConsumerContext;
use crate::backoff::Backoff;
use crate::message::{Publication, PublishError};
use crate::telemetry::RepeatedLog;

/// Waits before publishing again what the broker did not accept: it may take a person to restore a binding or an exchange.
const REFUSED_BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(120) };

/// Refusals by consumer, exchange, routing key and kind of error.
static REFUSALS: RepeatedLog = RepeatedLog::new();

/// Publishes the messages, and publishes again those that the broker did not accept, until it has confirmed all of them.
///
/// # Errors
/// [`PublishError::Invalid`] and [`PublishError::Closed`]: another attempt cannot help.
pub(super) async fn publish(
    context: &ConsumerContext,
    mut publications: Arc<[Publication]>,
) -> Result<(), PublishError> {
    if publications.is_empty() {
        return Ok(());
    }
    for attempt in 0.. {
        let Err(unpublished) = context.publisher.publish(Arc::clone(&publications)).await else {
            if attempt > 0 {
                log_end(context, &publications);
            }
            return Ok(());
        };
        if let Some(error) = unpublished.permanent() {
            return Err(error.clone());
        }
        for (_, error) in &unpublished.failures {
            log_refusal(context, error);
        }
        publications = unpublished.rest(&publications);
        tokio::time::sleep(REFUSED_BACKOFF.wait(attempt, fastrand::f64())).await;
    }
    unreachable!("the loop above ends by returning")
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
        PublishError::Unroutable { exchange, routing_key, .. } | PublishError::Refused { exchange, routing_key } => {
            Some((exchange, routing_key))
        }
        PublishError::Invalid { .. } | PublishError::Closed => None,
    }
}
