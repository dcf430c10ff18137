//! What would run: the content of `orderd check --format json`. The JSON form is stable: keys may be added, but none is
//! removed or changed. Pure.
//!
//! ```json
//! {
//!   "ok": true, "problems": [], "warnings": [{"path": "…", "message": "…"}],
//!   "config": "/etc/orderd/orderd.toml",
//!   "broker": {"addresses": ["127.0.0.1:5672"], "virtual_host": "/", "username": "guest"},
//!   "ledger": {"directory": "/var/lib/orderd", "retention_ms": null},
//!   "reload": {"watch": false},
//!   "alerts": null, "notifications": {"default_channel": "email", "channels": [], "file": "/var/lib/orderd/notifications.jsonl"},
//!   "topology": {
//!     "declare": true,
//!     "exchanges": [{"name": "orders", "type": "topic", "arguments": {"alternate-exchange": "orders.unrouted"}}],
//!     "queues": [{"name": "order_queue", "arguments": {"x-queue-type": "quorum"}}],
//!     "bindings": [{"exchange": "orders", "queue": "order_queue", "routing_key": "order.normal.*"}]
//!   },
//!   "permissions": {"user": "orderd", "configure": "^(orders|…)$", "write": "…", "read": "…", "commands": ["rabbitmqctl …"],
//!     "management": {"user": "orderd", "commands": ["rabbitmqctl …"], "new_user_commands": []}, "producer": {"user": "shop", "commands": ["…"]}},
//!   "consumers": [{
//!     "name": "order", "queue": "order_queue", "handler": "order",
//!     "workers": 4, "prefetch": 100, "slots": 400, "timeout_ms": 30000, "rate_limit": "200/s",
//!     "retry": {
//!       "immediate": 1, "max_age_ms": 86400000,
//!       "delayed": [{"delay_ms": 1000, "after_ms": 1000, "queue": "order_queue.retry.1s"}],
//!       "attempts": 4, "total_delay_ms": 1000, "worst_case_ms": 121000
//!     },
//!     "settings": {"faults": {"transient": 0.05, "permanent": 0.0, "panic": 0.0, "hang": 0.0, "block": 0.0}}
//!   }],
//!   "connected": null, "step_servers": null, "step_commands": null, "channel_servers": null
//! }
//! ```
//!
//! The topology is in the order of declaration; consumers are sorted by name. `retry` is null for the failed-order consumer,
//! `rate_limit` without one, `alerts` without such a section, `notifications` if no consumer receives any, `notifications.file` if there are channels, `retention_ms` if rows are kept forever, `connected`, `step_servers`, `step_commands` and
//! `channel_servers` without `--connect`. `settings` has the keys of the consumer's handler, such as `faults` of the order handler.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use super::broker::BrokerReport;
use super::channel_servers::ChannelServerReport;
use super::permissions::PermissionsReport;
use super::schedule::{RetrySchedule, millis, optional_millis};
use super::step_commands::StepCommandReport;
use super::step_servers::StepServerReport;
use crate::config::{Config, Consumer, Loaded, MessageKind, Problem, Rate};
use crate::escape::escaped;
use crate::formats::Format;
use crate::topology::{Argument, Topology};

/// The result of a check.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// The configuration file.
    pub config: String,
    /// Warnings about the configuration.
    pub warnings: Vec<Problem>,
    /// The keys of the alerts; `None` if none are configured.
    pub alerts: Option<Map<String, Value>>,
    /// Where customers' notifications go; `None` if no consumer receives any.
    pub notifications: Option<NotificationsReport>,
    /// What is said about notifications and alerts.
    #[serde(skip)]
    pub notification_lines: Vec<String>,
    /// The broker and the user.
    pub broker: BrokerSettings,
    /// The ledger.
    pub ledger: LedgerSettings,
    /// When a changed file is reloaded.
    pub reload: ReloadSettings,
    /// What the broker must have.
    pub topology: TopologyReport,
    /// The permissions that orderd's user needs.
    pub permissions: PermissionsReport,
    /// The consumers, by name.
    pub consumers: Vec<ConsumerReport>,
    /// What the broker has; `None` without `--connect`.
    pub connected: Option<BrokerReport>,
    /// Which servers of steps accept connections; `None` without `--connect`.
    pub step_servers: Option<Vec<StepServerReport>>,
    /// Whether the programs of steps are there; `None` without `--connect`.
    pub step_commands: Option<Vec<StepCommandReport>>,
    /// Whether the servers of notification channels can be used; `None` without `--connect`.
    pub channel_servers: Option<Vec<ChannelServerReport>>,
}

/// Where customers' notifications go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotificationsReport {
    /// The channel of an order that names none.
    pub default_channel: String,
    /// The channels that orders may name, without that of the alerts.
    pub channels: Vec<String>,
    /// The file that all notifications are written to, because there are no such channels.
    pub file: Option<PathBuf>,
}

/// The broker's addresses, and the user orderd connects as.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BrokerSettings {
    /// `host:port`.
    pub addresses: Vec<String>,
    /// The virtual host.
    pub virtual_host: String,
    /// The user name.
    pub username: String,
}

/// When a changed file is reloaded.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ReloadSettings {
    /// `true`: when the file changes; `false`: on command.
    pub watch: bool,
}

/// The ledger's directory and retention.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LedgerSettings {
    /// The directory of `orderd.db`.
    pub directory: PathBuf,
    /// How long rows of finished orders are kept; `None`: forever.
    #[serde(rename = "retention_ms", serialize_with = "optional_millis")]
    pub retention: Option<Duration>,
}

/// The topology, in the order of declaration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TopologyReport {
    /// orderd declares what is missing.
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
    /// The source exchange.
    pub exchange: String,
    /// The destination queue.
    pub queue: String,
    /// The routing key or pattern.
    pub routing_key: String,
}

/// One consumer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConsumerReport {
    /// Its name.
    pub name: String,
    /// The queue it consumes.
    pub queue: String,
    /// Its handler.
    pub handler: String,
    /// The format of its orders; `None` if it receives something else.
    pub format: Option<String>,
    /// Number of workers.
    pub workers: usize,
    /// Deliveries prefetched per worker.
    pub prefetch: u16,
    /// Workers × prefetch: the maximum number of unsettled deliveries.
    pub slots: u16,
    /// The handler's deadline.
    #[serde(rename = "timeout_ms", serialize_with = "millis")]
    pub timeout: Duration,
    /// How many deliveries are started in a time at most; `None`: no limit.
    pub rate_limit: Option<Rate>,
    /// How failures are retried; `None` for the failed-order consumer.
    pub retry: Option<RetrySchedule>,
    /// The handler's own keys, such as `faults`.
    #[serde(rename = "settings")]
    pub handler_settings: Map<String, Value>,
    /// The handler's lines in the text output.
    #[serde(skip)]
    pub handler_lines: Vec<String>,
}

impl CheckReport {
    /// The report on a loaded configuration, without the broker's part.
    pub fn new(loaded: &Loaded) -> Self {
        let config = &loaded.config;
        CheckReport {
            config: loaded.path.display().to_string(),
            warnings: loaded.warnings.clone(),
            alerts: Some(config.alerts.keys()).filter(|keys| !keys.is_empty()),
            notifications: NotificationsReport::new(config),
            notification_lines: notification_lines(config),
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
            step_servers: None,
            step_commands: None,
            channel_servers: None,
        }
    }
}

impl NotificationsReport {
    fn new(config: &Config) -> Option<Self> {
        let consumer = notification_consumer(config)?;
        let channels: Vec<String> = consumer.notify.keys().into_iter().map(|(name, _)| name).collect();
        let [_, file] = config.event_files();
        Some(NotificationsReport {
            default_channel: consumer.handler_settings.text("default_channel").unwrap_or_default(),
            file: channels.is_empty().then(|| file.directory.join("notifications.jsonl")),
            channels,
        })
    }
}

/// The channels that all consumers of notifications share are those of the first.
fn notification_consumer(config: &Config) -> Option<&Consumer> {
    config.consumers.values().find(|consumer| consumer.messages == MessageKind::Notification)
}

fn notification_lines(config: &Config) -> Vec<String> {
    let channels = notification_consumer(config).map(|consumer| consumer.notify.check_lines().to_vec());
    let notifications = NotificationsReport::new(config).and_then(|report| report.file);
    let file = notifications.map(|file| {
        let file = escaped(&file.to_string_lossy());
        format!("customers are not notified: their notifications are written to {file}, since [notify] has no channel for them")
    });
    channels.into_iter().flatten().chain(file).chain(config.alerts.check_lines().to_vec()).collect()
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

impl TopologyReport {
    /// The number of objects.
    pub fn object_count(&self) -> usize {
        self.exchanges.len() + self.queues.len() + self.bindings.len()
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
        let is_retried = !consumer.handles_failures();
        let attempt = consumer.attempt_time();
        ConsumerReport {
            name: name.to_owned(),
            queue: consumer.queue.clone(),
            handler: consumer.handler.clone(),
            format: consumer.format.as_ref().map(|format| format.name().to_owned()),
            workers: consumer.workers,
            prefetch: consumer.prefetch,
            slots: consumer.slots(),
            timeout: consumer.timeout,
            rate_limit: consumer.rate_limit,
            retry: is_retried.then(|| RetrySchedule::new(&consumer.queue, &consumer.retry, attempt)),
            handler_settings: consumer.handler_settings.keys(),
            handler_lines: format_line(name, consumer)
                .into_iter()
                .chain(consumer.handler_settings.check_lines().to_vec())
                .collect(),
        }
    }
}

/// Names a format other than orderd's own.
fn format_line(name: &str, consumer: &Consumer) -> Option<String> {
    let format = consumer.format.as_ref().filter(|format| **format != Format::Own)?;
    Some(format!("consumer {name:?} reads orders in the format {:?}", format.name()))
}
