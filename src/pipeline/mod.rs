//! Worker pools: they receive a consumer's deliveries and have its handler process them.
//!
//! `process` takes one delivery from the handler to its settlement; read it first. `pool` keeps one consumer subscribed and
//! supervises its workers; `shared_subscription` distributes its deliveries to them. They know the broker only through the
//! traits of `message`.

mod consumer_context;
mod deadline;
mod decompressed_bytes;
mod delivery_guard;
mod handler;
mod intake;
mod pool;
mod process;
mod publish;
mod publish_outage;
mod rate_limiter;
mod safe_mode;
mod shared_subscription;
mod step_services;
#[cfg(test)]
mod tests;
mod unidentified;

pub use consumer_context::{ConsumerContext, OnFailure};
pub use decompressed_bytes::DecompressedBytes;
pub use handler::{
    DeferredLog, Handler, HandlerError, HandlerInput, HandlerOutput, Interruption, LedgerAccess, SharedServices,
    StepAccess, StepServices,
};
pub use intake::{EventFileGate, Intake, IntakeGate, ServiceAccess};
pub use pool::{Pool, PoolError};
pub use process::FAILED_MESSAGES;
pub use publish_outage::PublishOutage;
pub use rate_limiter::RateLimiter;
pub use unidentified::UnidentifiedDeliveries;
