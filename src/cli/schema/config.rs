//! The schema of the configuration file.
//!
//! It states which sections and keys there are and their types. A test compares the keys with those of the annotated default file,
//! and the file with the schema. Ranges, durations and rules between keys are checked by `orderd check` alone.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::formats::Format;

/// orderd's configuration file. Every key is optional; `orderd check` prints all problems of a file.
#[derive(JsonSchema)]
#[schemars(title = "orderd.toml", deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct ConfigDocument {
    broker: Option<Broker>,
    management: Option<Management>,
    topology: Option<Topology>,
    /// The work queues by name. Given together with the consumers, or not at all.
    queues: Option<BTreeMap<String, Queue>>,
    /// The consumers by name.
    consumers: Option<BTreeMap<String, Consumer>>,
    /// Formats of orders by name.
    formats: Option<BTreeMap<String, Format>>,
    /// Notification channels by name.
    notify: Option<BTreeMap<String, NotifyChannel>>,
    alerts: Option<Alerts>,
    dead_letters: Option<DeadLetters>,
    ledger: Option<Ledger>,
    log: Option<Log>,
    admin: Option<Admin>,
    reload: Option<Reload>,
    shutdown: Option<Shutdown>,
    runtime: Option<Runtime>,
}

/// Where the broker is, and how orderd authenticates.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Broker {
    /// host or host:port.
    addresses: Option<Vec<String>>,
    virtual_host: Option<String>,
    username: Option<String>,
    password: Option<String>,
    /// A file with the password.
    password_file: Option<String>,
    mechanism: Option<Mechanism>,
    /// Users whose messages count as orderd's own.
    trusted_users: Option<Vec<String>>,
    heartbeat: Option<Duration>,
    connect_timeout: Option<Duration>,
    confirm_timeout: Option<Duration>,
    max_unconfirmed: Option<u64>,
    /// In bytes.
    max_unconfirmed_bytes: Option<u64>,
    /// In bytes.
    max_body: Option<u64>,
    /// In bytes.
    max_unsettled_bytes: Option<u64>,
    reconnect_max: Option<Duration>,
    /// Or "off".
    rebalance_after: Option<Duration>,
    tls: Option<Tls>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is used")]
enum Mechanism {
    Plain,
    External,
}

/// TLS. Files are PEM and read again for each connection.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Tls {
    ca_file: Option<String>,
    certificate_file: Option<String>,
    key_file: Option<String>,
    /// Only for the broker.
    server_name: Option<String>,
}

/// The broker's management HTTP API.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Management {
    url: Option<OneOrMore>,
    username: Option<String>,
    password: Option<String>,
    password_file: Option<String>,
    /// Or "off".
    poll_every: Option<Duration>,
    tls: Option<Tls>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// The exchange, and whether orderd declares what is missing.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Topology {
    exchange: Option<String>,
    declare: Option<bool>,
}

/// A work queue.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Queue {
    /// Topic patterns.
    #[schemars(length(min = 1, max = 64))]
    bindings: Vec<String>,
}

/// A consumer.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Consumer {
    /// One of the queues.
    queue: String,
    /// "order", "notification", "analytics", "failed" or "steps". Default: the consumer's name.
    handler: Option<String>,
    /// The format of orders: "orderd", "shopify", "woocommerce" or one of the formats.
    format: Option<String>,
    on_conflict: Option<OnConflict>,
    /// The notification channel of orders that ask for none.
    default_channel: Option<String>,
    #[schemars(range(min = 1, max = 1024))]
    workers: Option<u64>,
    #[schemars(range(min = 1, max = 65_535))]
    prefetch: Option<u64>,
    timeout: Option<Duration>,
    /// "200/s", "30/m" or "off".
    #[schemars(regex(pattern = "^([0-9]+ */ *[sm]|off)$"))]
    rate_limit: Option<String>,
    retry: Option<Retry>,
    /// The shop's own services, called in this sequence.
    #[schemars(length(max = 16))]
    steps: Option<Vec<Step>>,
    faults: Option<Faults>,
}

/// A step: one of the shop's own services.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, transform = one_service)]
#[expect(dead_code, reason = "only its schema is used")]
struct Step {
    #[schemars(regex(pattern = "^[a-z][a-z0-9_]{0,63}$"))]
    name: String,
    #[serde(flatten)]
    service: StepService,
    timeout: Option<Duration>,
    undo: Option<Undo>,
    when: Option<When>,
    /// Topic patterns.
    #[schemars(length(max = 16))]
    emits: Option<Vec<String>>,
    #[schemars(range(min = 1, max = 10_000))]
    max_concurrent: Option<u64>,
    circuit_breaker: Option<CircuitBreaker>,
    retry_after_max: Option<Duration>,
}

/// What undoes a step.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, transform = one_service)]
#[expect(dead_code, reason = "only its schema is used")]
struct Undo {
    #[serde(flatten)]
    service: StepService,
    timeout: Option<Duration>,
}

/// What performs a step or undoes it.
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct StepService {
    /// Either http or command.
    http: Option<HttpService>,
    #[schemars(length(min = 1, max = 64))]
    command: Option<Vec<String>>,
    mode: Option<CommandMode>,
    environment: Option<BTreeMap<String, String>>,
    working_directory: Option<String>,
}

/// Either an HTTP server or a command performs a step; some keys are for commands only.
fn one_service(schema: &mut Schema) {
    schema.insert("oneOf".to_owned(), serde_json::json!([{"required": ["http"]}, {"required": ["command"]}]));
    let of_command =
        ["mode", "environment", "working_directory"].map(|key| (key.to_owned(), serde_json::json!(["command"])));
    schema.insert("dependentRequired".to_owned(), of_command.into_iter().collect::<serde_json::Map<_, _>>().into());
}

/// How a command performs calls.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its schema is used")]
enum CommandMode {
    LongLived,
    PerMessage,
}

/// When a step is not called because its service fails.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct CircuitBreaker {
    failures: Option<Fraction>,
    window: Option<Duration>,
    open: Option<Duration>,
}

/// An HTTP server that performs a step.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct HttpService {
    /// http:// or https://.
    url: String,
    headers: Option<BTreeMap<String, String>>,
    /// A file with a token.
    bearer_file: Option<String>,
    /// A file with the key that signs each request.
    hmac_key_file: Option<String>,
    ca_file: Option<String>,
    certificate_file: Option<String>,
    key_file: Option<String>,
}

/// When a step is called; all parts must hold.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, extend("dependentRequired" = {"equals": ["pointer"]}))]
#[expect(dead_code, reason = "only its schema is used")]
struct When {
    priority: Option<bool>,
    /// A decimal in quotes.
    min_total: Option<String>,
    currency: Option<String>,
    /// A JSON pointer into the message.
    pointer: Option<String>,
    equals: Option<Scalar>,
}

/// The value of a field.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only its schema is used")]
enum Scalar {
    Text(String),
    Number(i64),
    Boolean(bool),
}

/// What happens to an order with the id of another one and different content.
#[derive(JsonSchema)]
#[schemars(rename_all = "snake_case")]
#[expect(dead_code, reason = "only its schema is used")]
enum OnConflict {
    DeadLetter,
    Ignore,
}

/// How failures are retried.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Retry {
    #[schemars(range(max = 10))]
    immediate: Option<u64>,
    #[schemars(length(max = 32))]
    delays: Option<Vec<Duration>>,
    max_age: Option<Duration>,
}

/// Faults injected on purpose: fractions of the orders.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Faults {
    transient: Option<Fraction>,
    permanent: Option<Fraction>,
    panic: Option<Fraction>,
    hang: Option<Fraction>,
    block: Option<Fraction>,
}

/// Where notifications of one channel go.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct NotifyChannel {
    /// "smtp", "webhook" or "log".
    r#type: String,
    /// host or host:port.
    address: Option<String>,
    /// "starttls", "tls" or "none".
    tls: Option<String>,
    ca_file: Option<String>,
    certificate_file: Option<String>,
    key_file: Option<String>,
    username: Option<String>,
    /// A file with the password.
    password_file: Option<String>,
    from: Option<String>,
    reply_to: Option<String>,
    /// A URL.
    list_unsubscribe: Option<String>,
    http: Option<HttpService>,
    /// "event", "sms" or "slack".
    preset: Option<String>,
    /// A template.
    body: Option<String>,
    timeout: Option<Duration>,
    accept_timeout: Option<Duration>,
    #[schemars(range(min = 1, max = 256))]
    max_connections: Option<u64>,
    /// Another channel.
    fallback: Option<String>,
    /// "skip" or "fail".
    without_address: Option<String>,
    circuit_breaker: Option<CircuitBreaker>,
    /// A directory.
    templates: Option<String>,
    language: Option<String>,
    time_zone: Option<String>,
    shop: Option<String>,
}

/// Alerts for operators, through a notification channel.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Alerts {
    /// One of the notification channels.
    channel: String,
    /// Addresses, if the channel sends e-mail.
    #[schemars(length(max = 16))]
    to: Option<Vec<String>>,
    open_after: Option<Duration>,
    resolved_after: Option<Duration>,
    interval: Option<Duration>,
    /// Or "off".
    repeat: Option<Duration>,
    #[schemars(range(min = 1, max = 1_000_000))]
    dead_letters: Option<u64>,
    dead_letter_window: Option<Duration>,
}

/// What becomes of dead letters.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct DeadLetters {
    /// Whether the dead letter queue and the unrouted queue are drained into the ledger.
    collect: Option<bool>,
}

/// The record of effects.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Ledger {
    directory: Option<String>,
    /// Or "forever".
    retention: Option<Duration>,
}

/// Logging.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Log {
    level: Option<Level>,
    format: Option<LogFormat>,
    directory: Option<String>,
    rotation: Option<Rotation>,
    #[schemars(range(min = 1, max = 1000))]
    keep: Option<u64>,
    /// Octal digits in quotes.
    mode: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is used")]
enum Level {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is used")]
enum LogFormat {
    Text,
    Json,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is used")]
enum Rotation {
    Minutely,
    Hourly,
    Daily,
    Never,
}

/// The admin HTTP listener.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Admin {
    /// IP address and port, or "off".
    listen: Option<String>,
    users: Option<Vec<AdminUser>>,
    hosts: Option<Vec<String>>,
}

/// A user of the admin listener.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct AdminUser {
    name: String,
    role: Role,
    token_file: String,
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "only its schema is used")]
enum Role {
    Viewer,
    Operator,
}

/// Reloading.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Reload {
    watch: Option<bool>,
}

/// Shutdown.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Shutdown {
    drain_timeout: Option<Duration>,
}

/// The process itself.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
struct Runtime {
    #[schemars(range(min = 1, max = 256))]
    threads: Option<u64>,
}

/// A duration with units, such as "1m 30s".
#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct Duration(String);

/// From 0 to 1.
struct Fraction;

impl JsonSchema for Fraction {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Fraction".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "number", "minimum": 0, "maximum": 1})
    }
}
