//! What differs between two configurations, key by key, and what of the new one can be in force without a restart.
//!
//! Pure. Every struct is taken apart whole, so that a new key does not compile until it is said here what a change of
//! it takes.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use super::duration;
use super::model::{
    Admin, Broker, Config, Consumer, Ledger, Log, LogFormat, LogLevel, Management, Mechanism, Queue, Reload, Rotation,
    Runtime, Secret, Shutdown, Tls, TopologySettings,
};
use crate::control::{ConfigChange, Effect};
use crate::domain::FaultInjection;
use crate::recovery::{FAILED_HANDLER, RetryPolicy};
use crate::tls::{CertificateFiles, TlsFiles};

/// Shown in place of a secret.
const REDACTED: &str = "[redacted]";

/// Every key that differs, sorted, with its values as one would write them into the file.
///
/// A queue that stays and lost a binding has [`Effect::Broker`], even if it gained another one. Keys that are not there
/// in one of the two have no value there. Two configurations without changes are equal.
pub fn changes(old: &Config, new: &Config) -> Vec<ConfigChange> {
    let (mut former, mut wanted) = (Sheet::of(old), Sheet::of(new));
    let keys: std::collections::BTreeSet<_> = former.0.keys().chain(wanted.0.keys()).cloned().collect();
    let changes = keys.into_iter().filter_map(|key| {
        let (from, to) = (former.0.remove(&key), wanted.0.remove(&key));
        let effect = match (&from, &to) {
            (Some(from), Some(to)) if from.value == to.value => return None,
            (Some(from), Some(to)) => from.value.effect_of_turning_into(&to.value, to.effect),
            (from, to) => to.as_ref().or(from.as_ref())?.effect,
        };
        Some(ConfigChange {
            key,
            from: from.map(|entry| entry.value.shown()),
            to: to.map(|entry| entry.value.shown()),
            effect,
        })
    });
    changes.collect()
}

/// The new configuration with the old one's values of all that needs a restart. Applied over and over, it goes on
/// differing from a file that asks for a restart, until there is one.
pub fn in_force(old: &Config, new: &Config) -> Config {
    let old = old.clone();
    let Config {
        broker: _,
        management,
        topology,
        queues,
        consumers,
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
        ledger: Ledger { retention: ledger.retention, ..old.ledger },
        log: Log { level: log.level, ..old.log },
        admin: old.admin,
        reload: old.reload,
        shutdown,
        runtime: old.runtime,
    }
}

/// The value of a key.
#[derive(Debug, PartialEq)]
enum Value {
    Plain(String),
    /// Compared, never shown.
    Secret(Secret),
    Bindings(Vec<String>),
}

impl Value {
    fn shown(self) -> String {
        match self {
            Value::Plain(text) => text,
            Value::Secret(_) => REDACTED.to_owned(),
            Value::Bindings(patterns) => list(patterns),
        }
    }

    /// orderd never takes a binding away at the broker.
    fn effect_of_turning_into(&self, new: &Value, otherwise: Effect) -> Effect {
        match (self, new) {
            (Value::Bindings(old), Value::Bindings(new)) if old.iter().any(|pattern| !new.contains(pattern)) => {
                Effect::Broker
            }
            _ => otherwise,
        }
    }
}

struct Entry {
    value: Value,
    effect: Effect,
}

/// Every key of a configuration with its value and what a change of it takes.
struct Sheet(BTreeMap<String, Entry>);

impl Sheet {
    fn of(config: &Config) -> Self {
        let Config { broker, management, topology, queues, consumers, ledger, log, admin, reload, shutdown, runtime } =
            config;
        let mut sheet = Sheet(BTreeMap::new());
        sheet.broker(broker);
        sheet.management(management);
        sheet.topology(topology);
        for (name, Queue { bindings }) in queues {
            sheet.put(format!("queues.{name}.bindings"), Value::Bindings(bindings.clone()), Effect::Live);
        }
        for (name, consumer) in consumers {
            sheet.consumer(name, consumer);
        }
        sheet.ledger(ledger);
        sheet.log(log);
        sheet.admin(admin);
        let Reload { watch } = reload;
        sheet.restart("reload.watch", watch);
        let Shutdown { drain_timeout } = shutdown;
        sheet.live("shutdown.drain_timeout", span(*drain_timeout));
        let Runtime { threads } = runtime;
        sheet.restart("runtime.threads", threads);
        sheet
    }

    fn put(&mut self, key: String, value: Value, effect: Effect) {
        let former = self.0.insert(key, Entry { value, effect });
        debug_assert!(former.is_none(), "a key is told once");
    }

    fn live(&mut self, key: &str, value: impl Display) {
        self.put(key.to_owned(), Value::Plain(value.to_string()), Effect::Live);
    }

    fn restart(&mut self, key: &str, value: impl Display) {
        self.put(key.to_owned(), Value::Plain(value.to_string()), Effect::Restart);
    }

    fn secret(&mut self, key: &str, value: &Secret, effect: Effect) {
        self.put(key.to_owned(), Value::Secret(value.clone()), effect);
    }

    fn broker(&mut self, broker: &Broker) {
        let Broker {
            addresses,
            virtual_host,
            username,
            password,
            mechanism,
            tls,
            heartbeat,
            connect_timeout,
            confirm_timeout,
            max_unconfirmed,
            max_unconfirmed_bytes,
            reconnect_max,
        } = broker;
        self.restart("broker.addresses", list(addresses));
        self.restart("broker.virtual_host", text(virtual_host));
        self.restart("broker.username", text(username));
        self.secret("broker.password", password, Effect::Restart);
        let mechanism = match mechanism {
            Mechanism::Plain => "plain",
            Mechanism::External => "external",
        };
        self.restart("broker.mechanism", text(mechanism));
        if let Some(Tls { files, server_name }) = tls {
            // There may be no key in it.
            self.restart("broker.tls", "{}");
            self.files("broker.tls", files, Effect::Restart);
            if let Some(name) = server_name {
                self.restart("broker.tls.server_name", text(name));
            }
        }
        self.restart("broker.heartbeat", span(*heartbeat));
        self.restart("broker.connect_timeout", span(*connect_timeout));
        self.restart("broker.confirm_timeout", span(*confirm_timeout));
        self.restart("broker.max_unconfirmed", max_unconfirmed);
        self.restart("broker.max_unconfirmed_bytes", max_unconfirmed_bytes);
        self.restart("broker.reconnect_max", span(*reconnect_max));
    }

    /// What the files hold is no part of a configuration: they are read again for each connection.
    fn files(&mut self, section: &str, files: &TlsFiles, effect: Effect) {
        let TlsFiles { ca, client } = files;
        let (certificate, key) =
            client.as_ref().map(|CertificateFiles { certificate, key }| (certificate, key)).unzip();
        for (name, file) in [("ca_file", ca.as_ref()), ("certificate_file", certificate), ("key_file", key)] {
            if let Some(file) = file {
                self.put(format!("{section}.{name}"), Value::Plain(path(file)), effect);
            }
        }
    }

    fn management(&mut self, management: &Management) {
        let Management { url, tls, username, password, poll_every } = management;
        self.live("management.url", text(url));
        self.files("management.tls", tls, Effect::Live);
        self.live("management.username", text(username));
        self.secret("management.password", password, Effect::Live);
        self.live("management.poll_every", poll_every.map_or_else(|| text("off"), span));
    }

    fn topology(&mut self, topology: &TopologySettings) {
        let TopologySettings { exchange, declare } = topology;
        self.restart("topology.exchange", text(exchange));
        self.live("topology.declare", declare);
    }

    fn consumer(&mut self, name: &str, consumer: &Consumer) {
        let Consumer { queue, handler, workers, prefetch, timeout, retry, faults } = consumer;
        let mut live = |key: &str, value: &dyn Display| self.live(&format!("consumers.{name}.{key}"), value);
        live("queue", &text(queue));
        live("handler", &text(handler));
        live("workers", workers);
        live("prefetch", prefetch);
        live("timeout", &span(*timeout));
        if handler == FAILED_HANDLER {
            // It has neither; loading refuses them.
            return;
        }
        let RetryPolicy { immediate, delays, max_age } = retry;
        live("retry.immediate", immediate);
        live("retry.delays", &list(delays));
        live("retry.max_age", &span(*max_age));
        let FaultInjection { transient, permanent, panic, hang, block } = faults.unwrap_or_default();
        let shares =
            [("transient", transient), ("permanent", permanent), ("panic", panic), ("hang", hang), ("block", block)];
        for (kind, share) in shares {
            live(&format!("faults.{kind}"), &format!("{share:?}"));
        }
    }

    fn ledger(&mut self, ledger: &Ledger) {
        let Ledger { directory, retention } = ledger;
        self.restart("ledger.directory", path(directory));
        self.live("ledger.retention", retention.map_or_else(|| text("forever"), span));
    }

    fn log(&mut self, log: &Log) {
        let Log { level, format, directory, rotation, keep } = log;
        self.live("log.level", text(level_word(*level)));
        let format = match format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        self.restart("log.format", text(format));
        if let Some(directory) = directory {
            self.restart("log.directory", path(directory));
        }
        let rotation = match rotation {
            Rotation::Minutely => "minutely",
            Rotation::Hourly => "hourly",
            Rotation::Daily => "daily",
            Rotation::Never => "never",
        };
        self.restart("log.rotation", text(rotation));
        self.restart("log.keep", keep);
    }

    fn admin(&mut self, admin: &Admin) {
        let Admin { listen, token, hosts } = admin;
        self.restart("admin.listen", listen.map_or_else(|| text("off"), |listen| text(&listen.to_string())));
        if let Some(token) = token {
            self.secret("admin.token_file", token, Effect::Restart);
        }
        self.restart("admin.hosts", list(hosts));
    }
}

fn level_word(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
        LogLevel::Trace => "trace",
    }
}

/// Text in quotes, on one line.
fn text(text: &str) -> String {
    format!("{text:?}")
}

fn path(path: &Path) -> String {
    text(&path.display().to_string())
}

fn span(duration: Duration) -> String {
    text(&duration::format(duration))
}

fn list(items: impl IntoIterator<Item = impl Display>) -> String {
    let quoted: Vec<_> = items.into_iter().map(|item| text(&item.to_string())).collect();
    format!("[{}]", quoted.join(", "))
}

#[cfg(test)]
mod tests;
