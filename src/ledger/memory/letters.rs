//! Stores dead letters and journal entries in the tables in memory.

use futures_util::future::{BoxFuture, FutureExt, ready};

use super::MemoryLedger;
use crate::ledger::dead_letters::{EndedParsing, NewStoredLetter, StoreAnswer};
use crate::ledger::error::LedgerError;
use crate::ledger::journal::{JournalHead, NewJournalEntry};
use crate::ledger::traits::{JournalWriter, LetterWriter};

impl LetterWriter for MemoryLedger {
    fn store_letter(&self, letter: NewStoredLetter) -> BoxFuture<'static, Result<StoreAnswer, LedgerError>> {
        self.write(|tables| tables.letters.store(letter))
    }

    fn begin_parsing(&self, fingerprint: [u8; 32], process: String) -> BoxFuture<'static, Result<bool, LedgerError>> {
        self.write(move |tables| Ok(tables.letters.begin_parsing(fingerprint, process)))
    }

    fn end_parsing(&self, fingerprint: [u8; 32]) -> BoxFuture<'static, Result<(), LedgerError>> {
        self.write(move |tables| {
            tables.letters.end_parsing(&fingerprint);
            Ok(())
        })
    }

    /// Tested with the other ledgers.
    fn begin_reparsing(&self, _version: String) -> BoxFuture<'static, Result<Option<i64>, LedgerError>> {
        ready(Ok(None)).boxed()
    }

    fn end_reparsing(&self, _ended: EndedParsing) -> BoxFuture<'static, Result<(), LedgerError>> {
        ready(Ok(())).boxed()
    }
}

impl JournalWriter for MemoryLedger {
    fn record_action(&self, entry: NewJournalEntry) -> BoxFuture<'static, Result<JournalHead, LedgerError>> {
        self.write(move |tables| Ok(tables.journal.append(&entry)))
    }
}
