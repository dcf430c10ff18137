//! The ledger: the durable record of effects, behind a trait, with SQLite as the default.
//!
//! The inbox (have I seen this?) and the effect (the row, the aggregates) are one transaction, and an
//! answer is given only after its commit is on disk. It never decides what an answer means.

#[cfg(test)]
mod conformance;
mod entry;
pub mod report;
mod sqlite;
pub mod trace;

pub use entry::{
    LedgerEntry, LedgerError, NewAnalytics, NewAttempt, NewDeadLetter, NewNotification, NewOrder, Recorded,
};
pub use sqlite::{
    FILE_NAME, OpenError, OrderCounts, Pruned, Revenue, SqliteLedger, Totals, Tuning, remote_file_system,
};

use futures_util::future::BoxFuture;

/// Records effects, each exactly once.
pub trait Ledger: Send + Sync + 'static {
    /// Records one entry and resolves once it is durable. Entries that arrive together share one commit.
    ///
    /// # Errors
    /// The entry has not been recorded; trying again is safe. All errors are worth a retry: a full disk, a
    /// locked file.
    fn record(&self, entry: LedgerEntry) -> BoxFuture<'static, Result<Recorded, LedgerError>>;
}
