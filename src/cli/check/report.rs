//! What would run, as a value: the shape of `orderd check --format json`. Keys are only ever added. Pure.
//!
//! ```json
//! {
//!   "ok": true, "problems": [], "warnings": [{"path": "…", "message": "…"}],
//!   "config": "/etc/orderd/orderd.toml",
//!   "broker": {"addresses": ["127.0.0.1:5672"], "virtual_host": "/", "username": "guest"},
//!   "ledger": {"directory": "/var/lib/orderd", "retention_ms": null},
//!   "reload": {"watch": false},
//!   "topology": {
//!     "declare": true,
//!     "exchanges": [{"name": "orders", "type": "topic", "arguments": {"alternate-exchange": "orders.unrouted"}}],
//!     "queues": [{"name": "order_queue", "arguments": {"x-queue-type": "quorum"}}],
//!     "bindings": [{"exchange": "orders", "queue": "order_queue", "routing_key": "order.normal.*"}]
//!   },
//!   "permissions": {"configure": "^(orders|…)$", "write": "…", "read": "…", "commands": ["rabbitmqctl …"]},
//!   "consumers": [{
//!     "name": "order", "queue": "order_queue", "handler": "order",
//!     "workers": 4, "prefetch": 100, "slots": 400, "timeout_ms": 30000,
//!     "retry": {
//!       "immediate": 1, "max_age_ms": 86400000,
//!       "delayed": [{"delay_ms": 1000, "after_ms": 1000, "queue": "order_queue.retry.1s"}],
//!       "tries": 4, "total_delay_ms": 1000, "worst_case_ms": 121000
//!     },
//!     "faults": {"transient": 0.05, "permanent": 0.0, "panic": 0.0, "hang": 0.0, "block": 0.0}
//!   }],
//!   "connected": null
//! }
//! ```
//!
//! Topology is in the order of declaration, consumers by name. `retry` is null for the consumer of failures,
//! `retention_ms` where rows are kept forever, `connected` without `--connect`. A consumer also has the keys of its
//! handler, such as `faults` of the order handler.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::broker::BrokerReport;
use crate::config::{Config, Consumer, Loaded, Problem};
use crate::message::ExchangeNames;
use crate::recovery::RetryPolicy;
use crate::topology::{Argument, Permissions, Topology};

/// All that a check says.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// The file it was read from.
    pub config: String,
    /// What a person should look at.
    pub warnings: Vec<Problem>,
    /// Where the broker is.
    pub broker: BrokerSettings,
    /// Where effects are recorded, and for how long.
    pub ledger: LedgerSettings,
    /// When a changed file is applied.
    pub reload: ReloadSettings,
    /// What must be on it.
    pub topology: TopologyReport,
    /// What orderd's user must be allowed.
    pub permissions: PermissionsReport,
    /// What runs.
    pub consumers: Vec<ConsumerReport>,
    /// What the broker has, if it was asked.
    pub connected: Option<BrokerReport>,
}

/// The least permissions, as regular expressions, and the commands that grant them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PermissionsReport {
    /// What may be declared.
    pub configure: String,
    /// What may be published to, and bound.
    pub write: String,
    /// What may be consumed, and bound to.
    pub read: String,
    /// For a shell.
    pub commands: [String; 2],
}

/// Where the broker is and who orderd is to it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BrokerSettings {
    /// `host:port`.
    pub addresses: Vec<String>,
    /// The virtual host.
    pub virtual_host: String,
    /// Without the password.
    pub username: String,
}

/// When a changed file is applied.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ReloadSettings {
    /// By itself; else when told to.
    pub watch: bool,
}

/// The ledger's place, and how long it keeps the rows of what is done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LedgerSettings {
    /// Where `orderd.db` is.
    pub directory: PathBuf,
    /// How long rows are kept; none: forever.
    #[serde(rename = "retention_ms", serialize_with = "maybe_millis")]
    pub retention: Option<Duration>,
}

/// The topology, in the order of declaration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopologyReport {
    /// Whether orderd declares what is missing.
    pub declare: bool,
    /// Exchanges.
    pub exchanges: Vec<ExchangeReport>,
    /// Queues.
    pub queues: Vec<QueueReport>,
    /// Bindings.
    pub bindings: Vec<BindingReport>,
}

/// One exchange.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExchangeReport {
    /// Its name.
    pub name: String,
    /// `topic`, `direct` or `fanout`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

/// One queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QueueReport {
    /// Its name.
    pub name: String,
    /// Its arguments.
    pub arguments: Map<String, Value>,
}

/// One binding.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BindingReport {
    /// From which exchange.
    pub exchange: String,
    /// To which queue.
    pub queue: String,
    /// By which key or pattern.
    pub routing_key: String,
}

/// One consumer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConsumerReport {
    /// Its name.
    pub name: String,
    /// What it consumes.
    pub queue: String,
    /// What it does.
    pub handler: String,
    /// Worker tasks.
    pub workers: usize,
    /// Deliveries each worker holds.
    pub prefetch: u16,
    /// Workers × prefetch.
    pub slots: u16,
    /// The handler's deadline.
    #[serde(rename = "timeout_ms", serialize_with = "millis")]
    pub timeout: Duration,
    /// What happens to failures.
    pub retry: Option<Schedule>,
    /// The handler's own keys, such as `faults`.
    #[serde(flatten)]
    pub handler_settings: Map<String, Value>,
    /// What the text says about them.
    #[serde(skip)]
    pub handler_lines: Vec<String>,
}

/// When a failing message is tried again, and until when at worst.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Schedule {
    /// Retries at once of each delivery.
    pub immediate: u32,
    /// Retries after a delay.
    pub delayed: Vec<Retry>,
    /// Dead-lettered when its first failure lies further back.
    #[serde(rename = "max_age_ms", serialize_with = "millis")]
    pub max_age: Duration,
    /// Calls of the handler at most: each delivery is tried once and then `immediate` times more.
    pub tries: u32,
    /// The sum of the delays.
    #[serde(rename = "total_delay_ms", serialize_with = "millis")]
    pub total_delay: Duration,
    /// From the first try to the message's parking when every try uses up its deadline; waiting for a free
    /// worker comes on top.
    #[serde(rename = "worst_case_ms", serialize_with = "millis")]
    pub worst_case: Duration,
}

/// One delayed retry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Retry {
    /// Its delay.
    #[serde(rename = "delay_ms", serialize_with = "millis")]
    pub delay: Duration,
    /// The sum of the delays up to it: when it happens if the tries take no time.
    #[serde(rename = "after_ms", serialize_with = "millis")]
    pub after: Duration,
    /// Where the message waits.
    pub queue: String,
}

fn millis<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn maybe_millis<S: serde::Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => millis(duration, serializer),
        None => serializer.serialize_none(),
    }
}

impl CheckReport {
    /// What would run by a configuration.
    pub fn new(loaded: &Loaded) -> Self {
        let config = &loaded.config;
        CheckReport {
            config: loaded.path.display().to_string(),
            warnings: loaded.warnings.clone(),
            broker: BrokerSettings {
                addresses: config.broker.addresses.iter().map(ToString::to_string).collect(),
                virtual_host: config.broker.virtual_host.clone(),
                username: config.broker.username.clone(),
            },
            ledger: LedgerSettings { directory: config.ledger.directory.clone(), retention: config.ledger.retention },
            reload: ReloadSettings { watch: config.reload.watch },
            topology: TopologyReport::new(config),
            permissions: PermissionsReport::new(config),
            consumers: config.consumers.iter().map(|(name, consumer)| ConsumerReport::new(name, consumer)).collect(),
            connected: None,
        }
    }
}

impl PermissionsReport {
    fn new(config: &Config) -> Self {
        let permissions = config.permissions();
        let commands = permissions.commands(&config.broker.virtual_host, &config.broker.username);
        let Permissions { configure, write, read, topic: _ } = permissions;
        PermissionsReport { configure, write, read, commands }
    }
}

impl TopologyReport {
    fn new(config: &Config) -> Self {
        let topology: Topology = config.topology();
        let exchange = |exchange: &crate::topology::Exchange| ExchangeReport {
            name: exchange.name.clone(),
            kind: exchange.kind.as_str(),
            arguments: arguments(&exchange.arguments),
        };
        let queue = |queue: &crate::topology::Queue| QueueReport {
            name: queue.name.clone(),
            arguments: arguments(&queue.arguments),
        };
        let binding = |binding: &crate::topology::Binding| BindingReport {
            exchange: binding.exchange.clone(),
            queue: binding.queue.clone(),
            routing_key: binding.routing_key.clone(),
        };
        TopologyReport {
            declare: config.topology.declare,
            exchanges: topology.exchanges().map(exchange).collect(),
            queues: topology.queues().map(queue).collect(),
            bindings: topology.bindings().map(binding).collect(),
        }
    }
}

fn arguments(arguments: &std::collections::BTreeMap<&'static str, Argument>) -> Map<String, Value> {
    let json = |argument: &Argument| match argument {
        Argument::Text(text) => Value::from(text.as_str()),
        Argument::Number(number) => Value::from(*number),
    };
    arguments.iter().map(|(name, value)| ((*name).to_owned(), json(value))).collect()
}

impl ConsumerReport {
    fn new(name: &str, consumer: &Consumer) -> Self {
        let retried = !consumer.handles_failures();
        ConsumerReport {
            name: name.to_owned(),
            queue: consumer.queue.clone(),
            handler: consumer.handler.clone(),
            workers: consumer.workers,
            prefetch: consumer.prefetch,
            slots: consumer.slots(),
            timeout: consumer.timeout,
            retry: retried.then(|| Schedule::new(&consumer.queue, &consumer.retry, consumer.timeout)),
            handler_settings: consumer.handler_settings.keys(),
            handler_lines: consumer.handler_settings.check_lines().to_vec(),
        }
    }
}

impl Schedule {
    /// The schedule of messages of one queue under a policy, with a handler's deadline.
    pub fn new(queue: &str, policy: &RetryPolicy, timeout: Duration) -> Self {
        let mut after = Duration::ZERO;
        let delayed: Vec<Retry> = policy
            .delays
            .iter()
            .map(|delay| {
                after += delay.as_duration();
                Retry { delay: delay.as_duration(), after, queue: ExchangeNames::retry_queue(queue, *delay) }
            })
            .collect();
        let deliveries = u32::try_from(delayed.len()).unwrap_or(u32::MAX).saturating_add(1);
        let tries = deliveries.saturating_mul(policy.immediate.saturating_add(1));
        Schedule {
            immediate: policy.immediate,
            delayed,
            max_age: policy.max_age,
            tries,
            total_delay: after,
            worst_case: after.saturating_add(timeout.saturating_mul(tries)),
        }
    }
}
