//! The commands of the command line, each as a function that takes checked arguments and writers and returns
//! an exit code. Nothing here prints by itself or ends the process.

pub mod check;
mod table;

/// Exit codes, as sysexits.h numbers them.
pub mod exit {
    /// Done.
    pub const DONE: u8 = 0;
    /// The command line is wrong.
    pub const USAGE: u8 = 64;
    /// The broker or the daemon cannot be reached.
    pub const UNAVAILABLE: u8 = 69;
    /// A defect, or the machine's fault.
    pub const INTERNAL: u8 = 70;
    /// The configuration is wrong, or the broker contradicts it.
    pub const CONFIG: u8 = 78;
}

/// How a command prints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}
