//! What a consumer has counted, at one instant. It only holds values.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::broker_problems::BrokerProblemReading;
use super::channel_counters::ChannelsReading;
use super::histogram::Histogram;
use super::step_counters::StepReading;
use crate::ledger::StepAction;
use crate::recovery::{DeadLetterReason, Delay, FailureKind};

/// Counts of one consumer at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeliveryCounts {
    /// Deliveries received from the broker.
    pub deliveries: u64,
    /// Acked because their effects were recorded.
    pub completed: u64,
    /// Acked because their effects had been recorded before.
    pub duplicates: u64,
    /// Acked cancellations of orders that were carried out or kept.
    pub cancelled: u64,
    /// Acked orders that were not processed, or not dead-lettered, because they were cancelled.
    pub prevented: u64,
    /// Acked notifications that were not delivered because the order has no address.
    pub skipped: u64,
    /// Attempts that failed, immediate retries included.
    pub failed_attempts: u64,
    /// Acked because the failure was published to the failed-order queue.
    pub forwarded: u64,
    /// Failures sent to a retry queue (failed-order consumer only).
    pub retried: u64,
    /// Failures sent back to their queue, to be undone or because nothing proved them (failed-order consumer only).
    pub returned: u64,
    /// Failures dead-lettered (failed-order consumer only).
    pub dead_lettered: u64,
    /// Requeued, or in flight when a subscription was lost.
    pub released: u64,
    /// Rejected, so that the broker dead-letters it, because no copy could be published.
    pub rejected: u64,
    /// Completed deliveries whose AMQP timestamp cannot be the time of their publishing.
    pub implausible_timestamps: u64,
    /// Deliveries without a `message_id`.
    pub without_message_id: u64,
    /// Deliveries that claim to be orderd's own, without the proof.
    pub unproven: u64,
    /// Failures whose copy lacks some of the sender's headers, which were too large.
    pub headers_dropped: u64,
    /// Restarts of workers and of the pool.
    pub restarts: u64,
    /// In flight now: the number of live `DeliveryGuard`s, counted independently of the outcomes.
    pub in_flight: u64,
}

impl DeliveryCounts {
    /// Deliveries settled or in flight: as many as were received, unless some were lost or settled twice.
    pub fn accounted_for(&self) -> u64 {
        self.acked() + self.released + self.rejected + self.in_flight
    }

    /// Deliveries acked; before each ack, its effects were recorded or its replacement was confirmed.
    pub fn acked(&self) -> u64 {
        self.succeeded() + self.forwarded + self.retried + self.returned + self.dead_lettered
    }

    /// Deliveries acked because nothing is left to do for them.
    pub fn succeeded(&self) -> u64 {
        self.completed + self.duplicates + self.cancelled + self.prevented + self.skipped
    }
}

/// State of a consumer's pool, including its former pools that are still draining.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolState {
    /// Subscriptions that receive new deliveries: one, or none without a connection.
    pub active_subscriptions: u64,
    /// Subscriptions that only finish what they received.
    pub draining_subscriptions: u64,
    /// Deliveries that all of these may have in flight: workers × prefetch, summed.
    pub capacity: u64,
    /// Subscriptions opened since the start; each has a connection of its own.
    pub subscriptions: u64,
    /// Running workers; one in safe mode.
    pub workers_running: u64,
    /// Safe mode is on: one delivery at a time, since some delivery kills the process that handles it.
    pub safe_mode: bool,
    /// How long the broker has not answered on a subscription's connection although settlements were sent on it: the longest.
    pub unanswered: Duration,
}

impl PoolState {
    /// Returns `true` if there is a subscription, active or draining.
    pub fn has_subscription(&self) -> bool {
        self.active_subscriptions + self.draining_subscriptions > 0
    }
}

/// Dead letters with one code.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeadLettersOfCode {
    /// How many.
    pub count: u64,
    /// The identity of the last one.
    pub last: String,
}

/// Everything a consumer has counted, at one instant.
#[derive(Debug, Clone)]
pub struct CounterReading {
    /// The counts.
    pub counts: DeliveryCounts,
    /// The pool.
    pub pool: PoolState,
    /// Why the last attempt to subscribe failed; `None` if it succeeded.
    pub subscribe_error: Option<String>,
    /// The address of the broker's node that the latest subscription is on; `None` before the first.
    pub address: Option<Arc<str>>,
    /// That node has sent nothing, not even a heartbeat, for longer than a living one does.
    pub silent: bool,
    /// What the broker does that keeps the consumer from making progress.
    pub broker_problems: BrokerProblemReading,
    /// Age of the oldest delivery in flight.
    pub oldest_in_flight: Option<Duration>,
    /// Time from receipt to ack, of deliveries that were acked.
    pub handling: Histogram,
    /// Time from the message's AMQP timestamp to the ack of a completed delivery: up to 1 s too long, since timestamps
    /// are in whole seconds. Messages without a timestamp are not counted.
    pub publish_to_ack: Histogram,
    /// Failed attempts by kind and code.
    pub failures: BTreeMap<(FailureKind, String), u64>,
    /// Delayed retries by the consumer that failed and the delay (failed-order consumer only).
    pub retries: BTreeMap<(Arc<str>, Delay), u64>,
    /// Dead-lettered messages by the consumer that failed and the reason (failed-order consumer only).
    pub dead_letters: BTreeMap<(Arc<str>, DeadLetterReason), u64>,
    /// The same by the code of the last failure.
    pub dead_letter_codes: BTreeMap<(Arc<str>, DeadLetterReason, String), DeadLettersOfCode>,
    /// The calls of its steps, by step and action.
    pub steps: BTreeMap<(Arc<str>, StepAction), StepReading>,
    /// What its notification channels have delivered.
    pub channels: ChannelsReading,
}
