//! The admin HTTP listener: health, metrics, status and reports of the running daemon.
//!
//! ```text
//! server (connections, bounded) → guard (host, origin, token, body) → pages → live (readings)
//! ```
//! Whatever happens to it, processing goes on.

mod commands;
mod guard;
mod metrics;
mod pages;
mod server;

pub use commands::{COMMAND_TYPE, COMMAND_WITHIN};
pub use guard::{AUTHORIZATION, bearer};
pub use metrics::exposition;
pub use server::{Admin, AdminError, Bound};
