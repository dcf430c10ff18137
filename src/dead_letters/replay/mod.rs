//! What persons do with stored letters: replay, hold, release, discard, edit.
//!
//! ```text
//! requests   what is asked for, and the answers: plain values
//! actions    what the admin API calls: starts, stops and reports replays
//! plan       what a replay would do, and why it would leave letters out
//! changes    holds, releases and discards letters
//! editing    edits letters
//! executor   carries out replays, one step after the other, and continues after a crash: what is done is in the ledger
//! selecting  which letters a replay takes, and the queue of each
//! publish    some letters of a replay, read and handed to the publisher
//! confirms   what the broker answers to that
//! unanswered letters that the broker has not answered yet
//! queues     what may be published to each queue now, and why a replay waits
//! pace       how fast a replay may publish, and which queues the broker refuses
//! decide     what a replay does next (pure)
//! waiting    why a replay waits (values)
//! message    from a stored letter to its publication (pure)
//! edit       what a new body says (pure)
//! ```
//! A letter is published with a mark that all of its copies keep. The pipeline records by that mark what becomes of it, before it acks
//! the message. So a replay may publish a letter twice, but never forgets one.

mod actions;
mod changes;
mod confirms;
mod decide;
mod edit;
mod editing;
mod executor;
mod message;
mod pace;
mod plan;
mod publish;
mod queues;
mod recorded;
mod requests;
mod selecting;
#[cfg(test)]
mod tests;
mod unanswered;
mod waiting;

pub use actions::{ActionError, LetterActions, LetterActionsHandle};
pub use changes::LetterChangeKind;
pub use edit::MAX_EDITED_BYTES;
pub use editing::NewBody;
pub use executor::{AccessToQueue, ReplayDeps, Replayer, RunningReplay};
pub(super) use message::stored_delivery;
pub use plan::{has_names, unknown_names};
pub use recorded::{read_replay, read_replay_letters, read_replays};
pub use requests::{
    ChangedLetters, EditDraft, EditRequest, EditedLetter, LetterRequest, ListedReplay, NotReplayed, NothingFound,
    ReplayLetters, ReplayPlan, ReplayReport, ReplayRequest,
};
pub use waiting::{QueueAccess, WaitCause, Waiting};
