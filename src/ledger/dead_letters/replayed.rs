//! What has become of a stored message: its replays, and the revisions of its content. Plain values.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::new::named;

named! {
    /// How far a letter of a replay is.
    LetterProgress {
        /// It waits for its turn.
        Selected = "selected",
        /// It is being published, or was.
        Publishing = "publishing",
        /// The broker has confirmed it.
        Published = "published",
        /// It has failed, and waits for a retry.
        Retrying = "retrying",
        /// It was processed, now or before.
        Processed = "processed",
        /// It is a notification that was recorded, and could not be delivered: its order has no address.
        NotDelivered = "not_delivered",
        /// Its order was cancelled, so it was not processed.
        Cancelled = "cancelled",
        /// Its steps, whose undo had failed, are undone now. It was dead-lettered again, for its first failure.
        Undone = "undone",
        /// It was dead-lettered again, as another letter.
        FailedAgain = "failed_again",
        /// It was not published.
        Skipped = "skipped",
        /// The replay was stopped before it was published.
        Returned = "returned",
        /// It was published, and no outcome was seen in time.
        Unknown = "unknown",
    }
}

impl LetterProgress {
    /// Whether it was published, and has no outcome yet.
    pub fn is_under_way(self) -> bool {
        match self {
            LetterProgress::Publishing
            | LetterProgress::Published
            | LetterProgress::Retrying
            | LetterProgress::Unknown => true,
            LetterProgress::Selected
            | LetterProgress::Processed
            | LetterProgress::NotDelivered
            | LetterProgress::Cancelled
            | LetterProgress::Undone
            | LetterProgress::FailedAgain
            | LetterProgress::Skipped
            | LetterProgress::Returned => false,
        }
    }
}

/// What one replay has done with a stored message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LetterReplay {
    /// The replay's number.
    pub replay: i64,
    /// Who has started it.
    pub by: String,
    /// When the message was published; if it was not, when that was decided.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The outcome, or how far it is.
    pub outcome: LetterProgress,
    /// Why it was skipped, or the code with which it has failed.
    pub code: Option<String>,
    /// When it had its outcome.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub ended_at: Option<Timestamp>,
    /// The stored message that it has become, if it was dead-lettered again.
    pub came_back_as: Option<i64>,
}

/// A content that a person has given to a stored message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LetterRevision {
    /// Its number, from 1. Revision 0 is the content as it came.
    pub revision: i64,
    /// When it was edited.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub at: Option<Timestamp>,
    /// Who has edited it.
    pub by: Option<String>,
}
