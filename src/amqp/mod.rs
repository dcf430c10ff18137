//! The wall around the AMQP client library: connections, subscriptions, confirmed publishing, declaring.
//!
//! The only user of the crate `amqprs`; nothing outside this module knows how it behaves. It implements
//! [`crate::message::Consumer`] and [`crate::message::Publisher`] and never decides what becomes of a message.
//!
//! ```text
//! Link ── subscribe ──► one connection + channel per subscription   (subscribe.rs, settle.rs, ack_window.rs)
//!      ── publisher ──► one connection, rebuilt whenever it is lost (publish/)
//!      ── declare, check ──► short-lived connections                (declare.rs)
//! ```
//! Everything that lives on one connection belongs to an [`epoch::Epoch`], which ends once and for all.

mod ack_window;
mod callbacks;
mod connect;
mod convert;
mod declare;
mod epoch;
mod inquire;
mod permit;
mod publish;
mod settle;
mod subscribe;

pub use connect::{ConnectError, Link};
pub use declare::{DeclareError, Declared, Missing};
pub use epoch::EpochEnd;
pub use permit::Denied;
pub use publish::{ConfirmingPublisher, PublisherState, Unconfirmed};

/// Whether a panic came out of the AMQP client library.
///
/// Its tasks panic on input they did not expect. That ends the connection it happened on, which this module
/// notices and repairs, so a panic hook need not raise an alarm over it.
pub fn is_client_panic(panic: &std::panic::PanicHookInfo<'_>) -> bool {
    panic.location().is_some_and(|location| {
        let file = location.file();
        file.contains("amqprs-") || file.contains("amqp_serde-")
    })
}
