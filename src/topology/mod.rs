//! The topology as data: which exchanges, queues and bindings there must be, and in which order to declare
//! them. Pure; `amqp` carries the plan out.

mod model;
pub mod pattern;
mod permission;
mod plan;
#[cfg(test)]
mod tests;

pub use crate::message::ExchangeNames;
pub use model::{Argument, Binding, Declaration, Exchange, ExchangeKind, Queue};
pub use permission::{Permissions, RequiredPermission, TopicPermissions};
pub use plan::{DELIVERY_LIMIT, Role, Topology, UNLIMITED_DELIVERIES, WorkQueue};
