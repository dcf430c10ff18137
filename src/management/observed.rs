//! Answers of the management API about exchanges, queues and bindings. Types only; no I/O.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::topology::Binding;

/// The objects of a topology that exist on the broker.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObservedTopology {
    /// Exchanges by name.
    pub exchanges: BTreeMap<String, ObservedExchange>,
    /// Queues by name.
    pub queues: BTreeMap<String, ObservedQueue>,
    /// The bindings of these queues, except for the implicit ones to the default exchange.
    pub bindings: Vec<Binding>,
    /// The shortest `consumer_timeout` of each queue's current consumers, in milliseconds. Reported since RabbitMQ 3.13, with the value
    /// of `rabbitmq.conf` where nothing else sets one.
    pub consumer_timeouts: BTreeMap<String, u64>,
}

/// The answer to `GET /api/exchanges/{vhost}/{name}`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ObservedExchange {
    /// `topic`, `direct`, `fanout` or another.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// Whether it is deleted with its last binding.
    pub auto_delete: bool,
    /// Whether clients cannot publish to it.
    #[serde(default)]
    pub internal: bool,
    /// Its arguments.
    #[serde(default, deserialize_with = "table")]
    pub arguments: Map<String, Value>,
}

/// The answer to `GET /api/queues/{vhost}/{name}`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ObservedQueue {
    /// Whether it survives a restart of the broker.
    pub durable: bool,
    /// Whether it is deleted with its last consumer.
    pub auto_delete: bool,
    /// Whether it belongs to one connection. RabbitMQ 4.x reports null for false in answers without statistics.
    #[serde(default)]
    pub exclusive: Option<bool>,
    /// Its arguments.
    #[serde(default, deserialize_with = "table")]
    pub arguments: Map<String, Value>,
    /// The name of the effective user policy.
    #[serde(default)]
    pub policy: Option<String>,
    /// The name of the effective operator policy.
    #[serde(default)]
    pub operator_policy: Option<String>,
    /// The merged definition of both policies. `None` until the queue has reported it to the management plugin, which
    /// takes up to ten seconds after the declaration (measured on 3.10.8, 4.0.5 and 4.3.6). A changed policy is
    /// reported as late.
    #[serde(default, rename = "effective_policy_definition", deserialize_with = "known_table")]
    pub effective_policy: Option<Map<String, Value>>,
}

/// One element of the answer to `GET /api/queues/{vhost}/{name}/bindings`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ObservedBinding {
    pub source: String,
    pub destination: String,
    pub routing_key: String,
}

/// One element of the answer to `GET /api/consumers/{vhost}`.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ObservedConsumer {
    pub queue: QueueName,
    /// Missing before RabbitMQ 3.13; the text `undefined` if there is no timeout.
    #[serde(default)]
    pub consumer_timeout: Value,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct QueueName {
    pub name: String,
}

/// A JSON object, which the broker may encode as `[]` if it is empty: an empty Erlang property list.
fn table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Map<String, Value>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Object(map) => map,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
    })
}

fn known_table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Map<String, Value>>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Object(map) => Some(map),
        Value::Array(items) if items.is_empty() => Some(Map::new()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => None,
    })
}
