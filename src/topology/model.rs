//! Exchanges, queues and bindings.

use std::collections::BTreeMap;
use std::fmt;

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
