//! Keeps what happens for every message from filling the log: a cause is logged at once when it begins, then with a count.
//!
//! Decides which occurrences get a line; callers write the line. Never sees what a line says.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A cause that lasts is logged again this often, with the number of its occurrences since the last line.
const INTERVAL: Duration = Duration::from_secs(60);
/// A cause that did not occur for this long is over: its next occurrence is logged at once.
const FORGET_AFTER: Duration = Duration::from_secs(600);
/// The most causes that are distinguished. Further ones share one entry, so that a cause that differs with every message does
/// not fill the log either.
const MAX_CAUSES: usize = 64;

/// The causes of one kind of log line. `const`, so it may be a `static`.
///
/// ```
/// use orderd::telemetry::RepeatedLog;
/// static REFUSALS: RepeatedLog = RepeatedLog::new();
/// let (queue, code) = ("order_queue", "refused");
/// if let Some(due) = REFUSALS.occurred((queue, code)) {
///     tracing::warn!(queue, code, repeated = due.repeated, "the broker refuses messages");
/// }
/// // Once it works again:
/// if let Some(occurrences) = REFUSALS.ended((queue, code)) {
///     tracing::info!(queue, code, occurrences, "the broker accepts messages again");
/// }
/// ```
#[derive(Debug, Default)]
pub struct RepeatedLog {
    causes: Mutex<Vec<Cause>>,
    /// The length of `causes`, readable without the lock.
    count: AtomicUsize,
}

/// A line is to be written now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineDue {
    /// How often the cause occurred since its last line without being logged; `None` on the first line.
    pub repeated: Option<u64>,
}

#[derive(Debug)]
struct Cause {
    /// Hash of the cause; `None` for those beyond [`MAX_CAUSES`].
    key: Option<u64>,
    logged: Instant,
    occurred: Instant,
    /// Occurrences since `logged` that were not logged.
    unlogged: u64,
    total: u64,
}

impl RepeatedLog {
    /// Without causes.
    pub const fn new() -> Self {
        RepeatedLog { causes: Mutex::new(Vec::new()), count: AtomicUsize::new(0) }
    }

    /// Counts an occurrence of a cause. Returns what its log line says if one is due now.
    ///
    /// The cause has few values, such as a queue and an error's variant; never an order id or an error's text.
    pub fn occurred(&self, cause: impl Hash) -> Option<LineDue> {
        self.occurred_at(hash(cause), Instant::now())
    }

    /// Forgets a cause that is over, so that its next occurrence is logged at once. Returns how often it occurred; `None` if it
    /// never did. Cheap while there is no cause at all.
    pub fn ended(&self, cause: impl Hash) -> Option<u64> {
        if self.count.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let key = hash(cause);
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        let index = causes.iter().position(|cause| cause.key == Some(key))?;
        let total = causes.swap_remove(index).total;
        self.count.store(causes.len(), Ordering::Relaxed);
        Some(total)
    }

    fn occurred_at(&self, key: u64, now: Instant) -> Option<LineDue> {
        let mut causes = self.causes.lock().unwrap_or_else(PoisonError::into_inner);
        if !causes.iter().any(|cause| cause.key == Some(key)) {
            causes.retain(|cause| now.duration_since(cause.occurred) < FORGET_AFTER);
        }
        let known = causes.iter().position(|cause| cause.key == Some(key));
        let shared = || causes.iter().position(|cause| cause.key.is_none());
        let full = causes.len() >= MAX_CAUSES;
        let due = match known.or_else(|| full.then(shared).flatten()) {
            Some(index) => causes[index].occurred(now),
            None => {
                let key = (!full).then_some(key);
                causes.push(Cause { key, logged: now, occurred: now, unlogged: 0, total: 1 });
                Some(LineDue { repeated: None })
            }
        };
        self.count.store(causes.len(), Ordering::Relaxed);
        due
    }
}

impl Cause {
    fn occurred(&mut self, now: Instant) -> Option<LineDue> {
        let quiet = now.duration_since(self.occurred);
        self.occurred = now;
        self.total += 1;
        if now.duration_since(self.logged) < INTERVAL {
            self.unlogged += 1;
            return None;
        }
        self.logged = now;
        let unlogged = std::mem::take(&mut self.unlogged);
        Some(LineDue { repeated: (quiet < FORGET_AFTER).then_some(unlogged) })
    }
}

fn hash(cause: impl Hash) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Option<LineDue> = Some(LineDue { repeated: None });

    #[test]
    fn a_cause_is_logged_at_once_and_then_once_a_minute_with_a_count() {
        let (log, start) = (RepeatedLog::new(), Instant::now());
        let occurred = |millis| log.occurred_at(1, start + Duration::from_millis(millis));
        assert_eq!(occurred(0), FIRST);
        let lines: Vec<_> = (1..=1_250).filter_map(|occurrence| occurred(occurrence * 100)).collect();
        assert_eq!(lines, [LineDue { repeated: Some(599) }, LineDue { repeated: Some(599) }]);
        assert_eq!(log.occurred_at(2, start), FIRST, "another cause is logged by itself");
    }

    #[test]
    fn a_cause_that_ended_or_was_quiet_for_long_is_logged_at_once_when_it_returns() {
        let log = RepeatedLog::new();
        assert_eq!(log.ended("full"), None);
        assert_eq!(log.occurred("full"), FIRST);
        assert_eq!(log.occurred("full"), None);
        assert_eq!(log.ended("full"), Some(2));
        assert_eq!(log.ended("full"), None);
        assert_eq!(log.occurred("full"), FIRST);
        let later = Instant::now() + FORGET_AFTER;
        assert_eq!(log.occurred_at(hash("full"), later), FIRST);
    }

    #[test]
    fn causes_that_differ_with_every_message_share_one_line() {
        let (log, now) = (RepeatedLog::new(), Instant::now());
        let lines = (0..100_000).filter_map(|key| log.occurred_at(key, now)).count();
        assert_eq!(lines, MAX_CAUSES + 1);
        assert!(log.causes.lock().unwrap().len() <= MAX_CAUSES + 1);
        assert_eq!(log.occurred_at(7, now + INTERVAL), Some(LineDue { repeated: Some(0) }));
    }
}
