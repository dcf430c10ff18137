//! The calls and failures of the last time, for a circuit breaker. Pure: the caller supplies the time.

use std::time::Duration;

use tokio::time::Instant;

/// The window moves in steps of this part.
const WINDOW_PARTS: u32 = 10;

/// Counts the calls of the last time, in parts of it.
#[derive(Debug)]
pub(super) struct CallWindow {
    part: Duration,
    /// When the last part began.
    began: Instant,
    /// Calls and failures of each part, the last one first.
    parts: [(u32, u32); WINDOW_PARTS as usize],
}

impl CallWindow {
    pub fn new(length: Duration, now: Instant) -> Self {
        CallWindow { part: length / WINDOW_PARTS, began: now, parts: [(0, 0); WINDOW_PARTS as usize] }
    }

    pub fn add(&mut self, failed: bool, now: Instant) {
        self.advance(now);
        let (calls, failures) = &mut self.parts[0];
        *calls = calls.saturating_add(1);
        *failures = failures.saturating_add(u32::from(failed));
    }

    pub fn counts(&mut self, now: Instant) -> (u32, u32) {
        self.advance(now);
        self.parts.iter().fold((0, 0), |(calls, failures), part| {
            (u32::saturating_add(calls, part.0), u32::saturating_add(failures, part.1))
        })
    }

    fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.began).as_nanos() / self.part.as_nanos().max(1);
        const PARTS: usize = WINDOW_PARTS as usize;
        let shift = usize::try_from(passed).unwrap_or(usize::MAX).min(PARTS);
        if shift == 0 {
            return;
        }
        self.parts.rotate_right(shift % PARTS);
        self.parts[..shift].fill((0, 0));
        self.began = if shift == PARTS { now } else { self.began + self.part * shift as u32 };
    }
}
