//! The topology as data: which exchanges, queues and bindings there must be, and in which order to declare
//! them. Pure; `amqp` carries the plan out.

mod model;

pub use crate::message::Names;
pub use model::{Argument, Binding, Declaration, Exchange, ExchangeKind, Queue};
