//! The configuration: TOML, environment and command line in, checked values out.
//!
//! `load` reads the file and overlays the other `layers`. `read`, `workload` and `format` take each key from its `section` and parse
//! its value with a `value_parser`; a `handler` takes its own keys. `check` compares sections with each other, and `report`
//! collects every problem. After loading, no other module sees a raw value. `change` compares the configuration of a
//! running daemon with a changed one. No module here connects to the broker.

mod address;
mod admin;
mod admin_only;
mod change;
mod check;
mod command_token;
pub mod duration;
mod environment_name;
mod format;
mod handler;
mod layers;
mod load;
mod model;
mod origin;
mod rate;
mod read;
mod redaction;
mod report;
mod secret;
mod section;
mod serialize;
mod suggestion;
#[cfg(test)]
mod tests;
mod tls;
mod topology;
pub mod value_parser;
mod workload;

pub use address::Address;
pub use admin_only::{load_admin, load_admin_or_default, load_ledger_directory};
pub use change::{applicable, changes};
pub use command_token::CommandToken;
pub use handler::{HandlerRegistry, HandlerSettings, HandlerSpec, MessageKind};
pub use layers::{Table, Value};
pub use load::{DEFAULT_FILE, DEFAULT_PATH, LoadError, Loaded, Sources, WrittenKeys};
pub(crate) use load::{MAX_FILE_BYTES, has_workload};
pub use model::{
    Admin, AdminUser, Broker, Config, Consumer, DeadLetters, Ledger, Log, LogFormat, LogLevel, Management, Mechanism,
    Queue, Reload, Role, Rotation, Runtime, Shutdown, Tls, TopologySettings,
};
pub use rate::Rate;
pub use redaction::Secret;
pub use report::Problem;

pub use secret::{password_in_file, read_token_file, token_in_file};
pub use section::{Section, ValueParser};
pub use serialize::duration as serialize_duration;
pub use tls::client_files;
