//! The metrics of one snapshot in the OpenMetrics text format, for Prometheus. Every name begins with `orderd_`.
//!
//! Labels have few values: configured queues and consumers, and orderd's own codes. Never an order id or an error text.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::channels::channels;
use super::dead_letters::dead_letters;
use super::metric_writer::{MetricWriter, flag};
use crate::alerts::AlertsStatus;
use crate::control::ReloadOutcome;
use crate::metrics::{CallEnd, conservation};
use crate::reconcile::{ApiState, BrokerView, FindingKind, QueueRole, QueueView};
use crate::recovery::DeadLetterReason;
use crate::status::{ConsumerReading, DaemonState, StatusRegistry, StatusSnapshot};
use crate::steps::{BreakerKind, BreakerReading, BreakerState};

/// The `Content-Type` of the exposition.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All current metrics, as text.
pub fn exposition(status_registry: &StatusRegistry) -> String {
    let mut metrics = Registry::with_prefix("orderd");
    metrics.register_collector(Box::new(SnapshotCollector(status_registry.snapshot())));
    let mut text = String::new();
    encode(&mut text, &metrics).expect("writing to a string does not fail");
    text
}

#[derive(Debug)]
struct SnapshotCollector(StatusSnapshot);

impl Collector for SnapshotCollector {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut writer = MetricWriter(encoder);
        self.daemon(&mut writer)?;
        self.deliveries(&mut writer)?;
        self.failures(&mut writer)?;
        steps(&self.0.consumers, &mut writer)?;
        channels(&self.0.consumers, &mut writer)?;
        self.pools(&mut writer)?;
        alerts(self.0.status.alerts.as_ref(), &mut writer)?;
        dead_letters(&self.0, &mut writer)?;
        broker(&self.0.status.broker, &mut writer)?;
        queues(&self.0.status.broker, &mut writer)
    }
}

impl SnapshotCollector {
    fn daemon(&self, writer: &mut MetricWriter<'_>) -> fmt::Result {
        let status = &self.0.status;
        let daemon = &status.daemon;
        let version = [("version", daemon.version.as_str())];
        writer.gauges("build_info", "Always 1; the label is the version", [(version, 1.0)])?;
        writer.gauge(
            "start_time_seconds",
            "Start time of the daemon, Unix time",
            daemon.started_at.as_millisecond() as f64 / 1e3,
        )?;
        writer.gauge("config_generation", "Configurations applied since the start", daemon.config_generation as f64)?;
        let outcome = daemon.last_reload.as_ref().map(|reload| reload.report.outcome);
        let help = "1 if the last reload was rejected: the configuration file is not active";
        writer.gauge("config_reload_failed", help, flag(outcome == Some(ReloadOutcome::Rejected)))?;
        let help = "1 if part of the last reload needs a restart or a change at the broker";
        writer.gauge("config_pending", help, flag(outcome == Some(ReloadOutcome::PartlyApplied)))?;
        writer.gauge("draining", "1 if a shutdown has begun", flag(daemon.state == DaemonState::Draining))?;
        writer.gauge("ready", "1 if every readiness check passes", flag(status.checks.iter().all(|check| check.ok)))?;
        let checks = status.checks.iter().map(|check| ([("check", check.name.as_str())], flag(check.ok)));
        writer.gauges("readiness_check", "1 if the readiness check passes", checks)?;
        writer.gauge("ledger_recording", "1 if the ledger can record", flag(daemon.ledger.recording))?;
        writer.counter("ledger_outages", "Times in which the ledger could not record", daemon.ledger.outages)?;
        writer.counter("ledger_commits", "Ledger commits since the start", daemon.ledger.commits)?;
        let files = || daemon.event_files.iter().map(|(name, file)| ([("file", name.as_str())], file));
        let writable = files().map(|(label, file)| (label, flag(file.outage.is_none())));
        writer.gauges("event_file_writable", "1 if the event file can be written", writable)?;
        let outages = files().map(|(label, file)| (label, file.outages));
        writer.counters("event_file_outages", "Times in which the event file could not be written", outages)?;
        let publisher = daemon.publisher.as_ref();
        let connected = publisher.is_some_and(|publisher| publisher.connected);
        writer.gauge("publisher_connected", "1 if the publishing connection is open", flag(connected))?;
        let connections = publisher.map_or(0, |publisher| publisher.connections);
        writer.counter("publisher_connections", "Publishing connections made", connections)?;
        let waiting = publisher.map_or(0, |publisher| publisher.waiting_seconds);
        let help = "Seconds that the oldest unconfirmed publication has been waiting";
        writer.gauge("publisher_waiting_seconds", help, waiting as f64)?;
        let unconfirmed = publisher.map_or(0, |publisher| publisher.unconfirmed);
        writer.gauge("publisher_unconfirmed", "Publications not confirmed by the broker yet", unconfirmed as f64)
    }

    fn deliveries(&self, writer: &mut MetricWriter<'_>) -> fmt::Result {
        let consumers = || self.0.consumers.iter();
        let received = consumers().map(|consumer| (labels(consumer), consumer.reading.counts.deliveries));
        writer.counters("deliveries", "Deliveries received from the broker", received)?;
        let settled = consumers().flat_map(|consumer| {
            let counts = &consumer.reading.counts;
            [
                ("completed", counts.completed),
                ("duplicate", counts.duplicates),
                ("cancelled", counts.cancelled),
                ("prevented", counts.prevented),
                ("skipped", counts.skipped),
                ("forwarded", counts.forwarded),
                ("retried", counts.retried),
                ("returned", counts.returned),
                ("dead_lettered", counts.dead_lettered),
                ("released", counts.released),
                ("rejected", counts.rejected),
            ]
            .map(|(outcome, count)| {
                let [queue, consumer] = labels(consumer);
                ([queue, consumer, ("outcome", outcome)], count)
            })
        });
        writer.counters("settled", "Deliveries settled, by outcome", settled)?;
        let anonymous = consumers().map(|consumer| (labels(consumer), consumer.reading.counts.without_message_id));
        writer.counters(
            "without_message_id",
            "Deliveries without a message_id, except orders and failures",
            anonymous,
        )?;
        let implausible =
            consumers().map(|consumer| (labels(consumer), consumer.reading.counts.implausible_timestamps));
        let help = "Completed deliveries whose AMQP timestamp is older than 30 days or in the future";
        writer.counters("implausible_timestamps", help, implausible)?;
        let unproven = consumers().map(|consumer| (labels(consumer), consumer.reading.counts.unproven));
        writer.counters("unproven", "Deliveries that claim to be orderd's own, without the proof", unproven)?;
        let dropped = consumers().map(|consumer| (labels(consumer), consumer.reading.counts.headers_dropped));
        writer.counters("headers_dropped", "Failures whose copy lacks some of the sender's headers", dropped)?;
        let in_flight = consumers().map(|consumer| (labels(consumer), consumer.reading.counts.in_flight as f64));
        writer.gauges("in_flight", "Deliveries received and not settled", in_flight)?;
        let oldest = consumers()
            .map(|consumer| (labels(consumer), consumer.reading.oldest_in_flight.map_or(0.0, |age| age.as_secs_f64())));
        writer.gauges(
            "oldest_in_flight_seconds",
            "Age of the oldest delivery in flight; 0 if there is none",
            oldest,
        )?;
        let broken = consumers().map(|consumer| {
            let balance = conservation::check(&consumer.reading.counts, &consumer.reading.pool);
            (labels(consumer), flag(balance.is_err()))
        });
        writer.gauges("conservation_broken", "1 if the delivery counts do not add up", broken)?;
        let difference = consumers().map(|consumer| {
            (
                labels(consumer),
                consumer.reading.counts.deliveries as f64 - consumer.reading.counts.accounted_for() as f64,
            )
        });
        writer.gauges(
            "conservation_difference",
            "Deliveries received minus deliveries settled and in flight",
            difference,
        )?;
        let handling = consumers().map(|consumer| (labels(consumer), &consumer.reading.handling));
        writer.histograms("handling_seconds", "Time from a delivery's arrival to its ack", handling)?;
        let publish_to_ack = consumers().map(|consumer| (labels(consumer), &consumer.reading.publish_to_ack));
        let help = "Time from the message's AMQP timestamp to its ack; up to 1 s too long, since timestamps are in whole seconds";
        writer.histograms("publish_to_ack_seconds", help, publish_to_ack)
    }

    fn failures(&self, writer: &mut MetricWriter<'_>) -> fmt::Result {
        let consumers = || self.0.consumers.iter();
        let failed = consumers().flat_map(|consumer| {
            consumer.reading.failures.iter().map(move |((kind, code), count)| {
                let [queue, consumer] = labels(consumer);
                ([queue, consumer, ("kind", kind.as_str()), ("code", code.as_str())], *count)
            })
        });
        writer.counters("failed_attempts", "Failed attempts, by kind and code", failed)?;
        let mut retries = std::collections::BTreeMap::new();
        let mut dead_lettered = std::collections::BTreeMap::new();
        for consumer in consumers() {
            // At 0 from the start, so that Prometheus sees the first one as an increase.
            for delay in consumer.delays.iter().flatten() {
                retries.entry((consumer.name.as_str(), delay.clone())).or_insert(0);
            }
            for reason in consumer.delays.iter().flat_map(|_| DeadLetterReason::ALL) {
                dead_lettered.entry((consumer.name.as_str(), reason)).or_insert(0);
            }
            for ((consumer, delay), count) in &consumer.reading.retries {
                *retries.entry((&**consumer, delay.to_string())).or_insert(0) += count;
            }
            for ((consumer, reason), count) in &consumer.reading.dead_letters {
                *dead_lettered.entry((&**consumer, *reason)).or_insert(0) += count;
            }
        }
        let retries =
            retries.iter().map(|((consumer, delay), count)| ([("consumer", *consumer), ("delay", delay)], *count));
        writer.counters("retries", "Failures sent to a retry queue, by the consumer that failed", retries)?;
        let dead_lettered = dead_lettered
            .iter()
            .map(|((consumer, reason), count)| ([("consumer", *consumer), ("reason", reason.as_str())], *count));
        writer.counters("dead_letters", "Messages dead-lettered, by the consumer that failed", dead_lettered)
    }

    fn pools(&self, writer: &mut MetricWriter<'_>) -> fmt::Result {
        let consumers = || self.0.consumers.iter();
        let pool = |consumer: &ConsumerReading| consumer.reading.pool;
        writer.gauges(
            "workers",
            "Running workers",
            consumers().map(|consumer| (labels(consumer), pool(consumer).workers_running as f64)),
        )?;
        writer.gauges(
            "workers_configured",
            "Configured workers",
            consumers().map(|consumer| (labels(consumer), consumer.workers as f64)),
        )?;
        let limits = consumers().filter_map(|consumer| Some((labels(consumer), consumer.rate_limit?.per_second())));
        writer.gauges("rate_limit", "Deliveries that may be started per second, if that is limited", limits)?;
        let of_steps = |breaker: &&BreakerReading| breaker.kind == BreakerKind::Step;
        let breakers = || consumers().flat_map(|consumer| &consumer.breakers).filter(of_steps);
        let states = breakers().flat_map(|breaker| {
            let [consumer, step] = breaker_labels(breaker);
            let state =
                |state: BreakerState| ([consumer, step, ("state", state.as_str())], flag(breaker.state == state));
            BreakerState::ALL.map(state)
        });
        writer.gauges(
            "step_breaker_state",
            "1 for the state of the step's circuit breaker, 0 for the others",
            states,
        )?;
        let openings = breakers().map(|breaker| (breaker_labels(breaker), breaker.openings));
        writer.counters("step_breaker_openings", "Times in which the step's circuit breaker opened", openings)?;
        let waiting = breakers().map(|breaker| (breaker_labels(breaker), breaker.waiting as f64));
        writer.gauges("step_breaker_waiting", "Deliveries that wait for the step's circuit breaker", waiting)?;
        let subscribed = consumers().map(|consumer| (labels(consumer), flag(pool(consumer).active_subscriptions > 0)));
        writer.gauges("subscribed", "1 if the consumer has a subscription that receives deliveries", subscribed)?;
        let paused = consumers().map(|consumer| (labels(consumer), flag(consumer.paused_since.is_some())));
        writer.gauges("paused", "1 if the consumer is paused", paused)?;
        let draining = consumers().map(|consumer| (labels(consumer), pool(consumer).draining_subscriptions as f64));
        writer.gauges("draining_subscriptions", "Former subscriptions that finish what they received", draining)?;
        let subscriptions = consumers().map(|consumer| (labels(consumer), pool(consumer).subscriptions));
        writer.counters("subscriptions", "Subscriptions made", subscriptions)?;
        let ack_timeouts =
            consumers().map(|consumer| (labels(consumer), consumer.reading.broker_problems.ack_timeouts));
        writer.counters("ack_timeouts", "Subscriptions ended by the broker's consumer_timeout", ack_timeouts)?;
        let safe_mode = consumers().map(|consumer| (labels(consumer), flag(pool(consumer).safe_mode)));
        writer.gauges("safe_mode", "1 if deliveries are processed one at a time", safe_mode)?;
        let restarts = consumers().map(|consumer| (labels(consumer), consumer.reading.counts.restarts));
        writer.counters("restarts", "Restarts of workers and pools", restarts)
    }
}

fn alerts(status: Option<&AlertsStatus>, writer: &mut MetricWriter<'_>) -> fmt::Result {
    let off = AlertsStatus::default();
    let status = status.unwrap_or(&off);
    let open = status.open_by_kind();
    let open = open.iter().map(|(kind, count)| ([("kind", *kind)], *count as f64));
    writer.gauges("alerts_open", "Operators' alerts that are open, by the kind of their cause", open)?;
    let help = "Operators' alerts that opened or ended and are in no message yet";
    writer.gauge("alerts_unsent", help, status.unsent as f64)?;
    writer.counter("alerts_sent", "Messages about operators' alerts that this instance has sent", status.sent)?;
    writer.counter("alerts_failed", "Failed attempts of this instance to send such a message", status.failed)
}

fn steps(consumers: &[ConsumerReading], writer: &mut MetricWriter<'_>) -> fmt::Result {
    let steps = || {
        consumers.iter().flat_map(|consumer| {
            consumer.reading.steps.iter().map(move |((step, action), reading)| {
                ([("consumer", consumer.name.as_str()), ("step", &**step), ("action", action.as_str())], reading)
            })
        })
    };
    let calls = steps().flat_map(|([consumer, step, action], reading)| {
        // At 0 from the start, so that Prometheus sees the first one as an increase.
        CallEnd::ALL.map(|end| {
            let count = reading.ended.get(&end).copied().unwrap_or(0);
            ([consumer, step, action, ("outcome", end.as_str())], count)
        })
    });
    writer.counters("step_calls", "Calls of steps and of their undos, by outcome", calls)?;
    let in_flight = steps().map(|(labels, reading)| (labels, reading.in_flight as f64));
    writer.gauges("step_in_flight", "Calls of steps and of their undos that have not ended", in_flight)?;
    let durations = steps().map(|(labels, reading)| (labels, &reading.durations));
    writer.histograms("step_call_seconds", "Time from a call of a step or of its undo to its end", durations)
}

fn broker(view: &BrokerView, writer: &mut MetricWriter<'_>) -> fmt::Result {
    let up = match view.api {
        ApiState::Fresh => 1.0,
        ApiState::Off | ApiState::Pending | ApiState::Stale { .. } => 0.0,
    };
    writer.gauge("management_up", "1 if the last request to the management API succeeded", up)?;
    let alarms = view.alarms.iter().flatten();
    let alarms = alarms.map(|alarm| ([("node", alarm.node.as_str()), ("resource", alarm.resource.as_str())], 1.0));
    writer.gauges("broker_alarm", "1 for each alarm of a node; alarms block publishing", alarms)?;
    // A gauge for every kind, at 0 too, so that alerts have a value to compare.
    let kinds = FindingKind::ALL.map(|kind| {
        let count = view.findings.iter().filter(|finding| finding.kind == kind).count();
        ([("kind", kind.as_str())], count as f64)
    });
    writer.gauges("findings", "Findings of the reconciliation with the broker, by kind", kinds)
}

fn queues(view: &BrokerView, writer: &mut MetricWriter<'_>) -> fmt::Result {
    let mut gauge = |name, help, value: fn(&QueueView) -> Option<f64>| {
        let known = view
            .queues
            .iter()
            .filter_map(|(name, queue)| Some(([("queue", name.as_str()), ("role", role(&queue.role))], value(queue)?)));
        writer.gauges(name, help, known)
    };
    gauge("queue_ready", "Messages ready for delivery, as last reported by the management API", |queue| {
        Some(queue.ready? as f64)
    })?;
    gauge("queue_unacked", "Messages delivered and not acked, as last reported by the management API", |queue| {
        Some(queue.unacked? as f64)
    })?;
    gauge("queue_consumers", "Consumers of the queue, of orderd or of others", |queue| Some(queue.consumers? as f64))?;
    gauge("queue_dead_letters_held", "Messages that the broker cannot dead-letter to their target yet", |queue| {
        Some(queue.dead_letters_held? as f64)
    })
}

fn role(role: &QueueRole) -> &'static str {
    match role {
        QueueRole::Work { .. } => "work",
        QueueRole::Retry { .. } => "retry",
        QueueRole::DeadLetter => "dead_letter",
        QueueRole::Unrouted => "unrouted",
    }
}

type Label<'a> = (&'static str, &'a str);

fn labels(consumer: &ConsumerReading) -> [Label<'_>; 2] {
    [("queue", &consumer.queue), ("consumer", &consumer.name)]
}

fn breaker_labels(breaker: &BreakerReading) -> [Label<'_>; 2] {
    [("consumer", &breaker.consumer), ("step", &breaker.name)]
}
