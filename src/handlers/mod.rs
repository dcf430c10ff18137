//! Handlers: what is done with a message. Here the trait, and the table of all handlers.
//!
//! A handler decides and records; it never acks, publishes or retries. What it wants published it returns,
//! and the worker sees to the rest. A new handler is a file beside this one and a line in [`TABLE`].

mod analytics;
mod claim;
mod emit;
mod event_log;
mod failed;
mod notification;
mod order;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::watch;

pub use event_log::EventLog;
pub use failed::Route;
pub use notification::{Channel, LogChannel};

use crate::chain::chain;
use crate::domain::FaultInjection;
use crate::ledger::{Ledger, LedgerEntry, LedgerError};
use crate::message::{Delivery, ExchangeNames, Publication};
use crate::recovery::{DeadLetterReason, Delay, FAILED_HANDLER, Failure, FailureKind};

/// The name of the handler of orders.
pub const ORDER: &str = "order";
/// The name of the handler of notifications.
pub const NOTIFICATION: &str = "notification";
/// The name of the handler of analytics events.
pub const ANALYTICS: &str = "analytics";

/// One delivery to work on.
#[derive(Debug, Clone, Copy)]
pub struct HandlerInput<'a> {
    /// What was delivered.
    pub delivery: &'a Delivery,
    /// The consumer's name.
    pub consumer: &'a Arc<str>,
    /// Delayed retries so far.
    pub retries: u32,
}

/// What a handler made of a delivery, and what is left to do.
#[derive(Debug)]
pub struct HandlerOutput {
    /// What happened.
    pub verdict: HandlerOutcome,
    /// To be published and confirmed before `record`.
    pub emit: Arc<[Publication]>,
    /// To be recorded after `emit` is confirmed and before the delivery is acked.
    pub record: Option<LedgerEntry>,
}

impl HandlerOutput {
    /// Nothing left to do.
    pub fn just(verdict: HandlerOutcome) -> Self {
        HandlerOutput { verdict, emit: Arc::default(), record: None }
    }
}

/// What happened to a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandlerOutcome {
    /// Its effects are recorded.
    Completed,
    /// Its effects had been recorded before.
    Duplicate,
    /// A failure will be retried after a delay.
    Retried {
        /// The consumer that failed.
        consumer: Option<Arc<str>>,
        /// The delay.
        delay: Delay,
    },
    /// A failure is dead-lettered for a person.
    DeadLettered {
        /// The consumer that failed; `None` if the queue it failed in is unknown.
        consumer: Option<Arc<str>>,
        /// Why.
        reason: DeadLetterReason,
    },
}

/// Does the work of one consumer.
pub trait Handler: Send + Sync + 'static {
    /// Works on a delivery. May be dropped at any await (deadline, shutdown, lost connection) and called
    /// again with the same message, so what it records must be recorded once however often it runs.
    ///
    /// # Errors
    /// A [`Failure`], whose kind decides on retries.
    fn handle<'a>(&'a self, work: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, Failure>>;
}

/// What handlers are made of.
#[derive(Clone)]
pub struct HandlerDeps {
    /// Where effects are recorded.
    pub ledger: Arc<dyn Ledger>,
    /// Exchange names.
    pub names: Arc<ExchangeNames>,
    /// Injected faults of this consumer.
    pub faults: Option<FaultInjection>,
    /// The analytics events' file.
    pub event_log: EventLog,
    /// Where notifications are delivered.
    pub channel: Arc<dyn Channel>,
    /// Where failures go back to, by queue: as it is at the moment of each.
    pub routes: watch::Receiver<BTreeMap<String, Route>>,
}

type Build = fn(&HandlerDeps) -> Arc<dyn Handler>;

/// All handlers, by the name that `consumers.<name>.handler` gives.
const TABLE: [(&str, Build); 4] = [
    (ORDER, |parts| Arc::new(order::OrderHandler::new(parts))),
    (NOTIFICATION, |parts| Arc::new(notification::NotificationHandler::new(parts))),
    (ANALYTICS, |parts| Arc::new(analytics::AnalyticsHandler::new(parts))),
    (FAILED_HANDLER, |parts| Arc::new(failed::FailedHandler::new(parts))),
];

/// The names of all handlers.
pub const NAMES: [&str; TABLE.len()] = [TABLE[0].0, TABLE[1].0, TABLE[2].0, TABLE[3].0];

/// Makes the handler of this name.
pub fn build(name: &str, parts: &HandlerDeps) -> Option<Arc<dyn Handler>> {
    TABLE.iter().find(|(known, _)| *known == name).map(|(_, build)| build(parts))
}

/// A ledger that cannot record now is worth a retry.
fn ledger_failure(error: &LedgerError) -> Failure {
    Failure::new(FailureKind::Transient, "ledger_unavailable", chain(error))
}
