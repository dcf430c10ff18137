//! The configuration: raw TOML and environment in, checked values out.
//!
//! After loading nobody sees a raw value. It never touches the broker.

mod model;

pub use model::{
    Address, Admin, Broker, Config, Consumer, Ledger, Log, LogFormat, LogLevel, Management, Queue, Rotation, Secret,
    Shutdown, TopologySettings,
};
