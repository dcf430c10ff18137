//! How entries are chained: what the hash of an entry covers. Pure.

use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{JournalEntry, JournalFilter, JournalHash, JournalHead, NewJournalEntry};

/// An entry as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ledger) struct StoredEntry {
    pub seq: i64,
    /// Milliseconds since 1970.
    pub at: i64,
    pub actor: String,
    pub action: String,
    pub subject: String,
    pub result: String,
    pub previous: JournalHash,
    pub hash: JournalHash,
}

impl StoredEntry {
    /// The entry that follows `head`.
    pub fn after(head: JournalHead, new: &NewJournalEntry) -> Self {
        let mut entry = StoredEntry {
            seq: head.seq + 1,
            at: new.at.as_millisecond(),
            actor: new.actor.clone(),
            action: new.action.as_str().to_owned(),
            subject: new.subject.clone(),
            result: new.result.clone(),
            previous: head.hash,
            hash: JournalHash::NONE,
        };
        entry.hash = entry.computed_hash();
        entry
    }

    /// The hash that it must have: SHA-256 of the hash before, the number and the time (8 bytes each, big-endian), and of each text its
    /// length (8 bytes, big-endian) and its bytes.
    pub fn computed_hash(&self) -> JournalHash {
        let StoredEntry { seq, at, actor, action, subject, result, previous, hash: _ } = self;
        let mut digest = Sha256::new();
        digest.update(previous.as_bytes());
        digest.update(seq.to_be_bytes());
        digest.update(at.to_be_bytes());
        for text in [actor, action, subject, result] {
            digest.update((text.len() as u64).to_be_bytes());
            digest.update(text);
        }
        JournalHash(digest.finalize().into())
    }

    pub fn head(&self) -> JournalHead {
        JournalHead { seq: self.seq, hash: self.hash }
    }
}

impl From<StoredEntry> for JournalEntry {
    fn from(stored: StoredEntry) -> Self {
        let StoredEntry { seq, at, actor, action, subject, result, previous, hash } = stored;
        // Somebody may have changed the text.
        let json = |text: String| serde_json::from_str(&text).unwrap_or(Value::String(text));
        JournalEntry {
            seq,
            at: Timestamp::from_millisecond(at).unwrap_or(Timestamp::UNIX_EPOCH),
            actor,
            action,
            subject: json(subject),
            result: json(result),
            previous,
            hash,
        }
    }
}

impl JournalFilter {
    /// Whether an entry is meant.
    #[cfg(test)]
    pub(in crate::ledger) fn includes(&self, entry: &StoredEntry) -> bool {
        let JournalFilter { since, until, actor, action } = self;
        since.is_none_or(|since| entry.at >= since.as_millisecond())
            && until.is_none_or(|until| entry.at < until.as_millisecond())
            && actor.as_ref().is_none_or(|actor| entry.actor == *actor)
            && action.as_ref().is_none_or(|action| entry.action == *action)
    }
}
