//! A short summary of the status: all that the status line of the service manager shows.
//!
//! The notifier thread reads it twice a second, so it costs a few lock acquisitions per consumer and copies no
//! histograms. Unlike the heartbeats it takes the locks of the counters; see [`crate::systemd::StatusSource`].

use super::DaemonState;

/// The state of the daemon at one time, without anything that is costly to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusSummary {
    /// The phase of the daemon's life.
    pub state: DaemonState,
    /// The ledger is open.
    pub ledger_open: bool,
    /// There is a connection for publishing; `None` until the topology is declared or checked.
    pub publisher_connected: Option<bool>,
    /// Deliveries in flight, of all consumers including removed ones.
    pub in_flight: u64,
    /// Steps whose circuit breaker is not closed, as `<consumer>/<step>`.
    pub open_breakers: Vec<String>,
    /// The configured consumers, ordered by name.
    pub consumers: Vec<ConsumerSummary>,
}

/// A configured consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsumerSummary {
    /// Its name.
    pub name: String,
    /// Its subscription.
    pub subscription: SubscriptionState,
}

/// A consumer's subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubscriptionState {
    /// There is none on purpose: the consumer is paused.
    Paused,
    /// There has not been one since the daemon started.
    NeverOpened,
    /// It receives deliveries.
    Active,
    /// There was one; the pool reconnects.
    Lost,
}
