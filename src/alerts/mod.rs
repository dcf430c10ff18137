//! Alerts for operators: which causes are open, which messages are sent about them, and the task that sends them.
//!
//! ```text
//! settings      [alerts], checked
//! cause         the kinds of causes, their names and texts
//! stored        what the store of dead letters says ─► causes
//! observation   what the daemon sees: findings, circuit breakers, the last reload, counts of dead letters, the store ─► causes
//! dead_letters  dead letters within a time
//! tracker       causes and recorded alerts ─► alerts that open, continue and end; pure: read it first
//! message       what is due ─► one message; pure
//! task          observes, records in the ledger, sends
//! ```
//! What is open is recorded in the ledger, so that a restart repeats nothing, and of several instances one sends. It never delays the
//! processing of messages, and never changes what it observes.

mod cause;
mod dead_letters;
mod message;
mod observation;
mod settings;
mod status;
mod stored;
mod task;
mod tracker;

pub use dead_letters::unrouted_key;
pub use message::{sample_message, test_message};
pub use observation::{AlertScopes, LocalState};
pub use settings::AlertSettings;
pub use status::{AlertsStatus, OpenAlert};
pub use stored::StoredState;
pub use task::{AlertDeps, AlertHistory, run};
