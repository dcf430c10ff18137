//! What a consumer's context offers to a handler that calls steps.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};

use super::consumer_context::ConsumerContext;
use super::handler::StepServices;
use super::publish::publish_step_events;
use crate::ledger::LedgerWriter;
use crate::message::{Publication, PublishError};
use crate::metrics::{ChannelCounters, StepCounters};

impl StepServices for ConsumerContext {
    fn publish(&self, events: Arc<[Publication]>) -> BoxFuture<'_, Result<(), PublishError>> {
        publish_step_events(self, events).boxed()
    }

    fn ledger(&self) -> &dyn LedgerWriter {
        &*self.ledger
    }

    fn counters(&self) -> &StepCounters {
        self.counters.steps()
    }

    fn channels(&self) -> &ChannelCounters {
        self.counters.channels()
    }

    fn max_hold(&self) -> Duration {
        ConsumerContext::max_hold(self)
    }
}
