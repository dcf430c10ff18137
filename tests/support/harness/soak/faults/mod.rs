//! Carries out faults, by what they act on. Each function begins a fault, lets it last, and ends it.

pub mod broker;
pub mod events;
pub mod ledger;
pub mod network;
pub mod orderd;
pub mod topology;
