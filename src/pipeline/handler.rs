//! The trait that the pipeline calls for each delivery, with its input and output.
//!
//! A handler never acks, publishes or retries: it returns what is to be published and recorded, and the worker does it.
//! The implementations are in `handlers`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};

use super::deadline::{Deadline, SuspendedDeadline};
use super::intake::IntakeGate;
use crate::chain::chain;
use crate::ledger::{CancelAnswer, LedgerEntry, LedgerError, LedgerWriter, NewCancellation, Recorded};
use crate::message::{Delivery, Provenance, Publication, PublishError};
use crate::metrics::{ChannelCounters, Counters, HandlerOutcome, StepCounters};
use crate::recovery::{ClaimNote, Failure, FailureKind};
use crate::wait_budget::WaitBudget;

/// Processes the deliveries of one consumer.
pub trait Handler: Send + Sync + 'static {
    /// Processes one delivery. The future may be dropped at any await (deadline, shutdown, lost connection) and the handler
    /// called again with the same message, so its effects must be idempotent.
    ///
    /// # Errors
    /// A [`Failure`], whose kind decides whether the message is retried, or an [`Interruption`], which never counts as an
    /// attempt.
    fn handle<'a>(&'a self, input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, HandlerError>>;

    /// What it needs besides the ledger: no delivery is started while one of these is unavailable.
    fn gates(&self) -> Vec<IntakeGate> {
        Vec::new()
    }

    /// The most deliveries that it may have at the same time without any of them waiting longer than `max_hold`; `None`: no
    /// limit of its own. What waits longer would be released, and count toward the broker's delivery limit.
    fn max_in_flight(&self, _max_hold: Duration) -> Option<usize> {
        None
    }

    /// What to record if the copy of a failed message can never be published, for the given reason. The broker then
    /// dead-letters the message itself. Only the failed-order handler returns something.
    ///
    /// # Errors
    /// As [`Handler::handle`].
    fn dead_letter_without_copy<'a>(
        &'a self,
        _input: HandlerInput<'a>,
        _problem: &'a str,
    ) -> BoxFuture<'a, Result<Option<HandlerOutput>, HandlerError>> {
        ready(Ok(None)).boxed()
    }
}

/// Why a handler did not finish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HandlerError {
    /// The message has failed.
    Failed(Failure),
    /// Something that all messages need is gone. The delivery is released.
    Interrupted(Interruption),
}

/// What interrupted the processing of a delivery. Outages that end are none: the delivery waits for their end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// The ledger was closed, or a newer orderd has migrated it.
    LedgerClosed,
    /// The event file was closed.
    EventFileClosed,
    /// The publisher was closed.
    PublisherClosed,
    /// Another instance works on the message, or took it over.
    TakenOver,
    /// No delivery can be processed until the handler is replaced, see [`IntakeGate::Held`].
    Held,
}

impl HandlerError {
    /// The message's failure; `None` for an interruption.
    pub fn failure(self) -> Option<Failure> {
        match self {
            HandlerError::Failed(failure) => Some(failure),
            HandlerError::Interrupted(_) => None,
        }
    }
}

impl From<Failure> for HandlerError {
    fn from(failure: Failure) -> Self {
        HandlerError::Failed(failure)
    }
}

impl From<LedgerError> for HandlerError {
    fn from(error: LedgerError) -> Self {
        match &error {
            LedgerError::Refused { .. } => {
                HandlerError::Failed(Failure::new(FailureKind::Transient, "ledger_refused", chain(&error)))
            }
            LedgerError::Unavailable { .. } | LedgerError::Outdated { .. } | LedgerError::Closed => {
                HandlerError::Interrupted(Interruption::LedgerClosed)
            }
        }
    }
}

/// The ledger, for one attempt at a delivery.
#[derive(Clone, Copy)]
pub struct LedgerAccess<'a> {
    ledger: &'a dyn LedgerWriter,
    deadline: Option<&'a Deadline>,
}

impl<'a> LedgerAccess<'a> {
    pub(super) fn new(ledger: &'a dyn LedgerWriter, deadline: &'a Deadline) -> Self {
        LedgerAccess { ledger, deadline: Some(deadline) }
    }

    /// For a handler that is called without a deadline.
    pub fn without_deadline(ledger: &'a dyn LedgerWriter) -> Self {
        LedgerAccess { ledger, deadline: None }
    }

    /// Records an entry and waits until it is durable, however long that takes: the handler's deadline is suspended.
    ///
    /// # Errors
    /// A [`Failure`] if the ledger refuses this entry, an [`Interruption`] if it was closed.
    pub async fn record(self, entry: LedgerEntry) -> Result<Recorded, HandlerError> {
        let _suspended = self.suspend_deadline();
        Ok(self.ledger.record(entry).await?)
    }

    /// Cancels an order, and waits like [`LedgerAccess::record`].
    ///
    /// # Errors
    /// As [`LedgerAccess::record`].
    pub async fn cancel_order(self, cancellation: NewCancellation) -> Result<CancelAnswer, HandlerError> {
        let _suspended = self.suspend_deadline();
        Ok(self.ledger.cancel_order(cancellation).await?)
    }

    /// Suspends the deadline until the result is dropped, for something else that may have to wait for the ledger or for an
    /// event file.
    pub fn suspend_deadline(self) -> Option<SuspendedDeadline<'a>> {
        self.deadline.map(Deadline::suspend)
    }
}

impl fmt::Debug for LedgerAccess<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LedgerAccess").finish_non_exhaustive()
    }
}

/// What a handler needs to call steps: to publish in between, and to count.
pub trait StepServices: Send + Sync {
    /// Publishes events until the broker has confirmed all of them.
    ///
    /// # Errors
    /// Another attempt cannot help.
    fn publish(&self, events: Arc<[Publication]>) -> BoxFuture<'_, Result<(), PublishError>>;

    /// The ledger itself: the deadline has to be suspended by the caller.
    fn ledger(&self) -> &dyn LedgerWriter;

    /// Counts the calls.
    fn counters(&self) -> &StepCounters;

    /// Counts the attempts to deliver notifications.
    fn channels(&self) -> &ChannelCounters;

    /// How long a delivery may wait before it is released.
    fn max_hold(&self) -> Duration;

    /// How long the delivery may still wait for others before it is released.
    fn waits(&self) -> &WaitBudget;

    /// The queue that the delivery came from.
    fn queue(&self) -> &Arc<str>;

    /// Notes the run that the delivery has claimed, for its copies.
    fn note(&self) -> &ClaimNote;

    /// What a task needs that does not end with the handler's future.
    fn shared(&self) -> SharedServices;
}

/// The ledger and the counters, for a task that does not end with the handler's future.
#[derive(Clone)]
pub struct SharedServices {
    /// The ledger.
    pub ledger: Arc<dyn LedgerWriter>,
    /// The consumer's counters.
    pub counters: Arc<Counters>,
}

/// [`StepServices`], if there are any: tests of handlers that call no steps have none.
#[derive(Clone, Copy, Default)]
pub struct StepAccess<'a>(pub Option<&'a dyn StepServices>);

impl fmt::Debug for StepAccess<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepAccess").finish_non_exhaustive()
    }
}

/// One delivery to process.
#[derive(Debug, Clone, Copy)]
pub struct HandlerInput<'a> {
    /// What was delivered.
    pub delivery: &'a Delivery,
    /// Who sent it.
    pub provenance: &'a Provenance<'a>,
    /// The consumer's name.
    pub consumer: &'a Arc<str>,
    /// The patterns by which its queue is bound to the orders exchange.
    pub bindings: &'a [String],
    /// The delayed retries that the message has had.
    pub retries: u32,
    /// The ledger.
    pub ledger: LedgerAccess<'a>,
    /// What calls of steps need.
    pub steps: StepAccess<'a>,
}

impl HandlerInput<'_> {
    /// The identity of the message, if it is not an order.
    pub fn identity(&self) -> String {
        self.delivery.identity(*self.provenance)
    }
}

/// What a handler did with a delivery, and what the worker still has to do.
#[derive(Debug)]
pub struct HandlerOutput {
    /// What was done.
    pub outcome: HandlerOutcome,
    /// An event about a failed message, published before `emit` and recognised if it is published again. It is left out if it can
    /// never be published: the message itself is not affected. Boxed, because it is large and rare.
    pub report: Option<Box<Publication>>,
    /// To be published, and confirmed before `record` is recorded.
    pub emit: Arc<[Publication]>,
    /// To be recorded after `emit` is confirmed and before the delivery is acked.
    pub record: Option<LedgerEntry>,
    /// To be written when all of that is done, right before the delivery is acked.
    pub log: Option<DeferredLog>,
}

/// A line of the log that is true only once what a handler returned is published and recorded.
pub struct DeferredLog(Box<dyn FnOnce() + Send + Sync>);

impl DeferredLog {
    /// `write` writes the line. It must not block.
    pub fn new(write: impl FnOnce() + Send + Sync + 'static) -> Self {
        DeferredLog(Box::new(write))
    }

    /// Writes the line.
    pub fn write(self) {
        (self.0)();
    }
}

impl fmt::Debug for DeferredLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeferredLog").finish_non_exhaustive()
    }
}

impl HandlerOutput {
    /// Nothing is left to publish or record.
    pub fn finished(outcome: HandlerOutcome) -> Self {
        HandlerOutput { outcome, report: None, emit: Arc::default(), record: None, log: None }
    }
}
