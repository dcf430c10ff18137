//! Rules between sections: every queue has one consumer, and all failures reach the failed-order queue and no other. Warns
//! about combinations that are valid but probably wrong, such as bindings that overlap. Pure, apart from the report it
//! writes to.

use std::time::Duration;

use super::duration;
use super::handler::{HandlerRegistry, MessageKind};
use super::model::{Config, Consumer};
use super::report::Report;
use super::suggestion::{did_you_mean, listed};
use crate::topology::{ExchangeNames, pattern};

/// More unsettled deliveries of all consumers together cause a warning: each is in memory, and is delivered again after a
/// crash.
const MANY_SLOTS: usize = 16_384;
/// How long a delivery should take at most, with its immediate retries: the broker's ack timeout of 30 minutes, minus a
/// margin.
const MAX_UNSETTLED_TIME: Duration = Duration::from_secs(25 * 60);
/// How long a row is kept beyond the last possible retry.
const RETENTION_MARGIN: Duration = Duration::from_secs(24 * 3600);
/// Maximum number of queues, and of consumers.
const MAX_SECTIONS: usize = 256;

/// Reports every violation.
pub(super) fn check(config: &Config, handlers: HandlerRegistry, report: &Report) {
    counts_are_within_limits(config, report);
    attempts_fit_the_ack_timeout(config, report);
    retention_outlasts_retries(config, report);
    queue_names_are_not_reserved(config, report);
    consumers_have_queues(config, report);
    queues_have_one_consumer(config, report);
    if let Some((name, consumer)) = failed_order_consumer(config, handlers, report) {
        failures_reach_one_queue(config, name, consumer, report);
    }
    bindings_do_not_overlap(config, report);
    events_are_bound(config, report);
    step_events_are_bound(config, report);
    retry_limits_are_not_longer_than_the_delays(config, report);
    order_ids_do_not_collide(config, report);
    default_channels_exist(config, report);
    default_channels_agree(config, report);
    alerts_have_a_channel_of_their_own(config, report);
}

fn counts_are_within_limits(config: &Config, report: &Report) {
    for (section, count) in [("queues", config.queues.len()), ("consumers", config.consumers.len())] {
        if count == 0 {
            report.problem(section, "must have at least one");
        } else if count > MAX_SECTIONS {
            report.problem(section, format!("must have at most {MAX_SECTIONS}, has {count}"));
        }
    }
    let slots: usize =
        config.consumers.values().map(|consumer| consumer.workers * usize::from(consumer.prefetch)).sum();
    if slots > MANY_SLOTS {
        let message = format!(
            "workers × prefetch add up to {slots}: that many orders are in memory, and are delivered again after a crash"
        );
        report.warning("consumers", message);
    }
}

/// Without its channel, the notification of every order that asks for none would be dead-lettered.
fn default_channels_exist(config: &Config, report: &Report) {
    for (name, consumer) in
        config.consumers.iter().filter(|(_, consumer)| consumer.messages == MessageKind::Notification)
    {
        let channels = consumer.notify.keys();
        if channels.is_empty() {
            continue;
        }
        let default = consumer.handler_settings.text("default_channel").unwrap_or_default();
        if !channels.contains_key(&default) && !report.has(&format!("notify.{default}")) {
            let names: Vec<&str> = channels.keys().map(String::as_str).collect();
            let message = format!(
                "is {default:?}, but customers' channels in [notify] are only {}: notifications of orders that ask for no channel are dead-lettered",
                listed(&names)
            );
            report.warning(&format!("consumers.{name}.default_channel"), message);
        }
    }
}

/// An order that asks for no channel has one default, whatever consumer delivers its notification.
fn default_channels_agree(config: &Config, report: &Report) {
    let notifications = config.consumers.iter().filter(|(_, consumer)| consumer.messages == MessageKind::Notification);
    let mut defaults =
        notifications.filter_map(|(name, consumer)| Some((name, consumer.handler_settings.text("default_channel")?)));
    let Some((first, channel)) = defaults.next() else { return };
    for (other, different) in defaults.filter(|(_, default)| *default != channel) {
        let message = format!(
            "must be the same for all consumers of notifications, is {different:?}, and {channel:?} in consumers.{first}: it is \
             the channel of each order that asks for none"
        );
        report.problem(&format!("consumers.{other}.default_channel"), message);
    }
}

/// The channel of alerts exists, and no customer's notification may choose it.
fn alerts_have_a_channel_of_their_own(config: &Config, report: &Report) {
    let Some(channel) = config.alerts.text("channel") else { return };
    let channels = config.notify.keys();
    if !channels.contains_key(&channel) && !report.has(&format!("notify.{channel}")) {
        let hint = did_you_mean(&channel, channels.keys().map(String::as_str));
        report.problem("alerts.channel", format!("must be one of [notify], is {channel:?}{hint}"));
    }
    for (name, consumer) in &config.consumers {
        if consumer.messages == MessageKind::Notification
            && consumer.handler_settings.text("default_channel").as_ref() == Some(&channel)
        {
            let message = format!(
                "must not be default_channel of consumer {name:?}, is {channel:?}: customers' notifications cannot use the channel of \
                 alerts; give alerts a channel of their own, which may have the same server"
            );
            report.problem("alerts.channel", message);
        }
    }
}

/// The ids of two shops' orders are the same sooner or later, and the second order would be taken for a copy of the first.
fn order_ids_do_not_collide(config: &Config, report: &Report) {
    let formats = config.consumers.iter().filter_map(|(name, consumer)| Some((name, consumer.format.as_ref()?)));
    let mut plain = formats.filter(|(_, format)| format.has_plain_ids());
    let Some((first, format)) = plain.next() else { return };
    if let Some((other, other_format)) = plain.find(|(_, other)| other.name() != format.name()) {
        let message = format!(
            "has the format {:?} and consumers.{first} {:?}: orders of different shops with the same id are taken for the same \
             order; give one of the formats an id with a prefix, such as id = {{ pointer = \"/id\", prefix = \"shop-b-\" }}",
            other_format.name(),
            format.name()
        );
        report.warning(&format!("consumers.{other}.format"), message);
    }
}

/// A delivery is unsettled while its immediate retries last, and the broker closes the channel of one that is
/// unsettled for 30 minutes.
fn attempts_fit_the_ack_timeout(config: &Config, report: &Report) {
    for (name, consumer) in &config.consumers {
        let attempts = consumer.retry.immediate + 1;
        let attempt = consumer.attempt_time();
        let longest = attempt * attempts;
        if longest > MAX_UNSETTLED_TIME {
            let message = format!(
                "allows {attempts} attempts of {} each, {} in total; stay within {}, since the broker waits 30m for an ack",
                duration::format(attempt),
                duration::format(longest),
                duration::format(MAX_UNSETTLED_TIME)
            );
            report.warning(&format!("consumers.{name}.retry.immediate"), message);
        }
    }
}

/// A retried message is recognised by its row in the ledger, so rows must be kept until the last retry, and longer, since
/// a message also waits in queues.
fn retention_outlasts_retries(config: &Config, report: &Report) {
    let Some(retention) = config.ledger.retention else { return };
    for (name, consumer) in &config.consumers {
        let retry = &consumer.retry;
        let longest_delay = retry.delays.iter().map(|delay| delay.as_duration()).max().unwrap_or_default();
        let least = retry.max_age + longest_delay + RETENTION_MARGIN;
        if retention < least {
            let message = format!(
                "must be at least {}, is {}: consumer {name:?} may retry an order for {} (its max_age and its longest \
                 delay), and a margin of a day is needed",
                duration::format(least),
                duration::format(retention),
                duration::format(retry.max_age + longest_delay)
            );
            return report.problem("ledger.retention", message);
        }
    }
}

fn queue_names_are_not_reserved(config: &Config, report: &Report) {
    for name in [ExchangeNames::DEAD_LETTER_QUEUE, ExchangeNames::UNROUTED_QUEUE] {
        if config.queues.contains_key(name) {
            report.problem(
                &format!("queues.{name}"),
                "must have another name: orderd itself declares a queue of this name",
            );
        }
    }
}

fn consumers_have_queues(config: &Config, report: &Report) {
    for (name, consumer) in &config.consumers {
        let known = config.queues.contains_key(&consumer.queue) || report.has(&format!("queues.{}", consumer.queue));
        if !known && !config.queues.is_empty() {
            let hint = did_you_mean(&consumer.queue, config.queues.keys().map(String::as_str));
            let message = format!("must be one of [queues], is {:?}{hint}", consumer.queue);
            report.problem(&format!("consumers.{name}.queue"), message);
        }
    }
}

fn queues_have_one_consumer(config: &Config, report: &Report) {
    let consumers_of = |queue: &str| {
        let queue = queue.to_owned();
        config.consumers.iter().filter(move |(_, consumer)| consumer.queue == queue).map(|(name, _)| name)
    };
    for queue in config.queues.keys() {
        let mut consumers = consumers_of(queue);
        let Some(first) = consumers.next() else { continue };
        for other in consumers {
            let message = format!(
                "is already the queue of consumer {first:?}; a queue has one consumer (raise its workers instead)"
            );
            report.problem(&format!("consumers.{other}.queue"), message);
        }
    }
    // A consumer with a misspelt queue may be the one that seems to be missing.
    if config.consumers.keys().any(|name| report.has(&format!("consumers.{name}.queue"))) {
        return;
    }
    for queue in config.queues.keys().filter(|queue| consumers_of(queue).next().is_none()) {
        report.problem(&format!("queues.{queue}"), "has no consumer, so its orders would never be processed");
    }
}

fn failed_order_consumer<'c>(
    config: &'c Config,
    handlers: HandlerRegistry,
    report: &Report,
) -> Option<(&'c str, &'c Consumer)> {
    let mut consumers = config.consumers.iter().filter(|(_, consumer)| consumer.handles_failures());
    let Some((first, consumer)) = consumers.next() else {
        let for_failures = handlers.iter().filter(|handler| handler.messages() == MessageKind::Failure);
        let names: Vec<&str> = for_failures.map(|handler| handler.name()).collect();
        let misspelt = config.consumers.keys().any(|name| report.has(&format!("consumers.{name}.handler")));
        if !config.consumers.is_empty() && !misspelt {
            report.problem(
                "consumers",
                format!("one must have the handler {}, which retries or dead-letters failed messages", listed(&names)),
            );
        }
        return None;
    };
    for (other, consumer) in consumers {
        let handler = &consumer.handler;
        let message =
            format!("{handler:?} is already the handler of consumer {first:?}; exactly one consumer may have it");
        report.problem(&format!("consumers.{other}.handler"), message);
    }
    Some((first, consumer))
}

/// The failures of all other consumers must reach the failed-order queue, and no other queue.
fn failures_reach_one_queue(config: &Config, failed: &str, consumer: &Consumer, report: &Report) {
    let keys: Vec<String> =
        config.consumers.keys().filter(|name| *name != failed).map(|name| ExchangeNames::failed_key(name)).collect();
    for (queue, settings) in &config.queues {
        let path = format!("queues.{queue}.bindings");
        if *queue == consumer.queue {
            let missed =
                keys.iter().find(|key| !settings.bindings.iter().any(|binding| pattern::matches(binding, key)));
            if let Some(key) = missed.filter(|_| !report.has(&path)) {
                report.problem(
                    &path,
                    format!("must match {key:?}, the routing key of failures: add \"{}.#\"", ExchangeNames::FAILED_KEY),
                );
            }
            continue;
        }
        for (index, binding) in settings.bindings.iter().enumerate() {
            if let Some(key) = keys.iter().find(|key| pattern::matches(binding, key)) {
                let message = format!(
                    "must not match {key:?}, is {binding:?}: failures must reach queue {:?} only",
                    consumer.queue
                );
                report.problem(&format!("{path}[{index}]"), message);
            }
        }
    }
}

fn bindings_do_not_overlap(config: &Config, report: &Report) {
    let bindings: Vec<(&str, usize, &str)> = config
        .queues
        .iter()
        .flat_map(|(queue, settings)| {
            settings.bindings.iter().enumerate().map(move |(index, binding)| (queue.as_str(), index, binding.as_str()))
        })
        .collect();
    for (at, (queue, index, binding)) in bindings.iter().enumerate() {
        let path = format!("queues.{queue}.bindings[{index}]");
        let earlier =
            bindings[..at].iter().find(|(other, _, earlier)| other != queue && pattern::overlaps(binding, earlier));
        if let Some((other, _, earlier)) = earlier.filter(|_| !report.has(&path)) {
            let message = format!(
                "{binding:?} overlaps {earlier:?} of queue {other:?}: a message that matches both is delivered to both queues"
            );
            report.warning(&path, message);
        }
    }
}

/// Routing keys of the events that orderd publishes about processed and dead-lettered orders, one of each kind.
pub(super) const EVENTS: [&str; 4] =
    ["order.notification.email", "order.analytics.processed", "order.analytics.failed", "order.analytics.cancelled"];

fn events_are_bound(config: &Config, report: &Report) {
    let bindings = config.queues.values().flat_map(|queue| &queue.bindings);
    let unknown = report.has("queues") || config.queues.is_empty();
    for key in
        EVENTS.into_iter().filter(|key| !unknown && !bindings.clone().any(|binding| pattern::matches(binding, key)))
    {
        let message = format!(
            "none is bound to {key:?}, which orderd publishes: such events end up in {}",
            ExchangeNames::UNROUTED_QUEUE
        );
        report.warning("queues", message);
    }
}

/// A retry is postponed by one of the consumer's delays, never by more than the longest.
fn retry_limits_are_not_longer_than_the_delays(config: &Config, report: &Report) {
    for (name, consumer) in &config.consumers {
        let longest = consumer.retry.delays.iter().map(|delay| delay.as_duration()).max().unwrap_or_default();
        for (key, limit) in consumer.handler_settings.retry_limits().iter().filter(|(_, limit)| *limit > longest) {
            let message = format!(
                "is {}, but the longest of consumers.{name}.retry.delays is {}: a service that asks for more is called again after that",
                duration::format(*limit),
                duration::format(longest)
            );
            report.warning(&format!("consumers.{name}.{key}"), message);
        }
    }
}

/// An event that no queue is bound for is not lost while the alternate exchange exists, but is not processed.
fn step_events_are_bound(config: &Config, report: &Report) {
    let bindings = config.queues.values().flat_map(|queue| &queue.bindings);
    for (name, consumer) in &config.consumers {
        let keys = consumer.handler_settings.event_keys();
        for key in keys.iter().filter(|key| !bindings.clone().any(|binding| pattern::overlaps(binding, key))) {
            let message = format!(
                "a step emits {key:?}, to which no queue of this configuration is bound: unless another queue is, such events \
                 end up in {}",
                ExchangeNames::UNROUTED_QUEUE
            );
            report.warning(&format!("consumers.{name}.steps"), message);
        }
    }
}
