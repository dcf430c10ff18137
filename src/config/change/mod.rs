//! Compares two configurations key by key, and decides which changes can be applied without a restart.
//!
//! Both configurations are serialized to keys and values as in the file, and these are compared, so that a new key needs no
//! code here unless a change of it needs a restart. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::load::WrittenKeys;
use super::model::{Admin, Config, Ledger, Log, TopologySettings};
use super::redaction::{self, REDACTED};
use crate::control::{ConfigChange, Effect};

/// Keys, and sections with all their keys, that change only with a restart. [`applicable`] keeps their old values.
const RESTART: [&str; 12] = [
    "broker",
    "topology.exchange",
    "ledger.directory",
    "log.format",
    "log.directory",
    "log.rotation",
    "log.keep",
    "log.mode",
    "admin.listen",
    "admin.hosts",
    "reload",
    "runtime",
];

/// Sections whose own sections have names: a new or removed one is one change.
const NAMED: [&str; 4] = ["queues", "consumers", "formats", "notify"];

/// The value of a section that is new or removed.
const SECTION: &str = "(section)";

/// Every key that differs, sorted, with its old and new value as in the file and secrets redacted. A key that is missing in
/// one configuration has no value there. Of a new section with a name, such as `consumers.vip`, these are the section and those of its
/// keys that are `written`, not the defaults of all others; of a removed one, the section. If there are no changes, the configurations
/// are equal.
pub fn changes(old: &Config, new: &Config, written: &WrittenKeys) -> Vec<ConfigChange> {
    let (old, new) = (keys(old), keys(new));
    let (old_sections, new_sections) = (sections(&old), sections(&new));
    let of_section = |name: &str, from: bool| ConfigChange {
        key: name.to_owned(),
        from: from.then(|| SECTION.to_owned()),
        to: (!from).then(|| SECTION.to_owned()),
        effect: Effect::Live,
    };
    let removed = old_sections.difference(&new_sections).map(|name| of_section(name, true));
    let added = new_sections.difference(&old_sections).map(|name| of_section(name, false));
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let values = names.into_iter().map(|key| (key, old.get(key), new.get(key)));
    let is_shown = |key: &str| {
        let Some(section) = section(key) else { return true };
        new_sections.contains(section) && (old_sections.contains(section) || written.has(key))
    };
    let changed = values.filter(|(key, from, to)| from != to && is_shown(key));
    let changed = changed.map(|(key, from, to)| ConfigChange {
        key: key.clone(),
        from: from.map(shown),
        to: to.map(shown),
        effect: effect(key, from, to),
    });
    let mut changes: Vec<_> = removed.chain(added).chain(changed).collect();
    changes.sort_by(|one, other| one.key.cmp(&other.key));
    changes
}

fn sections(keys: &BTreeMap<String, Value>) -> BTreeSet<&str> {
    keys.keys().filter_map(|key| section(key)).collect()
}

/// The section with a name that a key is in.
fn section(key: &str) -> Option<&str> {
    let (kind, rest) = key.split_once('.').filter(|(kind, _)| NAMED.contains(kind))?;
    let name = rest.split('.').next()?;
    Some(&key[..kind.len() + 1 + name.len()])
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
        dead_letters,
        ledger,
        log,
        admin,
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
        dead_letters,
        ledger: Ledger { retention: ledger.retention, ..old.ledger },
        log: Log { level: log.level, ..old.log },
        admin: Admin { users: admin.users, ..old.admin },
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
                // A file that a key names, such as `notify.email.templates[de/processed.txt]`, is no key to quote.
                let is_part = key.ends_with(']');
                let joined = if is_part { format!("{path}.{key}") } else { super::layers::join(&path, &key) };
                collect(joined, value, keys);
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
