//! What the demo, the soak and its small sister in the tests are made of: a broker node and a daemon as child
//! processes, what is published, and the books that must balance at the end.
//!
//! It sees orderd from outside: as a program, and by what it leaves in the ledger and on the broker.

#![allow(dead_code, reason = "each program uses its part")]

pub mod audit;
pub mod daemon;
pub mod environment;
pub mod interrupt;
pub mod node;
pub mod soak;

/// The drills end at the first error, whatever it is.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// orderd's release build, beside the profile directory this program is in.
pub fn release_program() -> std::path::PathBuf {
    let target = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.parent()?.to_owned()));
    target.unwrap_or_else(|| "target".into()).join("release/orderd")
}
