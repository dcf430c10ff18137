//! The parts of the demo, of the soak and of the small soak in the tests: a broker node and a daemon as child processes,
//! published orders, a shop whose services are called, and an audit of the result.
//!
//! It runs orderd only as a program, and checks only the ledger and the broker. Paths are relative to the repository, which
//! must be the working directory, as it is under `make` and `cargo test`.

#![allow(dead_code, reason = "no program uses all of it")]

#[path = "../amqp_proxy.rs"]
pub mod amqp_proxy;
pub mod audit;
pub mod daemon;
pub mod environment;
pub mod interrupt;
pub mod mail_audit;
pub mod node;
pub mod queued_messages;
pub mod shop;
pub mod soak;

use std::io;
use std::path::{Path, PathBuf};

/// Any error: these programs stop at the first one.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The path of a program in the same directory as this one.
pub fn sibling_program(name: &str) -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

/// The working directory, which must be the repository: it must contain the default configuration.
pub fn repository() -> io::Result<PathBuf> {
    let directory = std::env::current_dir()?;
    if !Path::new(daemon::CONFIG).is_file() {
        let text = format!("{} is not orderd's repository: start this program in the repository", directory.display());
        return Err(io::Error::other(text));
    }
    Ok(directory)
}
