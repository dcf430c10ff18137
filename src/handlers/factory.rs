//! The trait that registers a kind of handler with the configuration, and the construction of handlers from checked
//! settings.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use super::HandlerDeps;
use crate::config::{HandlerSettings, HandlerSpec, MessageKind, Section};
use crate::dead_letters::MessageCheck;
use crate::message::{Delivery, Provenance};
use crate::pipeline::Handler;
use crate::recovery::Failure;

/// A kind of handler: its name, its own keys in `[consumers.<name>]`, and its construction. Implemented by a unit struct.
pub trait HandlerFactory: Send + Sync + 'static {
    /// The values of its own keys; `()` if it has none. They serialize to keys and values as in the file, which a reload
    /// compares: if they have changed, the handler is built again.
    type Settings: Serialize + Send + Sync + 'static;

    /// The name that `consumers.<name>.handler` gives.
    const NAME: &'static str;

    /// The kind of messages its consumers receive.
    const MESSAGES: MessageKind;

    /// Takes its own keys out of the consumer's section, and reports what is wrong with them. Defaults
    /// stand in for wrong values: the caller reports the problems and discards the settings.
    fn read(section: &mut Section<'_>) -> Self::Settings;

    /// Lines that `orderd check` prints about a consumer with these settings.
    fn check_lines(_consumer: &str, _settings: &Self::Settings) -> Vec<String> {
        Vec::new()
    }

    /// Patterns of the routing keys of events that services ask it to publish.
    fn event_keys(_settings: &Self::Settings) -> Vec<String> {
        Vec::new()
    }

    /// The keys that limit how long a service may postpone a retry, if they are given.
    fn retry_limits(_settings: &Self::Settings) -> Vec<(String, Duration)> {
        Vec::new()
    }

    /// How long the handler may wait for other services in one attempt, which does not count toward the consumer's timeout.
    fn call_time(_settings: &Self::Settings) -> Duration {
        Duration::ZERO
    }

    /// Reads `[notify]`, which all consumers of notifications share. Only the handler of notifications does.
    fn read_notify(_section: Section<'_>) -> Option<HandlerSettings> {
        None
    }

    /// Reads `[alerts]`. Returns its settings, and what remains of `[notify]` for customers. Only the handler of notifications does.
    fn read_alerts(_section: Section<'_>, _notify: &HandlerSettings) -> Option<(HandlerSettings, HandlerSettings)> {
        None
    }

    /// Whether the handler can read the body of a message, as it does before it acts on one. Orders are checked by their consumer's format
    /// instead. `max_body`: the longest text that a body may have once it is decompressed, in bytes.
    ///
    /// # Errors
    /// The failure that it would have.
    fn check(_delivery: &Delivery, _provenance: Provenance<'_>, _max_body: usize) -> Result<(), Failure> {
        Ok(())
    }

    /// Builds the handler of a consumer.
    fn build(consumer: HandlerConsumer<'_>, settings: &Self::Settings, deps: &HandlerDeps) -> Arc<dyn Handler>;
}

/// The consumer that a handler is built for.
#[derive(Debug, Clone, Copy)]
pub struct HandlerConsumer<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its workers.
    pub workers: usize,
}

/// Builds the handler of a consumer; it has captured the settings.
type Build = dyn Fn(HandlerConsumer<'_>, &HandlerDeps) -> Arc<dyn Handler> + Send + Sync;

struct Constructor {
    build: Box<Build>,
    check: MessageCheck,
}

impl<F: HandlerFactory> HandlerSpec for F {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn messages(&self) -> MessageKind {
        F::MESSAGES
    }

    fn read_notify(&self, section: Section<'_>) -> Option<HandlerSettings> {
        F::read_notify(section)
    }

    fn read_alerts(
        &self,
        section: Section<'_>,
        notify: &HandlerSettings,
    ) -> Option<(HandlerSettings, HandlerSettings)> {
        F::read_alerts(section, notify)
    }

    fn configure(&self, consumer: &str, section: &mut Section<'_>) -> HandlerSettings {
        let settings = F::read(section);
        let keys = serde_json::to_value(&settings).expect("settings are structs of plain values");
        let lines = F::check_lines(consumer, &settings);
        let (call_time, event_keys) = (F::call_time(&settings), F::event_keys(&settings));
        let retry_limits = F::retry_limits(&settings);
        let build = move |consumer: HandlerConsumer<'_>, deps: &HandlerDeps| F::build(consumer, &settings, deps);
        HandlerSettings::new(&keys, lines, Constructor { build: Box::new(build), check: F::check })
            .with_call_time(call_time)
            .with_event_keys(event_keys)
            .with_retry_limits(retry_limits)
    }
}

/// Builds the handler of a consumer from its settings.
///
/// # Panics
/// If the settings were not made by a [`HandlerFactory`]. Those of a loaded configuration were, since loading rejects unknown
/// handlers.
pub fn build(consumer: HandlerConsumer<'_>, settings: &HandlerSettings, deps: &HandlerDeps) -> Arc<dyn Handler> {
    let Constructor { build, .. } = settings.constructor().expect("a handler factory made the settings");
    build(consumer, deps)
}

/// What the handler of a consumer with these settings can read.
///
/// # Panics
/// As [`build`].
pub fn message_check(settings: &HandlerSettings) -> MessageCheck {
    let Constructor { check, .. } = settings.constructor().expect("a handler factory made the settings");
    *check
}
