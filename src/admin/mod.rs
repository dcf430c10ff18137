//! The admin HTTP listener: health, metrics, status and reports of the running daemon.
//!
//! ```text
//! server (connections, bounded) → guard (host, origin, token, body) → pages → live (readings)
//! ```
//! It only tells: nothing can be changed here, and whatever happens to it, processing goes on.

mod commands;
mod guard;
mod live;
mod metrics;
mod pages;
mod server;
mod watch;

pub use commands::{COMMAND_TYPE, COMMAND_WITHIN};
pub use guard::{AUTHORIZATION, bearer};
pub use live::{Live, Watched};
pub use metrics::exposition;
pub use server::{Admin, AdminError, Bound};
pub use watch::watch;
