//! Reads the sections of the file: every key with its default and its range. Rules between sections are in `check`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::address::Address;
use super::handler::{HandlerRegistry, HandlerSettings, MessageKind};
use super::layers::{Table, Value};
use super::model::{
    Broker, Config, DeadLetters, Ledger, Log, LogFormat, LogLevel, Management, Mechanism, Reload, Rotation, Runtime,
    Shutdown, Tls, TopologySettings,
};
use super::redaction::Secret;
use super::section::{MAX_PATH_BYTES, ReadContext, Section, items};
use super::{admin, format, secret, tls, value_parser, workload};
use crate::files::FILE_MODE;

/// Maximum length of an AMQP short string, in bytes.
const MAX_SHORT_STRING_BYTES: usize = 255;
/// The default port of AMQP without TLS.
const AMQP_PORT: u16 = 5672;
/// The default port of AMQP with TLS.
const AMQPS_PORT: u16 = 5671;
/// Maximum number of `broker.addresses`.
const MAX_ADDRESSES: usize = 32;
/// Maximum number of `broker.trusted_users`.
const MAX_TRUSTED_USERS: usize = 16;
/// Maximum length of the name of the orders exchange, in bytes. The names of the other exchanges are longer: suffixes such
/// as `.dead_letter` are appended to it.
const MAX_EXCHANGE_NAME_BYTES: usize = 200;

/// Reports are exact to the minute for the last two days; the third day is a margin.
const MIN_RETENTION: Duration = seconds(3 * 86_400);
const MAX_RETENTION: Duration = seconds(36_500 * 86_400);

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Reads all sections. Defaults stand in for wrong values; the caller then discards the configuration.
pub(super) fn config(root: Table, handlers: HandlerRegistry, context: &ReadContext) -> Config {
    let mut root = Section::new(String::new(), root, context);
    let broker = broker(root.section("broker"));
    let formats = format::formats(root.optional_section("formats"));
    let mut config = Config {
        management: management(root.section("management"), &broker),
        broker,
        topology: topology(root.section("topology")),
        queues: named_sections(&mut root, "queues", workload::queue),
        consumers: named_sections(&mut root, "consumers", |name, section| {
            workload::consumer(name, section, handlers, &formats)
        }),
        formats,
        notify: notify(&mut root, handlers),
        alerts: HandlerSettings::none(),
        dead_letters: dead_letters(root.section("dead_letters")),
        ledger: ledger(root.section("ledger")),
        log: log(root.section("log")),
        admin: admin::admin(root.section("admin")),
        reload: reload(root.section("reload")),
        shutdown: shutdown(root.section("shutdown")),
        runtime: runtime(root.section("runtime")),
    };
    let customers = alerts(&mut root, handlers, &mut config);
    share_notify(&mut config, &customers);
    for consumer in config.consumers.values_mut() {
        consumer.bindings = config.queues.get(&consumer.queue).map(|queue| queue.bindings.clone()).unwrap_or_default();
    }
    root.finish();
    config
}

/// The notification channels.
fn notify(root: &mut Section<'_>, handlers: HandlerRegistry) -> HandlerSettings {
    let spec = handlers.iter().find(|spec| spec.messages() == MessageKind::Notification);
    let read = |section: Section<'_>| spec?.read_notify(section);
    root.optional_section("notify").and_then(read).unwrap_or_else(HandlerSettings::none)
}

/// The alerts. Returns the notification channels that customers' notifications may choose.
fn alerts(root: &mut Section<'_>, handlers: HandlerRegistry, config: &mut Config) -> HandlerSettings {
    let spec = handlers.iter().find(|spec| spec.messages() == MessageKind::Notification);
    let read = |section: Section<'_>| spec?.read_alerts(section, &config.notify);
    let Some((alerts, customers)) = root.optional_section("alerts").and_then(read) else {
        return config.notify.clone();
    };
    config.alerts = alerts;
    customers
}

/// Gives consumers what they need of other sections, so that a reload replaces their pools when it changes.
fn share_notify(config: &mut Config, customers: &HandlerSettings) {
    let mut notifications = config.consumers.values().filter(|consumer| consumer.messages == MessageKind::Notification);
    let default_channel = notifications.find_map(|consumer| consumer.handler_settings.text("default_channel"));
    for consumer in config.consumers.values_mut() {
        match consumer.messages {
            MessageKind::Notification => consumer.notify = customers.clone(),
            MessageKind::Order => consumer.default_channel.clone_from(&default_channel),
            MessageKind::Analytics | MessageKind::Failure | MessageKind::Other => {}
        }
    }
}

fn named_sections<'r, T>(
    root: &mut Section<'r>,
    key: &'static str,
    read: impl Fn(&str, Section<'r>) -> T,
) -> BTreeMap<String, T> {
    let Some(section) = root.optional_section(key) else {
        let report = root.report();
        report.problem(
            key,
            "is missing; copy it from the annotated default file, or leave out both queues and consumers",
        );
        return BTreeMap::new();
    };
    section.into_named_sections().into_iter().map(|(name, section)| (name.clone(), read(&name, section))).collect()
}

fn broker(mut section: Section<'_>) -> Broker {
    let tls = section.optional_section("tls").map(tls::broker);
    let port = if tls.is_some() { AMQPS_PORT } else { AMQP_PORT };
    let local = Address { host: "127.0.0.1".to_owned(), port };
    let addresses =
        section.list("addresses", MAX_ADDRESSES, &value_parser::address(port)).unwrap_or_else(|| vec![local]);
    if addresses.is_empty() {
        section.problem("addresses", "must have at least one address");
    }
    let broker = Broker {
        addresses,
        virtual_host: section.optional_or("virtual_host", "/".to_owned(), &value_parser::text(MAX_SHORT_STRING_BYTES)),
        username: section.optional_or("username", "guest".to_owned(), &value_parser::text(MAX_SHORT_STRING_BYTES)),
        password: secret::password(&mut section).unwrap_or_else(|| Secret::new("guest")),
        mechanism: mechanism(&mut section, tls.as_ref()),
        trusted_users: section
            .list("trusted_users", MAX_TRUSTED_USERS, &value_parser::text(MAX_SHORT_STRING_BYTES))
            .unwrap_or_default(),
        tls,
        heartbeat: section.optional_or("heartbeat", seconds(10), &heartbeat),
        connect_timeout: section.optional_or(
            "connect_timeout",
            seconds(10),
            &value_parser::duration(MILLISECOND..=seconds(300)),
        ),
        confirm_timeout: section.optional_or(
            "confirm_timeout",
            seconds(30),
            &value_parser::duration(MILLISECOND..=seconds(900)),
        ),
        max_unconfirmed: section.optional_or("max_unconfirmed", 4096, &value_parser::number(1..=65_535)),
        max_unconfirmed_bytes: section.optional_or(
            "max_unconfirmed_bytes",
            16 << 20,
            &value_parser::number(1 << 20..=1 << 30),
        ),
        max_body: section.optional_or("max_body", 16 << 20, &value_parser::number(1 << 20..=512 << 20)),
        max_unsettled_bytes: section.optional_or(
            "max_unsettled_bytes",
            32 << 20,
            &value_parser::number(1 << 20..=1 << 30),
        ),
        reconnect_max: section.optional_or(
            "reconnect_max",
            seconds(30),
            &value_parser::duration(Duration::from_millis(100)..=seconds(3600)),
        ),
        rebalance_after: section.optional_or(
            "rebalance_after",
            Some(seconds(60)),
            &value_parser::or_off(value_parser::duration(seconds(1)..=seconds(86_400))),
        ),
    };
    section.finish();
    broker
}

/// How orderd authenticates. `external` needs a client certificate.
fn mechanism(section: &mut Section<'_>, tls: Option<&Tls>) -> Mechanism {
    let mechanisms = [("plain", Mechanism::Plain), ("external", Mechanism::External)];
    let mechanism = section.optional_or("mechanism", Mechanism::Plain, &value_parser::one_of(&mechanisms));
    let has_certificate =
        tls.is_some_and(|tls| tls.files.client.is_some()) || section.report().has(&section.key("tls"));
    if mechanism == Mechanism::External && !has_certificate {
        let message = "\"external\" needs a client certificate: give tls.certificate_file and tls.key_file";
        section.problem("mechanism", message);
    }
    mechanism
}

const MILLISECOND: Duration = Duration::from_millis(1);

/// AMQP negotiates heartbeats in whole seconds; 0 would disable them.
fn heartbeat(value: &Value) -> Result<Duration, String> {
    let heartbeat = value_parser::duration(seconds(2)..=seconds(300))(value)?;
    if heartbeat.subsec_nanos() == 0 { Ok(heartbeat) } else { Err(format!("must be whole seconds, is {value}")) }
}

fn management(mut section: Section<'_>, broker: &Broker) -> Management {
    let urls = section.optional_or("url", vec!["http://127.0.0.1:15672".to_owned()], &urls);
    let management = Management {
        tls: tls::management(&mut section, broker.tls.as_ref(), urls.iter().any(|url| url.starts_with("https:"))),
        urls,
        username: section.optional_or("username", broker.username.clone(), &value_parser::text(MAX_SHORT_STRING_BYTES)),
        password: secret::password(&mut section).unwrap_or_else(|| broker.password.clone()),
        poll_every: section.optional_or(
            "poll_every",
            Some(seconds(5)),
            &value_parser::or_off(value_parser::duration(Duration::from_millis(100)..=seconds(3600))),
        ),
    };
    section.finish();
    management
}

/// One URL, or a list of them.
fn urls(value: &Value) -> Result<Vec<String>, String> {
    let items = match value {
        Value::List(_) | Value::Untyped(_) => items(value.clone())?,
        Value::Text(_) | Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Time | Value::Table(_) => {
            vec![value.clone()]
        }
    };
    if items.is_empty() || items.len() > MAX_URLS {
        return Err(format!("must be 1 to {MAX_URLS} URLs, has {}", items.len()));
    }
    items.iter().map(url).collect()
}

/// The most addresses of the management API.
const MAX_URLS: usize = 16;

/// A URL with credentials is rejected without showing it.
fn url(value: &Value) -> Result<String, String> {
    const PROBLEM: &str = "must be a URL such as \"http://127.0.0.1:15672\"";
    let text = value_parser::text(2048)(value)?;
    let url = url::Url::parse(&text).map_err(|_| PROBLEM.to_owned())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain credentials: use username and password".to_owned());
    }
    match url.scheme() {
        "http" | "https" if url.query().is_none() && url.fragment().is_none() => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err(PROBLEM.to_owned()),
    }
}

fn topology(mut section: Section<'_>) -> TopologySettings {
    let topology = TopologySettings {
        exchange: section.optional_or("exchange", "orders".to_owned(), &exchange),
        declare: section.optional_or("declare", true, &value_parser::boolean),
    };
    section.finish();
    topology
}

fn exchange(value: &Value) -> Result<String, String> {
    let name = value_parser::text(MAX_EXCHANGE_NAME_BYTES)(value)?;
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !name.chars().all(is_allowed) {
        Err(format!("must be letters, digits, \"_\", \"-\" and \".\", is {value}"))
    } else if name.starts_with("amq.") {
        Err("must not begin with \"amq.\": the broker reserves such names".to_owned())
    } else {
        Ok(name)
    }
}

fn path(value: &Value) -> Result<PathBuf, String> {
    value_parser::text(MAX_PATH_BYTES)(value).map(PathBuf::from)
}

fn dead_letters(mut section: Section<'_>) -> DeadLetters {
    let dead_letters = DeadLetters { collect: section.optional_or("collect", true, &value_parser::boolean) };
    section.finish();
    dead_letters
}

pub(super) fn ledger(mut section: Section<'_>) -> Ledger {
    let ledger = Ledger {
        directory: section.optional_or("directory", PathBuf::from("/var/lib/orderd"), &path),
        retention: section.optional_or("retention", None, &retention),
    };
    section.finish();
    ledger
}

fn retention(value: &Value) -> Result<Option<Duration>, String> {
    match value {
        Value::Text(text) | Value::Untyped(text) if text == "forever" => Ok(None),
        _ => value_parser::duration(MIN_RETENTION..=MAX_RETENTION)(value)
            .map(Some)
            .map_err(|message| format!("{message}; or \"forever\"")),
    }
}

fn log(mut section: Section<'_>) -> Log {
    let levels = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    let rotations = [
        ("minutely", Rotation::Minutely),
        ("hourly", Rotation::Hourly),
        ("daily", Rotation::Daily),
        ("never", Rotation::Never),
    ];
    let log = Log {
        level: section.optional_or("level", LogLevel::Info, &value_parser::one_of(&levels)),
        format: section.optional_or(
            "format",
            LogFormat::Text,
            &value_parser::one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)]),
        ),
        directory: section.optional("directory", &path),
        rotation: section.optional_or("rotation", Rotation::Daily, &value_parser::one_of(&rotations)),
        keep: section.optional_or("keep", 14, &value_parser::number(1..=1000)),
        mode: section.optional_or("mode", FILE_MODE, &file_mode),
    };
    section.finish();
    log
}

/// Permissions as `chmod` takes them. orderd itself must be able to read and write the files; executing them is no use.
fn file_mode(value: &Value) -> Result<u32, String> {
    let problem = || format!("must be permissions for files such as \"0640\", at least \"0600\", is {value}");
    let text = value_parser::text(5)(value)?;
    let is_octal = text.len() >= 3 && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    let mode = u32::from_str_radix(&text, 8).ok().filter(|_| is_octal);
    mode.filter(|mode| mode & 0o600 == 0o600 && mode & !0o666 == 0).ok_or_else(problem)
}

fn reload(mut section: Section<'_>) -> Reload {
    let reload = Reload { watch: section.optional_or("watch", false, &value_parser::boolean) };
    section.finish();
    reload
}

fn shutdown(mut section: Section<'_>) -> Shutdown {
    let shutdown = Shutdown {
        drain_timeout: section.optional_or(
            "drain_timeout",
            seconds(30),
            &value_parser::duration(MILLISECOND..=seconds(3600)),
        ),
    };
    section.finish();
    shutdown
}

fn runtime(mut section: Section<'_>) -> Runtime {
    let runtime = Runtime { threads: section.optional_or("threads", 1, &value_parser::number(1..=256)) };
    section.finish();
    runtime
}
