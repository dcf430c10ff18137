//! Counts the dead letters whose steps could not be undone. Values only.

use jiff::Timestamp;

use crate::recovery::DeadLetterReason;

/// The dead letters since the start whose steps could not be undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FailedUndos {
    /// How many.
    pub messages: u64,
    /// When the last one was dead-lettered.
    pub last: Option<Timestamp>,
}

impl FailedUndos {
    /// These and others.
    #[must_use]
    pub fn and(self, other: FailedUndos) -> Self {
        FailedUndos { messages: self.messages + other.messages, last: self.last.max(other.last) }
    }

    /// Counts a dead letter.
    pub(super) fn count(&mut self, reason: DeadLetterReason) {
        if reason == DeadLetterReason::UndoFailed {
            *self = FailedUndos { messages: self.messages + 1, last: Some(Timestamp::now()) };
        }
    }
}
