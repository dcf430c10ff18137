//! The configuration: TOML, environment and command line in, checked values out.
//!
//! `load` reads the file and overlays the other `layers`; `read` and `workload` take each key from its `section`; a
//! `handler` takes its own keys; `check` compares sections with each other; `report` collects every problem. After loading,
//! no other module sees a raw value. `change` compares the configuration of a running daemon with a changed one.
//! It never touches the broker.

mod address;
mod alone;
mod change;
mod check;
pub mod duration;
mod handler;
mod layers;
mod load;
mod model;
mod origin;
mod read;
mod redaction;
mod report;
mod secret;
mod section;
mod serialize;
pub mod shape;
mod suggestion;
#[cfg(test)]
mod tests;
mod tls;
mod topology;
mod workload;

pub use address::Address;
pub use alone::{admin_alone, admin_without_token};
pub use change::{applicable, changes};
pub use handler::{HandlerSettings, HandlerSpec, Handlers, MessageKind};
pub use layers::{Table, Value};
pub use load::{DEFAULT_FILE, DEFAULT_PATH, LoadError, Loaded, Sources};
pub(crate) use load::{LARGEST_FILE, has_workload};
pub use model::{
    Admin, Broker, Config, Consumer, Ledger, Log, LogFormat, LogLevel, Management, Mechanism, Queue, Reload, Rotation,
    Runtime, Shutdown, Tls, TopologySettings,
};
pub use redaction::Secret;
pub use report::Problem;

pub use secret::token_in;
pub use section::{Section, Shape};
