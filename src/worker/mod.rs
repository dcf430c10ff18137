//! Pools of workers: what stands between the broker's deliveries and the handlers.
//!
//! `process` is one delivery's way; `pool` runs one consumer's subscription after subscription; `intake`
//! shares one subscription among workers; `counters` counts, `conservation` holds the counts together. They know the broker only through `message`'s ports.

pub mod conservation;
mod counters;
mod held;
mod histogram;
mod intake;
mod pool;
mod process;
mod safe_mode;
#[cfg(test)]
mod tests;

pub use counters::{Counters, PoolState, Reading, Tally};
pub use histogram::Histogram;
pub use pool::{Pool, PoolError};
pub use process::{Line, OnFailure};
