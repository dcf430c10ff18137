//! The topology as data: the exchanges, queues and bindings that must exist, in the order in which to declare them.
//!
//! Pure. `amqp` declares them.

mod model;
pub mod pattern;
mod permission;
mod plan;
#[cfg(test)]
mod tests;

pub use crate::message::ExchangeNames;
pub use model::{Argument, Binding, Declaration, Exchange, ExchangeKind, Object, Queue};
pub use permission::{Permissions, RequiredPermission, TopicPermissions, quoted};
pub use plan::{DELIVERY_LIMIT, Role, Topology, UNLIMITED_DELIVERIES, WorkQueue};
