//! Reads the sections `[queues.<name>]` and `[consumers.<name>]`. What must hold between them is in `check`.

use std::time::Duration;

use super::handler::{HandlerSettings, Handlers, MessageKind};
use super::layers::Value;
use super::model::{Consumer, Queue};
use super::section::{Reading, Section};
use super::shape;
use super::suggestion::{did_you_mean, listed};
use crate::recovery::RetryPolicy;
use crate::topology::pattern;

/// Longest queue name: `<queue>.retry.<delay>` must fit the 255 bytes of AMQP.
const LONGEST_QUEUE: usize = 200;
/// Longest consumer name: it is a word of routing keys and a label of metrics.
const LONGEST_CONSUMER: usize = 64;
const MAX_BINDINGS: usize = 64;
const MAX_DELAYS: usize = 32;
const MAX_IMMEDIATE: u32 = 10;
const MAX_WORKERS: usize = 1024;
/// RabbitMQ closes the channel of a consumer that does not settle a delivery within 30 minutes.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(15 * 60);
const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(86_400);

pub(super) fn queue(name: &str, mut section: Section<'_>) -> Queue {
    if let Some(message) = shape::name_problem(name, LONGEST_QUEUE) {
        section.own_problem(message);
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
    let pattern = shape::text(pattern::MAX_KEY_BYTES)(value)?;
    match pattern::problem(&pattern) {
        Some(message) => Err(format!("{message}, is {value}")),
        None => Ok(pattern),
    }
}

pub(super) fn consumer(name: &str, mut section: Section<'_>, handlers: Handlers) -> Consumer {
    if let Some(message) = shape::name_problem(name, LONGEST_CONSUMER) {
        section.own_problem(message);
    }
    let queue = section.required("queue", ": name one of [queues]", &shape::text(LONGEST_QUEUE));
    let handler = section.or("handler", name.to_owned(), &shape::text(LONGEST_CONSUMER));
    let spec = handlers.iter().find(|spec| spec.name() == handler);
    let messages = spec.map_or(MessageKind::Other, |spec| spec.messages());
    let consumer = Consumer {
        queue: queue.unwrap_or_default(),
        messages,
        workers: section.or("workers", 4, &shape::number(1..=MAX_WORKERS)),
        prefetch: section.or("prefetch", 250, &shape::number(1..=u16::MAX)),
        timeout: section.or("timeout", Duration::from_secs(30), &timeout),
        retry: retry(&mut section, messages),
        handler_settings: spec.map_or_else(HandlerSettings::none, |spec| spec.configure(name, &mut section)),
        handler,
    };
    let slots = consumer.workers * usize::from(consumer.prefetch);
    if slots > usize::from(u16::MAX) {
        let message =
            format!("must be at most 65535 times workers, is {} × {} = {slots}", consumer.workers, consumer.prefetch);
        section.problem("prefetch", message);
    }
    if spec.is_none() {
        take_keys_of_all(handlers, name, &mut section);
        let names: Vec<&str> = handlers.iter().map(|spec| spec.name()).collect();
        let hint = did_you_mean(&consumer.handler, names.iter().copied());
        let message = format!("must be one of {}, is {:?}{hint}", listed(&names), consumer.handler);
        section.problem("handler", message);
    }
    section.finish();
    consumer
}

/// Takes the keys that any handler has, since it is unknown which of them the consumer is meant to have.
fn take_keys_of_all(handlers: Handlers, consumer: &str, section: &mut Section<'_>) {
    for spec in handlers {
        let discarded = Reading::default();
        let mut copy = section.copy(&discarded);
        spec.configure(consumer, &mut copy);
        section.take_as(&copy);
    }
}

fn timeout(value: &Value) -> Result<Duration, String> {
    let why = |message: String| match message.starts_with("must be at most") {
        true => format!("{message}: the broker requeues a delivery that is not settled within 30m"),
        false => message,
    };
    shape::span(MILLISECOND..=LONGEST_TIMEOUT)(value).map_err(why)
}

/// The policy of a consumer without `[consumers.<name>.retry]`.
pub(super) fn default_retry() -> RetryPolicy {
    let delays = ["1s", "10s", "1m"].map(|delay| delay.parse().expect("a delay as recovery writes it"));
    RetryPolicy { immediate: 1, delays: delays.to_vec(), max_age: DAY }
}

fn retry(section: &mut Section<'_>, messages: MessageKind) -> RetryPolicy {
    let default = default_retry();
    if messages == MessageKind::Failure {
        if section.optional_section("retry").is_some() {
            section.problem("retry", "has no effect on the failed-order consumer: remove it");
        }
        return RetryPolicy { immediate: 0, delays: Vec::new(), max_age: default.max_age };
    }
    let mut section = section.section("retry");
    let policy = RetryPolicy {
        immediate: section.or("immediate", default.immediate, &shape::number(0..=MAX_IMMEDIATE)),
        delays: section.list("delays", MAX_DELAYS, &shape::delay).unwrap_or(default.delays),
        max_age: section.or("max_age", default.max_age, &shape::span(MILLISECOND..=365 * DAY)),
    };
    if policy.total_delay() > policy.max_age && !section.report().has(section.path()) {
        let message = format!(
            "is {}, less than the {} of all delays together: the last retries never happen",
            super::duration::format(policy.max_age),
            super::duration::format(policy.total_delay())
        );
        section.warning("max_age", message);
    }
    section.finish();
    policy
}
