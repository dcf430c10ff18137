//! The journal of the ledger in memory.

use super::journal::{
    ChainVerifier, JournalHash, JournalHead, JournalPage, JournalQuery, JournalVerification, NewJournalEntry,
    StoredEntry,
};

#[derive(Debug, Default)]
pub(super) struct MemoryJournal(Vec<StoredEntry>);

impl MemoryJournal {
    pub fn append(&mut self, new: &NewJournalEntry) -> JournalHead {
        let entry = StoredEntry::after(self.head().unwrap_or(JournalHead::EMPTY), new);
        let head = entry.head();
        self.0.push(entry);
        head
    }

    pub fn page(&self, query: &JournalQuery) -> JournalPage {
        let is_before = |entry: &&StoredEntry| query.before.is_none_or(|before| entry.seq < before);
        let found = self.0.iter().rev().filter(is_before).filter(|entry| query.filter.includes(entry));
        let entries = found.take(query.limit.saturating_add(1)).cloned().map(Into::into);
        JournalPage::new(entries.collect(), query.limit)
    }

    pub fn verify(&self, expected: Option<JournalHash>) -> JournalVerification {
        let mut verifier = ChainVerifier::new(expected);
        self.0.iter().for_each(|entry| verifier.add(entry));
        verifier.finish(self.head())
    }

    fn head(&self) -> Option<JournalHead> {
        self.0.last().map(StoredEntry::head)
    }
}
