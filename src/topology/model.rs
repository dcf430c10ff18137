//! Exchanges, queues and bindings. Pure data.

use std::collections::BTreeMap;
use std::fmt;

/// An AMQP exchange type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExchangeKind {
    /// Routes by topic pattern.
    Topic,
    /// Routes by exact routing key.
    Direct,
    /// Routes to every bound queue.
    Fanout,
}

impl ExchangeKind {
    /// The type's name in AMQP.
    pub fn as_str(self) -> &'static str {
        match self {
            ExchangeKind::Topic => "topic",
            ExchangeKind::Direct => "direct",
            ExchangeKind::Fanout => "fanout",
        }
    }
}

/// The value of a queue's or exchange's argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// An AMQP long string.
    Text(String),
    /// An AMQP signed 64-bit integer.
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

/// A binding of a queue to an exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The exchange's name.
    pub exchange: String,
    /// The queue's name.
    pub queue: String,
    /// A topic pattern or an exact key; empty for a fanout.
    pub routing_key: String,
}

/// One declaration of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Declaration {
    /// Declare an exchange.
    Exchange(Exchange),
    /// Declare a queue.
    Queue(Queue),
    /// Bind a queue.
    Binding(Binding),
}

/// An object of a topology.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// An exchange, by name.
    Exchange(String),
    /// A queue, by name.
    Queue(String),
    /// A binding.
    Binding {
        /// The source exchange.
        exchange: String,
        /// The destination queue.
        queue: String,
        /// The routing key or pattern.
        routing_key: String,
    },
}

impl From<&Binding> for Object {
    fn from(binding: &Binding) -> Self {
        let Binding { exchange, queue, routing_key } = binding.clone();
        Object::Binding { exchange, queue, routing_key }
    }
}

impl From<&Declaration> for Object {
    fn from(declaration: &Declaration) -> Self {
        match declaration {
            Declaration::Exchange(exchange) => Object::Exchange(exchange.name.clone()),
            Declaration::Queue(queue) => Object::Queue(queue.name.clone()),
            Declaration::Binding(binding) => Object::from(binding),
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Exchange(name) => write!(f, "exchange {name:?}"),
            Object::Queue(name) => write!(f, "queue {name:?}"),
            Object::Binding { exchange, queue, routing_key } => {
                write!(f, "binding of queue {queue:?} to exchange {exchange:?} by {routing_key:?}")
            }
        }
    }
}
