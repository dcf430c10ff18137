//! Orders, normal and priority: decoded, checked, recorded in the ledger, and announced to the customer and to analytics. A
//! cancellation comes in the same queue: see `cancellation`.
//!
//! Its own keys: `steps`, the shop's own services that are called for each order; `on_conflict`; and `faults`, which makes a fraction
//! of the orders fail on purpose.

mod cancellation;
mod fault_injection;
mod on_conflict;
mod step_order;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::watch;
use tracing::{debug, warn};

use self::fault_injection::{FaultInjection, FaultKind};
use self::on_conflict::OnConflict;
pub use self::step_order::StepOrder;
use self::step_order::step_order;
use super::claim::Claims;
use super::event_publication::event;
use super::step_run::{StepRunInput, claimed_order_id, is_new, order_run, run_steps};
use super::{HandlerConsumer, HandlerDeps, HandlerFactory, OriginConsumer, body_failure};
use crate::config::{MessageKind, Section};
use crate::domain::{Amounts, AnalyticsEvent, Notification, Order, OrderDocument, OrderSummary};
use crate::formats::{Format, OrderFaults};
use crate::ledger::{LedgerEntry, NewOrder, OtherOrder, Recorded};
use crate::message::{ExchangeNames, HeaderValue, Publication, names};
use crate::metrics::HandlerOutcome;
use crate::pipeline::{Handler, HandlerError, HandlerInput, HandlerOutput, IntakeGate};
use crate::recovery::{ClaimedRun, Failure, FailureKind, cancelled_order};
use crate::steps::{Engine, OrderFacts, OrderInput, RunOutcome, StepsSettings};

/// The failure's code of an order with the id of another.
pub(super) const ID_CONFLICT: &str = "id_conflict";
/// The failure's code of an order whose steps another consumer has called, or this one with another configuration.
pub(super) const STEPS_IN_PROGRESS: &str = "steps_in_progress";

/// `handler = "order"`
pub(super) struct OrderFactory;

/// Its own keys in `[consumers.<name>]`.
#[derive(Debug, Serialize)]
pub(super) struct OrderSettings {
    #[serde(skip_serializing_if = "StepsSettings::is_empty")]
    steps: StepsSettings,
    on_conflict: OnConflict,
    faults: FaultInjection,
}

impl HandlerFactory for OrderFactory {
    type Settings = OrderSettings;

    const NAME: &'static str = "order";

    const MESSAGES: MessageKind = MessageKind::Order;

    fn read(section: &mut Section<'_>) -> OrderSettings {
        OrderSettings {
            steps: StepsSettings::read(section, true),
            on_conflict: OnConflict::read(section),
            faults: FaultInjection::read(section.section("faults")),
        }
    }

    fn check_lines(consumer: &str, settings: &OrderSettings) -> Vec<String> {
        let faults = settings.faults.summary();
        let line = faults.map(|faults| format!("!!! FAULT INJECTION in consumer {consumer:?}: {faults}"));
        line.into_iter().chain(settings.steps.check_lines(consumer)).collect()
    }

    fn event_keys(settings: &OrderSettings) -> Vec<String> {
        settings.steps.event_keys()
    }

    fn retry_limits(settings: &OrderSettings) -> Vec<(String, Duration)> {
        settings.steps.retry_limits()
    }

    fn call_time(settings: &OrderSettings) -> Duration {
        settings.steps.longest()
    }

    fn build(consumer: HandlerConsumer<'_>, settings: &OrderSettings, deps: &HandlerDeps) -> Arc<dyn Handler> {
        let faults = settings.faults;
        if faults.is_on() {
            warn!(consumer = consumer.name, ?faults, "faults are injected on purpose: not for production");
        }
        let steps = OrderSteps {
            engine: Engine::new(consumer.name, consumer.workers, &settings.steps, &deps.steps),
            claims: Arc::clone(&deps.claims),
            are_configured: !settings.steps.is_empty(),
        };
        let (names, max_body, format) = (Arc::clone(&deps.names), deps.max_body, deps.format.clone());
        let default_channel = Arc::clone(&deps.default_channel);
        Arc::new(OrderHandler {
            default_channel,
            names,
            steps,
            consumers: deps.origin_consumers.clone(),
            on_conflict: settings.on_conflict,
            faults,
            max_body,
            format,
        })
    }
}

struct OrderHandler {
    /// The notification channel of an order that asks for none.
    default_channel: Arc<str>,
    names: Arc<ExchangeNames>,
    steps: OrderSteps,
    /// By queue: an order's steps may be those of another consumer.
    consumers: watch::Receiver<BTreeMap<String, OriginConsumer>>,
    on_conflict: OnConflict,
    faults: FaultInjection,
    max_body: usize,
    format: Format,
}

/// The failure for a document that is no order, or breaks a rule.
fn invalid(faults: &OrderFaults) -> Failure {
    let kind = if faults.is_malformed() { FailureKind::Malformed } else { FailureKind::Permanent };
    let reason = match &faults.order_id {
        Some(id) => format!("order {id}: {faults}"),
        None => faults.to_string(),
    };
    Failure::new(kind, faults.code(), reason)
}

/// What calls the steps of orders.
struct OrderSteps {
    engine: Engine,
    claims: Arc<Claims>,
    /// Whether there are any. If not, none is called, but those of another configuration may have to be undone.
    are_configured: bool,
}

impl OrderHandler {
    async fn process(&self, input: HandlerInput<'_>) -> Result<HandlerOutput, HandlerError> {
        let message = &input.delivery.message;
        let text = message.document(self.max_body).map_err(|error| body_failure(&error))?;
        // The consumer that passed it on has read it, perhaps in another format.
        if let Some(id) = cancelled_order(input.delivery, *input.provenance) {
            return self.cancel(input, id, text).boxed().await;
        }
        let stated = message.order_event(self.max_body);
        let document = self.format.read(&text, stated).map_err(|faults| invalid(&faults))?;
        let claimed = ClaimedRun::read(input.delivery, *input.provenance).as_ref().and_then(claimed_order_id);
        let order = match document {
            OrderDocument::Placed(mut order) => {
                order.id = claimed.unwrap_or(order.id);
                order
            }
            // Boxed, because this future is large and rarely needed.
            OrderDocument::Cancelled(id) => return self.cancel(input, claimed.unwrap_or(id), text).boxed().await,
        };
        if tracing::enabled!(tracing::Level::DEBUG) {
            let OrderSummary { product, lines, quantity, price } = order.summary();
            debug!(
                consumer = %input.consumer, order = %order.id, product, lines, %quantity,
                price = price.as_ref().map(tracing::field::display), retries = input.retries, "Processing Order"
            );
        }
        let amounts = self.format.check(&order).map_err(|faults| invalid(&faults))?;
        if let Some(fault) = self.faults.fault_for(&order.id, input.retries) {
            inject(fault).await?;
        }
        let now = Timestamp::now();
        let accepted = Box::new(NewOrder::new(&order, input.consumer, amounts, now));
        let has_steps = self.steps.are_configured;
        let accepted = if has_steps {
            // Boxed, because this future is large and most shops have no steps.
            let may_take_over = |queue: &str| !self.has_consumer(queue);
            let accept = (accepted, &amounts);
            self.steps.run(&self.names, input, (&order, text), accept, &may_take_over).boxed().await?
        } else if is_sent_back_to_be_undone(input) {
            Recorded::Undone
        } else {
            input.ledger.record(LedgerEntry::AcceptOrder(accepted)).await?
        };
        // With steps, the events are of the time at which they are done.
        let now = if has_steps { Timestamp::now() } else { now };
        match accepted {
            Recorded::New | Recorded::Unfinished => {}
            Recorded::Cancelled => {
                let emit = self.notification_of_prevention(&order, &amounts, now);
                return Ok(HandlerOutput { emit, ..HandlerOutput::finished(HandlerOutcome::Prevented) });
            }
            Recorded::Duplicate | Recorded::Held | Recorded::UnknownReplay => {
                return Ok(HandlerOutput::finished(HandlerOutcome::Duplicate));
            }
            Recorded::Conflict(other) if self.on_conflict == OnConflict::Ignore && may_be_ignored(other, input) => {
                return Ok(HandlerOutput::finished(HandlerOutcome::Duplicate));
            }
            Recorded::InProgress => {
                let reason = "its steps were called by the consumer of another queue, or by this one with other steps, and are not all done; \
                              it is not processed without them";
                return Err(Failure::new(FailureKind::Transient, STEPS_IN_PROGRESS, reason).into());
            }
            Recorded::Undone => {
                let reason =
                    "its steps are undone or have to be, and the consumer has no steps: it must not be processed";
                return Err(Failure::new(FailureKind::Permanent, "undo_not_configured", reason).into());
            }
            Recorded::Conflict(_) => {
                let reason = format!("an order with the id {} and different content was accepted before", order.id);
                return Err(Failure::new(FailureKind::Permanent, ID_CONFLICT, reason).into());
            }
        }
        Ok(HandlerOutput {
            emit: self.events(&order, &amounts, now),
            record: Some(LedgerEntry::FinishOrder { id: order.id, at: now }),
            ..HandlerOutput::finished(HandlerOutcome::Completed)
        })
    }

    /// Whether orders of this queue are processed here.
    fn has_consumer(&self, queue: &str) -> bool {
        let consumers = self.consumers.borrow();
        consumers.get(queue).is_some_and(|consumer| consumer.is_configured && consumer.format.is_some())
    }

    fn events(&self, order: &Order, amounts: &Amounts, now: Timestamp) -> Arc<[Publication]> {
        let channel = order.wanted_channel().unwrap_or(&self.default_channel);
        let notification = Notification { channel, ..Notification::processed(order, amounts) };
        let analytics = AnalyticsEvent::processed(order, amounts, now);
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

impl OrderSteps {
    /// Accepts the order and calls its steps. The answer is that to the order; if it is accepted, all steps are done.
    async fn run(
        &self,
        names: &ExchangeNames,
        input: HandlerInput<'_>,
        (order, text): (&Order, Cow<'_, str>),
        (accept, amounts): (Box<NewOrder>, &Amounts),
        may_take_over: &(dyn Fn(&str) -> bool + Send + Sync),
    ) -> Result<Recorded, HandlerError> {
        let json = step_order(order, amounts);
        let facts = OrderFacts { priority: order.priority, total: amounts.total, currency: amounts.currency };
        let key = order_run(order.id.as_str());
        let order = Some(OrderInput { json: &json, facts });
        let run = StepRunInput { key: &key, text, order, accept: Some(accept), may_take_over };
        Ok(match run_steps(&self.engine, &self.claims, names, input, run).await? {
            RunOutcome::Done | RunOutcome::WasDone => Recorded::Unfinished,
            RunOutcome::NotAccepted(answer) => answer,
        })
    }
}

impl Handler for OrderHandler {
    fn handle<'a>(&'a self, input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, HandlerError>> {
        Box::pin(self.process(input))
    }

    fn gates(&self) -> Vec<IntakeGate> {
        self.steps.engine.gates().into_iter().map(|gate| IntakeGate::Service(gate.into())).collect()
    }
}

/// Whether an order may be acked although the ledger has another one with its id, without losing either: that one is processed or
/// cancelled, or is in progress with a message other than this one. A message that was delivered before may be that one, read in
/// another way since.
fn may_be_ignored(other: OtherOrder, input: HandlerInput<'_>) -> bool {
    match other {
        OtherOrder::Finished => true,
        OtherOrder::InProgress => !input.provenance.is_copy && is_new(input),
        OtherOrder::Failed => false,
    }
}

/// Whether the message is back in its queue so that its steps are undone.
fn is_sent_back_to_be_undone(input: HandlerInput<'_>) -> bool {
    let header = input.delivery.message.headers.get(names::UNDO);
    input.provenance.is_copy && header == Some(&HeaderValue::Bool(true))
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
