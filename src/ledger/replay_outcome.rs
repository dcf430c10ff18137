//! What became of a dead letter that was published again: a plain value.

use jiff::Timestamp;

/// What became of a letter that was published again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplayOutcome {
    /// It was processed, or had been before.
    Processed,
    /// It is a notification that was recorded, and could not be delivered: its order has no address.
    NotDelivered,
    /// Its order was cancelled.
    Cancelled,
    /// It has failed, and is retried.
    Retrying {
        /// Until when an outcome is expected.
        due: Timestamp,
    },
    /// Its steps, whose undo had failed, are undone, and it was dead-lettered again for its first failure.
    Undone,
    /// It was dead-lettered again.
    FailedAgain,
}
