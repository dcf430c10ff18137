//! What the management API answers about exchanges, queues and bindings. Shapes only; no I/O, no judgement.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::topology::Binding;

/// What the broker has of a topology.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Exchanges by name.
    pub exchanges: BTreeMap<String, ObservedExchange>,
    /// Queues by name.
    pub queues: BTreeMap<String, ObservedQueue>,
    /// The bindings of these queues, but for those that every queue has to the default exchange.
    pub bindings: Vec<Binding>,
}

/// The answer to `GET /api/exchanges/{vhost}/{name}`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ObservedExchange {
    /// `topic`, `direct`, `fanout` or another.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether it outlives the broker.
    pub durable: bool,
    /// Whether it goes with its last binding.
    pub auto_delete: bool,
    /// Whether publishers are kept out.
    #[serde(default)]
    pub internal: bool,
    /// Its arguments.
    #[serde(default, deserialize_with = "table")]
    pub arguments: Map<String, Value>,
}

/// The answer to `GET /api/queues/{vhost}/{name}`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ObservedQueue {
    /// Whether it outlives the broker.
    pub durable: bool,
    /// Whether it goes with its last consumer.
    pub auto_delete: bool,
    /// Whether it belongs to one connection. RabbitMQ 4.x says null for false where it is asked for no statistics.
    #[serde(default)]
    pub exclusive: Option<bool>,
    /// Its arguments.
    #[serde(default, deserialize_with = "table")]
    pub arguments: Map<String, Value>,
    /// The name of the policy in force.
    #[serde(default)]
    pub policy: Option<String>,
    /// The name of the operator policy in force.
    #[serde(default)]
    pub operator_policy: Option<String>,
    /// What both policies say together. `None` until the queue has told the management plugin: measured on
    /// 3.10.8, 4.0.5 and 4.3.6, up to ten seconds after it was declared. A changed policy shows as late.
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

/// An empty Erlang property list may come as `[]`.
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
