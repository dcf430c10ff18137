//! The whole policy for failed messages, as pure functions: no clock, no randomness, no I/O.
//!
//! [`decide`] chooses between immediate retry, delayed retry and dead letter; `history` reads from a message's headers what
//! is known about its failures; `copies` builds the publications with those headers.

mod claimed_run;
mod copies;
mod decide;
mod failure;
mod history;
mod policy;
mod replay_copy;
#[cfg(test)]
mod tests;

pub use crate::delay::Delay;
pub use claimed_run::{ClaimNote, ClaimedRun};
pub use copies::{
    ReturnReason, cancelled_order, copy_for_dead_letter, copy_for_failure, copy_for_retry, copy_for_return,
    copy_of_cancellation,
};
pub use decide::{Action, DeadLetterReason, DecisionPoint, decide};
pub use failure::{BODY_TOO_LARGE, Failure, FailureKind, MAX_REASON_BYTES};
pub use history::{History, Origin, read_time, trusted_retry_count};
pub use policy::RetryPolicy;
pub use replay_copy::{ReplayMark, copy_for_replay, replay_key, replayed_for};
