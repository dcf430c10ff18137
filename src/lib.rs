//! orderd: one daemon that processes an online shop's orders from RabbitMQ and loses none of them.

pub mod backoff;
pub mod chain;
pub mod cli;
pub mod config;
pub mod delay;
pub mod handler;
pub mod ledger;
pub mod message;
pub mod monitor;
pub mod order;
pub mod recovery;
pub mod shutdown;
pub mod supervisor;
pub mod telemetry;
pub mod topology;
pub mod worker;
