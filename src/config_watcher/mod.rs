//! The configuration file of a running daemon: notices that it changed, and reads it once it is complete.
//!
//! `watcher` requests a reload when the file changes, or a file in one of the directories that it names (templates). `reread` reads and checks the file for every reload.
//! `file_version` distinguishes versions of a file. No module here applies a configuration.

mod file_version;
mod reread;
mod watcher;

pub use reread::{RereadError, reread};
pub use watcher::ConfigWatcher;
