//! The exchanges that the broker does not have. A publication to one makes the broker close the channel that all others are
//! published on, so each is tried again rarely, and alone.
//!
//! Pure: times are arguments.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::message::PublishError;

/// Waits before the next publication to a missing exchange.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(60) };
/// The most exchanges that are remembered. orderd publishes to five.
const MAX_EXCHANGES: usize = 16;

struct MissingExchange {
    exchange: Arc<str>,
    /// The broker's reply, such as `404 NOT_FOUND - no exchange 'orders'`.
    reply: String,
    attempts: u32,
    retry_at: Instant,
}

/// See the module's documentation.
#[derive(Default)]
pub struct MissingExchanges(Vec<MissingExchange>);

impl MissingExchanges {
    /// The broker closed the channel because of this error.
    pub fn record(&mut self, error: &PublishError, now: Instant) {
        let PublishError::Unroutable { exchange, reply, .. } = error else { return };
        let wait = |attempts| now + BACKOFF.wait(attempts, 1.0);
        let is_full = self.0.len() >= MAX_EXCHANGES;
        match self.0.iter_mut().find(|missing| missing.exchange == *exchange) {
            // What was sent before the broker's answer is not another attempt.
            Some(missing) if now < missing.retry_at => {}
            Some(missing) => {
                missing.attempts = missing.attempts.saturating_add(1);
                missing.retry_at = wait(missing.attempts);
            }
            None if !is_full => {
                let (exchange, reply) = (Arc::clone(exchange), reply.clone());
                self.0.push(MissingExchange { exchange, reply, attempts: 0, retry_at: wait(0) });
            }
            None => {}
        }
    }

    /// The broker answered a publication to this exchange, so it exists. Returns whether it was missing before.
    pub fn exists(&mut self, exchange: &str) -> bool {
        let before = self.0.len();
        if before > 0 {
            self.0.retain(|missing| *missing.exchange != *exchange);
        }
        self.0.len() < before
    }

    /// The topology was declared again: each exchange is tried with the next publication, still alone.
    pub fn try_again(&mut self, now: Instant) {
        for missing in &mut self.0 {
            (missing.attempts, missing.retry_at) = (0, now);
        }
    }

    /// Whether a publication to this exchange must be sent alone.
    pub fn is_suspect(&self, exchange: &str) -> bool {
        self.0.iter().any(|missing| *missing.exchange == *exchange)
    }

    /// The error of a publication that is not sent, because its exchange was missing a short time ago.
    pub fn error(&self, exchange: &str, routing_key: &str, now: Instant) -> Option<PublishError> {
        let missing = self.0.iter().find(|missing| *missing.exchange == *exchange && now < missing.retry_at)?;
        let (exchange, reply) = (Arc::clone(&missing.exchange), missing.reply.clone());
        Some(PublishError::Unroutable { exchange, routing_key: routing_key.to_owned(), reply })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing() -> PublishError {
        PublishError::Unroutable { exchange: "gone".into(), routing_key: "k".to_owned(), reply: "404".to_owned() }
    }

    #[test]
    fn a_missing_exchange_is_tried_again_ever_more_rarely_until_it_exists() {
        let (mut exchanges, start) = (MissingExchanges::default(), Instant::now());
        let mut tried = Vec::new();
        for second in 0..200 {
            let now = start + Duration::from_secs(second);
            if exchanges.error("gone", "k", now).is_none() {
                exchanges.record(&missing(), now);
                tried.push(second);
            }
        }
        assert_eq!(tried, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
        assert_eq!(exchanges.error("gone", "k", start), Some(missing()));
        assert!(exchanges.error("orders", "k", start).is_none() && !exchanges.is_suspect("orders"));
        assert!(exchanges.exists("gone") && !exchanges.is_suspect("gone") && !exchanges.exists("gone"));
    }

    #[test]
    fn many_publications_to_a_missing_exchange_at_one_time_are_one_attempt() {
        let (mut exchanges, start) = (MissingExchanges::default(), Instant::now());
        for _ in 0..100 {
            exchanges.record(&missing(), start);
        }
        assert!(exchanges.error("gone", "k", start + Duration::from_secs(1)).is_none());
    }

    #[test]
    fn an_exchange_that_was_declared_again_is_tried_at_once_and_alone() {
        let (mut exchanges, start) = (MissingExchanges::default(), Instant::now());
        for second in [0, 60, 120, 180, 240, 300, 360] {
            exchanges.record(&missing(), start + Duration::from_secs(second));
        }
        let now = start + Duration::from_secs(370);
        assert!(exchanges.error("gone", "k", now).is_some());
        exchanges.try_again(now);
        assert!(exchanges.error("gone", "k", now).is_none() && exchanges.is_suspect("gone"));
    }
}
