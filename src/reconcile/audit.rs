//! Compares the topology with the objects that exist on the broker, and finds policies that would delete or divert
//! messages. Pure: the broker's answers are arguments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::consumer_timeouts::{ShortConsumerTimeout, short_consumer_timeouts};
use crate::management::ObservedTopology;
use crate::topology::{Argument, Binding, Declaration, Exchange, Object, Queue, Topology};

/// An object that exists with a different definition. Only deleting it would help, and orderd never deletes objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The object.
    pub object: Object,
    /// An argument (`x-delivery-limit`) or a property (`type`, `durable`).
    pub argument: String,
    /// The expected value as JSON; `None`: it must not be set.
    pub expected: Option<String>,
    /// The actual value as JSON; `None`: it is not set.
    pub actual: Option<String>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expected = self.expected.as_deref().unwrap_or("none");
        let actual = self.actual.as_deref().unwrap_or("missing");
        write!(f, "{}: argument {:?}: expected {expected}, is {actual}", self.object, self.argument)
    }
}

/// A policy that would delete or divert messages. orderd refuses to start while it applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DangerousPolicy {
    /// The names of the effective policies: the user policy, the operator policy, or both.
    pub policies: Vec<String>,
    /// What they set. Never empty.
    pub settings: Vec<DangerousSetting>,
}

/// One key of a policy, with the queues that it would harm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DangerousSetting {
    /// The key, such as `overflow`.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// What it would do to messages.
    pub effect: &'static str,
    /// The names of the queues, in the order of declaration. Never empty.
    pub queues: Vec<String>,
}

/// The most queues that a text names; the others are counted.
const NAMED_QUEUES: usize = 4;

impl DangerousPolicy {
    /// The queues that any of the settings would harm.
    pub fn queues(&self) -> BTreeSet<&str> {
        self.settings.iter().flat_map(|setting| &setting.queues).map(String::as_str).collect()
    }
}

impl fmt::Display for DangerousPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "policy \"{}\"", self.policies.join("\" and \""))?;
        for (n, DangerousSetting { key, value, effect, queues }) in self.settings.iter().enumerate() {
            let separator = if n == 0 { "" } else { ";" };
            write!(f, "{separator} sets {key:?} to {value}: {effect} (")?;
            let named = if queues.len() > NAMED_QUEUES { NAMED_QUEUES - 1 } else { queues.len() };
            write!(f, "queue{} {}", if queues.len() == 1 { "" } else { "s" }, queues[..named].join(", "))?;
            match queues.len() - named {
                0 => f.write_str(")")?,
                more => write!(f, " and {more} more)")?,
            }
        }
        Ok(())
    }
}

/// How a broker differs from the topology.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Audit {
    /// Objects that do not exist. Harmless where orderd declares the topology.
    pub missing: Vec<Object>,
    /// Objects that exist with a different definition.
    pub mismatches: Vec<Mismatch>,
    /// Effective policies that would lose messages.
    pub dangerous_policies: Vec<DangerousPolicy>,
    /// Queues whose effective policies the broker has not reported yet.
    pub unknown_policies: Vec<String>,
    /// Queues whose deliveries the broker takes back too early.
    pub short_consumer_timeouts: Vec<ShortConsumerTimeout>,
    /// Bindings between orderd's exchanges and queues that are not in the configuration, but were in an earlier one. They
    /// still route messages.
    pub extra_bindings: Vec<Object>,
}

impl Audit {
    /// Adds the queues whose `consumer_timeout` is shorter than these times, for which a delivery from each may be held.
    pub fn with_consumer_timeouts(
        self,
        longest_holds: &BTreeMap<String, Duration>,
        observed: &ObservedTopology,
    ) -> Self {
        Audit { short_consumer_timeouts: short_consumer_timeouts(longest_holds, observed), ..self }
    }

    /// Whether orderd must not start on this broker.
    pub fn forbids_start(&self) -> bool {
        !self.mismatches.is_empty() || !self.dangerous_policies.is_empty()
    }
}

/// Compares a broker with the topology.
pub fn audit(topology: &Topology, observed: &ObservedTopology) -> Audit {
    let expected: BTreeSet<Object> = topology.bindings().map(Object::from).collect();
    let exchanges: BTreeSet<&str> = topology.exchanges().map(|exchange| exchange.name.as_str()).collect();
    let extra = |binding: &&Binding| exchanges.contains(binding.exchange.as_str());
    let unknown_policies =
        |queue: &&Queue| observed.queues.get(&queue.name).is_some_and(|found| found.effective_policy.is_none());
    Audit {
        missing: missing(topology.declarations(), observed),
        mismatches: mismatches(topology.declarations(), observed),
        dangerous_policies: dangerous_policies(topology.declarations(), observed),
        short_consumer_timeouts: Vec::new(),
        unknown_policies: topology.queues().filter(unknown_policies).map(|queue| queue.name.clone()).collect(),
        extra_bindings: observed
            .bindings
            .iter()
            .filter(extra)
            .map(Object::from)
            .filter(|binding| !expected.contains(binding))
            .collect(),
    }
}

/// Declared objects that do not exist.
pub fn missing(declarations: &[Declaration], observed: &ObservedTopology) -> Vec<Object> {
    let exists = |declaration: &&Declaration| match declaration {
        Declaration::Exchange(exchange) => observed.exchanges.contains_key(&exchange.name),
        Declaration::Queue(queue) => observed.queues.contains_key(&queue.name),
        Declaration::Binding(binding) => observed.bindings.contains(binding),
    };
    declarations.iter().filter(|declaration| !exists(declaration)).map(Object::from).collect()
}

/// Objects whose definition differs from the declared one.
pub fn mismatches(declarations: &[Declaration], observed: &ObservedTopology) -> Vec<Mismatch> {
    let differing = |declaration: &Declaration| match declaration {
        Declaration::Exchange(exchange) => exchange_mismatches(exchange, observed),
        Declaration::Queue(queue) => queue_mismatches(queue, observed),
        Declaration::Binding(_) => Vec::new(),
    };
    declarations.iter().flat_map(differing).collect()
}

fn exchange_mismatches(exchange: &Exchange, observed: &ObservedTopology) -> Vec<Mismatch> {
    let Some(actual) = observed.exchanges.get(&exchange.name) else { return Vec::new() };
    let object = Object::Exchange(exchange.name.clone());
    let mut found = Vec::new();
    compare_property(
        &mut found,
        &object,
        "type",
        &Value::from(exchange.kind.as_str()),
        &Value::from(actual.kind.as_str()),
    );
    for (name, expected, actual) in [
        ("durable", true, actual.durable),
        ("auto_delete", false, actual.auto_delete),
        ("internal", false, actual.internal),
    ] {
        compare_property(&mut found, &object, name, &Value::from(expected), &Value::from(actual));
    }
    found.extend(argument_mismatches(&object, &exchange.arguments, &actual.arguments));
    found
}

fn queue_mismatches(queue: &Queue, observed: &ObservedTopology) -> Vec<Mismatch> {
    let Some(actual) = observed.queues.get(&queue.name) else { return Vec::new() };
    let object = Object::Queue(queue.name.clone());
    let mut found = Vec::new();
    for (name, expected, actual) in [
        ("durable", true, actual.durable),
        ("auto_delete", false, actual.auto_delete),
        ("exclusive", false, actual.exclusive.unwrap_or(false)),
    ] {
        compare_property(&mut found, &object, name, &Value::from(expected), &Value::from(actual));
    }
    found.extend(argument_mismatches(&object, &queue.arguments, &actual.arguments));
    found
}

fn compare_property(found: &mut Vec<Mismatch>, object: &Object, name: &str, expected: &Value, actual: &Value) {
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

/// Effective policies, operator policies included, that would delete or divert messages of the declared queues.
///
/// If a queue's argument and a policy disagree, then for `overflow` the policy applies, for dead-lettering the argument, and
/// for limits and TTLs the smaller value. Source: `rabbit_quorum_queue` of 3.10.8 and 4.0.5; 4.3 is assumed to be the same.
pub fn dangerous_policies(declarations: &[Declaration], observed: &ObservedTopology) -> Vec<DangerousPolicy> {
    let mut found: BTreeMap<Vec<String>, Vec<DangerousSetting>> = BTreeMap::new();
    let queues = declarations.iter().filter_map(|declaration| match declaration {
        Declaration::Queue(queue) => Some((queue, observed.queues.get(&queue.name)?)),
        Declaration::Exchange(_) | Declaration::Binding(_) => None,
    });
    for (queue, actual) in queues {
        for (key, value) in actual.effective_policy.iter().flatten() {
            let Some(effect) = effect(queue, key, value) else { continue };
            let policies = actual.policy.iter().chain(&actual.operator_policy).cloned().collect();
            let settings = found.entry(policies).or_default();
            let is_same =
                |known: &&mut DangerousSetting| known.key == *key && known.value == *value && known.effect == effect;
            match settings.iter_mut().find(is_same) {
                Some(known) => known.queues.push(queue.name.clone()),
                None => settings.push(DangerousSetting {
                    key: key.clone(),
                    value: value.clone(),
                    effect,
                    queues: vec![queue.name.clone()],
                }),
            }
        }
    }
    found.into_iter().map(|(policies, settings)| DangerousPolicy { policies, settings }).collect()
}

/// What one key of a policy would do to the messages of a queue; `None` if it is harmless.
fn effect(queue: &Queue, key: &str, value: &Value) -> Option<&'static str> {
    let lowers = |argument: &str| match (queue.arguments.get(argument), value.as_i64()) {
        (Some(Argument::Number(ours)), Some(theirs)) => theirs < *ours,
        (Some(Argument::Number(_) | Argument::Text(_)) | None, _) => true,
    };
    let has = |argument: &str| queue.arguments.contains_key(argument);
    match key {
        "overflow" if value != "reject-publish" => Some("a full queue would delete messages"),
        "message-ttl" if lowers("x-message-ttl") => Some("messages would be deleted or diverted too early"),
        "expires" => Some("the queue would be deleted with all its messages"),
        "max-length" | "max-length-bytes" => Some("a full queue would refuse orders and delay retries by minutes"),
        "delivery-limit" if has("x-delivery-limit") && lowers("x-delivery-limit") => {
            Some("messages would be dropped or diverted after fewer redeliveries")
        }
        "dead-letter-exchange" if !has("x-dead-letter-exchange") => {
            Some("messages that an operator rejects would be routed elsewhere")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
