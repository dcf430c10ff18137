//! Everything that is needed to process the deliveries of one consumer.
//!
//! It is fixed when a pool starts: a changed configuration makes a new context and a new pool.

use std::sync::Arc;
use std::time::Duration;

use super::decompressed_bytes::DecompressedBytes;
use super::handler::Handler;
use super::intake::Intake;
use super::publish_outage::PublishOutage;
use super::unidentified::UnidentifiedDeliveries;
use crate::formats::Format;
use crate::ledger::LedgerWriter;
use crate::message::{ExchangeNames, MAX_HOLD, Publisher, TrustedUsers};
use crate::metrics::Counters;
use crate::recovery::RetryPolicy;

/// Of a shorter acknowledgement timeout of the broker, once it is known, this part at most.
const MAX_HOLD_PART: u32 = 2;

/// Shared by all workers of a pool.
pub struct ConsumerContext {
    /// The consumer's name.
    pub consumer: Arc<str>,
    /// The queue it consumes.
    pub queue: Arc<str>,
    /// Processes its deliveries.
    pub handler: Arc<dyn Handler>,
    /// Publishes events and failures.
    pub publisher: Arc<dyn Publisher>,
    /// Records effects.
    pub ledger: Arc<dyn LedgerWriter>,
    /// Closed while the ledger cannot record, or something else that the handler needs is unavailable.
    pub intake: Intake,
    /// Begins when the broker does not accept for too long what a delivery causes.
    pub outage: PublishOutage,
    /// The names of the exchanges.
    pub names: Arc<ExchangeNames>,
    /// The patterns by which the queue is bound to the orders exchange.
    pub bindings: Vec<String>,
    /// The broker users whose messages count as orderd's own.
    pub users: Arc<TrustedUsers>,
    /// Identities of the messages without a `message_id`.
    pub unidentified: Arc<UnidentifiedDeliveries>,
    /// The longest text that a body may have once it is decompressed, in bytes: `broker.max_body`.
    pub max_body: usize,
    /// What the decompressed bodies of all deliveries in flight may take.
    pub decompressed: DecompressedBytes,
    /// The format of orders, for the log lines of failures.
    pub format: Format,
    /// The handler's deadline for one attempt. Time in which it waits for the ledger or an event file does not count.
    pub timeout: Duration,
    /// What happens when the handler fails.
    pub on_failure: OnFailure,
    /// Counts what the consumer does.
    pub counters: Arc<Counters>,
}

impl ConsumerContext {
    /// How long a delivery may wait for the end of an outage before it is released.
    pub(super) fn max_hold(&self) -> Duration {
        let known = self.counters.broker_problems().ack_timeout().map(|timeout| timeout / MAX_HOLD_PART);
        known.map_or(MAX_HOLD, |known| known.min(MAX_HOLD))
    }
}

/// What a worker may do with a delivery whose handler failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OnFailure {
    /// Retry it immediately as far as the policy allows, then forward it to the failed-order queue.
    Forward(RetryPolicy),
    /// Keep it and retry it until it succeeds: for the failed-order consumer, whose failures no other consumer takes.
    KeepRetrying,
}
