//! Exchanges, queues, bindings, and their names.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::recovery::Delay;

/// The names derived from `topology.exchange`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// `orders`: topic; everything producers and orderd publish.
    pub orders: Arc<str>,
    /// `orders.retry`: direct; to retry queues, by their name.
    pub retry: Arc<str>,
    /// `orders.requeue`: direct; to one work queue, by its name.
    pub requeue: Arc<str>,
    /// `orders.dead_letter`: fanout; to [`Names::DEAD_LETTER_QUEUE`].
    pub dead_letter: Arc<str>,
    /// `orders.unrouted`: fanout; to [`Names::UNROUTED_QUEUE`].
    pub unrouted: Arc<str>,
}

impl Names {
    /// Where messages are parked for a person.
    pub const DEAD_LETTER_QUEUE: &str = "dead_letter_queue";
    /// Where messages go that no binding matched.
    pub const UNROUTED_QUEUE: &str = "unrouted_queue";
    /// The first words of the routing key of every failure; the consumer's name follows.
    pub const FAILED_KEY: &str = "order.failed";

    /// Derives all names from the orders exchange's.
    pub fn new(exchange: &str) -> Self {
        let derived = |suffix: &str| format!("{exchange}.{suffix}").into();
        Names {
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

/// An exchange type of AMQP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeKind {
    /// By pattern.
    Topic,
    /// By exact key.
    Direct,
    /// To all.
    Fanout,
}

impl ExchangeKind {
    /// The name AMQP gives it.
    pub fn as_str(self) -> &'static str {
        match self {
            ExchangeKind::Topic => "topic",
            ExchangeKind::Direct => "direct",
            ExchangeKind::Fanout => "fanout",
        }
    }
}

/// The value of an `x-…` argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// AMQP long string.
    Text(String),
    /// AMQP signed 64-bit integer.
    Number(i64),
}

impl fmt::Display for Argument {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Argument::Text(text) => write!(f, "{text:?}"),
            Argument::Number(number) => write!(f, "{number}"),
        }
    }
}

/// A durable exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exchange {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: ExchangeKind,
    /// Its `x-…` and `alternate-exchange` arguments.
    pub arguments: BTreeMap<&'static str, Argument>,
}

/// A durable queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queue {
    /// Its name.
    pub name: String,
    /// Its arguments.
    pub arguments: BTreeMap<&'static str, Argument>,
}

/// A queue bound to an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The exchange's name.
    pub exchange: String,
    /// The queue's name.
    pub queue: String,
    /// A topic pattern or an exact key; empty for a fanout.
    pub routing_key: String,
}

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declaration {
    /// Declare an exchange.
    Exchange(Exchange),
    /// Declare a queue.
    Queue(Queue),
    /// Bind a queue.
    Binding(Binding),
}
