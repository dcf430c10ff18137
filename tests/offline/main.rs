//! Tests that need no broker.

#![allow(clippy::unwrap_used, reason = "clippy treats helper functions outside of tests as product code")]

mod check_order;
mod config_file;
mod decoder;
mod deployment_files;
mod docs;
mod erase_kill;
mod examples;
mod handler_registry;
mod install;
mod journal;
mod ledger_backup;
mod ledger_kill;
mod log_messages;
mod metrics;
mod output;
mod probe;
mod publish;
mod schema;
mod tidy;

/// The program, without the caller's environment, which may contain settings, colours, a proxy or a locale.
fn orderd() -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_orderd"));
    command.env_clear();
    command
}
