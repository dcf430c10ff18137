//! The admin HTTP listener: health, metrics, status and reports of the running daemon.
//!
//! ```text
//! server (connections, bounded) → guard (host, origin, token, body) → pages → live (readings)
//! ```
//! Whatever happens to it, processing goes on.

mod commands;
mod guard;
mod live;
mod metrics;
mod pages;
mod server;
mod watch;
mod watched;

pub use commands::{COMMAND_TYPE, COMMAND_WITHIN};
pub use guard::{AUTHORIZATION, bearer};
pub use live::Live;
pub use metrics::exposition;
pub use server::{Admin, AdminError, Bound};
pub use watch::watch;
pub use watched::Watched;
