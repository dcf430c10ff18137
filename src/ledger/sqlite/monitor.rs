//! The monitor's thread: notices a write that does not finish, and has an idle writer check its files.
//!
//! It never touches a file itself, since that could hang too.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::request::Request;
use crate::ledger::state::{OutageCause, StateSender};

/// The longest pause between two checks of the writer.
const MAX_INTERVAL: Duration = Duration::from_secs(1);

/// Since when the writer has been using the file; `None` while it waits for requests.
#[derive(Debug, Clone, Default)]
pub(super) struct Busy(Arc<Mutex<Option<Instant>>>);

impl Busy {
    pub fn begin(&self) {
        self.set(Some(Instant::now()));
    }

    pub fn end(&self) {
        self.set(None);
    }

    fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    #[cfg(test)]
    pub fn is_busy(&self) -> bool {
        self.elapsed().is_some()
    }

    fn elapsed(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|since| since.elapsed())
    }
}

/// Starts the thread. It ends when the ledger is dropped or closed.
pub(super) fn spawn(
    queue: mpsc::WeakUnboundedSender<Request>,
    busy: Busy,
    state: StateSender,
    hung_after: Duration,
) -> io::Result<()> {
    let interval = MAX_INTERVAL.min(hung_after / 4);
    let watch = move || {
        loop {
            thread::sleep(interval);
            let Some(queue) = queue.upgrade().filter(|queue| !queue.is_closed()) else { return };
            match busy.elapsed() {
                Some(elapsed) if elapsed >= hung_after => state.unavailable(OutageCause::Hung, None),
                Some(_) => {}
                // The writer waits for requests, so these do not pile up. An error means that it has just ended.
                None => drop(queue.send(Request::CheckFiles)),
            }
        }
    };
    thread::Builder::new().name("ledger-monitor".to_owned()).spawn(watch).map(drop)
}
