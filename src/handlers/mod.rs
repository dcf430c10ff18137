//! The handlers: what orderd does with the messages of each kind. The trait they implement is [`crate::pipeline::Handler`].
//!
//! # Adding a handler
//! 1. Write it in a file or folder here: a type that implements `Handler`, and a unit struct that implements
//!    [`HandlerFactory`] with its name, its own keys in `[consumers.<name>]` and its construction.
//! 2. Add the unit struct to [`REGISTRY`].
//!
//! Nothing else needs a change: loading reads and checks the keys, `orderd check` prints them, and a reload compares them and
//! applies the changes. `order` has keys of its own (`steps`, `faults`), `analytics` has none.
//!
//! A handler decides and records. It never acks, publishes or retries: the worker does, with what the handler returns.

mod analytics;
mod claim;
mod event_file_state;
mod event_files;
mod event_line;
mod event_log;
mod event_publication;
mod factory;
mod failed;
mod notification;
mod order;
mod origin_consumer;
mod step_run;
mod steps;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

pub use claim::Claims;
pub use event_files::{erase_events, event_files, remove_old_events};
pub use event_log::{EventLog, EventLogClosed, EventLogWriter};
pub use factory::{HandlerConsumer, HandlerFactory, build, message_check};
pub use failed::DeadLetteredEvent;
pub use notification::LogChannel;
pub use order::StepOrder;
pub use origin_consumer::OriginConsumer;

use crate::config::{HandlerRegistry, HandlerSettings, Sources};
use crate::formats::Format;
use crate::message::{DocumentError, ExchangeNames, TrustedUsers};
use crate::notify::{Channel, Deliveries};
use crate::pipeline::{HandlerError, Interruption, LedgerAccess};
use crate::recovery::{Failure, FailureKind};
use crate::steps::StepResources;

/// All handlers.
pub const REGISTRY: HandlerRegistry = &[
    &order::OrderFactory,
    &notification::NotificationFactory,
    &analytics::AnalyticsFactory,
    &failed::FailedFactory,
    &steps::StepsFactory,
];

/// Configuration sources with all handlers, but no file, settings or environment.
pub fn sources() -> Sources {
    Sources { handlers: REGISTRY, ..Sources::default() }
}

/// What handlers are built from.
#[derive(Clone)]
pub struct HandlerDeps {
    /// The names of the exchanges.
    pub names: Arc<ExchangeNames>,
    /// The broker users whose messages count as orderd's own.
    pub users: Arc<TrustedUsers>,
    /// The longest text that a body may have once it is decompressed, in bytes: `broker.max_body`.
    pub max_body: usize,
    /// The format of the orders that the consumer receives.
    pub format: Format,
    /// The file of the analytics events.
    pub event_log: EventLog,
    /// The file of notifications.
    pub notification_log: Arc<dyn Channel>,
    /// The notification channels, for a consumer of notifications.
    pub notify: HandlerSettings,
    /// The notification channel of an order that asks for none.
    pub default_channel: Arc<str>,
    /// The messages that are being processed, so that two copies of one are never processed at the same time.
    pub claims: Arc<Claims>,
    /// The deliveries of notifications that have begun.
    pub deliveries: Deliveries,
    /// What the steps of all consumers share.
    pub steps: StepResources,
    /// The consumers whose failures are retried or dead-lettered, by queue. A reload changes them.
    pub origin_consumers: watch::Receiver<BTreeMap<String, OriginConsumer>>,
}

/// Appends a line and waits until it is on disk. A file that cannot be written is never the message's failure, so the deadline
/// is suspended.
async fn append(log: &EventLog, line: Vec<u8>, ledger: LedgerAccess<'_>) -> Result<(), HandlerError> {
    let _suspended = ledger.suspend_deadline();
    append_line(log, line).await
}

async fn append_line(log: &EventLog, line: Vec<u8>) -> Result<(), HandlerError> {
    log.append(line).await.map_err(|EventLogClosed| HandlerError::Interrupted(Interruption::EventFileClosed))
}

/// The failure for a message without a document.
fn body_failure(error: &DocumentError) -> Failure {
    Failure::new(FailureKind::Malformed, error.code(), error.to_string())
}
