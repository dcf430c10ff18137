//! What is done about failures, as pure decisions: no clock, no randomness, no I/O.
//!
//! `decide(policy, failure, history, now)` says whether a failed message is retried, after which delay, or
//! parked; `history` reads and writes the headers it needs to know.

mod failure;

mod policy;

pub use failure::{Failure, FailureKind};
pub use policy::{Delay, RetryPolicy};
