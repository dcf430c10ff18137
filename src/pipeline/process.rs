//! One delivery's way through a worker. This is the page to read first.
//!
//! ```text
//! delivery → handler (deadline, panic caught) → events confirmed → effect recorded → ack
//!                └ failed → immediate retry while allowed → failure published and confirmed → ack
//! ```
//! An ack is sent only after whatever replaces the message is confirmed or on disk. In doubt the delivery is
//! released, and the broker hands it out again.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::Timestamp;
use tracing::{error, warn};

use super::delivery_guard::DeliveryGuard;
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::domain::Order;
use crate::handlers::{Handler, HandlerInput, HandlerOutcome};
use crate::ledger::{Ledger, LedgerEntry};
use crate::message::{Delivery, ExchangeNames, Publication, PublishError, Publisher};
use crate::metrics::{Counters, DeliveryOutcome};
use crate::recovery::{Failure, FailureKind, believed_retries, copy_for_failure};

/// The wait before what must not be given up is tried again.
const PATIENCE: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(30) };

/// Everything that working on one consumer's deliveries needs.
pub struct ConsumerContext {
    /// The consumer's name.
    pub consumer: Arc<str>,
    /// Its queue.
    pub queue: Arc<str>,
    /// What is done with a delivery.
    pub handler: Arc<dyn Handler>,
    /// How events and failures are published.
    pub publisher: Arc<dyn Publisher>,
    /// Where effects are recorded.
    pub ledger: Arc<dyn Ledger>,
    /// Exchange names.
    pub names: Arc<ExchangeNames>,
    /// The handler's deadline.
    pub timeout: Duration,
    /// What happens when the handler fails.
    pub on_failure: OnFailure,
    /// What was done, counted.
    pub counters: Arc<Counters>,
}

/// What a pool does with a delivery whose handler failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Try again at once, so often, if the failure is transient; then hand it to the failed-order queue.
    Forward {
        /// Immediate retries.
        immediate: u32,
    },
    /// Hold on to it and try again after a while: for the failed-order consumer itself.
    Hold,
}

/// How an attempt ended.
enum Outcome {
    Done(HandlerOutcome),
    Failed(Failure),
    /// The publisher is closed: nothing more can be confirmed.
    Interrupted,
    /// There is no copy that could be published, and nobody to hand the failure on to.
    Stranded,
}

/// Works on a delivery until it can be settled, and settles it.
pub(super) async fn process(line: Arc<ConsumerContext>, held: DeliveryGuard) {
    let mut tries = 0;
    let ending = loop {
        match attempt(&line, held.delivery()).await {
            Outcome::Done(verdict) => break DeliveryOutcome::Done(verdict),
            Outcome::Interrupted => break DeliveryOutcome::Released,
            Outcome::Stranded => break DeliveryOutcome::Rejected,
            Outcome::Failed(failure) => {
                line.counters.failed(&failure);
                match line.on_failure {
                    OnFailure::Forward { immediate } if failure.kind == FailureKind::Transient && tries < immediate => {
                    }
                    // In a box, since it is large, and rare.
                    OnFailure::Forward { .. } => break forward(&line, held.delivery(), failure).boxed().await,
                    OnFailure::Hold => {
                        error!(consumer = %line.consumer, %failure, "holding on to a failure that cannot be handled now");
                        tokio::time::sleep(PATIENCE.wait(tries, fastrand::f64())).await;
                    }
                }
                tries = tries.saturating_add(1);
            }
        }
    };
    held.settle(ending);
}

/// One attempt: the handler, then what it wants published, then what it wants recorded.
async fn attempt(line: &ConsumerContext, delivery: &Delivery) -> Outcome {
    let handled = match run_handler(line, delivery).await {
        Ok(handled) => handled,
        Err(failure) => return Outcome::Failed(failure),
    };
    match publish(line, handled.emit).await {
        Ok(()) => {}
        Err(PublishError::Closed) => return Outcome::Interrupted,
        Err(refusal) => return unpublishable(line, &refusal),
    }
    let Some(entry) = handled.record else { return Outcome::Done(handled.verdict) };
    match record(line, entry.confirmed_at(Timestamp::now())).await {
        Ok(()) => Outcome::Done(handled.verdict),
        Err(failure) => Outcome::Failed(failure),
    }
}

/// What a handler wants published can never be: a failure, unless this is the consumer of failures. Then the broker
/// itself moves the message to the dead letter queue.
fn unpublishable(line: &ConsumerContext, refusal: &PublishError) -> Outcome {
    match line.on_failure {
        OnFailure::Forward { .. } => {
            Outcome::Failed(Failure::new(FailureKind::Permanent, "cannot_publish", chain(refusal)))
        }
        OnFailure::Hold => {
            error!(consumer = %line.consumer, error = %refusal, "cannot publish a failed message; leaving it to the broker");
            Outcome::Stranded
        }
    }
}

/// Runs the handler under its deadline. A panic costs this delivery one attempt, and nothing else.
async fn run_handler(line: &ConsumerContext, delivery: &Delivery) -> Result<crate::handlers::HandlerOutput, Failure> {
    let work = HandlerInput { delivery, consumer: &line.consumer, retries: believed_retries(delivery, &line.names) };
    let handler = AssertUnwindSafe(line.handler.handle(work)).catch_unwind();
    match tokio::time::timeout(line.timeout, handler).await {
        Ok(Ok(result)) => result,
        Ok(Err(panic)) => Err(Failure::new(FailureKind::Panicked, "panicked", panic_text(&*panic))),
        Err(_elapsed) => {
            let reason = format!("no result within {:?}", line.timeout);
            Err(Failure::new(FailureKind::TimedOut, "deadline_exceeded", reason))
        }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", text.unwrap_or("no text"))
}

/// Publishes until confirmed. What the broker refuses now it may take later; only what can never be published
/// is an error, and the end of the publisher.
async fn publish(line: &ConsumerContext, publications: Arc<[Publication]>) -> Result<(), PublishError> {
    if publications.is_empty() {
        return Ok(());
    }
    for attempt in 0.. {
        match line.publisher.publish(Arc::clone(&publications)).await {
            Ok(()) => return Ok(()),
            Err(final_word @ (PublishError::Invalid { .. } | PublishError::Closed)) => return Err(final_word),
            Err(refusal @ (PublishError::Unroutable { .. } | PublishError::Refused { .. })) => {
                error!(consumer = %line.consumer, error = %refusal, "the broker did not take a message; trying again");
                tokio::time::sleep(PATIENCE.wait(attempt, fastrand::f64())).await;
            }
        }
    }
    unreachable!("the loop above ends by returning")
}

/// Records an effect. The failed-order consumer has published already and has nowhere to hand a failure on to,
/// so it tries until the ledger takes the entry.
async fn record(line: &ConsumerContext, entry: LedgerEntry) -> Result<(), Failure> {
    match line.on_failure {
        OnFailure::Forward { .. } => match line.ledger.record(entry).await {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::new(FailureKind::Transient, "ledger_unavailable", chain(&error))),
        },
        OnFailure::Hold => {
            let mut attempt = 0;
            while let Err(error) = line.ledger.record(entry.clone()).await {
                warn!(consumer = %line.consumer, error = %chain(&error), "the ledger did not take a failure; trying again");
                tokio::time::sleep(PATIENCE.wait(attempt, fastrand::f64())).await;
                attempt += 1;
            }
            Ok(())
        }
    }
}

/// Hands a failure to the failed-order queue; an ack once that is confirmed.
async fn forward(line: &ConsumerContext, delivery: &Delivery, failure: Failure) -> DeliveryOutcome {
    tell(line, delivery, &failure);
    let copy = copy_for_failure(delivery, (&line.consumer, &line.queue), failure, &line.names, Timestamp::now());
    match publish(line, Arc::new([copy])).await {
        Ok(()) => DeliveryOutcome::Forwarded,
        Err(PublishError::Closed) => DeliveryOutcome::Released,
        Err(refusal) => {
            error!(consumer = %line.consumer, error = %refusal, "cannot hand a failure on; leaving it to the broker");
            DeliveryOutcome::Rejected
        }
    }
}

/// Logs a failed attempt, with the order's fields where the message is an order.
fn tell(line: &ConsumerContext, delivery: &Delivery, failure: &Failure) {
    let order = Order::decode(&delivery.message.body).ok();
    let order = order.as_ref();
    warn!(
        consumer = %line.consumer,
        order = order.map(|order| order.id.as_str()),
        product = order.map(|order| order.product.as_str()),
        quantity = order.map(|order| order.quantity),
        price = order.map(|order| tracing::field::display(order.price)),
        message_id = delivery.message.properties.message_id,
        kind = %failure.kind,
        code = failure.code,
        reason = failure.reason,
        "Order Failed"
    );
}
