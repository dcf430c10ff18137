//! Whether an event file can be written, and if not, why and since when. Readiness and the consumers that write the file watch
//! it: while it cannot be written, they take on no new work.
//!
//! An outage is logged when it begins, when its cause changes, then once a minute, and when it ends; never once per line.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::chain::chain;
use crate::files::{FileOutage, FileOutageCause, FileState};
use crate::telemetry::RepeatedLog;

/// A write that takes longer than this hangs. Longer than the wait for another program's lock.
const HUNG_AFTER: Duration = Duration::from_secs(4);
/// After an outage that was shorter, another one with the same cause within a minute is not logged: on a disk that is almost
/// full, some lines fit between others that do not.
const SHORT_OUTAGE: SignedDuration = SignedDuration::from_secs(5);

/// Changes the state, and logs the changes.
#[derive(Debug)]
pub(super) struct EventFileState {
    state: watch::Sender<FileState>,
    /// Since when the writer has been using the file; `None` while it waits.
    busy: Mutex<Option<Instant>>,
    log: RepeatedLog,
    /// The beginning of the present outage was logged, so its end is logged too.
    logged: AtomicBool,
}

impl EventFileState {
    /// For a file that can be written.
    pub fn new(path: PathBuf) -> Self {
        EventFileState {
            state: watch::Sender::new(FileState { path, outages: 0, outage: None }),
            busy: Mutex::new(None),
            log: RepeatedLog::new(),
            logged: AtomicBool::new(false),
        }
    }

    /// Watches the state.
    pub fn subscribe(&self) -> watch::Receiver<FileState> {
        self.state.subscribe()
    }

    /// The writer begins to use the file that is current now.
    pub fn begin(&self, path: PathBuf) {
        self.state.send_if_modified(|state| {
            state.path = path;
            false
        });
        self.set_busy(Some(Instant::now()));
    }

    /// The writer has used the file.
    pub fn end(&self, result: &io::Result<()>) {
        self.set_busy(None);
        match result {
            Ok(()) => self.available(),
            Err(error) => {
                let cause = FileOutageCause::of(error);
                self.unavailable(cause, &format!("{} ({})", cause.advice(), chain(error)), || true);
            }
        }
    }

    /// The file cannot be written if the writer has been using it for too long.
    pub fn check_progress(&self) {
        let hangs = || self.busy().is_some_and(|since| since.elapsed() >= HUNG_AFTER);
        if hangs() {
            // Compared again under the state's lock, because the writer may end meanwhile.
            self.unavailable(FileOutageCause::Hung, FileOutageCause::Hung.advice(), hangs);
        }
    }

    /// Nothing is written any more.
    pub fn writer_died(&self) {
        self.unavailable(FileOutageCause::Other, "the thread that writes it died; restart orderd", || true);
    }

    fn busy(&self) -> Option<Instant> {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_busy(&self, since: Option<Instant>) {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    fn unavailable(&self, cause: FileOutageCause, detail: &str, is_true: impl Fn() -> bool) {
        let mut file = None;
        self.state.send_if_modified(|state| {
            if !is_true() {
                return false;
            }
            let since = state.outage.as_ref().map(|outage| outage.since);
            if since.is_none() {
                state.outages += 1;
            }
            let since = since.unwrap_or_else(Timestamp::now);
            state.outage = Some(FileOutage { cause, detail: detail.to_owned(), since });
            file = Some(state.path.clone());
            true
        });
        let Some(file) = file else { return };
        let Some(due) = self.log.occurred(cause) else { return };
        self.logged.store(true, Ordering::Relaxed);
        let (file, code, repeated) = (file.display(), cause.as_str(), due.repeated);
        // A person has to act only if the outage cannot end by itself.
        if cause.needs_a_person() {
            error!(%file, cause = code, detail, repeated, "events cannot be written to their file; their messages wait");
        } else {
            warn!(%file, cause = code, detail, repeated, "events cannot be written to their file; their messages wait");
        }
    }

    fn available(&self) {
        let mut ended = None;
        self.state.send_if_modified(|state| {
            ended = state.outage.take().map(|outage| (outage, state.path.clone()));
            ended.is_some()
        });
        let Some((FileOutage { cause, since, .. }, file)) = ended else { return };
        let lasted = Timestamp::now().duration_since(since);
        if lasted >= SHORT_OUTAGE {
            for cause in FileOutageCause::ALL {
                self.log.ended(cause);
            }
        }
        if self.logged.swap(false, Ordering::Relaxed) {
            let (file, seconds) = (file.display(), lasted.as_secs());
            info!(%file, cause = cause.as_str(), seconds, "events are written to their file again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_keeps_its_beginning_when_its_cause_changes() {
        let state = EventFileState::new("/var/lib/orderd/analytics.jsonl".into());
        let outage = || state.subscribe().borrow().outage.clone();
        state.begin("/a".into());
        state.end(&Err(rustix::io::Errno::IO.into()));
        let begun = outage().unwrap();
        assert_eq!(begun.cause, FileOutageCause::IoError);
        assert!(begun.detail.contains("os error 5"), "{}", begun.detail);
        state.end(&Err(rustix::io::Errno::NOSPC.into()));
        let changed = outage().unwrap();
        assert_eq!((changed.cause, changed.since), (FileOutageCause::DiskFull, begun.since));
        state.end(&Ok(()));
        let state = state.subscribe().borrow().clone();
        assert_eq!(state, FileState { path: "/a".into(), outages: 1, outage: None });
    }

    #[test]
    fn a_write_that_does_not_finish_is_an_outage_until_it_does() {
        let state = EventFileState::new("/a".into());
        let cause = || state.subscribe().borrow().outage.as_ref().map(|outage| outage.cause);
        state.begin("/a".into());
        state.check_progress();
        assert_eq!(cause(), None);
        state.set_busy(Instant::now().checked_sub(HUNG_AFTER));
        state.check_progress();
        assert_eq!(cause(), Some(FileOutageCause::Hung));
        state.end(&Ok(()));
        state.check_progress();
        assert_eq!(cause(), None);
    }
}
