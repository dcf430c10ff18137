//! The status of the daemon: its live state, and snapshots of it in the shape that `/api/v1/status` and
//! `orderd status --format json` show. Field names and enum values are a contract; new ones may be added.
//!
//! ```text
//! counters, pools, publisher, ledger, broker view ─► registry ─► assemble, readiness ─► Status (HTTP, CLI)
//!                                                       └──────► summary ─► status line of the service manager
//! ```
//! It exists with and without the admin listener. It never changes what it shows.

mod assemble;
mod channels;
mod consumer_registry;
mod dead_letters;
mod invariant_check;
mod quantiles;
mod readiness;
mod recent;
mod registry;
mod summary;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::alerts::AlertsStatus;
use crate::control::ReloadReport;
use crate::files::FileState;
use crate::ledger::Outage;
use crate::reconcile::BrokerView;

pub use assemble::ConsumerReading;
pub use channels::provider_in_use;
pub use consumer_registry::RegisteredConsumer;
pub use dead_letters::{ActiveReplay, CollectorStatus, DeadLettersStatus, UnresolvedLetters};
pub use invariant_check::check_invariants;
pub use readiness::ReadinessCheck;
pub use registry::StatusRegistry;
pub(crate) use registry::StatusSnapshot;
pub use summary::{ConsumerSummary, StatusSummary, SubscriptionState};

/// The state of the daemon and of the broker at one time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The daemon process.
    pub daemon: DaemonStatus,
    /// The readiness checks; orderd is ready if all of them pass.
    pub checks: Vec<ReadinessCheck>,
    /// The consumers, by name.
    pub consumers: BTreeMap<String, ConsumerStatus>,
    /// Failures that belong to none of these consumers, by the consumer's name: of a removed consumer, or of `unknown` if the
    /// queue that the message failed in is not known.
    #[serde(default)]
    pub other_consumers: BTreeMap<String, OtherConsumer>,
    /// The dead letters in the ledger.
    #[serde(default)]
    pub dead_letters: DeadLettersStatus,
    /// The broker's queues, alarms and the findings, as last read from the management API.
    pub broker: BrokerView,
    /// Operators' alerts; `None` if none are configured.
    #[serde(default)]
    pub alerts: Option<AlertsStatus>,
    /// Every delivery of every consumer is accounted for.
    pub conservation_ok: bool,
}

/// The daemon process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DaemonStatus {
    /// orderd's version.
    pub version: String,
    /// The process id.
    pub pid: u32,
    /// `<host>:<process id>`, as in the names of its connections; empty if an earlier orderd answered.
    #[serde(default)]
    pub instance: String,
    /// The phase of the daemon's life.
    pub state: DaemonState,
    /// When it started.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// The configuration file.
    pub config: String,
    /// Number of the active configuration: 1 at the start, one more after each reload that changed something.
    pub config_generation: u64,
    /// The last reload; `None` before the first.
    pub last_reload: Option<LastReload>,
    /// Open AMQP connections: one for each subscription, one for publishing.
    pub connections: u64,
    /// AMQP connections opened since the start, for consuming and publishing.
    pub connections_made: u64,
    /// The publishing connection; `None` until the topology is declared or checked.
    pub publisher: Option<PublisherStatus>,
    /// The ledger.
    pub ledger: LedgerStatus,
    /// The event files, `analytics` and `notifications`; empty until they are open.
    #[serde(default)]
    pub event_files: BTreeMap<String, FileState>,
}

/// The last reload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastReload {
    /// When it ended.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What requested it: `SIGHUP`, `admin` or `file`.
    pub by: String,
    /// Its result.
    pub report: ReloadReport,
}

/// The phase of the daemon's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DaemonState {
    /// It opens the ledger, waits for the broker, or declares the topology.
    Starting,
    /// It processes messages.
    Running,
    /// A shutdown has begun: it finishes the deliveries in flight, then ends.
    Draining,
}

impl DaemonState {
    /// Its name in JSON and in text output.
    pub fn as_str(self) -> &'static str {
        match self {
            DaemonState::Starting => "starting",
            DaemonState::Running => "running",
            DaemonState::Draining => "draining",
        }
    }
}

/// The publishing connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublisherStatus {
    /// It is open.
    pub connected: bool,
    /// The address of the broker's node that it publishes to; `None` while it is not connected.
    #[serde(default)]
    pub address: Option<String>,
    /// Publishing connections opened since the start.
    pub connections: u64,
    /// Publications that the broker has not confirmed yet.
    pub unconfirmed: u64,
    /// How long the oldest of them has been waiting since it was sent, in whole seconds.
    #[serde(default)]
    pub waiting_seconds: u64,
    /// Why the broker has blocked the connection, such as `low on memory`; `None` if it has not.
    #[serde(default)]
    pub blocked: Option<String>,
}

/// The ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LedgerStatus {
    /// It can record, judged by its last commit; `false` until it is open.
    pub recording: bool,
    /// Commits since it was opened.
    pub commits: u64,
    /// Outages since it was opened.
    #[serde(default)]
    pub outages: u64,
    /// Why it cannot record; `None` if it can, and while it is not open or closed.
    #[serde(default)]
    pub outage: Option<Outage>,
}

/// One consumer since the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConsumerStatus {
    /// Its queue.
    pub queue: String,
    /// It is paused: it does not consume until it is resumed.
    #[serde(default)]
    pub paused: bool,
    /// When it was paused; `None` if it is not paused.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub paused_since: Option<Timestamp>,
    /// It has a subscription that receives new deliveries.
    pub subscribed: bool,
    /// Why its last attempt to subscribe failed; `None` if it succeeded.
    #[serde(default)]
    pub subscribe_error: Option<String>,
    /// The address of the broker's node that it consumes from; `None` while it has no subscription.
    #[serde(default)]
    pub address: Option<String>,
    /// It has a subscription, and that node has sent nothing for longer than `broker.heartbeat`.
    #[serde(default)]
    pub silent: bool,
    /// Why the broker does not accept what the consumer publishes; `None` if nothing has been refused for some seconds.
    #[serde(default)]
    pub publish_error: Option<String>,
    /// Subscriptions that the broker ended because a delivery was not settled within its `consumer_timeout`.
    #[serde(default)]
    pub ack_timeouts: u64,
    /// What to do about the last of them; `None` if it was long ago.
    #[serde(default)]
    pub ack_timeout: Option<String>,
    /// How long the broker has not answered although settlements were sent to it, in whole seconds.
    #[serde(default)]
    pub unanswered_seconds: u64,
    /// Subscriptions of former configurations, or from before a pause, that only finish the deliveries they have received.
    #[serde(default)]
    pub draining: u64,
    /// Running workers.
    pub workers_running: u64,
    /// Configured workers; 0 if the consumer was removed and only finishes the deliveries it has received.
    pub workers_configured: u64,
    /// Deliveries that one worker processes at a time.
    pub prefetch: u64,
    /// How many deliveries it starts in a time at most, such as `200/s`; `None`: no limit.
    #[serde(default)]
    pub rate_limit: Option<String>,
    /// The circuit breakers of its steps, by step, and of its notification channels, by channel.
    #[serde(default)]
    pub breakers: BTreeMap<String, BreakerStatus>,
    /// Safe mode is on: one delivery at a time, since some delivery kills the process that handles it.
    pub safe_mode: bool,
    /// Deliveries in flight.
    pub in_flight: u64,
    /// Age of the oldest delivery in flight.
    pub oldest_in_flight_seconds: Option<f64>,
    /// Deliveries processed: their effects are recorded, or, by the failed-order consumer, they are retried or dead-lettered.
    pub processed: u64,
    /// Deliveries whose effects had been recorded before.
    pub duplicates: u64,
    /// Cancellations of orders that were carried out, or kept until the order arrives.
    #[serde(default)]
    pub cancelled: u64,
    /// Orders that were not processed because they were cancelled.
    #[serde(default)]
    pub prevented: u64,
    /// Notifications that were not delivered because the order has no address.
    #[serde(default)]
    pub skipped: u64,
    /// Deliveries whose failure was published to the failed-order queue.
    pub failed: u64,
    /// Attempts that failed, immediate retries included.
    pub failed_attempts: u64,
    /// Failed attempts by kind and code.
    pub failures: Vec<FailureCount>,
    /// Failures of this consumer that were sent to a retry queue.
    pub retried: u64,
    /// Retried failures by delay, such as `10s`.
    pub retries: BTreeMap<String, u64>,
    /// Failures of this consumer that were dead-lettered.
    pub dead_lettered: u64,
    /// Dead-lettered failures by reason.
    pub dead_letters: BTreeMap<String, u64>,
    /// What senders did that orderd copes with, but that they should change.
    #[serde(default)]
    pub senders: SenderCounts,
    /// Its steps, in alphabetical order; of each, its undo after the step itself.
    #[serde(default)]
    pub steps: Vec<ConsumerStepStatus>,
    /// Its notification channels and the providers of each, in the order in which they are tried.
    #[serde(default)]
    pub channels: Vec<ChannelStatus>,
    /// Restarts of workers and of the pool.
    pub restarts: u64,
    /// Subscriptions opened since the start.
    pub subscriptions: u64,
    /// Deliveries acked per second, over the last minute or since the start. `None` in the first seconds.
    pub acks_per_second: Option<f64>,
    /// Time from a delivery's arrival to its ack, over the last minute or since the start.
    pub handling_seconds: Option<Quantiles>,
    /// Time from the message's AMQP timestamp to the ack, over the last minute or since the start, of messages that have a
    /// timestamp. Up to 1 s too long, since timestamps are in whole seconds.
    pub publish_to_ack_seconds: Option<Quantiles>,
    /// The balance of its deliveries.
    pub conservation: Conservation,
}

/// The failures of a consumer that is not configured.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct OtherConsumer {
    /// Failures that were sent to a retry queue, by delay.
    pub retries: BTreeMap<String, u64>,
    /// Dead-lettered failures by reason.
    pub dead_letters: BTreeMap<String, u64>,
}

/// The calls of one step, or of its undo, since the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ConsumerStepStatus {
    /// The step's name.
    pub step: String,
    /// `do` or `undo`.
    pub action: String,
    /// Calls that have not ended.
    pub in_flight: u64,
    /// Calls that succeeded.
    pub done: u64,
    /// Calls that failed, and may succeed when they are retried.
    pub failed: u64,
    /// Calls that failed for good.
    pub refused: u64,
    /// Calls that were dropped before their end, because the delivery was released.
    pub abandoned: u64,
    /// The durations of the calls that were not abandoned.
    pub call_seconds: Option<Quantiles>,
}

/// What one provider of a notification channel has delivered since the start.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChannelStatus {
    /// The channel.
    pub channel: String,
    /// The channel that delivers: itself, or one of its fallbacks.
    pub provider: String,
    /// Whether it gets the channel's notifications now.
    pub in_use: bool,
    /// The state of its circuit breaker; `None`: it is a file, or not configured any more.
    pub breaker: Option<String>,
    /// Attempts that have not ended.
    pub in_flight: u64,
    /// Notifications that it has accepted.
    pub sent: u64,
    /// Attempts that have failed.
    pub failed: u64,
    /// Those, by code.
    pub failures: BTreeMap<String, u64>,
    /// Attempts that were dropped before their end, because the delivery was released.
    pub abandoned: u64,
    /// The durations of the attempts that were not abandoned.
    pub send_seconds: Option<Quantiles>,
}

/// The circuit breaker of one step or notification channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BreakerStatus {
    /// `closed`, `open`, `half_open` or `ramp_up`.
    pub state: String,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// How often it has opened, failed trials included.
    pub openings: u64,
    /// Calls within its window.
    pub calls: u32,
    /// Those of them that failed.
    pub failures: u32,
    /// Deliveries in flight that wait to make a call.
    pub waiting: u64,
    /// The last failure that it has counted.
    pub last_failure: Option<String>,
}

/// Deliveries whose senders should change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct SenderCounts {
    /// Without a `message_id`, orders and failures excepted.
    pub without_message_id: u64,
    /// Completed ones whose AMQP timestamp cannot be the time of publishing.
    pub implausible_timestamps: u64,
    /// Those that claim to be orderd's own, without the proof.
    pub unproven: u64,
    /// Failures whose copy lacks some of the sender's headers, which were too large.
    pub headers_dropped: u64,
}

/// Number of failed attempts of one kind and code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FailureCount {
    /// `transient`, `timed_out`, …
    pub kind: String,
    /// The failure code, which is stable.
    pub code: String,
    /// How many.
    pub count: u64,
}

/// Quantiles in seconds, estimated from a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Quantiles {
    /// The median.
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The number of durations that they are estimated from.
    pub count: u64,
}

/// The balance of a consumer's deliveries, all read at the same time:
/// `deliveries = succeeded + republished + released + rejected + in_flight`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Conservation {
    /// Received from the broker.
    pub deliveries: u64,
    /// Acked because their effects are recorded.
    pub succeeded: u64,
    /// Acked because the message that replaces them is confirmed: a failure, a retry or a dead letter.
    pub republished: u64,
    /// Requeued, or in flight when a subscription was lost.
    pub released: u64,
    /// Rejected: the broker dead-letters them.
    pub rejected: u64,
    /// In flight.
    pub in_flight: u64,
    /// The rule that does not hold; `None` if the balance is correct.
    pub problem: Option<String>,
}
