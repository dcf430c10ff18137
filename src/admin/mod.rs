//! The admin HTTP server: health checks, metrics, status, reports and commands of the running daemon.
//!
//! ```text
//! server (connections, limits) → routes → guard (host, origin, who: access) → pages, api → status, ledger, control
//! ```
//! It holds no state of the daemon, and its failure never stops the processing of orders.

mod access;
mod api;
mod body;
mod caller;
mod content_budget;
mod guard;
mod pages;
mod progress;
mod response;
mod routes;
mod sent_bytes;
mod server;
mod streamed_json;
#[cfg(test)]
mod tests;

pub use access::{AUTHORIZATION, LOCAL_USER, bearer};
pub use api::commands::{COMMAND_CONTENT_TYPE, COMMAND_TIMEOUT, VALID_UNTIL};
pub use pages::exposition::exposition;
pub use server::{AdminError, AdminServer, BoundListener};
