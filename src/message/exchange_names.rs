//! The names of orderd's exchanges, and of the queues and routing keys that orderd itself defines.
//!
//! Pure.

use std::sync::Arc;

use crate::delay::Delay;

/// The names derived from `topology.exchange`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangeNames {
    /// `orders`: topic; for everything that producers and orderd publish.
    pub orders: Arc<str>,
    /// `orders.retry`: direct; to one retry queue, by its name.
    pub retry: Arc<str>,
    /// `orders.requeue`: direct; to one work queue, by its name.
    pub requeue: Arc<str>,
    /// `orders.dead_letter`: fanout; to [`ExchangeNames::DEAD_LETTER_QUEUE`].
    pub dead_letter: Arc<str>,
    /// `orders.unrouted`: fanout; to [`ExchangeNames::UNROUTED_QUEUE`].
    pub unrouted: Arc<str>,
}

impl ExchangeNames {
    /// The queue of dead-lettered messages.
    pub const DEAD_LETTER_QUEUE: &str = "dead_letter_queue";
    /// The queue of messages that matched no binding.
    pub const UNROUTED_QUEUE: &str = "unrouted_queue";
    /// The beginning of every failed message's routing key; the consumer's name follows.
    pub const FAILED_KEY: &str = "order.failed";

    /// Derives all names from that of the orders exchange.
    pub fn new(exchange: &str) -> Self {
        let derived = |suffix: &str| format!("{exchange}.{suffix}").into();
        ExchangeNames {
            orders: exchange.into(),
            retry: derived("retry"),
            requeue: derived("requeue"),
            dead_letter: derived("dead_letter"),
            unrouted: derived("unrouted"),
        }
    }

    /// The queue in which messages of `queue` wait for `delay`: `order_queue.retry.10s`. Also its routing key
    /// on the retry exchange.
    pub fn retry_queue(queue: &str, delay: Delay) -> String {
        format!("{queue}.retry.{delay}")
    }

    /// The routing key of a consumer's failed messages: `order.failed.notification`.
    pub fn failed_key(consumer: &str) -> String {
        format!("{}.{consumer}", Self::FAILED_KEY)
    }
}
