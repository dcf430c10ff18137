//! Reads the sections of the file: every key with its default and its range. What must hold between sections is in `check`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::address::Address;
use super::handler::Handlers;
use super::layers::{Table, Value};
use super::model::{
    Admin, Broker, Config, Ledger, Log, LogFormat, LogLevel, Management, Mechanism, Reload, Rotation, Runtime,
    Shutdown, Tls, TopologySettings,
};
use super::redaction::Secret;
use super::section::{LONGEST_PATH, Reading, Section};
use super::{secret, shape, tls, workload};

/// Longest AMQP short string, in bytes.
const SHORT_STRING: usize = 255;
/// The port of AMQP without TLS, and with it.
const AMQP_PORT: u16 = 5672;
const AMQPS_PORT: u16 = 5671;
/// Most addresses.
const MAX_ADDRESSES: usize = 32;
/// Most names of the admin listener.
const MAX_HOSTS: usize = 32;
/// Longest name of the orders exchange, so that `.dead_letter` fits behind it.
const LONGEST_EXCHANGE: usize = 200;

/// Reports are exact to the minute for the last two days; one more day is a margin.
const SHORTEST_RETENTION: Duration = seconds(3 * 86_400);
const LONGEST_RETENTION: Duration = seconds(36_500 * 86_400);

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// Reads all sections. Defaults stand in for wrong values; the caller then discards the configuration.
pub(super) fn config(root: Table, handlers: Handlers, reading: &Reading) -> Config {
    let mut root = Section::new(String::new(), root, reading);
    let broker = broker(root.section("broker"));
    let config = Config {
        management: management(root.section("management"), &broker),
        broker,
        topology: topology(root.section("topology")),
        queues: named(&mut root, "queues", workload::queue),
        consumers: named(&mut root, "consumers", |name, section| workload::consumer(name, section, handlers)),
        ledger: ledger(root.section("ledger")),
        log: log(root.section("log")),
        admin: admin(root.section("admin")),
        reload: reload(root.section("reload")),
        shutdown: shutdown(root.section("shutdown")),
        runtime: runtime(root.section("runtime")),
    };
    root.finish();
    config
}

fn named<'r, T>(
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
    section.into_named().into_iter().map(|(name, section)| (name.clone(), read(&name, section))).collect()
}

fn broker(mut section: Section<'_>) -> Broker {
    let tls = section.optional_section("tls").map(tls::broker);
    let port = if tls.is_some() { AMQPS_PORT } else { AMQP_PORT };
    let local = Address { host: "127.0.0.1".to_owned(), port };
    let addresses = section.list("addresses", MAX_ADDRESSES, &shape::address(port)).unwrap_or_else(|| vec![local]);
    if addresses.is_empty() {
        section.problem("addresses", "must have at least one address");
    }
    let broker = Broker {
        addresses,
        virtual_host: section.or("virtual_host", "/".to_owned(), &shape::text(SHORT_STRING)),
        username: section.or("username", "guest".to_owned(), &shape::text(SHORT_STRING)),
        password: secret::password(&mut section).unwrap_or_else(|| Secret::new("guest")),
        mechanism: mechanism(&mut section, tls.as_ref()),
        tls,
        heartbeat: section.or("heartbeat", seconds(10), &heartbeat),
        connect_timeout: section.or("connect_timeout", seconds(10), &shape::span(MILLISECOND..=seconds(300))),
        confirm_timeout: section.or("confirm_timeout", seconds(30), &shape::span(MILLISECOND..=seconds(900))),
        max_unconfirmed: section.or("max_unconfirmed", 4096, &shape::number(1..=65_535)),
        max_unconfirmed_bytes: section.or("max_unconfirmed_bytes", 16 << 20, &shape::number(1 << 20..=1 << 30)),
        reconnect_max: section.or(
            "reconnect_max",
            seconds(30),
            &shape::span(Duration::from_millis(100)..=seconds(3600)),
        ),
    };
    section.finish();
    broker
}

/// How orderd authenticates. Without a client certificate only a password is possible.
fn mechanism(section: &mut Section<'_>, tls: Option<&Tls>) -> Mechanism {
    let words = [("plain", Mechanism::Plain), ("external", Mechanism::External)];
    let mechanism = section.or("mechanism", Mechanism::Plain, &shape::word(&words));
    let identified = tls.is_some_and(|tls| tls.files.client.is_some()) || section.report().has(&section.key("tls"));
    if mechanism == Mechanism::External && !identified {
        let message = "\"external\" needs a client certificate: give tls.certificate_file and tls.key_file";
        section.problem("mechanism", message);
    }
    mechanism
}

const MILLISECOND: Duration = Duration::from_millis(1);

/// AMQP negotiates heartbeats in whole seconds; 0 would switch them off.
fn heartbeat(value: &Value) -> Result<Duration, String> {
    let heartbeat = shape::span(seconds(2)..=seconds(300))(value)?;
    if heartbeat.subsec_nanos() == 0 { Ok(heartbeat) } else { Err(format!("must be whole seconds, is {value}")) }
}

fn management(mut section: Section<'_>, broker: &Broker) -> Management {
    let url = section.or("url", "http://127.0.0.1:15672".to_owned(), &url);
    let management = Management {
        tls: tls::management(&mut section, broker.tls.as_ref(), url.starts_with("https:")),
        url,
        username: section.or("username", broker.username.clone(), &shape::text(SHORT_STRING)),
        password: secret::password(&mut section).unwrap_or_else(|| broker.password.clone()),
        poll_every: section.or(
            "poll_every",
            Some(seconds(5)),
            &shape::or_off(shape::span(Duration::from_millis(100)..=seconds(3600))),
        ),
    };
    section.finish();
    management
}

/// A URL with credentials is rejected without showing it.
fn url(value: &Value) -> Result<String, String> {
    const FORM: &str = "must be a URL such as \"http://127.0.0.1:15672\"";
    let text = shape::text(2048)(value)?;
    let url = url::Url::parse(&text).map_err(|_| FORM.to_owned())?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain credentials: use username and password".to_owned());
    }
    match url.scheme() {
        "http" | "https" if url.query().is_none() && url.fragment().is_none() => {
            Ok(text.trim_end_matches('/').to_owned())
        }
        _ => Err(FORM.to_owned()),
    }
}

fn topology(mut section: Section<'_>) -> TopologySettings {
    let topology = TopologySettings {
        exchange: section.or("exchange", "orders".to_owned(), &exchange),
        declare: section.or("declare", true, &shape::boolean),
    };
    section.finish();
    topology
}

fn exchange(value: &Value) -> Result<String, String> {
    let name = shape::text(LONGEST_EXCHANGE)(value)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if !name.chars().all(plain) {
        Err(format!("must be letters, digits, \"_\", \"-\" and \".\", is {value}"))
    } else if name.starts_with("amq.") {
        Err("must not begin with \"amq.\": the broker reserves such names".to_owned())
    } else {
        Ok(name)
    }
}

fn path(value: &Value) -> Result<PathBuf, String> {
    shape::text(LONGEST_PATH)(value).map(PathBuf::from)
}

fn ledger(mut section: Section<'_>) -> Ledger {
    let ledger = Ledger {
        directory: section.or("directory", PathBuf::from("/var/lib/orderd"), &path),
        retention: section.or("retention", None, &retention),
    };
    section.finish();
    ledger
}

fn retention(value: &Value) -> Result<Option<Duration>, String> {
    match value {
        Value::Text(text) | Value::Untyped(text) if text == "forever" => Ok(None),
        _ => shape::span(SHORTEST_RETENTION..=LONGEST_RETENTION)(value).map(Some),
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
        level: section.or("level", LogLevel::Info, &shape::word(&levels)),
        format: section.or(
            "format",
            LogFormat::Text,
            &shape::word(&[("text", LogFormat::Text), ("json", LogFormat::Json)]),
        ),
        directory: section.optional("directory", &path),
        rotation: section.or("rotation", Rotation::Daily, &shape::word(&rotations)),
        keep: section.or("keep", 14, &shape::number(1..=1000)),
    };
    section.finish();
    log
}

pub(super) fn admin(mut section: Section<'_>) -> Admin {
    let admin = Admin {
        listen: section.or("listen", Some(SocketAddr::from(([127, 0, 0, 1], 9640))), &listen),
        token: secret::token(&mut section),
        hosts: section.list("hosts", MAX_HOSTS, &host).unwrap_or_default(),
    };
    let open = admin.listen.is_some_and(|listen| !listen.ip().is_loopback());
    if open && admin.token.is_none() && !section.report().has(&section.key("token_file")) {
        section.problem(
            "listen",
            "must be a loopback address such as \"127.0.0.1:9640\", unless token_file names a file with a token",
        );
    }
    section.finish();
    admin
}

fn listen(value: &Value) -> Result<Option<SocketAddr>, String> {
    let text = shape::text(64)(value)?;
    if text == "off" {
        return Ok(None);
    }
    let form = |_| format!("must be an IP address and port such as \"127.0.0.1:9640\", or \"off\", is {value}");
    text.parse().map(Some).map_err(form)
}

/// A host name that requests to the admin listener may use.
fn host(value: &Value) -> Result<String, String> {
    let name = shape::text(SHORT_STRING)(value)?.to_ascii_lowercase();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if name.chars().all(plain) { Ok(name) } else { Err(format!("must be a host name without a port, is {value}")) }
}

fn reload(mut section: Section<'_>) -> Reload {
    let reload = Reload { watch: section.or("watch", false, &shape::boolean) };
    section.finish();
    reload
}

fn shutdown(mut section: Section<'_>) -> Shutdown {
    let shutdown =
        Shutdown { drain_timeout: section.or("drain_timeout", seconds(30), &shape::span(MILLISECOND..=seconds(3600))) };
    section.finish();
    shutdown
}

fn runtime(mut section: Section<'_>) -> Runtime {
    let runtime = Runtime { threads: section.or("threads", 1, &shape::number(1..=256)) };
    section.finish();
    runtime
}
