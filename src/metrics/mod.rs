//! Counters of each consumer: deliveries and their outcomes, failures by code, latencies.
//!
//! It counts; it never decides anything and performs no I/O.

mod broker_problems;
mod channel_counters;
mod collector_counters;
pub mod conservation;
mod counter_reading;
mod counters;
mod failed_undos;
mod histogram;
mod outcome;
mod publish_to_ack;
mod step_counters;

pub use broker_problems::BrokerProblemReading;
pub use channel_counters::{ChannelCounters, ChannelsReading, ProviderReading};
pub use collector_counters::{Collected, CollectionPause, CollectorCounters, CollectorReading, KeptCause};
pub use counter_reading::{CounterReading, DeadLettersOfCode, DeliveryCounts, PoolState};
pub use counters::Counters;
pub(crate) use counters::{InFlightKey, ReceivedAt};
pub use failed_undos::FailedUndos;
pub use histogram::Histogram;
pub(crate) use outcome::DeliveryOutcome;
pub use outcome::{DeadLetterFacts, HandlerOutcome};
pub use step_counters::{CallEnd, StepCounters, StepReading};
