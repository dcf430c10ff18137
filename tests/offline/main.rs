//! Tests that need no broker.

#![allow(clippy::unwrap_used, reason = "clippy treats helper functions outside of tests as product code")]

mod config_file;
mod decoder;
mod deployment_files;
mod docs;
mod handler_registry;
mod install;
mod ledger_backup;
mod ledger_kill;
mod log_messages;
mod metrics;
mod output;
mod probe;
mod tidy;
