//! Compares what must be on the broker with what is there, and finds policies that would delete or divert
//! what a queue holds. Pure: the broker's answers are arguments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Map, Value};

use crate::management::Observed;
use crate::topology::{Argument, Binding, Declaration, Exchange, Queue, Topology};

/// An object of a topology.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// An exchange, by name.
    Exchange(String),
    /// A queue, by name.
    Queue(String),
    /// A binding.
    Binding {
        /// From which exchange.
        exchange: String,
        /// To which queue.
        queue: String,
        /// By which key.
        routing_key: String,
    },
}

impl From<&Binding> for Object {
    fn from(binding: &Binding) -> Self {
        let Binding { exchange, queue, routing_key } = binding.clone();
        Object::Binding { exchange, queue, routing_key }
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

/// An object that is there, but not as it must be. Only its deletion would help, and orderd never deletes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Which object.
    pub object: Object,
    /// An argument (`x-delivery-limit`) or a property (`type`, `durable`).
    pub argument: String,
    /// What it must be, as JSON; `None`: it must not be there.
    pub expected: Option<String>,
    /// What it is, as JSON; `None`: it is not there.
    pub actual: Option<String>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = self.expected.as_deref().unwrap_or("none");
        let actual = self.actual.as_deref().unwrap_or("missing");
        write!(f, "{}: argument {:?}: expected {expected}, is {actual}", self.object, self.argument)
    }
}

/// A policy that would delete or divert what a queue holds. orderd refuses to start on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DangerousPolicy {
    /// The queue's name.
    pub queue: String,
    /// The policies in force: of users, of operators, or both.
    pub policies: Vec<String>,
    /// The key: `overflow`.
    pub key: String,
    /// Its value, as JSON.
    pub value: String,
    /// What it would do.
    pub effect: &'static str,
}

impl fmt::Display for DangerousPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policies = self.policies.join("\" and \"");
        write!(
            f,
            "queue {:?}: policy \"{policies}\" sets {:?} to {}: {}",
            self.queue, self.key, self.value, self.effect
        )
    }
}

/// What a broker lacks or has otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Not there. Harmless where orderd declares.
    pub missing: Vec<Object>,
    /// There, but otherwise.
    pub mismatches: Vec<Mismatch>,
    /// Policies in force that would lose messages.
    pub dangerous_policies: Vec<DangerousPolicy>,
    /// Queues whose policies the broker has not told yet.
    pub unknown_policies: Vec<String>,
    /// Bindings from orderd's exchanges to its queues that the configuration does not name, left over from an
    /// earlier one. They still route.
    pub extra_bindings: Vec<Object>,
}

impl Audit {
    /// Whether orderd must not start on this broker.
    pub fn refuses(&self) -> bool {
        !self.mismatches.is_empty() || !self.dangerous_policies.is_empty()
    }
}

/// Judges a broker.
pub fn audit(topology: &Topology, observed: &Observed) -> Audit {
    let expected: BTreeSet<Object> = topology.bindings().map(Object::from).collect();
    let exchanges: BTreeSet<&str> = topology.exchanges().map(|exchange| exchange.name.as_str()).collect();
    let extra = |binding: &&Binding| exchanges.contains(binding.exchange.as_str());
    let untold =
        |queue: &&Queue| observed.queues.get(&queue.name).is_some_and(|found| found.effective_policy.is_none());
    Audit {
        missing: missing(topology.declarations(), observed),
        mismatches: mismatches(topology.declarations(), observed),
        dangerous_policies: dangerous_policies(topology.declarations(), observed),
        unknown_policies: topology.queues().filter(untold).map(|queue| queue.name.clone()).collect(),
        extra_bindings: observed
            .bindings
            .iter()
            .filter(extra)
            .map(Object::from)
            .filter(|binding| !expected.contains(binding))
            .collect(),
    }
}

/// What is not there.
pub fn missing(declarations: &[Declaration], observed: &Observed) -> Vec<Object> {
    let absent = |declaration: &Declaration| match declaration {
        Declaration::Exchange(exchange) => {
            (!observed.exchanges.contains_key(&exchange.name)).then(|| Object::Exchange(exchange.name.clone()))
        }
        Declaration::Queue(queue) => {
            (!observed.queues.contains_key(&queue.name)).then(|| Object::Queue(queue.name.clone()))
        }
        Declaration::Binding(binding) => (!observed.bindings.contains(binding)).then(|| Object::from(binding)),
    };
    declarations.iter().filter_map(absent).collect()
}

/// What is there otherwise than declared.
pub fn mismatches(declarations: &[Declaration], observed: &Observed) -> Vec<Mismatch> {
    let differing = |declaration: &Declaration| match declaration {
        Declaration::Exchange(exchange) => exchange_mismatches(exchange, observed),
        Declaration::Queue(queue) => queue_mismatches(queue, observed),
        Declaration::Binding(_) => Vec::new(),
    };
    declarations.iter().flat_map(differing).collect()
}

fn exchange_mismatches(exchange: &Exchange, observed: &Observed) -> Vec<Mismatch> {
    let Some(actual) = observed.exchanges.get(&exchange.name) else { return Vec::new() };
    let object = Object::Exchange(exchange.name.clone());
    let mut found = Vec::new();
    property(&mut found, &object, "type", &Value::from(exchange.kind.as_str()), &Value::from(actual.kind.as_str()));
    for (name, expected, actual) in [
        ("durable", true, actual.durable),
        ("auto_delete", false, actual.auto_delete),
        ("internal", false, actual.internal),
    ] {
        property(&mut found, &object, name, &Value::from(expected), &Value::from(actual));
    }
    found.extend(argument_mismatches(&object, &exchange.arguments, &actual.arguments));
    found
}

fn queue_mismatches(queue: &Queue, observed: &Observed) -> Vec<Mismatch> {
    let Some(actual) = observed.queues.get(&queue.name) else { return Vec::new() };
    let object = Object::Queue(queue.name.clone());
    let mut found = Vec::new();
    for (name, expected, actual) in [
        ("durable", true, actual.durable),
        ("auto_delete", false, actual.auto_delete),
        ("exclusive", false, actual.exclusive.unwrap_or(false)),
    ] {
        property(&mut found, &object, name, &Value::from(expected), &Value::from(actual));
    }
    found.extend(argument_mismatches(&object, &queue.arguments, &actual.arguments));
    found
}

fn property(found: &mut Vec<Mismatch>, object: &Object, name: &str, expected: &Value, actual: &Value) {
    if expected != actual {
        let (expected, actual) = (Some(expected.to_string()), Some(actual.to_string()));
        found.push(Mismatch { object: object.clone(), argument: name.to_owned(), expected, actual });
    }
}

fn json(argument: &Argument) -> Value {
    match argument {
        Argument::Text(text) => Value::from(text.as_str()),
        Argument::Number(number) => Value::from(*number),
    }
}

fn argument_mismatches(
    object: &Object,
    expected: &BTreeMap<&'static str, Argument>,
    actual: &Map<String, Value>,
) -> Vec<Mismatch> {
    let names: BTreeSet<&str> = expected.keys().copied().chain(actual.keys().map(String::as_str)).collect();
    let differing = names.into_iter().filter_map(|name| {
        let expected = expected.get(name).map(json);
        let actual = actual.get(name);
        (expected.as_ref() != actual).then(|| Mismatch {
            object: object.clone(),
            argument: name.to_owned(),
            expected: expected.map(|value| value.to_string()),
            actual: actual.map(Value::to_string),
        })
    });
    differing.collect()
}

/// Policies in force, operator policies merged in, that would delete or divert what the declared queues hold.
///
/// Which of argument and policy wins is read off `rabbit_quorum_queue` of 3.10.8 and 4.0.5, and taken to be so on 4.3: for
/// `overflow` the policy, for dead-lettering the argument, for limits and lifetimes the smaller one.
pub fn dangerous_policies(declarations: &[Declaration], observed: &Observed) -> Vec<DangerousPolicy> {
    let of_queue = |queue: &Queue| -> Vec<DangerousPolicy> {
        let Some(actual) = observed.queues.get(&queue.name) else { return Vec::new() };
        let policies: Vec<String> = actual.policy.iter().chain(&actual.operator_policy).cloned().collect();
        let definition = actual.effective_policy.iter().flatten();
        let dangerous = definition.filter_map(|(key, value)| {
            let effect = effect(queue, key, value)?;
            let (queue, policies) = (queue.name.clone(), policies.clone());
            Some(DangerousPolicy { queue, policies, key: key.clone(), value: value.to_string(), effect })
        });
        dangerous.collect()
    };
    let of_declaration = |declaration: &Declaration| match declaration {
        Declaration::Queue(queue) => of_queue(queue),
        Declaration::Exchange(_) | Declaration::Binding(_) => Vec::new(),
    };
    declarations.iter().flat_map(of_declaration).collect()
}

/// What one key of a policy would do to one queue, if it is harm.
fn effect(queue: &Queue, key: &str, value: &Value) -> Option<&'static str> {
    let lowers = |argument: &str| match (queue.arguments.get(argument), value.as_i64()) {
        (Some(Argument::Number(ours)), Some(theirs)) => theirs < *ours,
        (Some(Argument::Number(_) | Argument::Text(_)) | None, _) => true,
    };
    let has = |argument: &str| queue.arguments.contains_key(argument);
    match key {
        "overflow" if value != "reject-publish" => Some("a full queue would delete what it holds"),
        "message-ttl" if lowers("x-message-ttl") => Some("messages would be gone or diverted before their time"),
        "expires" => Some("the queue would be deleted with all it holds"),
        "max-length" | "max-length-bytes" => {
            Some("a full queue would refuse orders, and retries would wait for minutes")
        }
        "delivery-limit" if has("x-delivery-limit") && lowers("x-delivery-limit") => {
            Some("messages would be dropped or diverted after fewer returns")
        }
        "dead-letter-exchange" if !has("x-dead-letter-exchange") => Some("what a person rejects would go elsewhere"),
        _ => None,
    }
}

#[cfg(test)]
#[path = "audit_tests.rs"]
mod tests;
