//! Stored dead letters: takes messages out of `dead_letter_queue` and `unrouted_queue` into the ledger, where they can be found.
//!
//! ```text
//! queue ─► collector ─► letter_parser (what the message says) ─► ledger: stored ─► ack
//!                          reading        by whom its body is read: its consumer, else each format
//!                          order          the order that it is, if it is one
//!                          fingerprint    what makes it the same message
//!                          message_json   properties and headers as JSON, with types
//! whole_letter               a stored message as JSON
//! reparse                    what an earlier version could not parse
//! ```
//! A message is acked only once all of it is stored. One that cannot be stored stays in its queue. What becomes of a stored message is
//! decided by persons, and carried out in `replay`.

mod collector;
mod fingerprint;
mod letter_parser;
mod message_json;
mod order;
mod reading;
mod reparse;
mod replay;
mod whole_letter;

pub use collector::{Collector, CollectorDeps};
pub use letter_parser::{BodyAccess, LetterParser};
pub use reading::{KnownConsumer, KnownConsumers, MessageCheck};
pub use reparse::Reparse;
pub use replay::{
    AccessToQueue, ActionError, ChangedLetters, EditDraft, EditRequest, EditedLetter, LetterActions,
    LetterActionsHandle, LetterChangeKind, LetterRequest, ListedReplay, MAX_EDITED_BYTES, NewBody, NotReplayed,
    NothingFound, QueueAccess, ReplayDeps, ReplayLetters, ReplayPlan, ReplayReport, ReplayRequest, Replayer,
    RunningReplay, WaitCause, Waiting, has_names, read_replay, read_replay_letters, read_replays, unknown_names,
};
pub use whole_letter::WholeLetter;
