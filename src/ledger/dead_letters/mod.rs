//! The dead letter store: whole messages that were taken out of `dead_letter_queue` and `unrouted_queue`.
//!
//! ```text
//! new      what is stored of a message, and the answer
//! query    filters, pages and groups: plain values
//! groups   adds messages up
//! replayed what has become of a message: replays, revisions
//! ```
//! A message is stored before it is acked, and acked only once it is stored. So a message whose ack did not reach the broker is
//! delivered again, and must be recognized: see [`NewStoredLetter::identification`]. What is to become of a stored message is
//! never decided here.

mod groups;
mod new;
mod query;
mod replayed;

pub(super) use new::named;

pub(super) use groups::{Cause, UnresolvedBuilder};

pub use groups::{Counted, GroupBuilder};
pub use new::{
    EndedParsing, FoundInLetter, Identification, LetterOrder, LetterOrigin, LetterSource, LetterState,
    MAX_SEARCH_BYTES, NewStoredLetter, StoreAnswer, session_id,
};
pub use query::{
    DeadLetter, DeadLetterContent, DeadLetterDetail, DeadLetterFilter, DeadLetterGroup, DeadLetterGroups,
    DeadLetterPage, DeadLetterQuery, LetterAttempt, LetterDelivery, LetterStep, MAX_STOPPED_REPLAYS, STOP_CODES,
    StoppedReplay, UnresolvedDeadLetters, UnresolvedSum, WholeDeadLetters,
};
pub use replayed::{LetterProgress, LetterReplay, LetterRevision};
