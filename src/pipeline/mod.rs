//! Worker pools: they receive a consumer's deliveries and have its handler process them.
//!
//! `process` takes one delivery from handler to settlement; `pool` keeps one consumer subscribed; `shared_subscription`
//! spreads one subscription over the workers. They know the broker only through the traits of `message`.

mod consumer_context;
mod delivery_guard;
mod handler;
mod pool;
mod process;
mod safe_mode;
mod shared_subscription;
#[cfg(test)]
mod tests;

pub use consumer_context::{ConsumerContext, OnFailure};
pub use handler::{Handler, HandlerInput, HandlerOutput};
pub use pool::{Pool, PoolError};
