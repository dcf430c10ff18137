//! What the configuration knows about handlers: their names, the messages they process, and their own keys in
//! `[consumers.<name>]`, which only the handler itself reads.
//!
//! It never imports a handler. `handlers` implements [`HandlerSpec`], and [`super::Sources`] carries the registry.

use std::any::Any;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::redaction::redact;
use super::section::Section;

/// All handlers. Problems list their names in this order.
pub type HandlerRegistry = &'static [&'static dyn HandlerSpec];

/// A kind of handler, as the configuration sees it. Every `handlers::HandlerFactory` implements it.
pub trait HandlerSpec: Send + Sync {
    /// The name that `consumers.<name>.handler` gives.
    fn name(&self) -> &'static str;

    /// What its consumers receive.
    fn messages(&self) -> MessageKind;

    /// Reads `[notify]`, which all consumers of notifications share. `None` unless it is the handler of notifications.
    fn read_notify(&self, _section: Section<'_>) -> Option<HandlerSettings> {
        None
    }

    /// Reads `[alerts]`. Returns its settings, and what remains of `[notify]` for customers. `None` unless it is the handler of
    /// notifications.
    fn read_alerts(
        &self,
        _section: Section<'_>,
        _notify: &HandlerSettings,
    ) -> Option<(HandlerSettings, HandlerSettings)> {
        None
    }

    /// Takes the handler's own keys out of `[consumers.<consumer>]`, and reports what is wrong with them.
    fn configure(&self, consumer: &str, section: &mut Section<'_>) -> HandlerSettings;
}

/// What the consumers of a handler receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MessageKind {
    /// Orders. A dead-lettered one is reported to analytics.
    Order,
    /// Notifications to customers.
    Notification,
    /// Analytics events.
    Analytics,
    /// The failed messages of all other consumers. Exactly one consumer receives them; it has no retry policy.
    Failure,
    /// Anything else.
    Other,
}

/// A consumer's checked settings for its handler. Two are equal if their keys have the same values.
#[derive(Clone)]
pub struct HandlerSettings {
    keys: Arc<Map<String, Value>>,
    check_lines: Arc<[String]>,
    constructor: Arc<dyn Any + Send + Sync>,
    call_time: Duration,
    event_keys: Arc<[String]>,
    retry_limits: Arc<[(String, Duration)]>,
    directories: Arc<[PathBuf]>,
}

impl HandlerSettings {
    /// `keys` are the handler's own keys as in the file, a struct or `()`; a reload compares them. `check_lines` are what
    /// `orderd check` prints about them, and `constructor` is what `handlers` builds the handler with.
    pub fn new(keys: &impl Serialize, check_lines: Vec<String>, constructor: impl Any + Send + Sync) -> Self {
        let keys = match serde_json::to_value(keys).expect("settings are structs of plain values") {
            Value::Object(keys) => keys,
            Value::Null => Map::new(),
            other => panic!("settings are keys with values, not {other}"),
        };
        HandlerSettings {
            keys: Arc::new(keys),
            check_lines: check_lines.into(),
            constructor: Arc::new(constructor),
            call_time: Duration::ZERO,
            event_keys: Arc::new([]),
            retry_limits: Arc::new([]),
            directories: Arc::new([]),
        }
    }

    /// Sets how long the handler may wait for other services in one attempt, which does not count toward the consumer's
    /// timeout.
    #[must_use]
    pub fn with_call_time(self, call_time: Duration) -> Self {
        HandlerSettings { call_time, ..self }
    }

    /// How long the handler may wait for other services in one attempt, besides the consumer's timeout.
    pub fn call_time(&self) -> Duration {
        self.call_time
    }

    /// Sets the patterns of the routing keys of events that services ask the handler to publish.
    #[must_use]
    pub fn with_event_keys(self, keys: Vec<String>) -> Self {
        HandlerSettings { event_keys: keys.into(), ..self }
    }

    /// Patterns of the routing keys of events that services ask the handler to publish.
    pub fn event_keys(&self) -> &[String] {
        &self.event_keys
    }

    /// Sets the keys that limit how long a service may postpone a retry, if they are given.
    #[must_use]
    pub fn with_retry_limits(self, limits: Vec<(String, Duration)>) -> Self {
        HandlerSettings { retry_limits: limits.into(), ..self }
    }

    /// The keys that limit how long a service may postpone a retry, such as `steps[0].retry_after_max`, if they are given.
    pub fn retry_limits(&self) -> &[(String, Duration)] {
        &self.retry_limits
    }

    /// Sets the directories whose files belong to the configuration.
    #[must_use]
    pub fn with_directories(self, directories: Vec<PathBuf>) -> Self {
        HandlerSettings { directories: directories.into(), ..self }
    }

    /// The directories whose files belong to the configuration: a change of one is reloaded like one of the configuration file.
    pub fn directories(&self) -> &[PathBuf] {
        &self.directories
    }

    /// Whether the handler has this key of its own.
    pub fn has_key(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// No keys and no constructor: of an unknown handler, until the problem is reported, and of a section that is missing.
    pub fn none() -> Self {
        Self::new(&(), Vec::new(), ())
    }

    /// The handler's own keys as in the file, secrets redacted.
    pub fn keys(&self) -> Map<String, Value> {
        self.keys.iter().map(|(key, value)| (key.clone(), redact(value))).collect()
    }

    /// The text of one of the handler's own keys.
    pub fn text(&self, key: &str) -> Option<String> {
        self.keys.get(key).and_then(Value::as_str).map(str::to_owned)
    }

    /// What `orderd check` prints about them.
    pub fn check_lines(&self) -> &[String] {
        &self.check_lines
    }

    /// The constructor, if it has the type `T`.
    pub fn constructor<T: Any>(&self) -> Option<&T> {
        self.constructor.downcast_ref()
    }
}

impl PartialEq for HandlerSettings {
    fn eq(&self, other: &Self) -> bool {
        self.keys == other.keys
    }
}

impl fmt::Debug for HandlerSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.keys()).finish()
    }
}

/// Serialized as the keys it was read from.
impl Serialize for HandlerSettings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.keys.serialize(serializer)
    }
}
