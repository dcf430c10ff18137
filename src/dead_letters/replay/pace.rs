//! How fast a replay may publish, until when it is claimed, and which queues the broker refuses. It never publishes.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::ledger::{LetterProgress, Replay, ReplayGroup};

/// How often a replay looks for outcomes.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Waits after the broker did not accept a letter: it may take a person to grant a permission, or to restore a queue.
const REFUSED_BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(60) };
/// After so many attempts in a row that were refused for a lasting reason, a replay stops.
const MAX_REFUSALS: u32 = 5;

/// A rate in letters a second. What is not used is kept for two ticks only.
pub(super) struct Bucket {
    letters: f64,
    at: Instant,
}

impl Bucket {
    fn new() -> Self {
        Bucket { letters: f64::INFINITY, at: Instant::now() }
    }

    /// How many letters may be published now.
    pub fn allowed(&mut self, rate: u32) -> u64 {
        let (now, rate) = (Instant::now(), f64::from(rate));
        let most = (rate * TICK.as_secs_f64() * 2.0).max(1.0);
        self.letters = (self.letters + rate * (now - self.at).as_secs_f64()).min(most);
        self.at = now;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is small and not negative")]
        let whole = self.letters.max(0.0) as u64;
        whole
    }

    /// So many are published.
    #[expect(clippy::cast_precision_loss, reason = "batches are small")]
    pub fn used(&mut self, letters: u64) {
        self.letters -= letters as f64;
    }
}

/// The rates at which all replays together may publish to each queue.
#[derive(Default)]
pub(super) struct QueueRates(BTreeMap<String, (u32, Bucket)>);

impl QueueRates {
    /// From now on, the rate of a queue is the lowest of the replays that have letters for it.
    pub fn set(&mut self, replays: &[Replay]) {
        let mut rates: BTreeMap<&str, u32> = BTreeMap::new();
        for replay in replays {
            let left = |group: &&ReplayGroup| group.count(&[LetterProgress::Selected]) > 0;
            for group in replay.groups.iter().filter(left) {
                let rate = rates.entry(&group.queue).or_insert(u32::MAX);
                *rate = replay.options.rate.min(*rate);
            }
        }
        self.0.retain(|queue, _| rates.contains_key(&**queue));
        for (queue, rate) in rates {
            self.0.entry(queue.to_owned()).or_insert_with(|| (rate, Bucket::new())).0 = rate;
        }
    }

    /// How many letters may be published to a queue now.
    pub fn allowed(&mut self, queue: &str) -> u64 {
        self.0.get_mut(queue).map_or(0, |(rate, bucket)| bucket.allowed(*rate))
    }

    /// So many are published to it.
    pub fn used(&mut self, queue: &str, letters: u64) {
        if let Some((_, bucket)) = self.0.get_mut(queue) {
            bucket.used(letters);
        }
    }
}

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
    pub bucket: Bucket,
    refused: BTreeMap<String, RefusedQueue>,
}

impl Pace {
    pub fn new() -> Self {
        let now = Instant::now();
        Pace { claimed_until: now, not_before: now, bucket: Bucket::new(), refused: BTreeMap::new() }
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

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn no_more_is_published_than_the_rate_allows_and_a_pause_does_not_add_up() {
        for (rate, most) in [(1, 1), (5, 1), (50, 10), (1_000, 200)] {
            let (mut bucket, mut published) = (Bucket::new(), 0);
            for _ in 0..200 {
                let allowed = bucket.allowed(rate);
                bucket.used(allowed);
                published += allowed;
                advance(TICK).await;
            }
            let seconds = 20;
            let expected = u64::from(rate) * seconds;
            assert!((expected - 1..=expected + most).contains(&published), "{rate}: {published}");
            advance(Duration::from_secs(3_600)).await;
            assert_eq!(bucket.allowed(rate), most, "{rate}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_that_is_refused_waits_ever_longer_until_it_is_accepted_or_too_often_refused() {
        let mut pace = Pace::new();
        let mut waits = Vec::new();
        for attempt in 1..=MAX_REFUSALS {
            let refused_at = Instant::now();
            assert_eq!(pace.refused("carts", "403".to_owned(), true), attempt == MAX_REFUSALS);
            assert_eq!((pace.refusal("carts"), pace.refusal("orders")), (Some("403"), None));
            while pace.refusal("carts").is_some() {
                advance(TICK).await;
            }
            waits.push(refused_at.elapsed().as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16]);
        assert!(!pace.refused("carts", "full".to_owned(), false), "it may have room again");
        pace.accepted("carts");
        assert!(pace.refusal("carts").is_none() && !pace.refused("carts", "403".to_owned(), true));
    }
}
