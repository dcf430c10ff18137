//! Failed messages of all consumers: retried after a delay or dead-lettered, as `recovery::decide` decides.
//!
//! It only builds the publications and the ledger entry that carry out the decision. What the steps of the message have done is
//! undone first: see `undo`.

mod subject;
mod undo;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::watch;
use tracing::{debug, error, warn};

use self::subject::FailedSubject;
use self::undo::Decision;
use super::claim::Claims;
use super::event_publication::event;
use super::order::{ID_CONFLICT, STEPS_IN_PROGRESS};
use super::step_run::claimed_order_id;
use super::{HandlerConsumer, HandlerDeps, HandlerFactory, OriginConsumer};
use crate::config::{MessageKind, Section};
use crate::domain::{CANCELLATION_SUFFIX, OrderDocument};
use crate::formats::Format;
use crate::ledger::{LedgerEntry, NewAttempt, NewDeadLetter, NewOrder, Recorded};
use crate::message::{Delivery, ExchangeNames, Provenance};
use crate::metrics::{DeadLetterFacts, HandlerOutcome};
use crate::pipeline::{DeferredLog, FAILED_MESSAGES, Handler, HandlerError, HandlerInput, HandlerOutput};
use crate::recovery::{
    Action, BODY_TOO_LARGE, ClaimedRun, DeadLetterReason, DecisionPoint, Delay, Failure, FailureKind, History,
    ReturnReason, cancelled_order, copy_for_dead_letter, copy_for_retry, copy_for_return, decide, replay_key,
};
use crate::telemetry::{MessageLine, RepeatedLog};

/// Failures that the ledger refuses, by code.
static REFUSED: RepeatedLog = RepeatedLog::new();

/// `handler = "failed"`
pub(super) struct FailedFactory;

impl HandlerFactory for FailedFactory {
    type Settings = ();

    const NAME: &'static str = "failed";

    const MESSAGES: MessageKind = MessageKind::Failure;

    fn read(_section: &mut Section<'_>) {}

    fn build(_consumer: HandlerConsumer<'_>, (): &(), deps: &HandlerDeps) -> Arc<dyn Handler> {
        Arc::new(FailedHandler {
            names: Arc::clone(&deps.names),
            origin_consumers: deps.origin_consumers.clone(),
            claims: Arc::clone(&deps.claims),
            max_body: deps.max_body,
        })
    }
}

struct FailedHandler {
    names: Arc<ExchangeNames>,
    /// By queue.
    origin_consumers: watch::Receiver<BTreeMap<String, OriginConsumer>>,
    claims: Arc<Claims>,
    max_body: usize,
}

/// The body of the event `order.analytics.failed`.
#[derive(Serialize, JsonSchema)]
#[schemars(title = "order.analytics.failed")]
pub struct DeadLetteredEvent<'a> {
    /// `failed`.
    #[schemars(extend("const" = "failed"))]
    event: &'static str,
    /// The order it is about, or the identity of a message without a readable id.
    order_id: &'a str,
    /// The value of `x-dead-letter-reason`.
    reason: &'static str,
    /// The kind of the last failure.
    failure_kind: &'static str,
    /// The stable code of the last failure.
    failure_code: &'a str,
    /// The consumer that failed.
    consumer: &'a str,
    /// When it was dead-lettered.
    #[schemars(with = "String")]
    at: Timestamp,
}

impl FailedHandler {
    async fn recover(&self, input: HandlerInput<'_>) -> Result<HandlerOutput, HandlerError> {
        let (delivery, now) = (input.delivery, Timestamp::now());
        let mut history = History::read(delivery, *input.provenance, now);
        let missing_bytes = delivery.message.missing_bytes;
        if missing_bytes > 0 {
            let reason = format!(
                "the body has {} bytes, more than broker.max_body",
                delivery.message.body.len() + missing_bytes
            );
            history.failure = Failure::new(FailureKind::Permanent, BODY_TOO_LARGE, reason);
        }
        self.decide(input, history, now, missing_bytes == 0).await
    }

    /// `can_copy`: whether a copy of the message can be published.
    async fn decide(
        &self,
        input: HandlerInput<'_>,
        history: History,
        now: Timestamp,
        can_copy: bool,
    ) -> Result<HandlerOutput, HandlerError> {
        let delivery = input.delivery;
        let failed = self.failed_message(delivery, *input.provenance, history, now, can_copy);
        let action = failed.action();
        if undo::needs_proof(&failed, action) {
            return Ok(self.send_back(&failed, ReturnReason::Unproven));
        }
        if !undo::concerns_steps(&failed, action) {
            return Ok(self.act(&failed, action));
        }
        // Boxed, because this future is large and rarely needed.
        match undo::decide_with_run(&self.claims, input, &failed, action, || self.order_ids(delivery)).boxed().await? {
            Decision::Act(action) => Ok(self.act(&failed, action)),
            Decision::Undo => Ok(self.send_back(&failed, ReturnReason::Undo)),
            Decision::DeadLetter { reason, failure, retries, failed_at } => {
                let history = History { failure, retries, failed_at, ..failed.history };
                Ok(self.dead_letter(&FailedMessage { history, ..failed }, reason))
            }
        }
    }

    fn failed_message<'a>(
        &self,
        delivery: &'a Delivery,
        provenance: Provenance<'a>,
        history: History,
        now: Timestamp,
        can_copy: bool,
    ) -> FailedMessage<'a> {
        let consumer =
            history.origin.as_ref().and_then(|origin| self.origin_consumers.borrow().get(&origin.queue).cloned());
        let subject = match (cancelled_order(delivery, provenance), &consumer) {
            (Some(id), _) => FailedSubject::Cancellation(id),
            (None, Some(OriginConsumer { name, format: Some(format), .. })) => {
                self.order_subject(name, format, delivery, now)
            }
            (None, Some(OriginConsumer { format: None, .. }) | None) => FailedSubject::Other,
        };
        let claimed = ClaimedRun::read(delivery, provenance);
        let subject = match claimed.as_ref().and_then(claimed_order_id) {
            Some(id) => subject.with_id(id),
            None => subject,
        };
        let identity = match &subject {
            FailedSubject::Order { id, .. } => id.as_str().to_owned(),
            FailedSubject::Cancellation(id) => [id.as_str(), CANCELLATION_SUFFIX].concat(),
            FailedSubject::Other => delivery.identity(provenance),
        };
        // What fails of a cancellation is an undo.
        let is_undo = history.is_undo || matches!(subject, FailedSubject::Cancellation(_));
        let history = History { is_undo, ..history };
        FailedMessage { delivery, provenance, history, consumer, claimed, subject, identity, now, can_copy }
    }

    fn act(&self, failed: &FailedMessage<'_>, action: Action) -> HandlerOutput {
        match (action, failed.history.origin.as_ref()) {
            (Action::RetryAfter(delay), Some(origin)) => self.retry(failed, &origin.queue, delay),
            (Action::RetryAfter(_), None) => self.dead_letter(failed, DeadLetterReason::NoOrigin),
            (Action::DeadLetter(reason), _) => self.dead_letter(failed, reason),
            (Action::RetryNow | Action::Forward | Action::KeepRetrying, _) => {
                unreachable!("only workers get these decisions")
            }
        }
    }

    /// Sends the message back to its queue.
    fn send_back(&self, failed: &FailedMessage<'_>, reason: ReturnReason) -> HandlerOutput {
        let FailedMessage { delivery, provenance, history, .. } = failed;
        let Some(origin) = &history.origin else { return self.dead_letter(failed, DeadLetterReason::NoOrigin) };
        HandlerOutput {
            emit: Arc::new([copy_for_return(delivery, *provenance, history, (&origin.queue, reason), &self.names)]),
            record: Some(LedgerEntry::Attempt(Box::new(failed.attempt(None)))),
            log: Some(failed.return_log(reason)),
            ..HandlerOutput::finished(HandlerOutcome::Returned)
        }
    }

    fn retry(&self, failed: &FailedMessage<'_>, queue: &str, delay: Delay) -> HandlerOutput {
        let FailedMessage { delivery, provenance, history, .. } = failed;
        HandlerOutput {
            emit: Arc::new([copy_for_retry(delivery, *provenance, history, queue, delay, &self.names)]),
            record: Some(LedgerEntry::Attempt(Box::new(failed.attempt(Some(delay))))),
            log: Some(failed.retry_log(delay)),
            ..HandlerOutput::finished(HandlerOutcome::Retried { consumer: failed.consumer_name(), delay })
        }
    }

    fn dead_letter(&self, failed: &FailedMessage<'_>, reason: DeadLetterReason) -> HandlerOutput {
        let FailedMessage { delivery, provenance, history, .. } = failed;
        let origin_queue = history.origin.as_ref().map(|origin| origin.queue.clone());
        let log = failed.dead_letter_log(reason);
        let copy = failed.can_copy.then(|| copy_for_dead_letter(delivery, *provenance, history, reason, &self.names));
        let carries_orders = failed.consumer.as_ref().is_some_and(|consumer| consumer.format.is_some());
        let is_cancellation = matches!(failed.subject, FailedSubject::Cancellation(_));
        // The order itself is in progress, so it has not failed.
        let is_in_progress = history.failure.code == STEPS_IN_PROGRESS;
        let report = (carries_orders && !is_cancellation && !is_in_progress)
            .then(|| Box::new(failed.dead_lettered_event(reason, &self.names)));
        let dead = NewDeadLetter {
            attempt: failed.attempt(None),
            order: failed.whole_order(),
            reason: reason.as_str(),
            origin_queue,
            at: failed.now,
        };
        let consumer = failed.consumer_name();
        let letter =
            Arc::new(DeadLetterFacts { code: history.failure.code.clone(), identity: failed.identity.clone() });
        let outcome = match failed.can_copy {
            true => HandlerOutcome::DeadLettered { consumer, reason, letter },
            false => HandlerOutcome::DeadLetteredByBroker { consumer, reason, letter },
        };
        HandlerOutput {
            outcome,
            report,
            emit: copy.into_iter().collect(),
            record: Some(LedgerEntry::DeadLetter(Box::new(dead))),
            log: Some(log),
        }
    }

    /// The ids that the message's order may have, by the formats of all consumers.
    fn order_ids(&self, delivery: &Delivery) -> Vec<String> {
        let Ok(document) = delivery.message.document(self.max_body) else { return Vec::new() };
        let consumers = self.origin_consumers.borrow();
        let formats = consumers.values().filter_map(|consumer| consumer.format.as_ref());
        let ids = formats.chain([&Format::Own]).filter_map(|format| format.order_id(&document));
        let ids: BTreeSet<String> = ids.map(|id| id.as_str().to_owned()).collect();
        ids.into_iter().collect()
    }

    /// The order that the message is or cancels. Its id counts even if the rest of the body is invalid.
    fn order_subject(
        &self,
        consumer: &Arc<str>,
        format: &Format,
        delivery: &Delivery,
        now: Timestamp,
    ) -> FailedSubject {
        let Ok(document) = delivery.message.document(self.max_body) else { return FailedSubject::Other };
        let read = format.read(&document, delivery.message.order_event(self.max_body));
        match read {
            Ok(OrderDocument::Cancelled(id)) => FailedSubject::Cancellation(id),
            Ok(OrderDocument::Placed(order)) => {
                // What was not read may make it another order.
                let amounts = format.check(&order).ok().filter(|_| delivery.message.missing_bytes == 0);
                let whole = amounts.map(|amounts| Box::new(NewOrder::new(&order, consumer, amounts, now)));
                FailedSubject::Order { whole, id: order.id }
            }
            Err(_) => match format.order_id(&document) {
                Some(id) => FailedSubject::Order { id, whole: None },
                None => FailedSubject::Other,
            },
        }
    }
}

impl Handler for FailedHandler {
    fn handle<'a>(&'a self, input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, HandlerError>> {
        Box::pin(async move {
            let mut output = self.recover(input).await?;
            if let Some(entry) = output.record.take()
                && record_first(input, entry).await? == Some(Recorded::Cancelled)
            {
                // A cancelled order is not dead-lettered.
                return Ok(HandlerOutput::finished(HandlerOutcome::Prevented));
            }
            Ok(output)
        })
    }

    fn dead_letter_without_copy<'a>(
        &'a self,
        input: HandlerInput<'a>,
        problem: &'a str,
    ) -> BoxFuture<'a, Result<Option<HandlerOutput>, HandlerError>> {
        Box::pin(async move {
            let now = Timestamp::now();
            let mut history = History::read(input.delivery, *input.provenance, now);
            history.failure = Failure::new(FailureKind::Permanent, "cannot_publish", problem);
            let output = self.decide(input, history, now, false).await?;
            Ok(Some(HandlerOutput { report: None, emit: Arc::default(), ..output }))
        })
    }
}

/// Records a failure before its copy is published. So a copy is never published while the ledger cannot record, and an outage
/// or restart does not publish it again: only a restart between its confirm and the ack can.
///
/// A message whose failure the ledger refuses is still published: the dead letter queue keeps it. `None`: it is refused.
async fn record_first(input: HandlerInput<'_>, entry: LedgerEntry) -> Result<Option<Recorded>, HandlerError> {
    match input.ledger.record(entry).await {
        Ok(recorded) => Ok(Some(recorded)),
        Err(HandlerError::Failed(failure)) => {
            if let Some(due) = REFUSED.occurred(&failure.code) {
                let (id, repeated) = (input.identity(), due.repeated);
                error!(%id, %failure, repeated, "cannot record a failure in the ledger; publishing it without a record");
            }
            Ok(None)
        }
        Err(interrupted @ HandlerError::Interrupted(_)) => Err(interrupted),
    }
}

/// What the log says about a failed message.
struct LoggedMessage {
    queue: Option<String>,
    id: String,
    retries: u32,
    failure: Failure,
}

/// A failed message, and what is known about it.
struct FailedMessage<'a> {
    delivery: &'a Delivery,
    provenance: Provenance<'a>,
    history: History,
    /// `None` if the message does not say where it failed, or that queue has no consumer.
    consumer: Option<OriginConsumer>,
    /// The run that the message has claimed, if it states one.
    claimed: Option<ClaimedRun>,
    subject: FailedSubject,
    identity: String,
    now: Timestamp,
    /// Whether a copy of the message can be published. If not, the broker itself dead-letters it.
    can_copy: bool,
}

impl FailedMessage<'_> {
    /// What `recovery` decides.
    fn action(&self) -> Action {
        let policy = self.consumer.as_ref().map(|consumer| &consumer.policy);
        decide(policy, &self.history.failure, DecisionPoint::FailedOrderQueue(&self.history), self.now)
    }

    /// The order that the message is, if it is the one that the ledger has with this id and has failed.
    fn whole_order(&self) -> Option<Box<NewOrder>> {
        match &self.subject {
            FailedSubject::Order { whole, .. }
                if ![ID_CONFLICT, STEPS_IN_PROGRESS].contains(&&*self.history.failure.code) =>
            {
                whole.clone()
            }
            FailedSubject::Order { .. } | FailedSubject::Cancellation(_) | FailedSubject::Other => None,
        }
    }

    fn consumer_name(&self) -> Option<Arc<str>> {
        self.consumer.as_ref().map(|consumer| Arc::clone(&consumer.name))
    }

    fn consumer_or_unknown(&self) -> &str {
        self.consumer.as_ref().map_or("unknown", |consumer| &consumer.name)
    }

    /// The failed attempt, for the ledger; `delay` is that of the retry that follows.
    fn attempt(&self, delay: Option<Delay>) -> NewAttempt {
        let failure = &self.history.failure;
        NewAttempt {
            identity: self.identity.clone(),
            consumer: self.consumer_or_unknown().to_owned(),
            replay: replay_key(self.delivery, self.provenance).map(str::to_owned),
            retry_count: self.history.retries,
            kind: failure.kind.as_str(),
            code: failure.code.clone(),
            reason: failure.reason.clone(),
            failed_at: self.history.failed_at,
            delay: delay.map(|delay| delay.to_string()),
        }
    }

    /// A line about this message, once the decision is carried out. Of many with one cause, some are shown and the others counted.
    fn log(
        &self,
        event: &'static str,
        write: impl Fn(&LoggedMessage, MessageLine) + Send + Sync + 'static,
    ) -> DeferredLog {
        let message = LoggedMessage {
            queue: self.history.origin.as_ref().map(|origin| origin.queue.clone()),
            id: self.identity.clone(),
            retries: self.history.retries,
            failure: self.history.failure.clone(),
        };
        let Failure { kind, code, .. } = message.failure.clone();
        DeferredLog::new(move || {
            let cause = (event, message.queue.clone(), kind, code);
            FAILED_MESSAGES.write(cause, move |line| write(&message, line));
        })
    }

    fn retry_log(&self, delay: Delay) -> DeferredLog {
        self.log("retry", move |LoggedMessage { queue, id, retries, failure }, line| {
            let (Failure { kind, code, reason, .. }, retry) = (failure, retries + 1);
            macro_rules! log {
                ($level:ident, $repeated:expr) => {
                    $level!(queue, id, %kind, code, reason, retry, %delay, repeated = $repeated, "[Failed] will be retried")
                };
            }
            match line {
                MessageLine::Shown { repeated } => log!(warn, repeated),
                MessageLine::Debug => log!(debug, None::<u64>),
            }
        })
    }

    fn return_log(&self, why: ReturnReason) -> DeferredLog {
        let what = match why {
            ReturnReason::Undo => "undo",
            ReturnReason::Unproven => "return",
        };
        self.log(what, move |LoggedMessage { queue, id, retries, failure }, line| {
            let Failure { kind, code, reason, .. } = failure;
            macro_rules! log {
                ($level:ident, $text:literal, $repeated:expr) => {
                    $level!(queue, id, %kind, code, reason, retries, repeated = $repeated, $text)
                };
            }
            match (why, line) {
                (ReturnReason::Undo, MessageLine::Shown { repeated }) => {
                    log!(warn, "[Failed] its steps will be undone", repeated)
                }
                (ReturnReason::Undo, MessageLine::Debug) => {
                    log!(debug, "[Failed] its steps will be undone", None::<u64>)
                }
                (ReturnReason::Unproven, MessageLine::Shown { repeated }) => {
                    log!(warn, "[Failed] returned to its queue once: nothing proves that it failed", repeated)
                }
                (ReturnReason::Unproven, MessageLine::Debug) => {
                    log!(debug, "[Failed] returned to its queue once: nothing proves that it failed", None::<u64>)
                }
            }
        })
    }

    /// A message that is malformed, breaks a rule or was never in a queue of orderd's is its sender's mistake, on which no operator
    /// must act at once; the other reasons show trouble of the shop's own.
    fn dead_letter_log(&self, dead_lettered: DeadLetterReason) -> DeferredLog {
        let is_senders_mistake = match dead_lettered {
            DeadLetterReason::Malformed | DeadLetterReason::Permanent => true,
            // A producer published it with the routing key of failures.
            DeadLetterReason::NoOrigin => !self.provenance.is_copy,
            DeadLetterReason::RetriesExhausted
            | DeadLetterReason::TooOld
            | DeadLetterReason::DeliveryLimit
            | DeadLetterReason::UndoFailed => false,
        };
        let dead_lettered = dead_lettered.as_str();
        self.log(dead_lettered, move |LoggedMessage { queue, id, retries, failure }, line| {
            let Failure { kind, code, reason, .. } = failure;
            macro_rules! log {
                ($level:ident, $repeated:expr) => {
                    $level!(
                        queue, id, %kind, code, reason, retries, dead_lettered, repeated = $repeated,
                        "[Failed] dead-lettered in the dead letter queue"
                    )
                };
            }
            match line {
                MessageLine::Shown { repeated } if is_senders_mistake => log!(warn, repeated),
                MessageLine::Shown { repeated } => log!(error, repeated),
                MessageLine::Debug => log!(debug, None::<u64>),
            }
        })
    }

    fn dead_lettered_event(&self, reason: DeadLetterReason, names: &ExchangeNames) -> crate::message::Publication {
        let body = DeadLetteredEvent {
            event: "failed",
            order_id: &self.identity,
            reason: reason.as_str(),
            failure_kind: self.history.failure.kind.as_str(),
            failure_code: &self.history.failure.code,
            consumer: self.consumer_or_unknown(),
            at: self.now,
        };
        event(names, "order.analytics.failed".to_owned(), &self.identity, "analytics/failed", &body, self.now)
    }
}

#[cfg(test)]
mod tests;
