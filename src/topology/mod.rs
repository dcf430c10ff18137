//! The topology as data: which exchanges, queues and bindings there must be, and in which order to declare
//! them. Pure; `amqp` carries the plan out.

mod model;
mod need;
pub mod pattern;
mod plan;
#[cfg(test)]
mod tests;

pub use crate::message::Names;
pub use model::{Argument, Binding, Declaration, Exchange, ExchangeKind, Queue};
pub use need::{Need, Permissions, TopicPermissions};
pub use plan::{DELIVERY_LIMIT, PARKED_DELIVERY_LIMIT, Role, Topology, WorkQueue};
