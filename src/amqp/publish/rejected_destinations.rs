//! The exchanges that the broker does not have, and the routing keys with which orderd may not publish. Such a publication makes
//! the broker close the channel that all others are published on, so each destination is tried again rarely, and alone.
//!
//! Pure: times are arguments.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backoff::Backoff;
use crate::message::PublishError;

/// Waits before the next publication to a rejected destination.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(60) };
/// The most destinations that are remembered. orderd publishes to five exchanges.
const MAX_DESTINATIONS: usize = 256;
/// With more routing keys rejected than this, the whole exchange is: each key costs a channel at each try.
const MAX_KEYS: usize = 32;

struct RejectedDestination {
    exchange: Arc<str>,
    /// The routing key that is not permitted (403); `None`: all of the exchange, because it does not exist (404).
    routing_key: Option<String>,
    /// The broker's error, with the routing key of the publication that met it.
    error: PublishError,
    attempts: u32,
    /// `None`: with the next publication.
    retry_at: Option<Instant>,
}

impl RejectedDestination {
    fn includes(&self, exchange: &str, routing_key: &str) -> bool {
        *self.exchange == *exchange && self.routing_key.as_deref().is_none_or(|key| key == routing_key)
    }

    fn is_waiting(&self, now: Instant) -> bool {
        self.retry_at.is_some_and(|at| now < at)
    }
}

/// See the module's documentation.
#[derive(Default)]
pub struct RejectedDestinations(Vec<RejectedDestination>);

impl RejectedDestinations {
    /// The broker closed the channel because of this error.
    pub fn record(&mut self, error: &PublishError, now: Instant) {
        let (exchange, key) = match error {
            PublishError::Unroutable { exchange, .. } => (exchange, None),
            PublishError::Refused { exchange, routing_key, .. } => (exchange, Some(routing_key)),
            PublishError::Nacked { .. } | PublishError::Invalid { .. } | PublishError::Closed => return,
        };
        // The entry for all of the exchange includes every routing key.
        let is_known = |known: &RejectedDestination| {
            known.exchange == *exchange && (known.routing_key.is_none() || known.routing_key.as_ref() == key)
        };
        if let Some(known) = self.0.iter_mut().find(|known| is_known(known)) {
            // What was sent before the broker's answer is not another attempt.
            if !known.is_waiting(now) {
                known.attempts = known.attempts.saturating_add(1);
                known.retry_at = Some(now + BACKOFF.wait(known.attempts, 1.0));
            }
            return;
        }
        let keys = self.0.iter().filter(|known| known.exchange == *exchange && known.routing_key.is_some()).count();
        let routing_key = key.filter(|_| keys < MAX_KEYS).cloned();
        if key.is_some() && routing_key.is_none() {
            self.0.retain(|known| known.exchange != *exchange);
        }
        if self.0.len() < MAX_DESTINATIONS {
            let retry_at = Some(now + BACKOFF.wait(0, 1.0));
            let (exchange, error) = (Arc::clone(exchange), error.clone());
            self.0.push(RejectedDestination { exchange, routing_key, error, attempts: 0, retry_at });
        }
    }

    /// The broker answered a publication to this destination, so it is not rejected. The other routing keys of the exchange are
    /// tried with the next publication, still alone: the permission may be back for all. Returns whether it was rejected before.
    pub fn answered(&mut self, exchange: &str, routing_key: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|known| !known.includes(exchange, routing_key));
        let was_rejected = self.0.len() < before;
        if was_rejected {
            for other in self.0.iter_mut().filter(|other| *other.exchange == *exchange) {
                other.retry_at = None;
            }
        }
        was_rejected
    }

    /// The topology was declared again: each destination is tried with the next publication, still alone.
    pub fn try_again(&mut self) {
        for known in &mut self.0 {
            (known.attempts, known.retry_at) = (0, None);
        }
    }

    /// Whether a publication to this destination must be sent alone.
    pub fn is_suspect(&self, exchange: &str, routing_key: &str) -> bool {
        self.0.iter().any(|known| known.includes(exchange, routing_key))
    }

    /// The error of a publication that is not sent, because its destination was rejected a short time ago.
    pub fn error(&self, exchange: &str, routing_key: &str, now: Instant) -> Option<PublishError> {
        let is_waiting = |known: &&RejectedDestination| known.includes(exchange, routing_key) && known.is_waiting(now);
        let mut error = self.0.iter().find(is_waiting)?.error.clone();
        match &mut error {
            PublishError::Unroutable { routing_key: of_error, .. }
            | PublishError::Refused { routing_key: of_error, .. } => routing_key.clone_into(of_error),
            PublishError::Nacked { .. } | PublishError::Invalid { .. } | PublishError::Closed => {}
        }
        Some(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(exchange: &str) -> PublishError {
        PublishError::Unroutable { exchange: exchange.into(), routing_key: "k".into(), reply: "404".into() }
    }

    fn denied(routing_key: &str) -> PublishError {
        let (exchange, routing_key) = ("orders".into(), routing_key.to_owned());
        PublishError::Refused { exchange, routing_key, reply: "403".into() }
    }

    #[test]
    fn a_rejected_destination_is_tried_again_ever_more_rarely_until_the_broker_answers() {
        for error in [missing("orders"), denied("k")] {
            let (mut rejected, start) = (RejectedDestinations::default(), Instant::now());
            let mut tried = Vec::new();
            for second in 0..200 {
                let now = start + Duration::from_secs(second);
                if rejected.error("orders", "k", now).is_none() {
                    rejected.record(&error, now);
                    tried.push(second);
                }
            }
            assert_eq!(tried, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
            assert_eq!(rejected.error("orders", "k", start), Some(error));
            assert!(rejected.error("others", "k", start).is_none() && !rejected.is_suspect("others", "k"));
            assert!(rejected.answered("orders", "k") && !rejected.is_suspect("orders", "k"));
            assert!(!rejected.answered("orders", "k"));
        }
    }

    #[test]
    fn a_missing_permission_concerns_one_routing_key_and_a_missing_exchange_all() {
        let (mut rejected, now) = (RejectedDestinations::default(), Instant::now());
        rejected.record(&denied("a"), now);
        assert!(rejected.error("orders", "b", now).is_none() && !rejected.is_suspect("orders", "b"));
        assert!(!rejected.answered("orders", "b"), "a permitted key shows nothing about another");
        assert_eq!(rejected.error("orders", "a", now), Some(denied("a")));
        rejected.record(&missing("others"), now);
        assert!(rejected.error("others", "b", now).is_some());
    }

    #[test]
    fn when_one_routing_key_is_permitted_again_the_others_are_tried_at_once_and_alone() {
        let (mut rejected, now) = (RejectedDestinations::default(), Instant::now());
        for key in ["a", "b"] {
            rejected.record(&denied(key), now);
        }
        assert!(rejected.answered("orders", "a"));
        assert!(rejected.error("orders", "b", now).is_none() && rejected.is_suspect("orders", "b"));
        rejected.record(&denied("b"), now);
        assert!(rejected.error("orders", "b", now + Duration::from_secs(1)).is_some(), "the wait still grows");
    }

    #[test]
    fn many_rejected_routing_keys_are_one_attempt_at_the_exchange() {
        let (mut rejected, now) = (RejectedDestinations::default(), Instant::now());
        let tried = (0..10_000).map(|n| n.to_string()).filter(|key| {
            let is_tried = rejected.error("orders", key, now).is_none();
            if is_tried {
                rejected.record(&denied(key), now);
            }
            is_tried
        });
        assert_eq!(tried.count(), MAX_KEYS + 1);
        assert_eq!(rejected.error("orders", "new", now), Some(denied("new")));
        assert_eq!(rejected.0.len(), 1);
        let mut tried_at = Vec::new();
        for second in 1..200 {
            let (key, now) = (format!("later-{second}"), now + Duration::from_secs(second));
            if rejected.error("orders", &key, now).is_none() {
                rejected.record(&denied(&key), now);
                tried_at.push(second);
            }
        }
        assert_eq!((tried_at, rejected.0.len()), (vec![1, 3, 7, 15, 31, 63, 123, 183], 1));
        assert!(rejected.answered("orders", "any") && rejected.0.is_empty());
    }

    #[test]
    fn many_publications_to_a_rejected_destination_at_one_time_are_one_attempt() {
        let (mut rejected, start) = (RejectedDestinations::default(), Instant::now());
        for _ in 0..100 {
            rejected.record(&missing("orders"), start);
        }
        assert!(rejected.error("orders", "k", start + Duration::from_secs(1)).is_none());
    }

    #[test]
    fn a_destination_is_tried_at_once_and_alone_after_the_topology_was_declared_again() {
        let (mut rejected, start) = (RejectedDestinations::default(), Instant::now());
        for second in [0, 60, 120, 180, 240, 300, 360] {
            rejected.record(&missing("orders"), start + Duration::from_secs(second));
        }
        let now = start + Duration::from_secs(370);
        assert!(rejected.error("orders", "k", now).is_some());
        rejected.try_again();
        assert!(rejected.error("orders", "k", now).is_none() && rejected.is_suspect("orders", "k"));
    }
}
