//! A token bucket: limits how often something happens in the long run, and the size of a burst. Pure: the caller supplies the
//! time.

use std::time::Duration;

use tokio::time::Instant;

/// Tokens that are added at a steady rate, up to a capacity.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    capacity: f64,
    per_second: f64,
    tokens: f64,
    at: Instant,
}

impl TokenBucket {
    /// A full bucket. The capacity is at least 1, so that a token can be taken at all.
    pub fn full(capacity: f64, per_second: f64, now: Instant) -> Self {
        let capacity = capacity.max(1.0);
        TokenBucket { capacity, per_second, tokens: capacity, at: now }
    }

    /// Changes capacity and rate. Tokens beyond the new capacity are lost.
    pub fn set(&mut self, capacity: f64, per_second: f64, now: Instant) {
        self.refill(now);
        self.capacity = capacity.max(1.0);
        self.per_second = per_second;
        self.tokens = self.tokens.min(self.capacity);
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.take_many(1.0, now)
    }

    /// Takes this many tokens if the bucket has them, else none.
    pub fn take_many(&mut self, count: f64, now: Instant) -> bool {
        self.refill(now);
        let enough = self.tokens >= count;
        if enough {
            self.tokens -= count;
        }
        enough
    }

    /// How long it takes until there is a token: zero if there is one.
    pub fn wait(&mut self, now: Instant) -> Duration {
        self.refill(now);
        let missing = (1.0 - self.tokens).max(0.0);
        // Rounded up to what the timer can wait for, or the token would not be there yet.
        let wait = Duration::try_from_secs_f64(missing / self.per_second).unwrap_or(Duration::MAX);
        if wait.is_zero() { wait } else { wait.saturating_add(Duration::from_micros(1)) }
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.per_second).min(self.capacity);
        self.at = self.at.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_return_at_the_rate_and_up_to_the_capacity() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(3.0, 10.0, start);
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!((0..5).filter(|_| bucket.take(start)).count(), 3);
        assert!(!bucket.take(after(99)));
        assert!(bucket.wait(after(99)) <= Duration::from_millis(2));
        assert!(bucket.take(after(101)));
        assert!(!bucket.take_many(4.0, after(60_000)) && bucket.take_many(3.0, after(60_000)));
    }

    #[test]
    fn a_token_is_there_after_the_wait() {
        let start = Instant::now();
        for per_second in [1.0 / 60.0, 0.3, 7.0, 199.9, 1e6] {
            let mut bucket = TokenBucket::full(1.0, per_second, start);
            assert!(bucket.wait(start).is_zero() && bucket.take(start));
            let wait = bucket.wait(start);
            assert!(bucket.take(start + wait), "{per_second}: {wait:?}");
        }
    }

    #[test]
    fn a_new_rate_holds_at_once_and_a_clock_that_stands_still_adds_nothing() {
        let start = Instant::now();
        let mut bucket = TokenBucket::full(100.0, 100.0, start);
        bucket.set(2.0, 1.0, start);
        assert_eq!((0..100).filter(|_| bucket.take(start)).count(), 2);
        bucket.set(100.0, 100.0, start);
        assert!(!bucket.take(start), "a change grants no tokens");
        assert_eq!((0..100).filter(|_| bucket.take(start + Duration::from_millis(105))).count(), 10);
    }
}
