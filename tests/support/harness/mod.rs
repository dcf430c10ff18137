//! What the demo, the soak and its small version in the tests are made of: a broker node and a daemon as child
//! processes, what is published to them, and an audit of what became of it.
//!
//! It sees orderd from outside only: as a program, and by what it leaves in the ledger and on the broker. Paths are
//! relative to the repository, from which `make` and `cargo test` start these programs; other directories are refused.

#![allow(dead_code, reason = "each program uses its part")]

pub mod audit;
pub mod daemon;
pub mod environment;
pub mod interrupt;
pub mod node;
pub mod soak;

use std::io;
use std::path::{Path, PathBuf};

/// These programs end at the first error, whatever it is.
pub type Outcome<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// The program `name` that was built together with this one.
pub fn sibling_program(name: &str) -> io::Result<PathBuf> {
    Ok(std::env::current_exe()?.with_file_name(name))
}

/// The repository: the working directory, which must hold the default configuration.
pub fn repository() -> io::Result<PathBuf> {
    let directory = std::env::current_dir()?;
    if !Path::new(daemon::CONFIG).is_file() {
        let text = format!("{} is not orderd's repository: start this program from there", directory.display());
        return Err(io::Error::other(text));
    }
    Ok(directory)
}
