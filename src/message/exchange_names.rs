//! The names messages are routed by, all derived from the orders exchange's.

use std::sync::Arc;

use crate::delay::Delay;

/// The names derived from `topology.exchange`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangeNames {
    /// `orders`: topic; everything producers and orderd publish.
    pub orders: Arc<str>,
    /// `orders.retry`: direct; to retry queues, by their name.
    pub retry: Arc<str>,
    /// `orders.requeue`: direct; to one work queue, by its name.
    pub requeue: Arc<str>,
    /// `orders.dead_letter`: fanout; to [`ExchangeNames::DEAD_LETTER_QUEUE`].
    pub dead_letter: Arc<str>,
    /// `orders.unrouted`: fanout; to [`ExchangeNames::UNROUTED_QUEUE`].
    pub unrouted: Arc<str>,
}

impl ExchangeNames {
    /// Where messages are dead-lettered for a person.
    pub const DEAD_LETTER_QUEUE: &str = "dead_letter_queue";
    /// Where messages go that no binding matched.
    pub const UNROUTED_QUEUE: &str = "unrouted_queue";
    /// The first words of the routing key of every failure; the consumer's name follows.
    pub const FAILED_KEY: &str = "order.failed";

    /// Derives all names from the orders exchange's.
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

    /// The routing key under which failures of a consumer travel: `order.failed.notification`.
    pub fn failed_key(consumer: &str) -> String {
        format!("{}.{consumer}", Self::FAILED_KEY)
    }
}
