//! Reads the sections `[queues.<name>]` and `[consumers.<name>]`. Rules between them are in `check`.

use std::time::Duration;

use super::format::{self, Formats};
use super::handler::{HandlerRegistry, HandlerSettings, MessageKind};
use super::layers::Value;
use super::model::{Consumer, Queue};
use super::rate::rate;
use super::section::{ReadContext, Section};
use super::suggestion::{did_you_mean, listed};
use super::value_parser;
use crate::recovery::RetryPolicy;
use crate::topology::pattern;

/// Maximum length of a queue name, in bytes: `<queue>.retry.<delay>` must fit into AMQP's limit of 255 bytes.
const MAX_QUEUE_NAME_BYTES: usize = 200;
/// Maximum length of a consumer name, in bytes: it is a word of routing keys and a metric label.
const MAX_CONSUMER_NAME_BYTES: usize = 64;
const MAX_BINDINGS: usize = 64;
const MAX_DELAYS: usize = 32;
const MAX_IMMEDIATE: u32 = 10;
const MAX_WORKERS: usize = 1024;
/// RabbitMQ closes the channel of a consumer that does not settle a delivery within 30 minutes.
const MAX_TIMEOUT: Duration = Duration::from_secs(15 * 60);
const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn queue(name: &str, mut section: Section<'_>) -> Queue {
    if let Some(message) = value_parser::name_problem(name, MAX_QUEUE_NAME_BYTES) {
        section.section_problem(message);
    }
    let path = section.key("bindings");
    let bindings = section.list("bindings", MAX_BINDINGS, &binding);
    if bindings.as_ref().is_none_or(Vec::is_empty) && !section.report().has(&path) {
        section.report().problem(&path, "must have at least one topic pattern, such as \"order.normal.*\"");
    }
    let bindings = bindings.unwrap_or_default();
    for (index, pattern) in bindings.iter().enumerate() {
        if bindings[..index].contains(pattern) {
            section.report().problem(&format!("{path}[{index}]"), format!("repeats {pattern:?}"));
        }
    }
    section.finish();
    Queue { bindings }
}

fn binding(value: &Value) -> Result<String, String> {
    let pattern = value_parser::text(pattern::MAX_KEY_BYTES)(value)?;
    match pattern::problem(&pattern) {
        Some(message) => Err(format!("{message}, is {value}")),
        None => Ok(pattern),
    }
}

pub(super) fn consumer(name: &str, mut section: Section<'_>, handlers: HandlerRegistry, formats: &Formats) -> Consumer {
    if let Some(message) = value_parser::name_problem(name, MAX_CONSUMER_NAME_BYTES) {
        section.section_problem(message);
    }
    let queue = section.required("queue", ": name one of [queues]", &value_parser::text(MAX_QUEUE_NAME_BYTES));
    let handler = section.optional_or("handler", name.to_owned(), &value_parser::text(MAX_CONSUMER_NAME_BYTES));
    let spec = handlers.iter().find(|spec| spec.name() == handler);
    let messages = spec.map_or(MessageKind::Other, |spec| spec.messages());
    let consumer = Consumer {
        queue: queue.unwrap_or_default(),
        messages,
        bindings: Vec::new(),
        notify: HandlerSettings::none(),
        default_channel: None,
        format: (messages == MessageKind::Order).then(|| format::of_consumer(&mut section, formats)),
        workers: section.optional_or("workers", 4, &value_parser::number(1..=MAX_WORKERS)),
        prefetch: section.optional_or("prefetch", 250, &value_parser::number(1..=u16::MAX)),
        timeout: section.optional_or("timeout", Duration::from_secs(30), &timeout),
        rate_limit: section.optional_or("rate_limit", None, &value_parser::or_off(rate)),
        retry: retry(&mut section, messages),
        handler_settings: spec.map_or_else(HandlerSettings::none, |spec| spec.configure(name, &mut section)),
        handler,
    };
    let slots = consumer.workers * usize::from(consumer.prefetch);
    if slots > usize::from(u16::MAX) {
        let message = format!(
            "workers × prefetch must be at most 65535, is {} × {} = {slots}",
            consumer.workers, consumer.prefetch
        );
        section.problem("prefetch", message);
    }
    if spec.is_none() {
        // It may have been meant to receive orders.
        section.optional("format", &value_parser::text(MAX_CONSUMER_NAME_BYTES));
        take_keys_of_all_handlers(handlers, name, &mut section);
        let names: Vec<&str> = handlers.iter().map(|spec| spec.name()).collect();
        let hint = did_you_mean(&consumer.handler, names.iter().copied());
        let message = format!("must be one of {}, is {:?}{hint}", listed(&names), consumer.handler);
        section.problem("handler", message);
    }
    section.finish();
    consumer
}

/// Takes the keys of every handler, since it is unknown which handler the consumer was meant to have.
fn take_keys_of_all_handlers(handlers: HandlerRegistry, consumer: &str, section: &mut Section<'_>) {
    for spec in handlers {
        let discarded = ReadContext::default();
        let mut copy = section.copy_remaining(&discarded);
        spec.configure(consumer, &mut copy);
        section.take_keys_taken_from(&copy);
    }
}

fn timeout(value: &Value) -> Result<Duration, String> {
    let with_reason = |message: String| match message.starts_with("must be at most") {
        true => format!("{message}: the broker requeues a delivery that is not settled within 30m"),
        false => message,
    };
    value_parser::duration(MILLISECOND..=MAX_TIMEOUT)(value).map_err(with_reason)
}

/// The policy of a consumer without `[consumers.<name>.retry]`. Customers are notified through servers that may be away for a while,
/// or that ask to try again later.
pub(super) fn default_retry(messages: MessageKind) -> RetryPolicy {
    let delays: &[&str] = match messages {
        MessageKind::Order | MessageKind::Failure | MessageKind::Other => &["1s", "10s", "1m"],
        MessageKind::Notification => &["10s", "1m", "10m", "1h"],
        MessageKind::Analytics => &["10s", "1m", "10m"],
    };
    let delays = delays.iter().map(|delay| delay.parse().expect("the default delays are valid")).collect();
    RetryPolicy { immediate: 1, delays, max_age: DAY }
}

fn retry(section: &mut Section<'_>, messages: MessageKind) -> RetryPolicy {
    let default = default_retry(messages);
    if messages == MessageKind::Failure {
        if section.optional_section("retry").is_some() {
            section.problem("retry", "has no effect on the failed-order consumer: remove it");
        }
        return RetryPolicy { immediate: 0, delays: Vec::new(), max_age: default.max_age };
    }
    let mut section = section.section("retry");
    let policy = RetryPolicy {
        immediate: section.optional_or("immediate", default.immediate, &value_parser::number(0..=MAX_IMMEDIATE)),
        delays: section.list("delays", MAX_DELAYS, &value_parser::delay).unwrap_or(default.delays),
        max_age: section.optional_or("max_age", default.max_age, &value_parser::duration(MILLISECOND..=365 * DAY)),
    };
    if policy.total_delay() > policy.max_age && !section.report().has(section.path()) {
        let message = format!(
            "is {}, less than the sum of all delays, {}: the last retries never happen",
            super::duration::format(policy.max_age),
            super::duration::format(policy.total_delay())
        );
        section.warning("max_age", message);
    }
    section.finish();
    policy
}
