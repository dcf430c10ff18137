//! The result of removing old rows.

/// The rows removed by one call, or by several added up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pruned {
    /// Rows of processed orders.
    pub orders: usize,
    /// Rows of events.
    pub events: usize,
    /// Rows of attempts.
    pub attempts: usize,
    /// Runs, each with its steps.
    pub step_runs: usize,
    /// Runs of dead letters, which are kept, but no longer what their steps have said.
    pub erased_runs: usize,
    /// Aggregates of single minutes. Zero in a ledger that keeps none.
    pub minutes: usize,
    /// Stored dead letters that were replayed or discarded, with their contents.
    pub letters: usize,
    /// Whether there may be more to remove.
    pub more: bool,
}

impl Pruned {
    /// Adds what another call removed; `more` is taken from that call.
    pub fn add(&mut self, other: Pruned) {
        let Pruned { orders, events, attempts, step_runs, erased_runs, minutes, letters, more } = other;
        self.orders += orders;
        self.events += events;
        self.attempts += attempts;
        self.step_runs += step_runs;
        self.erased_runs += erased_runs;
        self.minutes += minutes;
        self.letters += letters;
        self.more = more;
    }

    /// Whether nothing was removed.
    pub fn is_empty(&self) -> bool {
        let rows = self.orders + self.events + self.attempts + self.step_runs + self.erased_runs;
        rows + self.minutes + self.letters == 0
    }
}
