//! What has become of a dead letter in a replay, in the same words for every command. Values only.

use crate::ledger::LetterProgress;

/// `failed again`, `waiting for a retry`. It fits behind a number and behind "dead letter 7:".
pub(super) fn outcome_text(outcome: LetterProgress) -> &'static str {
    match outcome {
        LetterProgress::Selected => "not published yet",
        LetterProgress::Publishing | LetterProgress::Published => "waiting for an outcome",
        LetterProgress::Retrying => "waiting for a retry",
        LetterProgress::Processed => "processed",
        LetterProgress::NotDelivered => "not delivered",
        LetterProgress::Cancelled => "cancelled",
        LetterProgress::Undone => "undone",
        LetterProgress::FailedAgain => "failed again",
        LetterProgress::Skipped => "not replayed",
        LetterProgress::Returned => "open again",
        LetterProgress::Unknown => "without an outcome",
    }
}
