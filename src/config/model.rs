//! The checked configuration. Every value has passed its checks.
//!
//! It serializes to keys and values as in the file.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::address::Address;
use super::handler::{HandlerSettings, MessageKind};
use super::rate::Rate;
use super::redaction::Secret;
use super::serialize;
use crate::files::{self, Rolling};
use crate::formats::Format;
use crate::ledger::LedgerLocation;
use crate::recovery::RetryPolicy;
use crate::tls::TlsFiles;

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    /// Where the broker is, and how orderd authenticates.
    pub broker: Broker,
    /// The broker's management HTTP API.
    pub management: Management,
    /// The exchange, and whether orderd declares the topology.
    pub topology: TopologySettings,
    /// Work queues by name.
    pub queues: BTreeMap<String, Queue>,
    /// Consumers by name.
    pub consumers: BTreeMap<String, Consumer>,
    /// Formats of orders by name, without those that come with orderd.
    #[serde(serialize_with = "serialize::formats")]
    pub formats: BTreeMap<String, Format>,
    /// The notification channels. Without any, notifications go to their file.
    pub notify: HandlerSettings,
    /// Alerts for operators. Without keys, there are none.
    pub alerts: HandlerSettings,
    /// What becomes of dead letters.
    pub dead_letters: DeadLetters,
    /// The record of effects.
    pub ledger: Ledger,
    /// Logging.
    pub log: Log,
    /// The admin HTTP listener.
    pub admin: Admin,
    /// Reloading.
    pub reload: Reload,
    /// Shutdown.
    pub shutdown: Shutdown,
    /// The process itself.
    pub runtime: Runtime,
}

impl Config {
    /// The files of analytics events and of notifications.
    pub fn event_files(&self) -> [Rolling; 2] {
        let directory = self.log.directory.as_ref().unwrap_or(&self.ledger.directory);
        ["analytics", "notifications"].map(|name| self.log.files(directory.clone(), name, "jsonl"))
    }
}

/// `[broker]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Broker {
    /// At least one; tried in turn, starting with the one that has the fewest connections.
    pub addresses: Vec<Address>,
    /// Default `/`.
    pub virtual_host: String,
    /// Default `guest`.
    pub username: String,
    /// From `password` or `password_file`; default `guest`.
    pub password: Secret,
    /// How orderd authenticates; default `plain`.
    pub mechanism: Mechanism,
    /// Further users whose messages count as orderd's own: those of other instances. Default none.
    pub trusted_users: Vec<String>,
    /// `None`: AMQP without TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Default 10 s, whole seconds, 2 s to 5 min.
    #[serde(serialize_with = "serialize::duration")]
    pub heartbeat: Duration,
    /// One connection attempt, handshake included; default 10 s.
    #[serde(serialize_with = "serialize::duration")]
    pub connect_timeout: Duration,
    /// How long a publication may stay unconfirmed before its connection is closed; default 30 s.
    #[serde(serialize_with = "serialize::duration")]
    pub confirm_timeout: Duration,
    /// Maximum number of unconfirmed publications; default 4096.
    pub max_unconfirmed: usize,
    /// Maximum size of all unconfirmed publications, in bytes; default 16 MiB.
    pub max_unconfirmed_bytes: usize,
    /// The largest body that is processed, in bytes; default 16 MiB. A message with a larger one is dead-lettered.
    pub max_body: usize,
    /// How much memory the deliveries of one consumer may take, in bytes; default 32 MiB. A larger delivery is processed alone.
    pub max_unsettled_bytes: usize,
    /// Maximum back-off between connection attempts; default 30 s. It starts at 100 ms and doubles, with full jitter.
    #[serde(serialize_with = "serialize::duration")]
    pub reconnect_max: Duration,
    /// How long the broker must have been healthy before a connection is moved to a node with fewer; default 1 min. `None` if it
    /// is `"off"`.
    #[serde(serialize_with = "serialize::duration_or_off")]
    pub rebalance_after: Option<Duration>,
}

/// `broker.mechanism`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// By user name and password.
    Plain,
    /// By the client certificate.
    External,
}

/// `[broker.tls]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Tls {
    /// Read again for each connection.
    #[serde(flatten, serialize_with = "serialize::tls_files")]
    pub files: TlsFiles,
    /// The name that the broker's certificate must contain; `None`: the host in its address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// `[management]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Management {
    /// At least one, such as one for each node of a cluster; default `http://127.0.0.1:15672`. Without a trailing slash.
    #[serde(rename = "url")]
    pub urls: Vec<String>,
    /// From `[management.tls]`; default: the broker's. Used if the URL begins with `https://`.
    #[serde(serialize_with = "serialize::tls_files")]
    pub tls: TlsFiles,
    /// Default: the broker's.
    pub username: String,
    /// Default: the broker's.
    pub password: Secret,
    /// How often the API is polled, default 5 s; `None` if it is `"off"`.
    #[serde(serialize_with = "serialize::duration_or_off")]
    pub poll_every: Option<Duration>,
}

/// `[topology]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TopologySettings {
    /// Default `orders`; the other exchanges are named after it (`orders.retry`, …).
    pub exchange: String,
    /// Whether orderd declares what is missing; default true.
    pub declare: bool,
}

/// `[queues.<name>]`: one work queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// Topic patterns on the orders exchange, at least one.
    pub bindings: Vec<String>,
}

/// `[consumers.<name>]`
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Consumer {
    /// A work queue; each has exactly one consumer.
    pub queue: String,
    /// The handler's name; default: the consumer's.
    pub handler: String,
    /// The format of the orders that it receives; default `orderd`. `None` if it receives something else.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize::format_name")]
    pub format: Option<Format>,
    /// Worker tasks, 1 to 1024.
    pub workers: usize,
    /// Deliveries that one worker processes at a time, at least 1; workers × prefetch ≤ 65,535.
    pub prefetch: u16,
    /// A handler's deadline; default 30 s, at most 15 min.
    #[serde(serialize_with = "serialize::duration")]
    pub timeout: Duration,
    /// How many deliveries it starts in a time at most; `None`, the default, if that is `"off"`.
    #[serde(serialize_with = "serialize::or_off")]
    pub rate_limit: Option<Rate>,
    /// How failures are retried. It has no effect for the failed-order consumer.
    #[serde(serialize_with = "serialize::retry")]
    pub retry: RetryPolicy,
    /// The kind of messages it receives; its handler determines it.
    #[serde(skip)]
    pub messages: MessageKind,
    /// The patterns by which its queue is bound to the orders exchange.
    #[serde(skip)]
    pub bindings: Vec<String>,
    /// Of a consumer of notifications: `[notify]`, without what is reserved for operators.
    #[serde(skip)]
    pub notify: HandlerSettings,
    /// Of a consumer of orders: the notification channel of an order that asks for none.
    #[serde(skip)]
    pub default_channel: Option<String>,
    /// The handler's own keys.
    #[serde(flatten)]
    pub handler_settings: HandlerSettings,
}

impl Consumer {
    /// Whether it is the failed-order consumer, which receives the failed messages of all others.
    pub fn handles_failures(&self) -> bool {
        self.messages == MessageKind::Failure
    }

    /// How long one attempt may take: the handler's own time, and that of the services and notification channels that it waits for.
    pub fn attempt_time(&self) -> Duration {
        let calls = self.handler_settings.call_time().saturating_add(self.notify.call_time());
        self.timeout.saturating_add(calls)
    }

    /// Maximum number of unsettled deliveries of this consumer: workers × prefetch.
    pub fn slots(&self) -> u16 {
        u16::try_from(self.workers * usize::from(self.prefetch)).expect("checked: workers × prefetch fits 16 bits")
    }
}

/// `[dead_letters]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeadLetters {
    /// Whether `dead_letter_queue` and `unrouted_queue` are drained into the ledger; default true.
    pub collect: bool,
}

/// `[ledger]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Where `orderd.db` is, default `/var/lib/orderd`; created if missing.
    #[serde(serialize_with = "serialize::path")]
    pub directory: PathBuf,
    /// How long rows of processed messages are kept; `None`, the default: forever. Aggregates and dead letters are always
    /// kept.
    #[serde(serialize_with = "serialize::duration_or_forever")]
    pub retention: Option<Duration>,
}

impl Ledger {
    /// Where the ledger is, which determines its implementation.
    pub fn location(&self) -> LedgerLocation {
        LedgerLocation::Directory(self.directory.clone())
    }
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Log {
    /// Default `info`.
    pub level: LogLevel,
    /// Default `text`.
    pub format: LogFormat,
    /// The directory of the rolling files: orderd's log, analytics events and notifications. `None`: the log goes to standard
    /// error only, events and notifications to the ledger's directory.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "serialize::optional_path")]
    pub directory: Option<PathBuf>,
    /// When a new file begins; default daily.
    pub rotation: Rotation,
    /// Number of rolled files kept of each kind; default 14.
    pub keep: usize,
    /// Mode of the log and event files, default 0640, whatever the umask.
    #[serde(serialize_with = "serialize::file_mode")]
    pub mode: u32,
}

impl Log {
    /// The rolling files of this name in a directory.
    fn files(&self, directory: PathBuf, name: &'static str, suffix: &'static str) -> Rolling {
        Rolling { directory, name, suffix, rotation: self.rotation.into(), keep: self.keep, mode: self.mode }
    }

    /// orderd's own log files, if there is a directory for them.
    pub fn log_files(&self) -> Option<Rolling> {
        self.directory.clone().map(|directory| self.files(directory, "orderd", "log"))
    }
}

/// `log.level`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Someone must act.
    Error,
    /// Degraded, but self-healing.
    Warn,
    /// Life cycle.
    Info,
    /// Single messages.
    Debug,
    /// Everything.
    Trace,
}

/// `log.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines of text.
    Text,
    /// One JSON object a line.
    Json,
}

/// `log.rotation`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rotation {
    /// A new file every minute.
    Minutely,
    /// A new file every hour.
    Hourly,
    /// A new file every day (UTC).
    Daily,
    /// One file forever.
    Never,
}

impl From<Rotation> for files::Rotation {
    fn from(rotation: Rotation) -> Self {
        match rotation {
            Rotation::Minutely => Self::Minutely,
            Rotation::Hourly => Self::Hourly,
            Rotation::Daily => Self::Daily,
            Rotation::Never => Self::Never,
        }
    }
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Admin {
    /// Default `127.0.0.1:9640`; `None` if it is `"off"`. An address other than loopback needs users.
    #[serde(serialize_with = "serialize::or_off")]
    pub listen: Option<SocketAddr>,
    /// Who may use it. With users, all requests need a token except `/livez` and `/readyz`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<AdminUser>,
    /// Host names that requests may use besides `localhost` and IP addresses; in lower case, without port.
    pub hosts: Vec<String>,
}

/// `[[admin.users]]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdminUser {
    /// As in the journal.
    pub name: String,
    /// What the user may do.
    pub role: Role,
    /// From `token_file`: the bearer token that the user sends.
    #[serde(rename = "token_file")]
    pub token: Secret,
}

/// What a user of the admin listener may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Read everything, personal data included.
    Viewer,
    /// Send commands, too.
    Operator,
}

/// `[reload]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reload {
    /// Whether a changed file is applied automatically; default false.
    pub watch: bool,
}

/// `[shutdown]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shutdown {
    /// How long deliveries in flight may take to finish; default 30 s.
    #[serde(serialize_with = "serialize::duration")]
    pub drain_timeout: Duration,
}

/// `[runtime]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Runtime {
    /// Threads that run workers and connections, 1 to 256; default 1. The ledger and the log writers have
    /// their own.
    pub threads: usize,
}
