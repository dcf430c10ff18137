//! Runs the steps of one delivery: joins the engine in `steps` to what the worker offers a handler.

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::claim::{Claim, Claims};
use crate::config::MessageKind;
use crate::domain::OrderId;
use crate::ledger::{MessageHash, NewOrder, RunKey, RunMessage};
use crate::message::{ExchangeNames, HeaderValue, Message, Properties, Publication, PublishError, names};
use crate::pipeline::{HandlerError, HandlerInput, Interruption, StepServices};
use crate::recovery::{ClaimedRun, read_time};
use crate::steps::{Engine, EventPublisher, OrderInput, RunAccess, RunError, RunInput, RunOutcome, TraceContext};

/// What the steps of one delivery are called for.
pub(super) struct StepRunInput<'a> {
    /// The run.
    pub key: &'a RunKey,
    /// The body as text.
    pub text: Cow<'a, str>,
    /// The order, if it is one.
    pub order: Option<OrderInput<'a>>,
    /// The order to accept together with the claim of the run.
    pub accept: Option<Box<NewOrder>>,
    /// Whether the consumer of this queue, which has called the order's steps, is not configured any more.
    pub may_take_over: &'a (dyn Fn(&str) -> bool + Send + Sync),
}

/// No consumer takes over steps that another one has called.
pub(super) const TAKES_OVER_NONE: &(dyn Fn(&str) -> bool + Send + Sync) = &|_| false;

/// Calls the steps that are not done, with the handler's deadline suspended: each call has its own.
pub(super) async fn run_steps(
    engine: &Engine,
    claims: &Claims,
    names: &ExchangeNames,
    input: HandlerInput<'_>,
    mut run: StepRunInput<'_>,
) -> Result<RunOutcome, HandlerError> {
    let services = services(input)?;
    let accept = run.accept.take();
    let calls = async {
        let _claim = claim_in_process(claims, run.key, services).await?;
        let publisher = StepPublisher(services);
        let access = access(services, &publisher, names, run.may_take_over);
        let message = run_message(input, services);
        engine.run(run_input(input, &run, &message), accept, access).await.map_err(handler_error)
    };
    let _suspended = input.ledger.suspend_deadline();
    calls.await
}

/// Undoes the steps of an order that was cancelled, with the deadline suspended too.
pub(super) async fn cancel_steps(
    engine: &Engine,
    claims: &Claims,
    names: &ExchangeNames,
    input: HandlerInput<'_>,
    run: StepRunInput<'_>,
) -> Result<(), HandlerError> {
    let services = services(input)?;
    let calls = async {
        let _claim = claim_in_process(claims, run.key, services).await?;
        let publisher = StepPublisher(services);
        let access = access(services, &publisher, names, run.may_take_over);
        let message = run_message(input, services);
        engine.cancel(run_input(input, &run, &message), access).await.map_err(handler_error)
    };
    let _suspended = input.ledger.suspend_deadline();
    calls.await
}

/// A copy is the message that it was when it claimed its run, also if it has lost headers since.
fn run_message(input: HandlerInput<'_>, services: &dyn StepServices) -> RunMessage {
    let claimed = ClaimedRun::read(input.delivery, *input.provenance);
    let hash = claimed.map_or_else(|| message_hash(&input.delivery.message), |claimed| claimed.message);
    RunMessage { queue: Arc::clone(services.queue()), hash }
}

fn run_input<'a>(input: HandlerInput<'a>, run: &'a StepRunInput<'_>, of: &'a RunMessage) -> RunInput<'a> {
    let message = &input.delivery.message;
    RunInput {
        key: run.key,
        message: of,
        is_new: is_new(input),
        replayed_at: replayed_at(input),
        text: &run.text,
        order: run.order,
        trace: trace(message),
        retries: input.retries,
    }
}

fn access<'a>(
    services: &'a dyn StepServices,
    publisher: &'a StepPublisher<'a>,
    names: &'a ExchangeNames,
    may_take_over: &'a (dyn Fn(&str) -> bool + Send + Sync),
) -> RunAccess<'a> {
    RunAccess {
        ledger: services.ledger(),
        publisher,
        counters: services.counters(),
        note: services.note(),
        names,
        waits: services.waits(),
        max_hold: services.max_hold(),
        may_take_over,
    }
}

/// Without services there is no worker to publish anything.
pub(super) fn services<'a>(input: HandlerInput<'a>) -> Result<&'a dyn StepServices, HandlerError> {
    input.steps.0.ok_or(HandlerError::Interrupted(Interruption::PublisherClosed))
}

/// Waits until no other copy of the message is processed in this process.
pub(super) async fn claim_in_process<'c>(
    claims: &'c Claims,
    key: &RunKey,
    services: &dyn StepServices,
) -> Result<Claim<&'c Claims>, HandlerError> {
    let kind = if key.scope.is_empty() { MessageKind::Order } else { MessageKind::Other };
    let identity = [&*key.scope, "/", &*key.identity].concat();
    let claimed = services.waits().wait_for(claims.claim(kind, &identity)).await;
    claimed.ok_or(HandlerError::Interrupted(Interruption::TakenOver))
}

/// What identifies a message for the run that it has claimed: its body, and all that decides how the body is read. Another message may
/// have the same body and be refused, for its type or its encoding, before it claims anything.
pub(super) fn message_hash(message: &Message) -> MessageHash {
    let Properties { message_type, content_type, content_encoding, .. } = &message.properties;
    let mut digest = Sha256::new();
    // The lengths make it unambiguous.
    let mut add = |text: &str| {
        digest.update(text.len().to_be_bytes());
        digest.update(text);
    };
    [message_type, content_type, content_encoding].iter().for_each(|text| add(text.as_deref().unwrap_or_default()));
    for (name, value) in message.cloud_event_headers() {
        add(name);
        add(value);
    }
    digest.update(&message.body);
    digest.finalize().into()
}

/// The key of a message's run. `order`: the order's id.
pub(super) fn order_run(order: &str) -> RunKey {
    RunKey { scope: String::new(), identity: order.to_owned() }
}

/// The id that the order of a copy had when it claimed its run: the configuration may read another one from it now.
pub(super) fn claimed_order_id(claimed: &ClaimedRun) -> Option<OrderId> {
    OrderId::new(&*claimed.key.identity).filter(|_| claimed.key.scope.is_empty())
}

/// The key of the run of a message that is no order.
pub(super) fn message_run(consumer: &Arc<str>, identity: String) -> RunKey {
    RunKey { scope: consumer.to_string(), identity }
}

pub(super) fn handler_error(error: RunError) -> HandlerError {
    match error {
        RunError::Failed(failure) => failure.into(),
        RunError::Ledger(error) => error.into(),
        RunError::WaitedTooLong | RunError::Lost => HandlerError::Interrupted(Interruption::TakenOver),
        RunError::PublisherClosed => HandlerError::Interrupted(Interruption::PublisherClosed),
    }
}

/// Whether the message was published anew: not delivered again, and no copy of orderd's after a failure. A dead letter that a person
/// has published again without the headers of its failure counts as new; one that orderd has does not: it may publish it twice, and
/// marks it.
pub(super) fn is_new(input: HandlerInput<'_>) -> bool {
    let delivery = input.delivery;
    let marks = [names::FIRST_FAILED_AT, names::REPLAY_ID];
    let is_copy = input.provenance.is_copy && marks.iter().any(|name| delivery.message.headers.contains_key(*name));
    !delivery.redelivered && delivery.delivery_count() == 0 && !is_copy
}

/// When the message was replayed, if orderd's user says so. A producer could send the header with each order: one that was undone would
/// begin anew when the broker delivers it again, and its customer would pay although nobody replayed it.
fn replayed_at(input: HandlerInput<'_>) -> Option<Timestamp> {
    if input.provenance.is_copy { read_time(&input.delivery.message.headers, names::REPLAYED_AT) } else { None }
}

pub(super) fn trace(message: &Message) -> TraceContext<'_> {
    let header = |name| message.headers.get(name).and_then(HeaderValue::as_text);
    TraceContext { traceparent: header("traceparent"), tracestate: header("tracestate") }
}

struct StepPublisher<'a>(&'a dyn StepServices);

impl EventPublisher for StepPublisher<'_> {
    fn publish(&self, events: Arc<[Publication]>) -> BoxFuture<'_, Result<(), PublishError>> {
        self.0.publish(events).boxed()
    }
}
