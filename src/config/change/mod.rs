//! Compares two configurations key by key, and decides which changes can be applied without a restart.
//!
//! Both configurations are serialized to keys and values as in the file, and these are compared, so that a new key needs no
//! code here unless a change of it needs a restart. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::model::{Config, Ledger, Log, TopologySettings};
use super::redaction::{self, REDACTED};
use crate::control::{ConfigChange, Effect};

/// Keys, and sections with all their keys, that change only with a restart. [`applicable`] keeps their old values.
const RESTART: [&str; 11] = [
    "broker",
    "topology.exchange",
    "ledger.directory",
    "log.format",
    "log.directory",
    "log.rotation",
    "log.keep",
    "log.mode",
    "admin",
    "reload",
    "runtime",
];

/// Every key that differs, sorted, with its old and new value as in the file and secrets redacted. A key that is missing in
/// one configuration has no value there. If there are no changes, the configurations are equal.
pub fn changes(old: &Config, new: &Config) -> Vec<ConfigChange> {
    let (old, new) = (keys(old), keys(new));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let values = names.into_iter().map(|key| (key, old.get(key), new.get(key)));
    let changed = values.filter(|(_, from, to)| from != to);
    changed
        .map(|(key, from, to)| ConfigChange {
            key: key.clone(),
            from: from.map(shown),
            to: to.map(shown),
            effect: effect(key, from, to),
        })
        .collect()
}

/// The new configuration with the old values of all keys that need a restart: what a reload applies.
pub fn applicable(old: &Config, new: &Config) -> Config {
    let old = old.clone();
    // Without `..`: a new section does not compile until somebody decides here whether it needs a restart.
    let Config {
        broker: _,
        management,
        topology,
        queues,
        consumers,
        formats,
        notify,
        alerts,
        ledger,
        log,
        admin: _,
        reload: _,
        shutdown,
        runtime: _,
    } = new.clone();
    Config {
        broker: old.broker,
        management,
        topology: TopologySettings { declare: topology.declare, ..old.topology },
        queues,
        consumers,
        formats,
        notify,
        alerts,
        ledger: Ledger { retention: ledger.retention, ..old.ledger },
        log: Log { level: log.level, ..old.log },
        admin: old.admin,
        reload: old.reload,
        shutdown,
        runtime: old.runtime,
    }
}

fn effect(key: &str, from: Option<&Value>, to: Option<&Value>) -> Effect {
    let needs_restart =
        |known: &&str| key.strip_prefix(*known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    if RESTART.iter().any(needs_restart) {
        Effect::Restart
    } else if key.starts_with("queues.") && lost_item(from, to) {
        // orderd never removes a binding from the broker.
        Effect::Broker
    } else {
        Effect::Live
    }
}

/// Whether a list that is in both configurations lost an item.
fn lost_item(from: Option<&Value>, to: Option<&Value>) -> bool {
    match (from, to) {
        (Some(Value::Array(from)), Some(Value::Array(to))) => from.iter().any(|item| !to.contains(item)),
        _ => false,
    }
}

/// Every key of a configuration, by its path. Secrets appear as fingerprints: they can be compared but not read.
fn keys(config: &Config) -> BTreeMap<String, Value> {
    let mut keys = BTreeMap::new();
    let config_value = serde_json::to_value(config).expect("a configuration has text keys and plain values");
    collect(String::new(), config_value, &mut keys);
    if config.broker.tls.is_some() {
        // `[broker.tls]` enables TLS even if it is empty.
        keys.insert("broker.tls".to_owned(), Value::Object(serde_json::Map::new()));
    }
    for (name, _) in config.consumers.iter().filter(|(_, consumer)| consumer.handles_failures()) {
        // The failed-order consumer cannot have a retry policy in the file.
        let retry = format!("consumers.{name}.retry.");
        keys.retain(|key, _| !key.starts_with(&retry));
    }
    keys
}

fn collect(path: String, value: Value, keys: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(section) if !redaction::is_secret(&section) => {
            for (key, value) in section {
                collect(super::layers::join(&path, &key), value, keys);
            }
        }
        value => {
            keys.insert(path, value);
        }
    }
}

/// The value as in the file, on one line.
fn shown(value: &Value) -> String {
    match redaction::redact(value) {
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Value::String(text) if text == REDACTED => text,
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
