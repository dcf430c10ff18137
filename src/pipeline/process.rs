//! One delivery, from the worker that received it to its settlement. Read this file first in `pipeline`.
//!
//! ```text
//! delivery ─► 1. handler runs, under a deadline; a panic is caught
//!             2. its events are published and confirmed
//!             3. its effect is recorded in the ledger ─► ack
//!
//! a step fails ─► recovery::decide ─► retry now: start again at step 1
//!                                  ─► forward: a copy is published to the failed-order queue and confirmed ─► ack
//!                                  ─► keep retrying: start again after a back-off (only the failed-order consumer)
//!
//! the ledger cannot record, or an event file cannot be written ─► the step waits until it can, with the deadline suspended;
//!     nothing counts as an attempt
//! the broker does not accept what is published ─► it is published again; nothing counts as an attempt
//! connection lost, drain aborted, worker died, publisher, ledger or event file closed, outage during a drain or longer than
//!     `MAX_HOLD` ─► release: the broker delivers the message again
//! the copy can never be published ─► reject: the broker itself dead-letters the message
//! ```
//! An ack is sent only after whatever replaces the message is confirmed by the broker or committed to the ledger. In doubt
//! the delivery is released: twice is better than lost.
//!
//! It never decides on a retry (`recovery` does) and never speaks AMQP (`amqp` does, behind the traits of `message`).

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use jiff::{SignedDuration, Timestamp};
use tracing::{debug, error, warn};

use super::consumer_context::{ConsumerContext, OnFailure};
use super::deadline::Deadline;
use super::delivery_guard::DeliveryGuard;
use super::handler::{DeferredLog, HandlerError, HandlerInput, HandlerOutput, Interruption, LedgerAccess, StepAccess};
use super::publish::publish;
use super::step_services::DeliveryServices;
use crate::backoff::Backoff;
use crate::chain::chain;
use crate::domain::{Order, OrderId};
use crate::ledger::{LedgerEntry, Recorded, ReplayOutcome};
use crate::message::{Delivery, HeaderValue, Provenance, Publication, PublishError, names};
use crate::metrics::{DeliveryOutcome, HandlerOutcome};
use crate::recovery::{
    Action, BODY_TOO_LARGE, ClaimNote, DeadLetterReason, DecisionPoint, Failure, FailureKind, copy_for_failure, decide,
    replay_key, replayed_for, trusted_retry_count,
};
use crate::telemetry::{MessageLine, MessageLog, RepeatedLog};
use crate::wait_budget::WaitBudget;

/// Waits between attempts that are repeated until one succeeds: to process a failed message.
const RETRY_BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(30) };

/// How much of a product's name a line about a failed order has, in bytes.
const MAX_LOGGED_PRODUCT: usize = 256;

/// What goes wrong for every message alike, by consumer and cause.
static REPEATED: RepeatedLog = RepeatedLog::new();

/// Lines about single messages that fail, by what happens to them, consumer, kind and code.
pub static FAILED_MESSAGES: MessageLog = MessageLog::new();

/// How one attempt at a delivery ended.
enum AttemptOutcome {
    /// The handler succeeded; its events are confirmed and its effect is recorded.
    Handled(HandlerOutcome),
    Failed(Failure),
    /// Nothing more can be confirmed or recorded. Never an attempt.
    Interrupted(Interruption),
    /// The failed-order consumer has a copy that can never be published. Only the broker itself can dead-letter the message.
    CannotPublish,
}

/// Makes attempts at a delivery until it can be settled, and settles it.
///
/// Thousands of these futures are in flight, and each wake-up reads one that is no longer in a cache: keep them small. An `async
/// fn` would hold the guard twice.
#[expect(clippy::manual_async_fn, reason = "see above")]
pub(super) fn process(context: Arc<ConsumerContext>, guard: DeliveryGuard) -> impl Future<Output = ()> + Send {
    async move {
        let outcome = make_attempts(&context, &guard).await;
        guard.settle(outcome);
    }
}

async fn make_attempts(context: &ConsumerContext, guard: &DeliveryGuard) -> DeliveryOutcome {
    let delivery = guard.delivery();
    if delivery.message.missing_bytes > 0 && matches!(context.on_failure, OnFailure::Forward(_)) {
        // No copy can be published without the body. The broker moves the message to the failed-order queue, where the
        // failure is recorded.
        log_too_large(context, delivery);
        return DeliveryOutcome::Rejected;
    }
    // Held until the delivery is settled: events and copies contain what was decompressed.
    let waits = WaitBudget::new(context.max_hold());
    let _room = match context.decompressed.room_for(&delivery.message) {
        None => None,
        Some(room) => match waits.wait_for(room).boxed().await {
            Some(room) => Some(room),
            None => return DeliveryOutcome::Released,
        },
    };
    let mut retries = 0;
    // Once, and here: there is room for what it decompresses.
    let event = delivery.message.cloud_event_identity(context.max_body);
    let provenance = delivery.provenance(&context.names, &context.users, guard.generated_id());
    let provenance = Provenance { cloud_event: event.as_deref(), ..provenance };
    if delivery.is_unproven_claim(&context.names, provenance) && context.counters.unproven() {
        let Delivery { exchange, routing_key, .. } = delivery;
        warn!(
            consumer = %context.consumer, exchange, routing_key, sender = %provenance.sender,
            "a message claims to be orderd's own, but orderd's user did not publish it: it is not believed; find its \
             sender, or add orderd's former user to broker.trusted_users"
        );
    }
    let note = ClaimNote::default();
    let services = DeliveryServices { context, note: &note, waits: &waits };
    loop {
        match attempt(services, delivery, &provenance).await {
            AttemptOutcome::Handled(outcome) => match replay_key(delivery, provenance) {
                None => break DeliveryOutcome::Handled(outcome),
                // Boxed, because it is rarely needed.
                Some(key) => break record_replay(context, delivery, key, outcome).boxed().await,
            },
            AttemptOutcome::Interrupted(interruption) => {
                debug!(consumer = %context.consumer, ?interruption, "released a delivery");
                break DeliveryOutcome::Released;
            }
            AttemptOutcome::CannotPublish => break DeliveryOutcome::Rejected,
            AttemptOutcome::Failed(failure) => {
                context.counters.attempt_failed(&failure);
                match next_action(context, &failure, retries) {
                    Action::RetryNow => {}
                    Action::KeepRetrying => {
                        if let Some(due) = REPEATED.occurred((&context.consumer, "retrying", failure.code.as_str())) {
                            let repeated = due.repeated;
                            error!(consumer = %context.consumer, %failure, repeated, "cannot process a failed order; retrying");
                        }
                        tokio::time::sleep(RETRY_BACKOFF.wait(retries, fastrand::f64())).await;
                    }
                    // Boxed, because this future is large and rarely needed.
                    Action::Forward => break forward(services, delivery, provenance, failure).boxed().await,
                    Action::RetryAfter(_) | Action::DeadLetter(_) => {
                        unreachable!("these are decided in the failed-order queue only")
                    }
                }
                retries = retries.saturating_add(1);
            }
        }
    }
}

/// How long after a failure that is retried its outcome is expected, besides the delay.
const REPLAY_OUTCOME_TIME: SignedDuration = SignedDuration::from_hours(1);

/// Records what became of a dead letter that was replayed, before it is acked: so no outcome is missed.
async fn record_replay(
    context: &ConsumerContext,
    delivery: &Delivery,
    key: &str,
    handled: HandlerOutcome,
) -> DeliveryOutcome {
    let now = Timestamp::now();
    let outcome = match &handled {
        HandlerOutcome::Completed | HandlerOutcome::Duplicate | HandlerOutcome::Cancelled => ReplayOutcome::Processed,
        HandlerOutcome::Skipped => ReplayOutcome::NotDelivered,
        HandlerOutcome::Prevented => ReplayOutcome::Cancelled,
        HandlerOutcome::Retried { delay, .. } => {
            let delay = SignedDuration::try_from(delay.as_duration()).unwrap_or(SignedDuration::MAX);
            let time = delay.saturating_add(REPLAY_OUTCOME_TIME);
            ReplayOutcome::Retrying { due: now.saturating_add(time).unwrap_or(Timestamp::MAX) }
        }
        // What could not be undone before is undone now.
        HandlerOutcome::DeadLettered { reason, .. } | HandlerOutcome::DeadLetteredByBroker { reason, .. }
            if *reason != DeadLetterReason::UndoFailed
                && replayed_for(delivery) == Some(DeadLetterReason::UndoFailed.as_str()) =>
        {
            ReplayOutcome::Undone
        }
        HandlerOutcome::DeadLettered { .. } | HandlerOutcome::DeadLetteredByBroker { .. } => ReplayOutcome::FailedAgain,
        // It is still on its way.
        HandlerOutcome::Returned => return DeliveryOutcome::Handled(handled),
    };
    let code = match &handled {
        // That of the dead letter, which may be about another failure than the last one.
        HandlerOutcome::DeadLettered { letter, .. } | HandlerOutcome::DeadLetteredByBroker { letter, .. } => {
            Some(letter.code.clone())
        }
        HandlerOutcome::Retried { .. } => {
            delivery.message.headers.get(names::FAILURE_CODE).and_then(HeaderValue::as_text).map(str::to_owned)
        }
        HandlerOutcome::Completed
        | HandlerOutcome::Duplicate
        | HandlerOutcome::Cancelled
        | HandlerOutcome::Prevented
        | HandlerOutcome::Skipped
        | HandlerOutcome::Returned => None,
    };
    let entry = LedgerEntry::ReplayOutcome { key: key.to_owned(), outcome, code, at: now };
    match context.ledger.record(entry).await.map_err(HandlerError::from) {
        Ok(Recorded::UnknownReplay) => {
            if let Some(due) = REPEATED.occurred((&context.consumer, "unknown_replay", "")) {
                let (repeated, replay) = (due.repeated, key.split('-').next());
                warn!(
                    consumer = %context.consumer, replay, repeated,
                    "a dead letter was replayed by an instance with another ledger, which does not see its outcome: instances that \
                     consume the same queues must share the ledger, or leave dead letters to one of them (dead_letters.collect)"
                );
            }
            DeliveryOutcome::Handled(handled)
        }
        Ok(_) => DeliveryOutcome::Handled(handled),
        // A defect, which must not cost the message.
        Err(HandlerError::Failed(failure)) => {
            if let Some(due) = REPEATED.occurred((&context.consumer, "cannot_record_replay", failure.code.as_str())) {
                let repeated = due.repeated;
                error!(consumer = %context.consumer, %failure, repeated, "cannot record the outcome of a replay; the replay waits for it in vain");
            }
            DeliveryOutcome::Handled(handled)
        }
        Err(HandlerError::Interrupted(_)) => DeliveryOutcome::Released,
    }
}

/// Decides what happens after a failure. `retries` counts the attempts at this delivery so far, without the first.
fn next_action(context: &ConsumerContext, failure: &Failure, retries: u32) -> Action {
    let (policy, point) = match &context.on_failure {
        OnFailure::Forward(policy) => (Some(policy), DecisionPoint::Worker { immediate_retries: retries }),
        OnFailure::KeepRetrying => (None, DecisionPoint::FailedOrderWorker),
    };
    decide(policy, failure, point, Timestamp::now())
}

/// One attempt: run the handler, publish its events, record its effect.
async fn attempt(services: DeliveryServices<'_>, delivery: &Delivery, provenance: &Provenance<'_>) -> AttemptOutcome {
    let context = services.context;
    let output = match run_handler(services, delivery, provenance).await {
        Ok(output) => output,
        Err(error) => return error.into(),
    };
    match publish_output(context, &output).await {
        Ok(()) => {}
        Err(PublishError::Closed) => return AttemptOutcome::Interrupted(Interruption::PublisherClosed),
        // Boxed, because this future is large and rarely needed.
        Err(error) => return output_not_publishable(services, delivery, provenance, &error).boxed().await,
    }
    if let Some(entry) = output.record {
        // During an outage this waits, so what is confirmed is not published again.
        match context.ledger.record(entry.confirmed_at(Timestamp::now())).await {
            Ok(Recorded::Undone) => {
                let reason = "it was decided to undo the order's steps while its events were published";
                return HandlerError::Failed(Failure::new(FailureKind::Permanent, "undone", reason)).into();
            }
            // An order that was cancelled while its events were published is recorded as both.
            Ok(
                Recorded::New
                | Recorded::Unfinished
                | Recorded::Duplicate
                | Recorded::Cancelled
                | Recorded::Conflict(_)
                | Recorded::InProgress
                | Recorded::Held
                | Recorded::UnknownReplay,
            ) => {}
            Err(error) => return HandlerError::from(error).into(),
        }
    }
    handled(output.outcome, output.log)
}

fn handled(outcome: HandlerOutcome, log: Option<DeferredLog>) -> AttemptOutcome {
    if let Some(log) = log {
        log.write();
    }
    AttemptOutcome::Handled(outcome)
}

/// What the handler returned can never be published. The failed-order consumer records the dead letter, and the broker itself
/// moves the message.
async fn output_not_publishable(
    services: DeliveryServices<'_>,
    delivery: &Delivery,
    provenance: &Provenance<'_>,
    error: &PublishError,
) -> AttemptOutcome {
    let context = services.context;
    let deadline = Deadline::after(context.timeout);
    let ledger = LedgerAccess::new(&*context.ledger, &deadline);
    let (consumer, bindings) = (&context.consumer, &context.bindings);
    let steps = StepAccess(Some(&services));
    let input = HandlerInput { delivery, provenance, consumer, bindings, retries: 0, ledger, steps };
    match context.handler.dead_letter_without_copy(input, &chain(error)).await {
        Ok(Some(without_copy)) => record_without_copy(context, without_copy).await,
        Ok(None) => cannot_publish(context, error),
        Err(error) => error.into(),
    }
}

/// Publishes what a handler returned. The report comes first and by itself: whatever becomes of it, the failed message's copy is
/// published once, right before the message is acked.
async fn publish_output(context: &ConsumerContext, output: &HandlerOutput) -> Result<(), PublishError> {
    if let Some(report) = &output.report {
        match publish(context, Arc::new([Publication::clone(report)])).boxed().await {
            Ok(()) => {}
            Err(PublishError::Closed) => return Err(PublishError::Closed),
            Err(error) => {
                if let Some(due) = REPEATED.occurred((&context.consumer, "cannot_report")) {
                    let repeated = due.repeated;
                    warn!(consumer = %context.consumer, %error, repeated, "cannot publish the event about a failed message; it is left out");
                }
            }
        }
    }
    if output.emit.is_empty() {
        return Ok(());
    }
    // Boxed, because this future is large and most deliveries publish nothing.
    publish(context, Arc::clone(&output.emit)).boxed().await
}

/// Records a dead letter whose copy cannot be published, before the broker itself dead-letters the message. The message is
/// kept even if the ledger refuses the entry: repeating would not help.
async fn record_without_copy(context: &ConsumerContext, output: HandlerOutput) -> AttemptOutcome {
    let Some(entry) = output.record else { return handled(output.outcome, output.log) };
    match context.ledger.record(entry.confirmed_at(Timestamp::now())).await.map_err(HandlerError::from) {
        // It must not be dead-lettered.
        Ok(Recorded::Cancelled) => return AttemptOutcome::Handled(HandlerOutcome::Prevented),
        Ok(_) => {}
        Err(HandlerError::Failed(failure)) => {
            if let Some(due) = REPEATED.occurred((&context.consumer, "cannot_record", failure.code.as_str())) {
                let repeated = due.repeated;
                error!(consumer = %context.consumer, %failure, repeated, "cannot record a dead letter in the ledger; it is dead-lettered without a record");
            }
        }
        Err(interrupted @ HandlerError::Interrupted(_)) => return interrupted.into(),
    }
    handled(output.outcome, output.log)
}

impl From<HandlerError> for AttemptOutcome {
    fn from(error: HandlerError) -> Self {
        match error {
            HandlerError::Failed(failure) => AttemptOutcome::Failed(failure),
            HandlerError::Interrupted(interruption) => AttemptOutcome::Interrupted(interruption),
        }
    }
}

/// Runs the handler under its deadline. A panic costs this delivery one attempt, and nothing else.
async fn run_handler(
    services: DeliveryServices<'_>,
    delivery: &Delivery,
    provenance: &Provenance<'_>,
) -> Result<HandlerOutput, HandlerError> {
    let context = services.context;
    let retries = trusted_retry_count(delivery, *provenance);
    let deadline = Deadline::after(context.timeout);
    let ledger = LedgerAccess::new(&*context.ledger, &deadline);
    let (consumer, bindings) = (&context.consumer, &*context.bindings);
    let steps = StepAccess(Some(&services));
    let input = HandlerInput { delivery, provenance, consumer, bindings, retries, ledger, steps };
    let handling = AssertUnwindSafe(context.handler.handle(input)).catch_unwind();
    let failure = match deadline.limit(handling).await {
        Some(Ok(result)) => return result,
        Some(Err(panic)) => Failure::new(FailureKind::Panicked, "panicked", panic_text(&*panic)),
        None => {
            let reason = format!("no result within {:?}", context.timeout);
            Failure::new(FailureKind::TimedOut, "deadline_exceeded", reason)
        }
    };
    Err(failure.into())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", text.unwrap_or("no text"))
}

/// The outcome when a message that the handler returned can never be published. For most consumers it is a permanent
/// failure. The failed-order consumer would publish the failed message itself, so the broker has to dead-letter that.
fn cannot_publish(context: &ConsumerContext, error: &PublishError) -> AttemptOutcome {
    match context.on_failure {
        OnFailure::Forward(_) => {
            AttemptOutcome::Failed(Failure::new(FailureKind::Permanent, "cannot_publish", chain(error)))
        }
        OnFailure::KeepRetrying => {
            if let Some(due) = REPEATED.occurred((&context.consumer, "cannot_publish")) {
                let repeated = due.repeated;
                error!(consumer = %context.consumer, %error, repeated, "cannot publish a failed message; the broker will dead-letter it");
            }
            AttemptOutcome::CannotPublish
        }
    }
}

/// Publishes a copy to the failed-order queue. The delivery may be acked once the copy is confirmed.
async fn forward(
    services: DeliveryServices<'_>,
    delivery: &Delivery,
    provenance: Provenance<'_>,
    failure: Failure,
) -> DeliveryOutcome {
    let context = services.context;
    log_failure(context, delivery, &failure);
    let failed_in = (&*context.consumer, &*context.queue);
    let claimed = services.note.get();
    let failure = (failure, claimed.as_ref());
    let copy = copy_for_failure(delivery, provenance, failed_in, failure, &context.names, Timestamp::now());
    if copy.message.headers.contains_key(names::HEADERS_DROPPED) {
        context.counters.headers_dropped();
    }
    match publish(context, Arc::new([copy])).await {
        Ok(()) => DeliveryOutcome::Forwarded,
        Err(PublishError::Closed) => DeliveryOutcome::Released,
        Err(error) => {
            if let Some(due) = REPEATED.occurred((&context.consumer, "cannot_forward")) {
                let repeated = due.repeated;
                error!(consumer = %context.consumer, %error, repeated, "cannot forward a failed message; the broker will dead-letter it");
            }
            DeliveryOutcome::Rejected
        }
    }
}

/// Logs a failed delivery, with the order's fields if the message is an order.
fn log_failure(context: &ConsumerContext, delivery: &Delivery, failure: &Failure) {
    let text = delivery.message.document(context.max_body);
    let text = text.ok();
    let order = text.as_ref().and_then(|text| context.format.decode(text).ok());
    let id = order.as_ref().map(|order| order.id.clone());
    let id = id.or_else(|| text.as_ref().and_then(|text| context.format.order_id(text)));
    let order = order.as_ref().map(Order::summary);
    let product = order.as_ref().and_then(|order| order.product).map(|product| cut(product).to_owned());
    let lines = order.as_ref().and_then(|order| order.lines);
    let (quantity, price) = order.map_or((None, None), |order| (Some(order.quantity), order.price));
    let message_id = delivery.message.properties.message_id.clone();
    let (consumer, failure) = (Arc::clone(&context.consumer), failure.clone());
    let cause = ("Order Failed", Arc::clone(&consumer), failure.kind, failure.code.clone());
    FAILED_MESSAGES.write(cause, move |line| {
        macro_rules! log {
            ($level:ident, $repeated:expr) => {
                $level!(
                    %consumer,
                    order = id.as_ref().map(OrderId::as_str),
                    product,
                    lines,
                    quantity = quantity.as_ref().map(tracing::field::display),
                    price = price.as_ref().map(tracing::field::display),
                    message_id,
                    kind = %failure.kind,
                    code = failure.code,
                    reason = failure.reason,
                    repeated = $repeated,
                    "Order Failed"
                )
            };
        }
        match line {
            MessageLine::Shown { repeated } => log!(warn, repeated),
            MessageLine::Debug => log!(debug, None::<u64>),
        }
    });
}

/// A text of the sender's for a line that is kept for a while.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_LOGGED_PRODUCT)]
}

/// Logs a message that is dead-lettered without reading it.
fn log_too_large(context: &ConsumerContext, delivery: &Delivery) {
    let (consumer, message_id) = (Arc::clone(&context.consumer), delivery.message.properties.message_id.clone());
    FAILED_MESSAGES.write((BODY_TOO_LARGE, Arc::clone(&consumer)), move |line| {
        macro_rules! log {
            ($level:ident, $repeated:expr) => {
                $level!(
                    %consumer, message_id, code = BODY_TOO_LARGE, repeated = $repeated,
                    "the body is larger than broker.max_body"
                )
            };
        }
        match line {
            MessageLine::Shown { repeated } => log!(warn, repeated),
            MessageLine::Debug => log!(debug, None::<u64>),
        }
    });
}
