//! Orders, normal and priority: decoded, checked, recorded in the ledger, and announced to the customer and to analytics.
//!
//! Its own keys: `faults`, which makes a fraction of the orders fail on purpose.

mod fault_injection;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::Serialize;
use tracing::{debug, warn};

use self::fault_injection::{FaultInjection, FaultKind};
use super::event_publication::event;
use super::{HandlerDeps, HandlerFactory, body_failure};
use crate::config::{MessageKind, Section};
use crate::domain::{AnalyticsEvent, Currency, Notification, Order};
use crate::ledger::{LedgerEntry, NewOrder, Recorded};
use crate::message::{ExchangeNames, Publication};
use crate::metrics::HandlerOutcome;
use crate::pipeline::{Handler, HandlerError, HandlerInput, HandlerOutput};
use crate::recovery::{Failure, FailureKind};

/// `handler = "order"`
pub(super) struct OrderFactory;

/// Its own keys in `[consumers.<name>]`.
#[derive(Debug, Serialize)]
pub(super) struct OrderSettings {
    faults: FaultInjection,
}

impl HandlerFactory for OrderFactory {
    type Settings = OrderSettings;

    const NAME: &'static str = "order";

    const MESSAGES: MessageKind = MessageKind::Order;

    fn read(section: &mut Section<'_>) -> OrderSettings {
        OrderSettings { faults: FaultInjection::read(section.section("faults")) }
    }

    fn check_lines(consumer: &str, settings: &OrderSettings) -> Vec<String> {
        let faults = settings.faults.summary();
        let line = faults.map(|faults| format!("!!! FAULT INJECTION in consumer {consumer:?}: {faults}"));
        line.into_iter().collect()
    }

    fn build(consumer: &str, settings: &OrderSettings, deps: &HandlerDeps) -> Arc<dyn Handler> {
        let faults = settings.faults;
        if faults.is_on() {
            warn!(consumer, ?faults, "faults are injected on purpose: not for production");
        }
        Arc::new(OrderHandler { names: Arc::clone(&deps.names), faults, max_body: deps.max_body })
    }
}

struct OrderHandler {
    names: Arc<ExchangeNames>,
    faults: FaultInjection,
    max_body: usize,
}

impl OrderHandler {
    async fn process(&self, input: HandlerInput<'_>) -> Result<HandlerOutput, HandlerError> {
        let text = input.delivery.message.text(self.max_body).map_err(|error| body_failure(&error))?;
        let order = Order::from_json(&text)
            .map_err(|error| Failure::new(FailureKind::Malformed, error.code(), error.to_string()))?;
        drop(text);
        if tracing::enabled!(tracing::Level::DEBUG) {
            let (quantity, price) = order.shown_amounts();
            debug!(
                consumer = %input.consumer, order = %order.id, product = order.product, %quantity, %price,
                retries = input.retries, "Processing Order"
            );
        }
        let (total, currency) = order.check().map_err(|error| {
            Failure::new(FailureKind::Permanent, error.code(), format!("order {}: {error}", order.id))
        })?;
        if let Some(fault) = self.faults.fault_for(&order.id, input.retries) {
            inject(fault).await?;
        }
        let now = Timestamp::now();
        let entry = LedgerEntry::AcceptOrder(Box::new(new_order(&order, input.consumer, total, currency, now)));
        match input.ledger.record(entry).await? {
            Recorded::New | Recorded::Unfinished => {}
            Recorded::Duplicate => return Ok(HandlerOutput::finished(HandlerOutcome::Duplicate)),
            Recorded::Conflict => {
                let reason = format!("an order with the id {} and different content was accepted before", order.id);
                return Err(Failure::new(FailureKind::Permanent, "id_conflict", reason).into());
            }
        }
        Ok(HandlerOutput {
            emit: self.events(&order, total, currency, now),
            record: Some(LedgerEntry::FinishOrder { id: order.id, at: now }),
            ..HandlerOutput::finished(HandlerOutcome::Completed)
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
    fn handle<'a>(&'a self, input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, HandlerError>> {
        Box::pin(self.process(input))
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

/// Fails, panics, hangs or blocks, according to the kind.
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
