//! The default ledger: one SQLite file, written by a thread of its own.
//!
//! It owns the file, the writer's thread and the queue to it. It must never block an async task, and never answer before
//! the commit that contains the answer is on disk.

mod access;
mod backup;
mod erase;
mod file_system;
mod files;
mod monitor;
mod open;
mod order_sums;
mod prune;
mod reader;
mod report;
mod request;
mod sales;
mod schema;
mod statements;
mod store_error;
mod totals;
mod trace;
mod writer;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt, ready};
use jiff::Timestamp;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::entry::{LedgerEntry, Recorded};
use super::error::{LedgerError, OpenError};
use super::retention::Pruned;
use super::state::LedgerState;
use super::traits::{LedgerMaintenance, LedgerWriter};
use request::Request;

pub use reader::SqliteReader;

pub(super) use erase::{erase, orders as orders_of};

/// The ledger's file within its directory. Other programs may read it.
pub const FILE_NAME: &str = "orderd.db";

/// How the ledger uses its file. [`Tuning::default`] is measured (`benches/ledger.rs`); tests shrink it.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// Entries that can wait for the writer; further ones wait in their callers.
    pub queue: usize,
    /// Most entries in one commit.
    pub batch: usize,
    /// Longest time that the writer waits for more entries before it commits a small batch. It waits less the fewer
    /// entries the previous commit had.
    pub gather: Duration,
    /// How long to wait for another program's lock before that is an outage. Another instance holds the lock for as long
    /// as a commit takes.
    pub busy_timeout: Duration,
    /// How long a write may take before that is an outage.
    pub hung_after: Duration,
    /// SQLite's page cache, in KiB.
    pub cache_kib: u32,
    /// Pages (4 KiB) in the write-ahead log before a checkpoint moves them to the file. A page that was written many
    /// times is moved once.
    pub checkpoint_pages: u32,
    /// Most pages of the file; simulates a full disk.
    pub max_pages: Option<u32>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            queue: 4_096,
            batch: 1_024,
            gather: Duration::from_millis(10),
            busy_timeout: Duration::from_secs(2),
            hung_after: Duration::from_secs(4),
            cache_kib: 8_192,
            checkpoint_pages: 16_000,
            max_pages: None,
        }
    }
}

/// The ledger in `orderd.db`. Dropping it lets the writer finish what is queued in the background;
/// [`LedgerMaintenance::close`] waits for that.
#[derive(Debug)]
pub struct SqliteLedger {
    directory: PathBuf,
    queue: mpsc::Sender<Request>,
    /// Cancelled when the writer has closed the file.
    finished: CancellationToken,
    shared: writer::SharedState,
}

impl SqliteLedger {
    /// Opens the ledger in a directory, creating both if missing, and starts the writer's thread. Blocks for some
    /// milliseconds of disk I/O, up to the busy timeout if another program locks the file, and minutes if the file has
    /// to be migrated.
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
        let shared = writer::SharedState::default();
        let hung_after = tuning.hung_after;
        writer::spawn(directory, tuning, requests, shared.clone(), finished.clone())?;
        monitor::spawn(queue.downgrade(), shared.busy.clone(), shared.state.clone(), hung_after)
            .map_err(|source| OpenError::Thread { location: open::location(directory), source })?;
        file_system::warn_if_remote(directory);
        Ok(Self { directory: directory.to_owned(), queue, finished, shared })
    }
}

impl LedgerMaintenance for SqliteLedger {
    fn prune(&self, before: Timestamp) -> BoxFuture<'_, Result<Pruned, LedgerError>> {
        async move {
            let (answer, answered) = oneshot::channel();
            self.queue.send(Request::Prune { before, answer }).await.map_err(|_| LedgerError::Closed)?;
            answered.await.unwrap_or_else(|dropped| Err(LedgerError::refused("remove old rows", dropped)))
        }
        .boxed()
    }

    fn state(&self) -> watch::Receiver<LedgerState> {
        self.shared.state.subscribe()
    }

    fn outages(&self) -> u64 {
        self.shared.state.outages()
    }

    fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    fn outdated(&self) -> BoxFuture<'_, ()> {
        self.shared.outdated.cancelled().boxed()
    }

    fn is_outdated(&self) -> bool {
        self.shared.outdated.is_cancelled()
    }

    /// Also moves the write-ahead log into the file and ends the thread.
    fn close(&self) -> BoxFuture<'_, ()> {
        async {
            // An error means that the writer no longer receives: it is already finishing.
            let _ = self.queue.send(Request::Close).await;
            self.finished.cancelled().await;
        }
        .boxed()
    }
}

impl LedgerWriter for SqliteLedger {
    /// The call itself queues the entry while there is room, so entries are recorded in the order of the calls.
    fn record(&self, entry: LedgerEntry) -> BoxFuture<'static, Result<Recorded, LedgerError>> {
        let (answer, answered) = oneshot::channel();
        match self.queue.try_send(Request::Record { entry, answer }) {
            Ok(()) => async move { received(answered.await) }.boxed(),
            Err(TrySendError::Closed(_)) => ready(Err(LedgerError::Closed)).boxed(),
            Err(TrySendError::Full(request)) => {
                let queue = self.queue.clone();
                async move {
                    queue.send(request).await.map_err(|_| LedgerError::Closed)?;
                    received(answered.await)
                }
                .boxed()
            }
        }
    }
}

/// The writer answers every entry it takes from the queue, unless a defect makes it panic.
fn received(answer: Result<Result<Recorded, LedgerError>, oneshot::error::RecvError>) -> Result<Recorded, LedgerError> {
    answer.unwrap_or_else(|dropped| Err(LedgerError::refused("finish a commit", dropped)))
}
