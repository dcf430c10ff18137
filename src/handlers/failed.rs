//! Failures of all consumers: retried after a delay or dead-lettered, as `recovery::decide` says.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{error, warn};

use super::emit::event;
use super::{Handler, HandlerDeps, HandlerInput, HandlerOutcome, HandlerOutput};
use crate::domain::OrderId;
use crate::ledger::{LedgerEntry, NewAttempt, NewDeadLetter};
use crate::message::{Delivery, ExchangeNames};
use crate::recovery::{
    Action, DeadLetterReason, DecisionPoint, Delay, Failure, History, RetryPolicy, copy_for_dead_letter,
    copy_for_retry, decide,
};

/// How failures in one work queue are treated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The queue's consumer.
    pub consumer: Arc<str>,
    /// Its policy.
    pub policy: RetryPolicy,
    /// Whether its messages are orders, so that analytics is told of dead-lettered ones.
    pub carries_orders: bool,
}

pub(super) struct FailedHandler {
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
    pub(super) fn new(parts: &HandlerDeps) -> Self {
        FailedHandler { names: Arc::clone(&parts.names), routes: parts.routes.clone() }
    }

    fn recover(&self, delivery: &Delivery, now: Timestamp) -> HandlerOutput {
        let history = History::read(delivery, &self.names, now);
        let routes = self.routes.borrow();
        let route = history.origin.as_ref().and_then(|origin| routes.get(&origin.queue));
        let carries_orders = route.is_some_and(|route| route.carries_orders);
        let identity = if carries_orders { order_identity(delivery) } else { delivery.identity() };
        let case = Case { delivery, history: &history, route, identity, now };
        let policy = route.map(|route| &route.policy);
        match (
            decide(policy, &history.failure, DecisionPoint::FailedOrderQueue(&history), now),
            history.origin.as_ref(),
        ) {
            (Action::RetryAfter(delay), Some(origin)) => self.retry(&case, &origin.queue, delay),
            (Action::RetryAfter(_), None) => self.dead_letter(&case, DeadLetterReason::NoOrigin),
            (Action::DeadLetter(reason), _) => self.dead_letter(&case, reason),
            (Action::RetryNow | Action::Forward | Action::KeepRetrying, _) => {
                unreachable!("these are decided in workers only")
            }
        }
    }

    fn retry(&self, case: &Case<'_>, queue: &str, delay: Delay) -> HandlerOutput {
        let Case { delivery, history, identity, .. } = case;
        warn!(
            queue, id = %identity, kind = %history.failure.kind, code = history.failure.code,
            reason = history.failure.reason, retry = history.retries + 1, %delay, "[Failed] will be retried"
        );
        HandlerOutput {
            verdict: HandlerOutcome::Retried { consumer: case.failed_consumer(), delay },
            emit: Arc::new([copy_for_retry(delivery, history, queue, delay, &self.names)]),
            record: Some(LedgerEntry::Attempt(Box::new(case.attempt(Some(delay))))),
        }
    }

    fn dead_letter(&self, case: &Case<'_>, reason: DeadLetterReason) -> HandlerOutput {
        let Case { delivery, history, identity, .. } = case;
        let origin_queue = history.origin.as_ref().map(|origin| origin.queue.clone());
        error!(
            queue = origin_queue, id = %identity, kind = %history.failure.kind, code = history.failure.code,
            reason = history.failure.reason, retries = history.retries, dead_lettered = reason.as_str(),
            "[Failed] dead-lettered in the dead letter queue"
        );
        let mut emit = vec![copy_for_dead_letter(delivery, history, reason, &self.names)];
        if case.route.is_some_and(|route| route.carries_orders) {
            emit.push(case.dead_lettered_event(reason, &self.names));
        }
        let dead = NewDeadLetter { attempt: case.attempt(None), reason: reason.as_str(), origin_queue, at: case.now };
        let verdict = HandlerOutcome::DeadLettered { consumer: case.failed_consumer(), reason };
        HandlerOutput { verdict, emit: emit.into(), record: Some(LedgerEntry::DeadLetter(Box::new(dead))) }
    }
}

impl Handler for FailedHandler {
    fn handle<'a>(&'a self, work: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, Failure>> {
        Box::pin(std::future::ready(Ok(self.recover(work.delivery, Timestamp::now()))))
    }
}

/// One failed message and what is known of it.
struct Case<'a> {
    delivery: &'a Delivery,
    history: &'a History,
    route: Option<&'a Route>,
    identity: String,
    now: Timestamp,
}

impl Case<'_> {
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

/// The order's id where the body has one, whatever else is wrong with it; else the message's identity.
fn order_identity(delivery: &Delivery) -> String {
    #[derive(Deserialize)]
    struct Id {
        id: OrderId,
    }
    let order = serde_json::from_slice::<Id>(&delivery.message.body);
    order.map_or_else(|_| delivery.identity(), |order| order.id.as_str().to_owned())
}
