//! Reads the file from any process: each read on a connection of its own, on a thread for blocking work.

use std::path::PathBuf;

use futures_util::future::{BoxFuture, FutureExt};
use jiff::Timestamp;
use tokio::task::spawn_blocking;

use super::{SqliteLedger, journal, letter_queries, replay_queries, report, totals, trace};
use crate::ledger::dead_letters::{
    DeadLetterDetail, DeadLetterFilter, DeadLetterGroups, DeadLetterPage, DeadLetterQuery, LetterState,
    UnresolvedDeadLetters, WholeDeadLetters,
};
use crate::ledger::error::OpenError;
use crate::ledger::journal::{JournalHash, JournalPage, JournalQuery, JournalVerification};
use crate::ledger::replays::{LetterProgress, LetterSelection, Replay, ReplayCandidate, ReplayLetter, ReplayReader};
use crate::ledger::report::{Report, ReportError, ReportQuery};
use crate::ledger::totals::Totals;
use crate::ledger::trace::Trace;
use crate::ledger::traits::LedgerReader;

/// Reads the ledger in a directory.
#[derive(Debug, Clone)]
pub struct SqliteReader {
    directory: PathBuf,
}

impl SqliteReader {
    /// A reader of the ledger in this directory, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        SqliteReader { directory }
    }

    /// [`LedgerReader::totals`], blocking.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn totals_blocking(&self) -> Result<Totals, OpenError> {
        totals::read(&self.directory)
    }
}

impl LedgerReader for SqliteReader {
    fn report(&self, query: ReportQuery, now: Timestamp) -> BoxFuture<'static, Result<Report, ReportError>> {
        let directory = self.directory.clone();
        blocking(move || report::read(&directory, query, now))
    }

    fn trace(&self, id: &str) -> BoxFuture<'static, Result<Trace, OpenError>> {
        let (directory, id) = (self.directory.clone(), id.to_owned());
        blocking(move || trace::read(&directory, &id))
    }

    fn totals(&self) -> BoxFuture<'static, Result<Totals, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || totals::read(&directory))
    }

    fn dead_letters(&self, query: DeadLetterQuery) -> BoxFuture<'static, Result<DeadLetterPage, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || letter_queries::page(&directory, &query))
    }

    fn whole_dead_letters(
        &self,
        query: DeadLetterQuery,
        budget: usize,
    ) -> BoxFuture<'static, Result<WholeDeadLetters, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || letter_queries::whole_page(&directory, &query, budget))
    }

    fn dead_letter_groups(&self, filter: DeadLetterFilter) -> BoxFuture<'static, Result<DeadLetterGroups, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || letter_queries::groups(&directory, &filter))
    }

    fn dead_letter_revision(
        &self,
        id: i64,
        revision: Option<i64>,
    ) -> BoxFuture<'static, Result<Option<DeadLetterDetail>, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || letter_queries::detail(&directory, id, revision))
    }

    fn dead_letter_bytes(&self, id: i64, revision: Option<i64>) -> BoxFuture<'static, Result<Option<u64>, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || letter_queries::bytes(&directory, id, revision))
    }

    fn unresolved_dead_letters(&self) -> BoxFuture<'static, Result<UnresolvedDeadLetters, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || letter_queries::unresolved_letters(&directory))
    }

    fn journal(&self, query: JournalQuery) -> BoxFuture<'static, Result<JournalPage, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || journal::page(&directory, &query))
    }

    fn verify_journal(
        &self,
        expected: Option<JournalHash>,
    ) -> BoxFuture<'static, Result<JournalVerification, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || journal::verify(&directory, expected))
    }
}

impl LedgerReader for SqliteLedger {
    fn report(&self, query: ReportQuery, now: Timestamp) -> BoxFuture<'static, Result<Report, ReportError>> {
        self.reader().report(query, now)
    }

    fn trace(&self, id: &str) -> BoxFuture<'static, Result<Trace, OpenError>> {
        self.reader().trace(id)
    }

    fn totals(&self) -> BoxFuture<'static, Result<Totals, OpenError>> {
        self.reader().totals()
    }

    fn dead_letters(&self, query: DeadLetterQuery) -> BoxFuture<'static, Result<DeadLetterPage, OpenError>> {
        self.reader().dead_letters(query)
    }

    fn whole_dead_letters(
        &self,
        query: DeadLetterQuery,
        budget: usize,
    ) -> BoxFuture<'static, Result<WholeDeadLetters, OpenError>> {
        self.reader().whole_dead_letters(query, budget)
    }

    fn dead_letter_groups(&self, filter: DeadLetterFilter) -> BoxFuture<'static, Result<DeadLetterGroups, OpenError>> {
        self.reader().dead_letter_groups(filter)
    }

    fn dead_letter_revision(
        &self,
        id: i64,
        revision: Option<i64>,
    ) -> BoxFuture<'static, Result<Option<DeadLetterDetail>, OpenError>> {
        self.reader().dead_letter_revision(id, revision)
    }

    fn dead_letter_bytes(&self, id: i64, revision: Option<i64>) -> BoxFuture<'static, Result<Option<u64>, OpenError>> {
        self.reader().dead_letter_bytes(id, revision)
    }

    fn unresolved_dead_letters(&self) -> BoxFuture<'static, Result<UnresolvedDeadLetters, OpenError>> {
        self.reader().unresolved_dead_letters()
    }

    fn journal(&self, query: JournalQuery) -> BoxFuture<'static, Result<JournalPage, OpenError>> {
        self.reader().journal(query)
    }

    fn verify_journal(
        &self,
        expected: Option<JournalHash>,
    ) -> BoxFuture<'static, Result<JournalVerification, OpenError>> {
        self.reader().verify_journal(expected)
    }
}

impl ReplayReader for SqliteReader {
    fn replay(&self, id: i64, now: Timestamp) -> BoxFuture<'static, Result<Option<Replay>, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || replay_queries::replay(&directory, id, now))
    }

    fn replays(
        &self,
        active: bool,
        limit: usize,
        now: Timestamp,
    ) -> BoxFuture<'static, Result<Vec<Replay>, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || replay_queries::replays(&directory, active, limit, now))
    }

    fn replay_letters(
        &self,
        replay: i64,
        progress: LetterProgress,
        group: Option<(String, String)>,
        after: i64,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<ReplayLetter>, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || replay_queries::letters(&directory, replay, progress, group, after, limit))
    }

    fn replay_selection(&self, id: i64) -> BoxFuture<'static, Result<Option<(LetterSelection, i64)>, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || replay_queries::selection(&directory, id))
    }

    fn replay_candidates(
        &self,
        selection: LetterSelection,
        states: Vec<LetterState>,
        after: i64,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<ReplayCandidate>, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || replay_queries::candidates(&directory, selection, states, after, limit))
    }

    fn last_letter(&self) -> BoxFuture<'static, Result<i64, OpenError>> {
        let directory = self.directory.clone();
        blocking(move || replay_queries::last_letter(&directory))
    }
}

impl ReplayReader for SqliteLedger {
    fn replay(&self, id: i64, now: Timestamp) -> BoxFuture<'static, Result<Option<Replay>, OpenError>> {
        self.reader().replay(id, now)
    }

    fn replays(
        &self,
        active: bool,
        limit: usize,
        now: Timestamp,
    ) -> BoxFuture<'static, Result<Vec<Replay>, OpenError>> {
        self.reader().replays(active, limit, now)
    }

    fn replay_letters(
        &self,
        replay: i64,
        progress: LetterProgress,
        group: Option<(String, String)>,
        after: i64,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<ReplayLetter>, OpenError>> {
        self.reader().replay_letters(replay, progress, group, after, limit)
    }

    fn replay_selection(&self, id: i64) -> BoxFuture<'static, Result<Option<(LetterSelection, i64)>, OpenError>> {
        self.reader().replay_selection(id)
    }

    fn replay_candidates(
        &self,
        selection: LetterSelection,
        states: Vec<LetterState>,
        after: i64,
        limit: usize,
    ) -> BoxFuture<'static, Result<Vec<ReplayCandidate>, OpenError>> {
        self.reader().replay_candidates(selection, states, after, limit)
    }

    fn last_letter(&self) -> BoxFuture<'static, Result<i64, OpenError>> {
        self.reader().last_letter()
    }
}

impl SqliteLedger {
    fn reader(&self) -> SqliteReader {
        SqliteReader::new(self.directory.clone())
    }
}

fn blocking<T: Send + 'static>(read: impl FnOnce() -> T + Send + 'static) -> BoxFuture<'static, T> {
    let reading =
        async { spawn_blocking(read).await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) };
    reading.boxed()
}
