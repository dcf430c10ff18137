//! Orders, normal and priority: checked, entered in the ledger, told to the customer and to analytics.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use rust_decimal::Decimal;
use tracing::debug;

use super::emit::event;
use super::{Handler, HandlerDeps, HandlerInput, HandlerOutcome, HandlerOutput, ledger_failure};
use crate::chain::chain;
use crate::domain::{AnalyticsEvent, Currency, FaultInjection, FaultKind, Notification, Order};
use crate::ledger::{Ledger, LedgerEntry, NewOrder, Recorded};
use crate::message::{ExchangeNames, Publication};
use crate::recovery::{Failure, FailureKind};

pub(super) struct OrderHandler {
    ledger: Arc<dyn Ledger>,
    names: Arc<ExchangeNames>,
    faults: Option<FaultInjection>,
}

impl OrderHandler {
    pub(super) fn new(parts: &HandlerDeps) -> Self {
        OrderHandler { ledger: Arc::clone(&parts.ledger), names: Arc::clone(&parts.names), faults: parts.faults }
    }

    async fn process(&self, work: HandlerInput<'_>) -> Result<HandlerOutput, Failure> {
        let order = Order::decode(&work.delivery.message.body)
            .map_err(|error| Failure::new(FailureKind::Malformed, "invalid_order", chain(&error)))?;
        debug!(
            consumer = %work.consumer, order = %order.id, product = order.product, quantity = order.quantity,
            price = %order.price, retries = work.retries, "Processing Order"
        );
        let (total, currency) = order.check().map_err(|error| {
            Failure::new(FailureKind::Permanent, error.code(), format!("order {}: {error}", order.id))
        })?;
        if let Some(fault) = self.faults.and_then(|faults| faults.strike(&order.id, work.retries)) {
            inject(fault).await?;
        }
        let now = Timestamp::now();
        let entry = LedgerEntry::AcceptOrder(Box::new(new_order(&order, work.consumer, total, currency, now)));
        match self.ledger.record(entry).await.map_err(|error| ledger_failure(&error))? {
            Recorded::New | Recorded::Unfinished => {}
            Recorded::Duplicate => return Ok(HandlerOutput::just(HandlerOutcome::Duplicate)),
            Recorded::Conflict => {
                let reason = format!("another order with the id {} and other content was accepted before", order.id);
                return Err(Failure::new(FailureKind::Permanent, "id_conflict", reason));
            }
        }
        Ok(HandlerOutput {
            verdict: HandlerOutcome::Completed,
            emit: self.events(&order, total, currency, now),
            record: Some(LedgerEntry::FinishOrder { id: order.id, at: now }),
        })
    }

    fn events(&self, order: &Order, total: Decimal, currency: Currency, now: Timestamp) -> Arc<[Publication]> {
        let notification = Notification::processed(order, total, currency);
        let analytics = AnalyticsEvent::processed(order, total, currency, now);
        let key = ["order.notification.", notification.channel].concat();
        Arc::new([
            event(&self.names, key, order.id.as_str(), "notification/processed", &notification, now),
            event(
                &self.names,
                "order.analytics.processed".to_owned(),
                order.id.as_str(),
                "analytics/processed",
                &analytics,
                now,
            ),
        ])
    }
}

impl Handler for OrderHandler {
    fn handle<'a>(&'a self, work: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, Failure>> {
        Box::pin(self.process(work))
    }
}

fn new_order(order: &Order, consumer: &Arc<str>, total: Decimal, currency: Currency, at: Timestamp) -> NewOrder {
    NewOrder {
        id: order.id.clone(),
        consumer: Arc::clone(consumer),
        product: order.product.clone(),
        quantity: order.quantity,
        price: order.price,
        total,
        currency,
        priority: order.priority,
        customer_id: order.customer_id.clone(),
        placed_at: order.placed_at,
        at,
    }
}

/// Makes a fault of the configured kind happen.
async fn inject(fault: FaultKind) -> Result<(), Failure> {
    match fault {
        FaultKind::Transient => Err(Failure::new(FailureKind::Transient, "injected_transient", "injected fault")),
        FaultKind::Permanent => Err(Failure::new(FailureKind::Permanent, "injected_permanent", "injected fault")),
        FaultKind::Panic => panic!("injected fault"),
        FaultKind::Hang => std::future::pending().await,
        FaultKind::Block => loop {
            std::thread::park();
        },
    }
}
