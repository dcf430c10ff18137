//! Cancellations: the order is not processed any more, or its steps are undone and its announcement is revoked.
//!
//! ```text
//! cancelled in the ledger ─► its steps undone, in reverse order ─► events confirmed ─► complete
//!     an unknown order: kept, so that it is prevented when it arrives, and then its customer is notified
//! ```
//! The ledger decides, in one transaction, whether the order is prevented or was announced. Each delivery of a cancellation that is
//! not complete continues it.

use std::borrow::Cow;
use std::sync::Arc;

use jiff::Timestamp;
use tracing::{debug, info};

use super::OrderHandler;
use super::step_order::step_order;
use crate::domain::{Amounts, CancelledEvent, Notification, Order, OrderId};
use crate::handlers::event_publication::event;
use crate::handlers::step_run::{StepRunInput, TAKES_OVER_NONE, cancel_steps, order_run, services};
use crate::ledger::{CancelAnswer, CancelledOrder, LedgerEntry, NewCancellation, NewOrder};
use crate::message::Publication;
use crate::metrics::HandlerOutcome;
use crate::pipeline::{HandlerError, HandlerInput, HandlerOutput};
use crate::recovery::{Failure, FailureKind, copy_of_cancellation};
use crate::steps::{OrderFacts, OrderInput};
use crate::telemetry::RepeatedLog;

/// Cancellations of orders that the ledger does not know, by consumer.
static KEPT: RepeatedLog = RepeatedLog::new();

impl OrderHandler {
    /// Cancels the order with this id. `text` is the cancellation.
    pub(super) async fn cancel(
        &self,
        input: HandlerInput<'_>,
        id: OrderId,
        text: Cow<'_, str>,
    ) -> Result<HandlerOutput, HandlerError> {
        debug!(consumer = %input.consumer, order = %id, retries = input.retries, "Cancelling Order");
        let (consumer, now) = (Arc::clone(input.consumer), Timestamp::now());
        let cancellation = NewCancellation { id: id.clone(), consumer, at: now };
        let cancelled = match input.ledger.cancel_order(cancellation).await? {
            CancelAnswer::Kept => {
                if let Some(due) = KEPT.occurred(input.consumer) {
                    let (consumer, repeated) = (input.consumer, due.repeated);
                    info!(%consumer, order = %id, repeated, "kept the cancellation of an order that is not known");
                }
                return Ok(HandlerOutput::finished(HandlerOutcome::Cancelled));
            }
            CancelAnswer::Duplicate => return Ok(HandlerOutput::finished(HandlerOutcome::Duplicate)),
            CancelAnswer::Cancelled(cancelled) => *cancelled,
        };
        let order = stored_order(&cancelled.order);
        if let Some(queue) = &cancelled.steps_queue {
            if **services(input)?.queue() != **queue {
                return self.hand_over(input, &id, queue);
            }
            self.undo(input, &cancelled.order, &order, text).await?;
        }
        let emit = match cancelled.was_announced {
            true => self.revocation(&cancelled, &order),
            false => self.notification_of_prevention(&order, &cancelled.order.amounts, cancelled.at),
        };
        Ok(HandlerOutput {
            emit,
            record: Some(LedgerEntry::FinishCancellation { id, at: now }),
            ..HandlerOutput::finished(HandlerOutcome::Cancelled)
        })
    }

    /// Sends the cancellation to the queue of the consumer that has called the steps: only its configuration says what undoes them.
    /// Another consumer may have steps of the same names.
    fn hand_over(&self, input: HandlerInput<'_>, id: &OrderId, queue: &str) -> Result<HandlerOutput, HandlerError> {
        if !self.has_consumer(queue) {
            let reason = format!(
                "the order's steps were called by the consumer of queue {queue:?}, which this instance does not have"
            );
            // Another instance may have it, or this one after a reload.
            return Err(Failure::new(FailureKind::Transient, "undo_not_configured", reason).into());
        }
        let copy = copy_of_cancellation(input.delivery, *input.provenance, (id, queue), &self.names);
        Ok(HandlerOutput { emit: Arc::new([copy]), ..HandlerOutput::finished(HandlerOutcome::Returned) })
    }

    async fn undo(
        &self,
        input: HandlerInput<'_>,
        stored: &NewOrder,
        order: &Order,
        text: Cow<'_, str>,
    ) -> Result<(), HandlerError> {
        let (json, amounts) = (step_order(order, &stored.amounts), &stored.amounts);
        let facts = OrderFacts { priority: order.priority, total: amounts.total, currency: amounts.currency };
        let key = order_run(order.id.as_str());
        let order = Some(OrderInput { json: &json, facts });
        let run = StepRunInput { key: &key, text, order, accept: None, may_take_over: TAKES_OVER_NONE };
        cancel_steps(&self.steps.engine, &self.steps.claims, &self.names, input, run).await
    }

    /// The events of an order that was announced, or may have been.
    fn revocation(&self, cancelled: &CancelledOrder, order: &Order) -> Arc<[Publication]> {
        let CancelledOrder { order: NewOrder { amounts, .. }, at, .. } = cancelled;
        let analytics = CancelledEvent::new(order, amounts, *at);
        let key = "order.analytics.cancelled".to_owned();
        Arc::new([
            self.cancelled_notification(order, amounts, *at),
            event(&self.names, key, order.id.as_str(), "analytics/cancelled", &analytics, *at),
        ])
    }

    /// The event of an order that was cancelled before it was processed: the customer expects an answer to the cancellation, and analytics
    /// has no sale. Several copies of the order, and the cancellation, may publish it. It has one identity, so the customer is notified once.
    pub(super) fn notification_of_prevention(
        &self,
        order: &Order,
        amounts: &Amounts,
        at: Timestamp,
    ) -> Arc<[Publication]> {
        Arc::new([self.cancelled_notification(order, amounts, at)])
    }

    fn cancelled_notification(&self, order: &Order, amounts: &Amounts, at: Timestamp) -> Publication {
        let channel = order.wanted_channel().unwrap_or(&self.default_channel);
        let notification = Notification { channel, ..Notification::cancelled(order, amounts) };
        let key = ["order.notification.", notification.channel].concat();
        event(&self.names, key, order.id.as_str(), "notification/cancelled", &notification, at)
    }
}

/// The order as the ledger has it.
fn stored_order(stored: &NewOrder) -> Order {
    let mut order = Order::new(stored.id.clone(), stored.items.to_vec());
    order.charges = stored.amounts.charges;
    order.priority = stored.priority;
    order.customer_id.clone_from(&stored.customer_id);
    order.email.clone_from(&stored.email);
    order.phone.clone_from(&stored.phone);
    order.locale.clone_from(&stored.locale);
    order.notify.clone_from(&stored.notify);
    order.placed_at = stored.placed_at;
    order
}
