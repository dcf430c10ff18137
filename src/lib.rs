//! orderd: one daemon that processes an online shop's orders from RabbitMQ and loses none of them.
//!
//! # The map
//! A module imports only modules of a lower rank. `tests/offline/tidy.rs` reads this table and enforces it.
//! ```text
//! rank
//!  10  main (exit code)
//!   9  cli (commands and their output)
//!   8  app (builds, starts and stops everything)
//!   7  admin (HTTP: health, metrics, status, commands)
//!   6  status (live state of the daemon)   handlers (what is done with each kind of message)
//!   5  pipeline (worker pools; process.rs first)            reconcile (orderd's counts against the broker's)
//!   4  metrics (counters)   amqp (the protocol)   management (the broker's HTTP API)   config_watcher (rereads the file)
//!   3  config (TOML → checked)
//!   2  recovery (retry or dead-letter: pure)   topology (exchanges, queues, bindings: pure)
//!   1  ledger (record of effects)   message (deliveries and the traits to get and publish them)
//!      supervisor (restarts tasks)   systemd (notifies the service manager)
//!   0  domain (orders)   control (commands to the daemon)   shutdown   watchdog (stuck tasks)   telemetry (logging)
//!      tls   instance (this process's name)   backoff   delay   chain
//! ```
//! `pipeline` and `amqp` never import each other: `app` joins them through the traits in [`message`].
//!
//! # The life of a delivery
//! ```text
//! broker ─► amqp ─► pipeline: pool ─► process ─► handler ─► ledger
//!                                        │  events, failures ─► amqp ─► broker
//!                                        └─ settle ─► amqp ─► ack
//! ```
//! Failures return through `failed_order_queue`. [`recovery::decide`] makes every decision about them: immediate retry,
//! delayed retry or dead letter. Read [`app`] next, then `pipeline/process.rs`.

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
