//! orderd: one daemon that processes an online shop's orders from RabbitMQ and loses none of them.
//!
//! # The map
//! A module imports only modules of a lower rank. `tests/offline/tidy.rs` reads this table and enforces it.
//! ```text
//! rank
//!  14  main (exit code)
//!  13  cli (commands and their output)
//!  12  app (builds, starts and stops everything)
//!  11  admin (HTTP: health, metrics, status, commands)
//!  10  status (live state of the daemon)   handlers (what is done with each kind of message)
//!   9  alerts (operators' alerts: what is open, and messages about it)
//!   8  notify (delivers notifications: e-mail, webhooks)
//!   7  pipeline (worker pools; read process.rs first)       reconcile (compares orderd's counts with the broker's)
//!      steps (the shop's own services, called for each message)   dead_letters (takes dead letters into the ledger)
//!   6  metrics (counters)   amqp (the protocol)   management (the broker's HTTP API)   config_watcher (watches the file)
//!   5  config (TOML → checked)
//!   4  recovery (retry or dead-letter: pure)   topology (exchanges, queues, bindings: pure)
//!      formats (orders from producers' documents: pure)
//!   3  ledger (record of effects)   message (messages, and the traits to consume and publish them)
//!      supervisor (restarts tasks)   systemd (notifies the service manager)
//!   2  telemetry (logging)
//!   1  domain (orders)   control (commands to the daemon)   shutdown   watchdog (stuck tasks)
//!      tls (certificates)   instance (this process's name on the broker)   backoff (waits between attempts)
//!      delay (of a delayed retry)   chain (an error with its causes)   token_bucket (limits of a rate)
//!      gate (whether work may begin)   wait_budget (how long a delivery may wait)
//!   0  escape (text that others sent, for display)   files (modes, whole lines, limits of what is read)
//!      random (secrets)
//! ```
//! `pipeline` and `amqp` never import each other: `app` joins them through the traits in [`message`].
//!
//! # The life of a delivery
//! ```text
//! broker ─► amqp ─► pipeline: pool ─► process
//!                                       │  1. handler: decides what to publish and what to record
//!                                       │  2. publish ─► amqp ─► broker    events, until the broker has confirmed them
//!                                       │  3. record ─► ledger             the effect
//!                                       └─ 4. settle ─► amqp ─► broker     ack
//! ```
//! If one of the first three steps fails, the worker runs the handler again at once or publishes a copy of the message to
//! `failed_order_queue`. The consumer of that queue sends the copy to a retry queue, from which it returns after a delay,
//! or to `dead_letter_queue`. [`recovery::decide`] makes all of these decisions.
//!
//! Read [`app`] next, then `pipeline/process.rs`.

pub mod admin;
pub mod alerts;
pub mod amqp;
pub mod app;
pub mod backoff;
pub mod chain;
pub mod cli;
pub mod config;
pub mod config_watcher;
pub mod control;
pub mod dead_letters;
pub mod delay;
pub mod domain;
pub mod escape;
pub mod files;
pub mod formats;
pub mod gate;
pub mod handlers;
pub mod instance;
pub mod ledger;
pub mod management;
pub mod message;
pub mod metrics;
pub mod notify;
pub mod pipeline;
pub mod random;
pub mod reconcile;
pub mod recovery;
pub mod shutdown;
pub mod status;
pub mod steps;
pub mod supervisor;
pub mod systemd;
pub mod telemetry;
pub mod tls;
pub mod token_bucket;
pub mod topology;
pub mod wait_budget;
pub mod watchdog;
