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

/// The program, without the settings in the caller's environment.
fn orderd() -> std::process::Command {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_orderd"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ORDERD_")) {
        command.env_remove(name);
    }
    command
}
