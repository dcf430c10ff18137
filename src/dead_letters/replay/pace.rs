//! How fast a replay may publish, until when it is claimed, and which queues the broker refuses. It never publishes.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;

/// How often a replay looks for outcomes.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Waits after the broker did not accept a letter: it may take a person to grant a permission, or to restore a queue.
const REFUSED_BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(60) };
/// After so many attempts in a row that were refused for a lasting reason, a replay stops.
const MAX_REFUSALS: u32 = 5;

/// The broker does not accept letters for a queue.
struct RefusedQueue {
    /// The broker's text.
    error: String,
    attempts: u32,
    not_before: Instant,
}

/// The pace of one replay.
pub(super) struct Pace {
    pub claimed_until: Instant,
    /// Nothing is published before.
    pub not_before: Instant,
    allowed: f64,
    at: Instant,
    refused: BTreeMap<String, RefusedQueue>,
}

impl Pace {
    pub fn new() -> Self {
        let now = Instant::now();
        Pace { claimed_until: now, not_before: now, allowed: f64::INFINITY, at: now, refused: BTreeMap::new() }
    }

    /// How many letters may be published now.
    pub fn allowed(&mut self, rate: u32) -> u64 {
        let (now, rate) = (Instant::now(), f64::from(rate));
        // What was not used is kept for two ticks only.
        let most = (rate * TICK.as_secs_f64() * 2.0).max(1.0);
        self.allowed = (self.allowed + rate * (now - self.at).as_secs_f64()).min(most);
        self.at = now;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is small and not negative")]
        let whole = self.allowed.max(0.0) as u64;
        whole
    }

    #[expect(clippy::cast_precision_loss, reason = "batches are small")]
    pub fn used(&mut self, letters: u64) {
        self.allowed -= letters as f64;
    }

    /// The broker has accepted a letter for a queue.
    pub fn accepted(&mut self, queue: &str) {
        self.refused.remove(queue);
    }

    /// The broker has refused a letter for a queue. `true`: too often, if the reason is one that lasts.
    pub fn refused(&mut self, queue: &str, error: String, lasts: bool) -> bool {
        let now = Instant::now();
        let known = self.refused.remove(queue);
        let attempts = known.map_or(0, |known| known.attempts).saturating_add(1);
        let not_before = now + REFUSED_BACKOFF.wait(attempts - 1, 1.0);
        self.refused.insert(queue.to_owned(), RefusedQueue { error, attempts, not_before });
        lasts && attempts >= MAX_REFUSALS
    }

    /// What the broker said, while nothing is to be published to a queue.
    pub fn refusal(&self, queue: &str) -> Option<&str> {
        let refused = self.refused.get(queue)?;
        (refused.not_before > Instant::now()).then_some(&refused.error)
    }
}
