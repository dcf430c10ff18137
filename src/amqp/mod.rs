//! AMQP 0-9-1: connections, subscriptions, confirmed publishing, declaring.
//!
//! The only user of the crate `amqprs`; nothing outside this module knows how it behaves. It implements
//! [`crate::message::Consumer`] and [`crate::message::Publisher`] and never decides what becomes of a message.
//!
//! ```text
//! Link ── subscribe ──► one connection + channel per subscription   (subscribe.rs, settle.rs, ack_window.rs)
//!      ── publisher ──► one connection, rebuilt whenever it is lost (publish/, handshake.rs, frame.rs)
//!      ── declare, check ──► short-lived connections                (declare.rs)
//! ```
//! Whatever consumes or declares goes through the library, and what lives on one of its connections belongs to an
//! [`epoch::Epoch`], which ends once and for all. Publishing speaks AMQP itself: the library sends each publication by
//! itself and tells of confirms through two further tasks, which cost a sixth of all of orderd's CPU time; and one task
//! that owns socket and list needs no lock, no queue between them, and none of the library's ways to lose what it took.

mod ack_window;
mod callbacks;
mod connect;
mod convert;
mod declare;
mod epoch;
mod frame;
mod handshake;
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
