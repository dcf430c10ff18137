//! Counts the calls of a consumer's steps. It never decides anything.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::histogram::Histogram;
use crate::ledger::StepAction;

/// Bucket bounds of the calls' durations.
pub(super) const CALL_BOUNDS: [Duration; 14] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(900),
];

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum CallEnd {
    /// It is done.
    Done,
    /// It failed, and a retry may help.
    Failed,
    /// It failed for good.
    Refused,
    /// It was dropped before its end, because the delivery was released.
    Abandoned,
}

impl CallEnd {
    /// Every end.
    pub const ALL: [CallEnd; 4] = [CallEnd::Done, CallEnd::Failed, CallEnd::Refused, CallEnd::Abandoned];

    /// Its name in metrics and in the status.
    pub fn as_str(self) -> &'static str {
        match self {
            CallEnd::Done => "done",
            CallEnd::Failed => "failed",
            CallEnd::Refused => "refused",
            CallEnd::Abandoned => "abandoned",
        }
    }
}

/// The counts of one step, or of its undo, at one instant.
#[derive(Debug, Clone)]
pub struct StepReading {
    /// Calls that have not ended yet.
    pub in_flight: u64,
    /// Calls that have ended.
    pub ended: BTreeMap<CallEnd, u64>,
    /// The durations of the calls that were not abandoned.
    pub durations: Histogram,
}

impl Default for StepReading {
    fn default() -> Self {
        StepReading { in_flight: 0, ended: BTreeMap::new(), durations: Histogram::new(&CALL_BOUNDS) }
    }
}

/// The counts of a consumer's steps.
#[derive(Debug, Default)]
pub struct StepCounters(Mutex<BTreeMap<(Arc<str>, StepAction), StepReading>>);

impl StepCounters {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<(Arc<str>, StepAction), StepReading>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a step known, so that it is shown before its first call.
    pub fn add(&self, step: &Arc<str>, action: StepAction) {
        self.lock().entry((Arc::clone(step), action)).or_default();
    }

    /// Counts a call as in flight until the guard ends.
    pub(crate) fn called<'c>(&'c self, step: &Arc<str>, action: StepAction) -> CallGuard<'c> {
        let key = (Arc::clone(step), action);
        self.lock().entry(key.clone()).or_default().in_flight += 1;
        CallGuard { counters: self, key, began: Instant::now(), end: CallEnd::Abandoned }
    }

    /// The counts by step and action.
    pub fn read(&self) -> BTreeMap<(Arc<str>, StepAction), StepReading> {
        self.lock().clone()
    }
}

/// A call in flight.
pub(crate) struct CallGuard<'c> {
    counters: &'c StepCounters,
    key: (Arc<str>, StepAction),
    began: Instant,
    end: CallEnd,
}

impl CallGuard<'_> {
    /// The call has ended.
    pub(crate) fn ended(mut self, end: CallEnd) {
        self.end = end;
    }
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        let mut steps = self.counters.lock();
        let Some(step) = steps.get_mut(&self.key) else { return };
        step.in_flight -= 1;
        *step.ended.entry(self.end).or_default() += 1;
        if self.end != CallEnd::Abandoned {
            step.durations.add(self.began.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_in_flight_until_it_ends_and_abandoned_if_it_is_dropped() {
        let (counters, step) = (StepCounters::default(), Arc::from("charge"));
        counters.add(&step, StepAction::Undo);
        let first = counters.called(&step, StepAction::Do);
        let second = counters.called(&step, StepAction::Do);
        let read = || counters.read()[&(Arc::clone(&step), StepAction::Do)].clone();
        assert_eq!(read().in_flight, 2);
        first.ended(CallEnd::Done);
        drop(second);
        let reading = read();
        assert_eq!((reading.in_flight, reading.durations.count()), (0, 1));
        assert_eq!(reading.ended, [(CallEnd::Done, 1), (CallEnd::Abandoned, 1)].into());
        assert!(counters.read()[&(step, StepAction::Undo)].ended.is_empty());
    }
}
