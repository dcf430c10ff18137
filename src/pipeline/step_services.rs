//! What a worker offers, for one delivery, to a handler that calls steps.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};

use super::consumer_context::ConsumerContext;
use super::handler::{SharedServices, StepServices};
use super::publish::publish_step_events;
use crate::ledger::LedgerWriter;
use crate::message::{Publication, PublishError};
use crate::metrics::{ChannelCounters, StepCounters};
use crate::recovery::ClaimNote;
use crate::wait_budget::WaitBudget;

/// See [`StepServices`].
#[derive(Clone, Copy)]
pub(super) struct DeliveryServices<'a> {
    pub context: &'a ConsumerContext,
    pub note: &'a ClaimNote,
    pub waits: &'a WaitBudget,
}

impl StepServices for DeliveryServices<'_> {
    fn publish(&self, events: Arc<[Publication]>) -> BoxFuture<'_, Result<(), PublishError>> {
        publish_step_events(self.context, events).boxed()
    }

    fn ledger(&self) -> &dyn LedgerWriter {
        &*self.context.ledger
    }

    fn counters(&self) -> &StepCounters {
        self.context.counters.steps()
    }

    fn channels(&self) -> &ChannelCounters {
        self.context.counters.channels()
    }

    fn max_hold(&self) -> Duration {
        self.context.max_hold()
    }

    fn waits(&self) -> &WaitBudget {
        self.waits
    }

    fn queue(&self) -> &Arc<str> {
        &self.context.queue
    }

    fn note(&self) -> &ClaimNote {
        self.note
    }

    fn shared(&self) -> SharedServices {
        SharedServices { ledger: Arc::clone(&self.context.ledger), counters: Arc::clone(&self.context.counters) }
    }
}
