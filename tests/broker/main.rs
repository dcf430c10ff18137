//! Tests on a real RabbitMQ. They fail, rather than skip, without one.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod amqp;
mod daemon;
mod management;
mod soak;
mod topology;
