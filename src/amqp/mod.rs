//! AMQP 0-9-1: connections, subscriptions, confirmed publishing, declaring, permission checks.
//!
//! The only module that knows the protocol. Implements [`crate::message::Consumer`] and [`crate::message::Publisher`]. Never
//! decides what happens to a message.
//!
//! ```text
//! Connector (connect.rs)
//!   ├─ subscribe ───► consume/   one connection for each subscription: deliveries in, settlements out
//!   ├─ publisher ───► publish/   one connection, reopened whenever it is lost
//!   │                 both on    protocol/  frames, typed methods, contents, handshake, one channel per connection
//!   └─ declare, missing_objects, denied_permissions
//!                 └─► admin/     short-lived connections of the client library `amqprs`
//! ```
//! Consuming and publishing speak AMQP themselves; one task owns each connection's socket. The client library sends each
//! publication by itself and passes each delivery and each confirm through two more tasks, which cost more than a fifth of
//! orderd's CPU time. A task that owns its socket needs no lock and no queue, and has none of the library's ways of losing
//! what it received or of panicking on unexpected input. Declaring and checking permissions are rare, so the library does
//! those. Whatever lives on a connection shares its [`lifetime::ConnectionLifetime`].

mod admin;
mod connect;
mod connect_error;
mod consume;
#[cfg(test)]
mod fake_broker;
mod lifetime;
mod protocol;
mod publish;

pub use admin::{DeclareError, Declared, DeniedPermission, MissingObject, is_client_panic};
pub use connect::Connector;
pub use connect_error::ConnectError;
pub use lifetime::ConnectionEnd;
#[doc(hidden)]
pub use protocol::decode_stream;
pub use publish::{ConfirmingPublisher, PublisherState, Unconfirmed};
