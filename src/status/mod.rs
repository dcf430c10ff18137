//! The status: what orderd and the broker are doing, in the shape that `/api/v1/status` and
//! `orderd status --format json` print. Names of fields and words are a contract; new ones may be added.
//!
//! Pure: it is put together from readings and shown elsewhere.

mod assemble;
mod consumer_registry;
mod invariant_check;
mod recent;
mod registry;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::control::ReloadReport;
use crate::reconcile::BrokerView;

pub use assemble::{ConsumerReading, consumer, consumers};
pub use consumer_registry::RegisteredConsumer;
pub use invariant_check::watch;
pub use recent::{Recent, Sample, Window};
pub use registry::StatusRegistry;
pub(crate) use registry::StatusSnapshot;

/// Everything an operator asks for first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The process.
    pub daemon: DaemonStatus,
    /// Whether it is ready to work, check by check.
    pub checks: Vec<ReadinessCheck>,
    /// Each consumer, by name.
    pub consumers: BTreeMap<String, ConsumerStatus>,
    /// The broker's queues, alarms and what does not fit, as the management API told last.
    pub broker: BrokerView,
    /// Whether each delivery of every consumer is accounted for.
    pub conservation_ok: bool,
}

/// The process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DaemonStatus {
    /// orderd's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// `<host>:<process id>`, as in the names of its connections; empty if an earlier orderd answered.
    #[serde(default)]
    pub instance: String,
    /// How far it is.
    pub state: DaemonState,
    /// When it started.
    pub started_at: Timestamp,
    /// Seconds since then.
    pub uptime_seconds: f64,
    /// The configuration file.
    pub config: String,
    /// Counts the configurations applied since the start; 1 is the first.
    pub config_generation: u64,
    /// The last reload; `None` before the first.
    pub last_reload: Option<LastReload>,
    /// AMQP connections that stand now: one for each subscription, one for publishing.
    pub connections: u64,
    /// AMQP connections made since the start for consuming and publishing.
    pub connections_made: u64,
    /// Publishing; `None` until the topology is there.
    pub publisher: Option<PublisherStatus>,
    /// The ledger.
    pub ledger: LedgerStatus,
}

/// The last reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastReload {
    /// When it ended.
    pub at: Timestamp,
    /// Who wanted it: `SIGHUP`, `admin`, `file`.
    pub by: String,
    /// What became of it.
    pub report: ReloadReport,
}

/// How far the daemon is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DaemonState {
    /// It waits for the broker, or makes the topology.
    Starting,
    /// It works.
    Running,
    /// It finishes what it began, and ends.
    Draining,
}

impl DaemonState {
    /// Its name in JSON and in texts.
    pub fn as_str(self) -> &'static str {
        match self {
            DaemonState::Starting => "starting",
            DaemonState::Running => "running",
            DaemonState::Draining => "draining",
        }
    }
}

/// The publishing connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublisherStatus {
    /// Whether there is one now.
    pub connected: bool,
    /// Connections made since the start.
    pub connections: u64,
    /// Publications that the broker has not confirmed yet.
    pub unconfirmed: u64,
}

/// The ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerStatus {
    /// Whether it can record, as far as the last commit tells.
    pub recording: bool,
    /// Commits since the start.
    pub commits: u64,
}

/// One thing that must be so before orderd is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadinessCheck {
    /// What: `topology`, `ledger`, `publisher`, `consumer <name>`, `shutdown`.
    pub name: String,
    /// Whether it is so.
    pub ok: bool,
    /// In a few words.
    pub detail: String,
}

/// One consumer since the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConsumerStatus {
    /// Its queue.
    pub queue: String,
    /// Whether its intake is stopped on purpose, until it is resumed.
    #[serde(default)]
    pub paused: bool,
    /// Since when.
    pub paused_since: Option<Timestamp>,
    /// Whether it has a subscription that takes deliveries in.
    pub subscribed: bool,
    /// Subscriptions of former configurations, or from before a pause, that only finish what they were handed.
    #[serde(default)]
    pub draining: u64,
    /// Workers that run.
    pub workers_running: u64,
    /// Workers configured; 0 of a consumer that was removed and only finishes what it was handed.
    pub workers_configured: u64,
    /// Deliveries one worker works on at a time.
    pub prefetch: u64,
    /// Whether deliveries are worked on one at a time, since something kills whoever holds them.
    pub safe_mode: bool,
    /// Deliveries in hand now.
    pub in_flight: u64,
    /// How long the oldest of them has been.
    pub oldest_in_flight_seconds: Option<f64>,
    /// Deliveries through with: effects recorded; of the consumer of failures, retried or dead-lettered.
    pub processed: u64,
    /// Deliveries whose effects had been recorded before.
    pub duplicates: u64,
    /// Deliveries whose failure was handed to the consumer of failures.
    pub failed: u64,
    /// Attempts that failed, immediate retries included.
    pub failed_attempts: u64,
    /// The same by kind and code.
    pub failures: Vec<FailureCount>,
    /// Failures of this consumer that were sent to a retry queue.
    pub retried: u64,
    /// The same by delay.
    pub retries: BTreeMap<String, u64>,
    /// Failures of this consumer that were dead-lettered.
    pub dead_lettered: u64,
    /// The same by reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// Restarts of workers and of the pool.
    pub restarts: u64,
    /// Subscriptions made.
    pub subscriptions: u64,
    /// Deliveries acked per second, over the last minute or since the start. `None` in the first seconds.
    pub acks_per_second: Option<f64>,
    /// From a delivery's arrival to its ack, over the last minute or since the start.
    pub handling_seconds: Option<Quantiles>,
    /// From the message's AMQP timestamp, which is in whole seconds, to done: up to a second more than it took.
    /// Over the last minute or since the start, of messages that have a timestamp.
    pub publish_to_ack_seconds: Option<Quantiles>,
    /// Whether each of its deliveries is accounted for.
    pub conservation: Conservation,
}

/// Failed attempts of one kind and code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailureCount {
    /// `transient`, `timed_out`, …
    pub kind: String,
    /// A stable code.
    pub code: String,
    /// How many.
    pub count: u64,
}

/// Estimates from a histogram, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    /// Half are within this.
    pub p50: f64,
    /// 95 % are.
    pub p95: f64,
    /// 99 % are.
    pub p99: f64,
    /// How many it is estimated from.
    pub count: u64,
}

/// `deliveries = succeeded + republished + released + rejected + in_flight`, all of one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conservation {
    /// Taken from the broker.
    pub deliveries: u64,
    /// Acked because their effects are recorded.
    pub succeeded: u64,
    /// Acked because what replaces them is confirmed: a failure, a retry, a dead letter.
    pub republished: u64,
    /// Given back, or in hand when a subscription was lost.
    pub released: u64,
    /// Left to the broker to dead-letter.
    pub rejected: u64,
    /// In hand.
    pub in_flight: u64,
    /// What does not add up.
    pub problem: Option<String>,
}
