//! Finds entries that were changed, removed or put elsewhere. Pure: it is given the entries in the order of their numbers.
//!
//! Anyone who can write the ledger can also compute a whole new chain, which only a hash that was kept elsewhere reveals.

use serde::Serialize;

use super::{JournalHash, JournalHead, StoredEntry};

/// Problems that are listed. All are counted.
const MAX_PROBLEMS: usize = 100;

/// What was found. Its JSON is a contract: see `docs/reference/cli.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JournalVerification {
    /// Entries that were read.
    pub entries: u64,
    /// The last of them.
    pub head: JournalHead,
    /// How many problems there are. 0: each entry is as it was recorded, and none is missing.
    pub problem_count: u64,
    /// The first of them.
    pub problems: Vec<JournalProblem>,
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JournalProblem {
    /// The kind.
    pub kind: JournalProblemKind,
    /// The entry's number; the first, if there are several. 0: the whole journal.
    pub seq: i64,
    /// For people.
    pub detail: String,
}

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalProblemKind {
    /// The entry does not match its own hash.
    Changed,
    /// Entries are missing.
    Missing,
    /// The entry does not continue the one before: that one was replaced.
    NotLinked,
    /// The last entry is not the one that was recorded last.
    End,
    /// No entry has the hash that was given: the journal is older, or another one.
    NotFound,
}

/// Reads one entry after the other.
pub(in crate::ledger) struct ChainVerifier {
    expected: Option<JournalHash>,
    is_found: bool,
    verification: JournalVerification,
}

impl ChainVerifier {
    /// `expected`: the hash of an entry that must be there.
    pub fn new(expected: Option<JournalHash>) -> Self {
        let verification =
            JournalVerification { entries: 0, head: JournalHead::EMPTY, problem_count: 0, problems: Vec::new() };
        ChainVerifier { expected, is_found: false, verification }
    }

    pub fn add(&mut self, entry: &StoredEntry) {
        let head = self.verification.head;
        let is_next = entry.seq == head.seq.saturating_add(1);
        if !is_next {
            self.missing(head.seq.saturating_add(1), entry.seq.saturating_sub(1));
        }
        if entry.hash != entry.computed_hash() {
            self.problem(JournalProblemKind::Changed, entry.seq, "does not match its hash: it was changed".to_owned());
        }
        if is_next && entry.previous != head.hash {
            let detail = "does not continue the entry before it: that one was replaced".to_owned();
            self.problem(JournalProblemKind::NotLinked, entry.seq, detail);
        }
        self.is_found |= self.expected == Some(entry.hash);
        self.verification.entries += 1;
        self.verification.head = entry.head();
    }

    /// `recorded` is the last entry according to the record that is kept besides the entries; `None` without one.
    pub fn finish(mut self, recorded: Option<JournalHead>) -> JournalVerification {
        let head = self.verification.head;
        let recorded = recorded.unwrap_or(JournalHead::EMPTY);
        if recorded.seq > head.seq {
            self.missing(head.seq.saturating_add(1), recorded.seq);
        } else if recorded != head {
            let detail = format!("was not recorded as the last one, which is {}", recorded.seq);
            self.problem(JournalProblemKind::End, head.seq, detail);
        }
        if let (Some(expected), false) = (self.expected, self.is_found) {
            let detail = format!("no entry has the hash {expected}: this is an older copy, or another journal");
            self.problem(JournalProblemKind::NotFound, 0, detail);
        }
        self.verification
    }

    fn missing(&mut self, first: i64, last: i64) {
        let detail = match last.saturating_sub(first) {
            0 => "is missing".to_owned(),
            _ => format!("is missing, and all up to {last}"),
        };
        self.problem(JournalProblemKind::Missing, first, detail);
    }

    fn problem(&mut self, kind: JournalProblemKind, seq: i64, detail: String) {
        self.verification.problem_count += 1;
        if self.verification.problems.len() < MAX_PROBLEMS {
            self.verification.problems.push(JournalProblem { kind, seq, detail });
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::super::{JournalAction, NewJournalEntry};
    use super::*;

    fn chain(entries: i64) -> Vec<StoredEntry> {
        let mut head = JournalHead::EMPTY;
        let entry = |n| {
            let subject = json!({ "consumer": format!("c{n}") });
            let new = NewJournalEntry::new(Timestamp::UNIX_EPOCH, "ada", JournalAction::Pause, &subject, &json!({}));
            let entry = StoredEntry::after(head, &new);
            head = entry.head();
            entry
        };
        (1..=entries).map(entry).collect()
    }

    fn problems(entries: &[StoredEntry], recorded: JournalHead) -> Vec<(JournalProblemKind, i64)> {
        let mut verifier = ChainVerifier::new(None);
        entries.iter().for_each(|entry| verifier.add(entry));
        verifier.finish(Some(recorded)).problems.iter().map(|problem| (problem.kind, problem.seq)).collect()
    }

    #[test]
    fn every_change_to_a_journal_is_found() {
        use JournalProblemKind::{Changed, End, Missing, NotLinked};
        let whole = chain(5);
        let head = whole[4].head();
        let changed = |change: &dyn Fn(&mut Vec<StoredEntry>)| {
            let mut entries = whole.clone();
            change(&mut entries);
            problems(&entries, head)
        };
        assert_eq!(problems(&whole, head), []);
        assert_eq!(problems(&[], JournalHead::EMPTY), []);
        for change in [
            |entry: &mut StoredEntry| entry.actor = "bob".to_owned(),
            |entry: &mut StoredEntry| entry.action = "resume".to_owned(),
            |entry: &mut StoredEntry| entry.subject.push(' '),
            |entry: &mut StoredEntry| entry.result.push(' '),
            |entry: &mut StoredEntry| entry.at += 1,
            |entry: &mut StoredEntry| std::mem::swap(&mut entry.subject, &mut entry.result),
        ] {
            assert_eq!(changed(&|entries| change(&mut entries[2])), [(Changed, 3)]);
        }
        let rehashed = changed(&|entries| {
            entries[2].actor = "bob".to_owned();
            entries[2].hash = entries[2].computed_hash();
        });
        assert_eq!(rehashed, [(NotLinked, 4)]);
        let last_rehashed = changed(&|entries| {
            entries[4].actor = "bob".to_owned();
            entries[4].hash = entries[4].computed_hash();
        });
        assert_eq!(last_rehashed, [(End, 5)]);
        assert_eq!(changed(&|entries| drop(entries.remove(0))), [(Missing, 1)]);
        assert_eq!(changed(&|entries| drop(entries.drain(1..3))), [(Missing, 2)]);
        assert_eq!(changed(&|entries| entries.truncate(3)), [(Missing, 4)]);
        assert_eq!(changed(&|entries| entries.clear()), [(Missing, 1)]);
        let swapped = changed(&|entries| {
            (entries[1].seq, entries[2].seq) = (3, 2);
            entries.swap(1, 2);
        });
        assert_eq!(swapped, [(Changed, 2), (NotLinked, 2), (Changed, 3), (NotLinked, 3), (NotLinked, 4)]);
        assert_eq!(problems(&whole, whole[3].head()), [(End, 5)], "an entry was added by somebody else");
    }

    #[test]
    fn a_journal_that_was_computed_anew_is_found_by_a_hash_that_was_kept() {
        let whole = chain(5);
        let verify = |entries: &[StoredEntry]| {
            let mut verifier = ChainVerifier::new(Some(whole[4].hash));
            entries.iter().for_each(|entry| verifier.add(entry));
            verifier.finish(entries.last().map(StoredEntry::head))
        };
        assert_eq!(verify(&whole).problem_count, 0);
        let cut = verify(&whole[..4]);
        assert_eq!((cut.problem_count, cut.problems[0].kind), (1, JournalProblemKind::NotFound));
    }

    #[test]
    fn problems_are_counted_beyond_those_that_are_listed() {
        let entries: Vec<_> = chain(300).into_iter().map(|entry| StoredEntry { at: 7, ..entry }).collect();
        let mut verifier = ChainVerifier::new(None);
        entries.iter().for_each(|entry| verifier.add(entry));
        let found = verifier.finish(entries.last().map(StoredEntry::head));
        assert_eq!((found.problem_count, found.problems.len()), (300, MAX_PROBLEMS));
    }
}
