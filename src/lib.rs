//! orderd: one daemon that processes an online shop's orders from RabbitMQ and loses none of them.
//!
//! # The map
//! A module imports only modules of a lower rank, and its own; a test enforces it.
//! ```text
//! rank
//!  5  app (everything is put together here)   cli   admin (HTTP: health, metrics, status)
//!  4  monitor (the broker's HTTP API; the status)
//!  3  worker (pools; process.rs is THE page)   amqp (the only user of the AMQP client)   config_watcher
//!  2  config (raw → checked)   supervisor   handler (trait, table, the handlers)
//!  1  ledger (trait; SQLite)   recovery (pure: decide, history)   topology (pure: plan)   telemetry   shutdown   control   tls
//!     instance (which process this is)   service (what the service manager is told; the watch over stuck tasks)
//!  0  order   message (deliveries, headers, ports)   backoff   delay   chain        all pure
//! ```
//! `worker` and `amqp` never import each other: `app` joins them through the ports in [`message`].
//!
//! # One delivery's way
//! ```text
//! broker ─► amqp::subscribe ─► worker::intake ─► worker::process ─► handler ─► ledger
//!                                                   │  events, failures ─► amqp::publish ─► broker
//!                                                   └─ settle ─► amqp::settle ─► ack
//! ```
//! Failures come back through `failed_order_queue`, where [`recovery::decide`] sends them to a retry queue or
//! to the dead letter queue. Read [`app`], then `worker/process.rs`.

pub mod admin;
pub mod amqp;
pub mod app;
pub mod backoff;
pub mod chain;
pub mod cli;
pub mod config;
pub mod config_watcher;
pub mod control;
pub mod delay;
pub mod domain;
pub mod handlers;
pub mod instance;
pub mod ledger;
pub mod management;
pub mod message;
pub mod metrics;
pub mod pipeline;
pub mod reconcile;
pub mod recovery;
pub mod shutdown;
pub mod status;
pub mod supervisor;
pub mod systemd;
pub mod telemetry;
pub mod tls;
pub mod topology;
pub mod watchdog;
