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

    /// The broker answered a publication to this exchange, so it exists.
    pub fn exists(&mut self, exchange: &str) {
        if !self.0.is_empty() {
            self.0.retain(|missing| *missing.exchange != *exchange);
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
        exchanges.exists("gone");
        assert!(!exchanges.is_suspect("gone"));
    }
}
