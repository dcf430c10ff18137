//! AMQP 0-9-1: connections, subscriptions, confirmed publishing, declaring.
//!
//! The only user of the crate `amqprs`; nothing outside this module knows how it behaves. It implements
//! [`crate::message::Consumer`] and [`crate::message::Publisher`] and never decides what becomes of a message.
//!
//! ```text
//! Connector ── subscribe ──► one connection + channel per subscription   (subscribe.rs, settle.rs, ack_window.rs)
//!      ── publisher ──► one connection, rebuilt whenever it is lost (publish/)
//!                       └─ both over channel.rs, on handshake.rs, frame.rs, content.rs, decode.rs
//!      ── declare, check ──► short-lived connections of the library (declare.rs, permit.rs, callbacks.rs)
//! ```
//! Consuming and publishing speak AMQP themselves, each subscription and each publisher in one task that owns its socket:
//! the library sends each publication by itself and passes each delivery and each confirm through two further tasks, which
//! cost more than a fifth of all of orderd's CPU time; and a task that owns all there is needs no lock, no queue between,
//! and has none of the library's ways to lose what it took or to die of what it was sent. Whatever declares or asks, the
//! library does. What lives on a connection belongs to an [`epoch::Epoch`], which ends once and for all.

mod ack_window;
mod callbacks;
mod channel;
mod connect;
mod content;
mod convert;
mod declare;
mod decode;
mod epoch;
#[cfg(test)]
mod fake_broker;
mod frame;
mod handshake;
mod permit;
mod publish;
mod settle;
mod subscribe;

pub use connect::{ConnectError, Connector};
pub use declare::{DeclareError, Declared, MissingObject};
pub use epoch::ConnectionEnd;
pub use permit::DeniedPermission;
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
