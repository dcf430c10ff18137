//! Whether the ledger can record, and if not, why and since when. Callers watch it: while the ledger cannot record, they
//! take on no new work.
//!
//! An outage is logged when it begins, when its cause changes, and when it ends; never once per entry.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{error, info, warn};
use utoipa::ToSchema;

use crate::telemetry::RepeatedLog;

/// After an outage that was shorter, another one with the same cause within a minute is not logged: on a disk that is almost
/// full, small commits succeed between large ones that fail.
const SHORT_OUTAGE: SignedDuration = SignedDuration::from_secs(5);

/// The state of a ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerState {
    /// It can record, judged by its last commit.
    Recording,
    /// It cannot record. What is to be recorded waits, and is recorded once the outage ends.
    Unavailable(Outage),
    /// It was closed.
    Closed,
}

/// A time in which the ledger cannot record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outage {
    /// The cause that was seen last.
    pub cause: OutageCause,
    /// The cause in words, with what to do about it.
    pub detail: String,
    /// When the outage began.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// Why a ledger cannot record. The names are stable: they are shown in the status and counted by programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutageCause {
    /// Another program holds the lock.
    Locked,
    /// The disk or its quota is full.
    DiskFull,
    /// The file or its file system is read-only.
    ReadOnly,
    /// The operating system reported an I/O error.
    IoError,
    /// A write has not finished for seconds: the disk hangs or is overloaded.
    Hung,
    /// A file of the ledger was deleted, moved or replaced.
    FileReplaced,
    /// The file is damaged.
    Damaged,
    /// A newer orderd has migrated the ledger.
    Outdated,
    /// The thread that records has panicked, which is a defect of orderd.
    WriterDied,
    /// Another error of the store.
    Other,
}

impl OutageCause {
    /// Every cause.
    pub const ALL: [OutageCause; 10] = [
        OutageCause::Locked,
        OutageCause::DiskFull,
        OutageCause::ReadOnly,
        OutageCause::IoError,
        OutageCause::Hung,
        OutageCause::FileReplaced,
        OutageCause::Damaged,
        OutageCause::Outdated,
        OutageCause::WriterDied,
        OutageCause::Other,
    ];

    /// Its stable name.
    pub fn as_str(self) -> &'static str {
        match self {
            OutageCause::Locked => "locked",
            OutageCause::DiskFull => "disk_full",
            OutageCause::ReadOnly => "read_only",
            OutageCause::IoError => "io_error",
            OutageCause::Hung => "hung",
            OutageCause::FileReplaced => "file_replaced",
            OutageCause::Damaged => "damaged",
            OutageCause::Outdated => "outdated",
            OutageCause::WriterDied => "writer_died",
            OutageCause::Other => "other",
        }
    }

    /// What it means and what to do.
    fn advice(self) -> &'static str {
        match self {
            OutageCause::Locked => "another program holds the lock; end that program",
            OutageCause::DiskFull => "the disk or a quota on it is full; make room, or raise the quota",
            OutageCause::ReadOnly => "the file or its file system is read-only; make it writable",
            OutageCause::IoError => "the operating system reports an I/O error; check the disk",
            OutageCause::Hung => "a write does not finish; the disk hangs or is overloaded",
            OutageCause::FileReplaced => {
                "a file of the ledger was deleted, moved or replaced while orderd runs, and nothing is recorded until the \
                 same files are back; put them back, or stop orderd, restore a backup, and start it"
            }
            OutageCause::Damaged => "the file is damaged; stop orderd and restore a backup",
            OutageCause::Outdated => "a newer orderd has migrated the ledger; upgrade this instance",
            OutageCause::WriterDied => "the thread that records has died, a defect of orderd; restart orderd",
            OutageCause::Other => "the store refuses to write",
        }
    }

    /// Whether the outage ends only if a person acts.
    fn needs_a_person(self) -> bool {
        match self {
            OutageCause::Locked | OutageCause::Hung | OutageCause::IoError | OutageCause::Other => false,
            OutageCause::DiskFull
            | OutageCause::ReadOnly
            | OutageCause::FileReplaced
            | OutageCause::Damaged
            | OutageCause::Outdated
            | OutageCause::WriterDied => true,
        }
    }

    /// Whether nothing can ever be recorded again by this open ledger.
    pub fn is_final(self) -> bool {
        match self {
            OutageCause::Outdated | OutageCause::WriterDied => true,
            OutageCause::Locked
            | OutageCause::DiskFull
            | OutageCause::ReadOnly
            | OutageCause::IoError
            | OutageCause::Hung
            | OutageCause::FileReplaced
            | OutageCause::Damaged
            | OutageCause::Other => false,
        }
    }
}

/// Changes the state and logs the changes. Clones share the state.
#[derive(Debug, Clone)]
pub(super) struct StateSender(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: watch::Sender<LedgerState>,
    /// Outages that have begun.
    outages: AtomicU64,
    log: RepeatedLog,
    /// The beginning of the present outage was logged, so its end is logged too.
    logged: AtomicBool,
}

impl Default for StateSender {
    fn default() -> Self {
        StateSender(Arc::new(Shared {
            state: watch::Sender::new(LedgerState::Recording),
            outages: AtomicU64::new(0),
            log: RepeatedLog::new(),
            logged: AtomicBool::new(false),
        }))
    }
}

impl StateSender {
    /// Watches the state.
    pub fn subscribe(&self) -> watch::Receiver<LedgerState> {
        self.0.state.subscribe()
    }

    /// Outages so far, the present one included.
    pub fn outages(&self) -> u64 {
        self.0.outages.load(Ordering::Relaxed)
    }

    /// The ledger cannot record. `error` is the store's error, if there is one.
    pub fn unavailable(&self, cause: OutageCause, error: Option<&str>) {
        let advice = cause.advice();
        let detail = error.map_or_else(|| advice.to_owned(), |error| format!("{advice} ({error})"));
        let new_cause = self.0.state.send_if_modified(|state| {
            let (since, new_cause) = match state {
                LedgerState::Closed => return false,
                LedgerState::Unavailable(outage) => (outage.since, outage.cause != cause),
                LedgerState::Recording => {
                    self.0.outages.fetch_add(1, Ordering::Relaxed);
                    (Timestamp::now(), true)
                }
            };
            *state = LedgerState::Unavailable(Outage { cause, detail: detail.clone(), since });
            new_cause
        });
        // The daemon does not wait for such a ledger: it ends, and says so.
        if !new_cause || cause.is_final() {
            return;
        }
        let Some(due) = self.0.log.occurred(cause) else { return };
        self.0.logged.store(true, Ordering::Relaxed);
        let (needs_a_person, cause, repeated) = (cause.needs_a_person(), cause.as_str(), due.repeated);
        // A person has to act only if the outage cannot end by itself.
        if needs_a_person {
            error!(cause, detail, repeated, "the ledger cannot record; orderd waits and takes no new messages");
        } else {
            warn!(cause, detail, repeated, "the ledger cannot record; orderd waits and takes no new messages");
        }
    }

    /// The ledger has recorded.
    pub fn recording(&self) {
        let mut ended = None;
        self.0.state.send_if_modified(|state| match state {
            LedgerState::Recording | LedgerState::Closed => false,
            LedgerState::Unavailable(outage) => {
                ended = Some((outage.cause, Timestamp::now().duration_since(outage.since)));
                *state = LedgerState::Recording;
                true
            }
        });
        let Some((cause, lasted)) = ended else { return };
        if lasted >= SHORT_OUTAGE {
            for cause in OutageCause::ALL {
                self.0.log.ended(cause);
            }
        }
        if self.0.logged.swap(false, Ordering::Relaxed) {
            info!(cause = cause.as_str(), seconds = lasted.as_secs(), "the ledger records again");
        }
    }

    /// The ledger was closed.
    pub fn closed(&self) {
        self.0.state.send_replace(LedgerState::Closed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outage(state: &StateSender) -> Option<Outage> {
        match &*state.subscribe().borrow() {
            LedgerState::Unavailable(outage) => Some(outage.clone()),
            LedgerState::Recording | LedgerState::Closed => None,
        }
    }

    #[test]
    fn an_outage_keeps_its_beginning_when_its_cause_changes() {
        let state = StateSender::default();
        state.unavailable(OutageCause::Hung, None);
        let begun = outage(&state).unwrap().since;
        state.unavailable(OutageCause::IoError, Some("disk I/O error"));
        let changed = outage(&state).unwrap();
        assert_eq!((changed.cause, changed.since), (OutageCause::IoError, begun));
        assert!(changed.detail.contains("disk I/O error"), "{}", changed.detail);
        state.recording();
        assert_eq!(outage(&state), None);
    }

    #[test]
    fn a_closed_ledger_stays_closed() {
        let state = StateSender::default();
        state.closed();
        state.recording();
        state.unavailable(OutageCause::DiskFull, None);
        assert_eq!(*state.subscribe().borrow(), LedgerState::Closed);
    }
}
