//! Compares what the broker reports through its management API with the topology and with orderd's own counts, and reports
//! lasting differences as findings.
//!
//! Optional: with `management.poll_every = "off"` nothing here runs, and processing never depends on it.
//! ```text
//! poller ─► management (client, answers) ─► reconciler ─┬─► count_comparison, overdue_detector
//!   │                                                   └─► findings ─► broker_view ─► status
//!   └─► topology_check ─► audit, consumer_timeouts ─► topology_findings ─────┘
//! ```

pub mod audit;
mod broker_view;
mod consumer_timeouts;
mod count_comparison;
mod findings;
mod overdue_detector;
mod poller;
mod queue_roles;
mod reconciler;
mod topology_check;
mod topology_findings;

pub use broker_view::{ApiState, BrokerView, Finding, FindingKind, QueueRole, QueueView};
pub use consumer_timeouts::ShortConsumerTimeout;
pub use poller::Poller;
pub use reconciler::{Limits, LocalCounts};
