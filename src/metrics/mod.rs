//! What each consumer has done, counted: deliveries and their outcomes, failures by code, latencies.
//!
//! It counts; it never decides anything and performs no I/O.

pub mod conservation;
mod counters;
mod histogram;

pub use counters::{Counters, DeliveryCounts, PoolState, Reading};
pub(crate) use counters::{DeliveryOutcome, InFlightKey, ReceivedAt};
pub use histogram::Histogram;
