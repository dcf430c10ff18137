//! Pools of workers: what stands between the broker's deliveries and the handlers.
//!
//! `process` is one delivery's way; `pool` runs one consumer's subscription after subscription; `intake`
//! shares one subscription among workers. They know the broker only through `message`'s ports.

mod delivery_guard;
mod intake;
mod pool;
mod process;
mod safe_mode;
#[cfg(test)]
mod tests;

pub use pool::{Pool, PoolError};
pub use process::{ConsumerContext, OnFailure};
