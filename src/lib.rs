//! orderd: one daemon that processes an online shop's orders from RabbitMQ and loses none of them.

pub mod amqp;
pub mod config;
pub mod ledger;
pub mod message;
pub mod order;
pub mod recovery;
pub mod topology;
