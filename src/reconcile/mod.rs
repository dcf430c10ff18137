//! Reconciles what the broker reports through its management API with what must be there and with orderd's own counts.
//! Optional: with `management.poll_every = "off"` nothing here runs, and processing never depends on it.
//!
//! ```text
//! poller ─► management (client, answers) ─► reconciler ─► balance, overdue, findings ─► view ─► status
//! ```

pub mod audit;
mod balance;
mod findings;
mod overdue;
mod poller;
mod reconciler;
mod roles;
pub mod view;

pub use poller::Poller;
pub use reconciler::{Limits, LocalCounts};
pub use view::BrokerView;
