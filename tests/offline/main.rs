//! Tests that need no broker.

#![allow(clippy::unwrap_used, reason = "clippy takes helpers outside of test functions for product code")]

mod decoder;
mod deployment_files;
mod docs;
mod handler_registry;
mod install;
mod ledger_kill;
mod log_messages;
mod metrics;
mod output;
mod probe;
mod tidy;
