//! The journal: who did what, when, on what, and with which result. Each entry carries the hash of the one before.
//!
//! An entry never contains what `orderd erase` may have to remove: in place of such a text it has [`content_hash`]. Entries are never changed
//! or removed.

mod chain;
mod hash;
mod verification;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

pub(super) use chain::StoredEntry;
pub use hash::{InvalidHash, JournalHash, content_hash};
pub(super) use verification::ChainVerifier;
pub use verification::{JournalProblem, JournalProblemKind, JournalVerification};

/// The actor of what a person or program on this machine has done that can use the ledger's directory.
pub const LOCAL_ACTOR: &str = "local";
/// Most bytes of the subject, and of the result. A larger one is replaced by its size and hash.
const MAX_JSON_BYTES: usize = 64 << 10;

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalAction {
    /// The configuration was reloaded, or a reload was rejected.
    Reload,
    /// A consumer was paused.
    Pause,
    /// A consumer was resumed.
    Resume,
    /// Personal data was erased.
    Erase,
    /// Dead letters were replayed.
    Replay,
    /// The body of a dead letter was edited.
    Edit,
    /// Dead letters were discarded.
    Discard,
    /// Dead letters were held.
    Hold,
    /// Held dead letters were released.
    Release,
}

impl JournalAction {
    /// All of them.
    pub const ALL: &[JournalAction] = &[
        JournalAction::Reload,
        JournalAction::Pause,
        JournalAction::Resume,
        JournalAction::Erase,
        JournalAction::Replay,
        JournalAction::Edit,
        JournalAction::Discard,
        JournalAction::Hold,
        JournalAction::Release,
    ];

    /// As it is recorded and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            JournalAction::Reload => "reload",
            JournalAction::Pause => "pause",
            JournalAction::Resume => "resume",
            JournalAction::Erase => "erase",
            JournalAction::Replay => "replay",
            JournalAction::Edit => "edit",
            JournalAction::Discard => "discard",
            JournalAction::Hold => "hold",
            JournalAction::Release => "release",
        }
    }
}

/// An action to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewJournalEntry {
    at: Timestamp,
    actor: String,
    action: JournalAction,
    /// JSON.
    subject: String,
    /// JSON.
    result: String,
}

impl NewJournalEntry {
    /// An action of `actor` on `subject`. Neither `subject` nor `result` may contain what `orderd erase` may have to remove, such as the id
    /// of a customer or the text of a note.
    pub fn new(at: Timestamp, actor: &str, action: JournalAction, subject: &Value, result: &Value) -> Self {
        NewJournalEntry { at, actor: actor.to_owned(), action, subject: bounded(subject), result: bounded(result) }
    }

    /// About how much memory it takes, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.actor.len() + self.subject.len() + self.result.len()
    }
}

fn bounded(value: &Value) -> String {
    let text = value.to_string();
    if text.len() <= MAX_JSON_BYTES {
        return text;
    }
    json!({ "omitted_bytes": text.len(), "sha256": content_hash(&text) }).to_string()
}

/// A recorded action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JournalEntry {
    /// Its number: 1, 2, 3, …
    pub seq: i64,
    /// When it was done.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Who did it: the name of a user in `admin.users`, or [`LOCAL_ACTOR`], with the name of the operating system's user if known.
    pub actor: String,
    /// What was done: a [`JournalAction`] of this version or of another.
    pub action: String,
    /// On what.
    pub subject: Value,
    /// With which result.
    pub result: Value,
    /// The hash of the entry before.
    pub previous: JournalHash,
    /// The hash of this entry.
    pub hash: JournalHash,
}

/// The last entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct JournalHead {
    /// Its number; 0 if there is none.
    pub seq: i64,
    /// Its hash.
    pub hash: JournalHash,
}

impl JournalHead {
    /// That of an empty journal.
    pub const EMPTY: JournalHead = JournalHead { seq: 0, hash: JournalHash::NONE };
}

/// Which entries are meant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalFilter {
    /// Those at this time or later.
    pub since: Option<Timestamp>,
    /// Those before this time.
    pub until: Option<Timestamp>,
    /// Those of this actor.
    pub actor: Option<String>,
    /// Those with this action.
    pub action: Option<String>,
}

/// One page, the last entries first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JournalQuery {
    /// Which entries.
    pub filter: JournalFilter,
    /// Only those with a lower number.
    pub before: Option<i64>,
    /// How many at most.
    pub limit: usize,
}

/// A page of entries. Its JSON is a contract: see `docs/reference/http-api.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JournalPage {
    /// The entries, the last first.
    pub entries: Vec<JournalEntry>,
    /// [`JournalQuery::before`] of the next page; `None` if this is the last.
    pub next: Option<i64>,
}

impl JournalPage {
    /// A page of `limit` entries from the entries found, of which there is one more if another page follows.
    pub(super) fn new(mut entries: Vec<JournalEntry>, limit: usize) -> Self {
        let more = entries.len() > limit;
        entries.truncate(limit);
        let next = entries.last().map(|entry| entry.seq).filter(|_| more);
        JournalPage { entries, next }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_subject_is_replaced_by_its_hash() {
        let large = Value::from("x".repeat(MAX_JSON_BYTES));
        let entry = NewJournalEntry::new(Timestamp::UNIX_EPOCH, "ada", JournalAction::Edit, &large, &Value::Null);
        let subject: Value = serde_json::from_str(&entry.subject).unwrap();
        assert_eq!(subject["omitted_bytes"], MAX_JSON_BYTES + 2);
        assert_eq!(subject["sha256"].as_str().unwrap().len(), 64);
        assert_eq!(entry.result, "null");
    }
}
