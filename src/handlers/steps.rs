//! `handler = "steps"`: calls the shop's own services for any message, without an order's rules. A message that is not JSON is
//! passed on as text. A message without a `message_id`, or the id of a CloudEvent, is refused: its steps could not be recognised when it
//! is delivered again.
//!
//! Its own keys: `steps`, at least one.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::Serialize;

use super::claim::Claims;
use super::order::ID_CONFLICT;
use super::step_run::{StepRunInput, TAKES_OVER_NONE, message_run, run_steps};
use super::{HandlerConsumer, HandlerDeps, HandlerFactory, body_failure};
use crate::config::{MessageKind, Section};
use crate::message::{Delivery, ExchangeNames, Provenance};
use crate::metrics::HandlerOutcome;
use crate::pipeline::{Handler, HandlerError, HandlerInput, HandlerOutput, IntakeGate};
use crate::recovery::{ClaimedRun, Failure, FailureKind};
use crate::steps::{Engine, RunOutcome, StepsSettings};

/// `handler = "steps"`
pub(super) struct StepsFactory;

/// Its own keys in `[consumers.<name>]`.
#[derive(Debug, Serialize)]
pub(super) struct StepsHandlerSettings {
    steps: StepsSettings,
}

impl HandlerFactory for StepsFactory {
    type Settings = StepsHandlerSettings;

    const NAME: &'static str = "steps";

    const MESSAGES: MessageKind = MessageKind::Other;

    fn read(section: &mut Section<'_>) -> StepsHandlerSettings {
        let steps = StepsSettings::read(section, false);
        if steps.is_empty() {
            section.problem("steps", "must have at least one step");
        }
        StepsHandlerSettings { steps }
    }

    fn check_lines(consumer: &str, settings: &StepsHandlerSettings) -> Vec<String> {
        settings.steps.check_lines(consumer)
    }

    fn call_time(settings: &StepsHandlerSettings) -> Duration {
        settings.steps.longest()
    }

    fn event_keys(settings: &StepsHandlerSettings) -> Vec<String> {
        settings.steps.event_keys()
    }

    fn retry_limits(settings: &StepsHandlerSettings) -> Vec<(String, Duration)> {
        settings.steps.retry_limits()
    }

    fn check(delivery: &Delivery, _: Provenance<'_>, max_body: usize) -> Result<(), Failure> {
        decode(delivery, max_body).map(drop)
    }

    fn build(consumer: HandlerConsumer<'_>, settings: &StepsHandlerSettings, deps: &HandlerDeps) -> Arc<dyn Handler> {
        Arc::new(StepsHandler {
            engine: Engine::new(consumer.name, consumer.workers, &settings.steps, &deps.steps),
            names: Arc::clone(&deps.names),
            claims: Arc::clone(&deps.claims),
            max_body: deps.max_body,
        })
    }
}

struct StepsHandler {
    engine: Engine,
    names: Arc<ExchangeNames>,
    claims: Arc<Claims>,
    max_body: usize,
}

/// The text that steps are handed.
fn decode(delivery: &Delivery, max_body: usize) -> Result<Cow<'_, str>, Failure> {
    delivery.message.text(max_body).map_err(|error| body_failure(&error.into()))
}

impl StepsHandler {
    async fn process(&self, input: HandlerInput<'_>) -> Result<HandlerOutput, HandlerError> {
        let message = &input.delivery.message;
        let has_message_id = message.properties.message_id.as_deref().is_some_and(|id| !id.is_empty());
        if !has_message_id && input.provenance.cloud_event.is_none() {
            let reason = "the message has no message_id and is no CloudEvent with an id, so its steps could be called again under other \
                          idempotency keys when it is delivered again; publish it with a unique message_id";
            return Err(Failure::new(FailureKind::Permanent, "no_message_id", reason).into());
        }
        let text = decode(input.delivery, self.max_body)?;
        // The consumer may have had another name when the message claimed its run.
        let claimed =
            ClaimedRun::read(input.delivery, *input.provenance).filter(|claimed| !claimed.key.scope.is_empty());
        let key = claimed.map_or_else(|| message_run(input.consumer, input.identity()), |claimed| claimed.key);
        let run = StepRunInput { key: &key, text, order: None, accept: None, may_take_over: TAKES_OVER_NONE };
        let outcome = match run_steps(&self.engine, &self.claims, &self.names, input, run).await? {
            RunOutcome::Done => HandlerOutcome::Completed,
            RunOutcome::WasDone => HandlerOutcome::Duplicate,
            RunOutcome::NotAccepted(_) => {
                let reason = "the steps of another message with the same message_id were called before; publish each message with a unique \
                              message_id";
                return Err(Failure::new(FailureKind::Permanent, ID_CONFLICT, reason).into());
            }
        };
        Ok(HandlerOutput::finished(outcome))
    }
}

impl Handler for StepsHandler {
    fn handle<'a>(&'a self, input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, HandlerError>> {
        Box::pin(self.process(input))
    }

    fn gates(&self) -> Vec<IntakeGate> {
        self.engine.gates().into_iter().map(|gate| IntakeGate::Service(gate.into())).collect()
    }
}
