//! The default ledger: one SQLite file, written by one thread of its own.
//!
//! It owns the file, its thread and the queue between them. It must never block an async task, and never
//! answer before the commit that holds the answer is on disk.

mod open;
mod order_sums;
mod place;
mod prune;
mod report;
mod sales;
mod schema;
mod statements;
mod totals;
mod trace;
mod writer;

#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};
use jiff::Timestamp;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{Ledger, LedgerEntry, LedgerError, Recorded};
use writer::Request;

pub use open::OpenError;
pub use place::remote_file_system;
pub use prune::Pruned;
pub(super) use report::read as read_report;
pub use totals::{OrderCounts, Revenue, Totals};
pub(super) use trace::read as read_trace;

/// The ledger's file within its directory. Other programs may read it.
pub const FILE_NAME: &str = "orderd.db";

/// How long a reader waits where it must: only while a daemon starts or ends.
const READ_PATIENCE: Duration = Duration::from_secs(2);

/// How the ledger uses its file. [`Tuning::default`] is measured (`benches/ledger.rs`); tests shrink it.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Entries that may wait for the writer; more wait in their callers.
    pub queue: usize,
    /// Most entries in one commit.
    pub batch: usize,
    /// How long the writer may wait for company before it commits a small batch; less the fewer shared the last one.
    pub gather: Duration,
    /// How long to wait for another program's lock before the batch fails; another instance's is held for as long as
    /// a commit takes.
    pub busy_timeout: Duration,
    /// SQLite's page cache, in KiB.
    pub cache_kib: u32,
    /// Pages (4 KiB) in the write-ahead log before they are moved to the file; each then moves once, however often
    /// it was written.
    pub checkpoint_pages: u32,
    /// Most pages the file may have; a stand-in for a full disk.
    pub max_pages: Option<u32>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            queue: 4_096,
            batch: 1_024,
            gather: Duration::from_millis(10),
            busy_timeout: Duration::from_secs(5),
            cache_kib: 8_192,
            checkpoint_pages: 16_000,
            max_pages: None,
        }
    }
}

/// The ledger in `orderd.db`. Dropping it lets the writer finish what waits, unattended; [`SqliteLedger::close`]
/// awaits that.
#[derive(Debug)]
pub struct SqliteLedger {
    queue: mpsc::Sender<Request>,
    /// Cancelled when the writer has let go of the file.
    finished: CancellationToken,
    commits: Arc<AtomicU64>,
    failing: Arc<AtomicBool>,
    outdated: CancellationToken,
}

impl SqliteLedger {
    /// Opens the ledger in a directory, creating both if missing, and starts its thread. Blocks for some
    /// milliseconds of disk I/O, and up to the busy timeout if another program holds the file.
    ///
    /// # Errors
    /// See [`OpenError`]: each says what to do.
    pub fn open(directory: &Path) -> Result<Self, OpenError> {
        Self::open_with(directory, Tuning::default())
    }

    /// [`SqliteLedger::open`] with other limits.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_with(directory: &Path, tuning: Tuning) -> Result<Self, OpenError> {
        let (queue, requests) = mpsc::channel(tuning.queue);
        let finished = CancellationToken::new();
        let commits = Arc::new(AtomicU64::new(0));
        let failing = Arc::new(AtomicBool::new(false));
        let outdated = CancellationToken::new();
        let (commits_too, failing_too) = (Arc::clone(&commits), Arc::clone(&failing));
        let signs = writer::Signs { commits: commits_too, failing: failing_too, outdated: outdated.clone() };
        writer::spawn(directory, tuning, requests, signs, finished.clone())?;
        Ok(Self { queue, finished, commits, failing, outdated })
    }

    /// Counts what an orderd ledger holds, reading it from any process while a daemon writes it. Blocks: it
    /// reads the whole `orders` table, about 0.6 s per million orders.
    ///
    /// # Errors
    /// There is no readable ledger of this version in the directory.
    pub fn totals(directory: &Path) -> Result<Totals, OpenError> {
        totals::read(directory)
    }

    /// Commits since the ledger was opened. Far fewer than entries, when entries come together.
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }

    /// Whether it can record, as far as the last commit tells.
    pub fn is_recording(&self) -> bool {
        !self.failing.load(Ordering::Relaxed) && !self.finished.is_cancelled()
    }

    /// Resolves once a later orderd that shares the file has made it new, so that nothing can be recorded any more.
    /// Cancel-safe.
    pub async fn outdated(&self) {
        self.outdated.cancelled().await;
    }

    /// Whether [`SqliteLedger::outdated`] has resolved.
    pub fn is_outdated(&self) -> bool {
        self.outdated.is_cancelled()
    }

    /// Removes a little of what is older than `before`: rows of processed orders, events and attempts, and the
    /// aggregates' minutes. Entries wait for it a few milliseconds. Never removes orders that are not processed, nor
    /// dead letters. To be called again while the answer says that there is more.
    ///
    /// # Errors
    /// The store refused; nothing of this call's was removed.
    pub async fn prune(&self, before: Timestamp) -> Result<Pruned, LedgerError> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Request::Prune { before, answer }).await.map_err(|_| LedgerError::Closed)?;
        answered.await.unwrap_or_else(|dropped| Err(LedgerError::store("remove old rows", dropped)))
    }

    /// Refuses further entries, answers those that wait, moves the write-ahead log into the file and ends
    /// the thread. May be called again, and by many at once.
    pub async fn close(&self) {
        // An error means that the writer has closed its end: it is already finishing.
        let _ = self.queue.send(Request::Close).await;
        self.finished.cancelled().await;
    }
}

impl Ledger for SqliteLedger {
    /// The entry is queued by the call itself while there is room, so entries are recorded in the order of
    /// the calls. Dropping the future does not take a queued entry back.
    fn record(&self, entry: LedgerEntry) -> BoxFuture<'static, Result<Recorded, LedgerError>> {
        let (answer, answered) = oneshot::channel();
        match self.queue.try_send(Request::Record { entry, answer }) {
            Ok(()) => async move { settle(answered.await) }.boxed(),
            Err(TrySendError::Closed(_)) => ready(Err(LedgerError::Closed)).boxed(),
            Err(TrySendError::Full(request)) => {
                let queue = self.queue.clone();
                async move {
                    queue.send(request).await.map_err(|_| LedgerError::Closed)?;
                    settle(answered.await)
                }
                .boxed()
            }
        }
    }
}

/// The writer answers all it takes from the queue, unless a defect makes it panic.
fn settle(answered: Result<Result<Recorded, LedgerError>, oneshot::error::RecvError>) -> Result<Recorded, LedgerError> {
    answered.unwrap_or_else(|dropped| Err(LedgerError::store("finish a commit", dropped)))
}
