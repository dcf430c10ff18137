//! Failed messages of all consumers: retried after a delay or dead-lettered, as `recovery::decide` decides.
//!
//! It only builds the publications and the ledger entry that carry the decision out.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{error, warn};

use super::event_publication::event;
use super::{HandlerDeps, HandlerFactory};
use crate::config::{MessageKind, Section};
use crate::domain::OrderId;
use crate::ledger::{LedgerEntry, NewAttempt, NewDeadLetter};
use crate::message::{Delivery, ExchangeNames};
use crate::metrics::HandlerOutcome;
use crate::pipeline::{Handler, HandlerInput, HandlerOutput};
use crate::recovery::{
    Action, DeadLetterReason, DecisionPoint, Delay, Failure, History, RetryPolicy, copy_for_dead_letter,
    copy_for_retry, decide,
};

/// How failures that happened in one work queue are treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The queue's consumer.
    pub consumer: Arc<str>,
    /// Its retry policy.
    pub policy: RetryPolicy,
    /// Whether its messages are orders, so that a dead-lettered one is reported to analytics.
    pub carries_orders: bool,
}

/// `handler = "failed"`
pub(super) struct FailedFactory;

impl HandlerFactory for FailedFactory {
    type Settings = ();

    const NAME: &'static str = "failed";

    const MESSAGES: MessageKind = MessageKind::Failure;

    fn read(_section: &mut Section<'_>) {}

    fn build(_consumer: &str, (): &(), deps: &HandlerDeps) -> Arc<dyn Handler> {
        Arc::new(FailedHandler { names: Arc::clone(&deps.names), routes: deps.routes.clone() })
    }
}

struct FailedHandler {
    names: Arc<ExchangeNames>,
    routes: watch::Receiver<BTreeMap<String, Route>>,
}

/// The body of `order.analytics.failed`.
#[derive(Serialize)]
struct DeadLetteredEvent<'a> {
    event: &'static str,
    order_id: &'a str,
    reason: &'static str,
    failure_kind: &'static str,
    failure_code: &'a str,
    consumer: &'a str,
    at: Timestamp,
}

impl FailedHandler {
    fn recover(&self, delivery: &Delivery, now: Timestamp) -> HandlerOutput {
        let history = History::read(delivery, &self.names, now);
        let routes = self.routes.borrow();
        let route = history.origin.as_ref().and_then(|origin| routes.get(&origin.queue));
        let carries_orders = route.is_some_and(|route| route.carries_orders);
        let identity = if carries_orders { order_identity(delivery) } else { delivery.identity() };
        let failed = FailedMessage { delivery, history: &history, route, identity, now };
        let policy = route.map(|route| &route.policy);
        match (
            decide(policy, &history.failure, DecisionPoint::FailedOrderQueue(&history), now),
            history.origin.as_ref(),
        ) {
            (Action::RetryAfter(delay), Some(origin)) => self.retry(&failed, &origin.queue, delay),
            (Action::RetryAfter(_), None) => self.dead_letter(&failed, DeadLetterReason::NoOrigin),
            (Action::DeadLetter(reason), _) => self.dead_letter(&failed, reason),
            (Action::RetryNow | Action::Forward | Action::KeepRetrying, _) => {
                unreachable!("these are decided in workers only")
            }
        }
    }

    fn retry(&self, failed: &FailedMessage<'_>, queue: &str, delay: Delay) -> HandlerOutput {
        let FailedMessage { delivery, history, identity, .. } = failed;
        warn!(
            queue, id = %identity, kind = %history.failure.kind, code = history.failure.code,
            reason = history.failure.reason, retry = history.retries + 1, %delay, "[Failed] will be retried"
        );
        HandlerOutput {
            outcome: HandlerOutcome::Retried { consumer: failed.failed_consumer(), delay },
            emit: Arc::new([copy_for_retry(delivery, history, queue, delay, &self.names)]),
            record: Some(LedgerEntry::Attempt(Box::new(failed.attempt(Some(delay))))),
        }
    }

    fn dead_letter(&self, failed: &FailedMessage<'_>, reason: DeadLetterReason) -> HandlerOutput {
        let FailedMessage { delivery, history, identity, .. } = failed;
        let origin_queue = history.origin.as_ref().map(|origin| origin.queue.clone());
        error!(
            queue = origin_queue, id = %identity, kind = %history.failure.kind, code = history.failure.code,
            reason = history.failure.reason, retries = history.retries, dead_lettered = reason.as_str(),
            "[Failed] dead-lettered in the dead letter queue"
        );
        let mut emit = vec![copy_for_dead_letter(delivery, history, reason, &self.names)];
        if failed.route.is_some_and(|route| route.carries_orders) {
            emit.push(failed.dead_lettered_event(reason, &self.names));
        }
        let dead =
            NewDeadLetter { attempt: failed.attempt(None), reason: reason.as_str(), origin_queue, at: failed.now };
        let outcome = HandlerOutcome::DeadLettered { consumer: failed.failed_consumer(), reason };
        HandlerOutput { outcome, emit: emit.into(), record: Some(LedgerEntry::DeadLetter(Box::new(dead))) }
    }
}

impl Handler for FailedHandler {
    fn handle<'a>(&'a self, input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, Failure>> {
        Box::pin(std::future::ready(Ok(self.recover(input.delivery, Timestamp::now()))))
    }
}

/// One failed message, and what is known about it.
struct FailedMessage<'a> {
    delivery: &'a Delivery,
    history: &'a History,
    route: Option<&'a Route>,
    identity: String,
    now: Timestamp,
}

impl FailedMessage<'_> {
    fn failed_consumer(&self) -> Option<Arc<str>> {
        self.route.map(|route| Arc::clone(&route.consumer))
    }

    fn consumer(&self) -> &str {
        self.route.map_or("unknown", |route| &route.consumer)
    }

    fn attempt(&self, delay: Option<Delay>) -> NewAttempt {
        let failure = &self.history.failure;
        NewAttempt {
            identity: self.identity.clone(),
            consumer: self.consumer().to_owned(),
            retry_count: self.history.retries,
            kind: failure.kind.as_str(),
            code: failure.code.clone(),
            reason: failure.reason.clone(),
            failed_at: self.history.failed_at,
            delay: delay.map(|delay| delay.to_string()),
        }
    }

    fn dead_lettered_event(&self, reason: DeadLetterReason, names: &ExchangeNames) -> crate::message::Publication {
        let body = DeadLetteredEvent {
            event: "failed",
            order_id: &self.identity,
            reason: reason.as_str(),
            failure_kind: self.history.failure.kind.as_str(),
            failure_code: &self.history.failure.code,
            consumer: self.consumer(),
            at: self.now,
        };
        event(names, "order.analytics.failed".to_owned(), &self.identity, "analytics/failed", &body, self.now)
    }
}

/// The order's id if the body has one, whatever else is wrong with the body; else the message's identity.
fn order_identity(delivery: &Delivery) -> String {
    #[derive(Deserialize)]
    struct Id {
        id: OrderId,
    }
    let order = serde_json::from_slice::<Id>(&delivery.message.body);
    order.map_or_else(|_| delivery.identity(), |order| order.id.as_str().to_owned())
}
