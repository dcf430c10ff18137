//! A client of RabbitMQ's management HTTP API and the shapes of its answers. It never changes anything on the broker.

mod answers;
mod client;
mod observed;
mod queries;

pub(crate) use answers::Detail;
pub(crate) use answers::Totals;
pub use answers::{Alarm, ManagementErrorKind, MessageCounters};
pub use client::{ManagementClient, ManagementError};
pub use observed::{ObservedExchange, ObservedQueue, ObservedTopology};
