//! What is done about failures, as pure decisions: no clock, no randomness, no I/O.
//!
//! `decide` says whether a failed message is retried, after which delay, or dead-lettered; `history` reads the
//! headers it needs to know and makes the copies that carry them on.

mod decide;
mod failure;
mod history;
mod policy;

pub use crate::delay::Delay;
pub use decide::{DeadLetterReason, Decision, decide};
pub use failure::{Failure, FailureKind};
pub use history::{History, Origin, believed_retries, copy_for_dead_letter, copy_for_failure, copy_for_retry};
pub use policy::RetryPolicy;

/// The handler of the one consumer of failures, which carries the decisions out. Its own failures are not
/// handed on.
pub const FAILED_HANDLER: &str = "failed";
