//! AMQP 0-9-1: connections, subscriptions, confirmed publishing, declaring, permission checks.
//!
//! The only module that knows the protocol. Implements [`crate::message::Consumer`] and [`crate::message::Publisher`]. Never
//! decides what happens to a message.
//!
//! ```text
//! Connector (connect.rs, addresses.rs)
//!   ├─ subscribe ───► consume/   one connection for each subscription: deliveries in, settlements out
//!   ├─ publisher ───► publish/   one connection, reopened whenever it is lost
//!   ├─ declare, missing_objects, denied_permissions
//!   │             └─► admin/     short-lived connections of the client library `amqprs`, each relayed and checked
//!   ├─ identify ────► authenticated_user.rs: by which name the broker knows orderd's user
//!   └─ redeclaration.rs          requests to declare the topology again
//!
//! consume/ and publish/ use protocol/: frames, typed methods, contents, handshake, one channel per connection
//! ```
//! For consuming and publishing, orderd implements the protocol itself, and one task owns each connection's socket. The
//! client library writes each publication separately and passes each delivery and each confirm through two more tasks,
//! which took more than a fifth of orderd's CPU time. A task that owns its socket needs no lock and no queue. It also
//! avoids the library's defects: it can lose what it has received, and panics on unexpected input. Declaring and checking
//! permissions are rare, so the library is used for those. Everything that uses a connection shares its
//! [`lifetime::ConnectionLifetime`].

mod addresses;
mod admin;
mod authenticated_user;
mod connect;
mod connect_error;
mod consume;
#[cfg(test)]
mod fake_broker;
mod lifetime;
mod protocol;
mod publish;
mod redeclaration;

pub use admin::{DeclareError, Declared, DeniedPermission, is_client_panic};
pub use authenticated_user::IdentityError;
pub use connect::Connector;
pub use connect_error::ConnectError;
pub use lifetime::ConnectionEnd;
#[doc(hidden)]
pub use protocol::decode_stream;
pub use publish::{ConfirmingPublisher, PublisherState, Unconfirmed};
pub use redeclaration::{DeclarationOutcome, Redeclaration, RedeclarationRequests};
