//! The trait that the pipeline calls for each delivery, with its input and output.
//!
//! A handler never acks, publishes or retries: it returns what is to be published and recorded, and the worker does it.
//! The implementations are in `handlers`.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::ledger::LedgerEntry;
use crate::message::{Delivery, Provenance, Publication};
use crate::metrics::HandlerOutcome;
use crate::recovery::Failure;

/// Processes the deliveries of one consumer.
pub trait Handler: Send + Sync + 'static {
    /// Processes one delivery. The future may be dropped at any await (deadline, shutdown, lost connection) and the handler
    /// called again with the same message, so its effects must be idempotent.
    ///
    /// # Errors
    /// A [`Failure`], whose kind decides whether it is retried.
    fn handle<'a>(&'a self, input: HandlerInput<'a>) -> BoxFuture<'a, Result<HandlerOutput, Failure>>;

    /// What to record if the copy of a failed message can never be published, for the given reason. The broker then
    /// dead-letters the message itself. Only the failed-order handler returns something.
    fn dead_letter_without_copy(&self, _input: HandlerInput<'_>, _problem: &str) -> Option<HandlerOutput> {
        None
    }
}

/// One delivery to process.
#[derive(Debug, Clone, Copy)]
pub struct HandlerInput<'a> {
    /// What was delivered.
    pub delivery: &'a Delivery,
    /// Who sent it.
    pub provenance: Provenance<'a>,
    /// The consumer's name.
    pub consumer: &'a Arc<str>,
    /// The patterns by which its queue is bound to the orders exchange.
    pub bindings: &'a [String],
    /// The delayed retries that the message has had.
    pub retries: u32,
}

impl HandlerInput<'_> {
    /// The identity of the message, if it is not an order.
    pub fn identity(&self) -> String {
        self.delivery.identity(self.provenance)
    }
}

/// What a handler did with a delivery, and what the worker still has to do.
#[derive(Debug)]
pub struct HandlerOutput {
    /// What was done.
    pub outcome: HandlerOutcome,
    /// To be published, and confirmed before `record` is recorded.
    pub emit: Arc<[Publication]>,
    /// To be recorded after `emit` is confirmed and before the delivery is acked.
    pub record: Option<LedgerEntry>,
}

impl HandlerOutput {
    /// Nothing is left to publish or record.
    pub fn finished(outcome: HandlerOutcome) -> Self {
        HandlerOutput { outcome, emit: Arc::default(), record: None }
    }
}
