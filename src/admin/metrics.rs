//! The metrics: one snapshot, written as Prometheus reads it (OpenMetrics text). Every name begins with `orderd_`.
//!
//! Labels have few values: names of queues and consumers of the configuration, and words of orderd's own.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::control::ReloadOutcome;
use crate::metrics::{Histogram, conservation};
use crate::reconcile::{ApiState, BrokerView, FindingKind, QueueRole, QueueView};
use crate::recovery::DeadLetterReason;
use crate::status::{ConsumerReading, DaemonState};
use crate::status::{StatusRegistry, StatusSnapshot};

/// What the answer is.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// All metrics of this moment, as text.
pub fn exposition(live: &Arc<StatusRegistry>) -> String {
    let mut registry = Registry::with_prefix("orderd");
    registry.register_collector(Box::new(Page(live.snapshot())));
    let mut text = String::new();
    encode(&mut text, &registry).expect("writing to a string does not fail");
    text
}

#[derive(Debug)]
struct Page(StatusSnapshot);

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder) -> fmt::Result {
        let mut sheet = Sheet(encoder);
        self.daemon(&mut sheet)?;
        self.deliveries(&mut sheet)?;
        self.failures(&mut sheet)?;
        self.pools(&mut sheet)?;
        broker(&self.0.status.broker, &mut sheet)?;
        queues(&self.0.status.broker, &mut sheet)
    }
}

impl Page {
    fn daemon(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let status = &self.0.status;
        let daemon = &status.daemon;
        let version = [("version", daemon.version.as_str())];
        sheet.gauges("build_info", "Always 1; which orderd this is", [(version, 1.0)])?;
        sheet.gauge(
            "start_time_seconds",
            "When it started, Unix time",
            daemon.started_at.as_millisecond() as f64 / 1e3,
        )?;
        sheet.gauge("config_generation", "Configurations applied since the start", daemon.config_generation as f64)?;
        let outcome = daemon.last_reload.as_ref().map(|reload| reload.report.outcome);
        let help = "Whether the last reload was rejected, so that the file does not say what is in force";
        sheet.gauge("config_reload_failed", help, flag(outcome == Some(ReloadOutcome::Rejected)))?;
        let help = "Whether part of the last reload waits for a restart or a person";
        sheet.gauge("config_pending", help, flag(outcome == Some(ReloadOutcome::PartlyApplied)))?;
        sheet.gauge("draining", "Whether a shutdown has begun", flag(daemon.state == DaemonState::Draining))?;
        sheet.gauge(
            "ready",
            "Whether every readiness check holds",
            flag(status.checks.iter().all(|check| check.ok)),
        )?;
        let checks = status.checks.iter().map(|check| ([("check", check.name.as_str())], flag(check.ok)));
        sheet.gauges("readiness_check", "Each readiness check", checks)?;
        sheet.gauge("ledger_recording", "Whether the ledger can record", flag(daemon.ledger.recording))?;
        sheet.counter("ledger_commits", "Commits of the ledger", daemon.ledger.commits)?;
        let publisher = daemon.publisher.as_ref();
        let connected = publisher.is_some_and(|publisher| publisher.connected);
        sheet.gauge("publisher_connected", "Whether the publishing connection stands", flag(connected))?;
        let connections = publisher.map_or(0, |publisher| publisher.connections);
        sheet.counter("publisher_connections", "Publishing connections made", connections)?;
        let unconfirmed = publisher.map_or(0, |publisher| publisher.unconfirmed);
        sheet.gauge("publisher_unconfirmed", "Publications the broker has not confirmed yet", unconfirmed as f64)
    }

    fn deliveries(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let facts = || self.0.facts.iter();
        let taken = facts().map(|one| (whose(one), one.reading.counts.deliveries));
        sheet.counters("deliveries", "Deliveries taken from the broker", taken)?;
        let settled = facts().flat_map(|one| {
            let counts = &one.reading.counts;
            [
                ("completed", counts.completed),
                ("duplicate", counts.duplicates),
                ("forwarded", counts.forwarded),
                ("retried", counts.retried),
                ("dead_lettered", counts.dead_lettered),
                ("released", counts.released),
                ("rejected", counts.rejected),
            ]
            .map(|(outcome, count)| {
                let [queue, consumer] = whose(one);
                ([queue, consumer, ("outcome", outcome)], count)
            })
        });
        sheet.counters("settled", "Deliveries let go of, by outcome", settled)?;
        let in_flight = facts().map(|one| (whose(one), one.reading.counts.in_flight as f64));
        sheet.gauges("in_flight", "Deliveries in hand", in_flight)?;
        let oldest = facts().map(|one| (whose(one), one.reading.oldest.map_or(0.0, |age| age.as_secs_f64())));
        sheet.gauges("oldest_in_flight_seconds", "Age of the oldest delivery in hand; 0 without any", oldest)?;
        let broken = facts().map(|one| {
            let held = conservation::check(&one.reading.counts, &one.reading.pool);
            (whose(one), flag(held.is_err()))
        });
        sheet.gauges("conservation_broken", "Whether deliveries are lost or counted twice", broken)?;
        let difference = facts()
            .map(|one| (whose(one), one.reading.counts.deliveries as f64 - one.reading.counts.accounted() as f64));
        sheet.gauges("conservation_difference", "Deliveries taken less those settled or in hand", difference)?;
        let handling = facts().map(|one| (whose(one), &one.reading.handling));
        sheet.histograms("handling_seconds", "From a delivery's arrival to its ack", handling)?;
        let done = facts().map(|one| (whose(one), &one.reading.publish_to_ack));
        let help = "From the message's AMQP timestamp (whole seconds) to done, up to a second more than it took";
        sheet.histograms("publish_to_ack_seconds", help, done)
    }

    fn failures(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let facts = || self.0.facts.iter();
        let failed = facts().flat_map(|one| {
            one.reading.failures.iter().map(move |((kind, code), count)| {
                let [queue, consumer] = whose(one);
                ([queue, consumer, ("kind", kind.as_str()), ("code", code.as_str())], *count)
            })
        });
        sheet.counters("failed_attempts", "Attempts that failed, by kind and code", failed)?;
        let mut retries = std::collections::BTreeMap::new();
        let mut dead_lettered = std::collections::BTreeMap::new();
        for one in facts() {
            // From the start on, so that the first of them is seen as an increase.
            for delay in one.delays.iter().flatten() {
                retries.entry((one.name.as_str(), delay.clone())).or_insert(0);
            }
            for reason in one.delays.iter().flat_map(|_| DeadLetterReason::ALL) {
                dead_lettered.entry((one.name.as_str(), reason)).or_insert(0);
            }
            for ((consumer, delay), count) in &one.reading.retries {
                *retries.entry((&**consumer, delay.to_string())).or_insert(0) += count;
            }
            for ((consumer, reason), count) in &one.reading.dead_letters {
                *dead_lettered.entry((&**consumer, *reason)).or_insert(0) += count;
            }
        }
        let retries =
            retries.iter().map(|((consumer, delay), count)| ([("consumer", *consumer), ("delay", delay)], *count));
        sheet.counters("retries", "Failures sent to a retry queue, by the consumer that failed", retries)?;
        let dead_lettered = dead_lettered
            .iter()
            .map(|((consumer, reason), count)| ([("consumer", *consumer), ("reason", reason.as_str())], *count));
        sheet.counters("dead_letters", "Messages dead-lettered, by the consumer that failed", dead_lettered)
    }

    fn pools(&self, sheet: &mut Sheet<'_>) -> fmt::Result {
        let facts = || self.0.facts.iter();
        let pool = |one: &ConsumerReading| one.reading.pool;
        sheet.gauges(
            "workers",
            "Workers that run",
            facts().map(|one| (whose(one), pool(one).workers_running as f64)),
        )?;
        sheet.gauges(
            "workers_configured",
            "Workers configured",
            facts().map(|one| (whose(one), one.workers as f64)),
        )?;
        let subscribed = facts().map(|one| (whose(one), flag(pool(one).active_subscriptions > 0)));
        sheet.gauges("subscribed", "Whether the consumer has a subscription that takes deliveries in", subscribed)?;
        let paused = facts().map(|one| (whose(one), flag(one.paused_since.is_some())));
        sheet.gauges("paused", "Whether the consumer is paused", paused)?;
        let draining = facts().map(|one| (whose(one), pool(one).draining_subscriptions as f64));
        sheet.gauges("draining_subscriptions", "Former subscriptions that finish what they were handed", draining)?;
        let subscriptions = facts().map(|one| (whose(one), pool(one).subscriptions));
        sheet.counters("subscriptions", "Subscriptions made", subscriptions)?;
        let safe = facts().map(|one| (whose(one), flag(pool(one).safe_mode)));
        sheet.gauges("safe_mode", "Whether deliveries are worked on one at a time", safe)?;
        let restarts = facts().map(|one| (whose(one), one.reading.counts.restarts));
        sheet.counters("restarts", "Restarts of workers and pools", restarts)
    }
}

fn broker(view: &BrokerView, sheet: &mut Sheet<'_>) -> fmt::Result {
    let up = match view.api {
        ApiState::Fresh => 1.0,
        ApiState::Off | ApiState::Pending | ApiState::Stale { .. } => 0.0,
    };
    sheet.gauge("management_up", "Whether the management API answered the last question", up)?;
    let alarms = view.alarms.iter().flatten();
    let alarms = alarms.map(|alarm| ([("node", alarm.node.as_str()), ("resource", alarm.resource.as_str())], 1.0));
    sheet.gauges("broker_alarm", "An alarm of a node: publishing is blocked", alarms)?;
    // A gauge for every kind, so that an alert on it has something to compare.
    let kinds = FindingKind::ALL.map(|kind| {
        let count = view.findings.iter().filter(|finding| finding.kind == kind).count();
        ([("kind", kind.as_str())], count as f64)
    });
    sheet.gauges("findings", "Queues on which something lasts that should not", kinds)
}

fn queues(view: &BrokerView, sheet: &mut Sheet<'_>) -> fmt::Result {
    let mut gauge = |name, help, value: fn(&QueueView) -> Option<f64>| {
        let known = view
            .queues
            .iter()
            .filter_map(|(name, queue)| Some(([("queue", name.as_str()), ("role", role(&queue.role))], value(queue)?)));
        sheet.gauges(name, help, known)
    };
    gauge("queue_ready", "Messages that wait, as the broker told last", |queue| Some(queue.ready? as f64))?;
    gauge("queue_unacked", "Messages handed out and not settled", |queue| Some(queue.unacked? as f64))?;
    gauge("queue_consumers", "Consumers of the queue, of orderd or others", |queue| Some(queue.consumers? as f64))?;
    gauge("queue_dead_letters_held", "Messages that the broker cannot hand on yet", |queue| {
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

fn whose(facts: &ConsumerReading) -> [Label<'_>; 2] {
    [("queue", &facts.queue), ("consumer", &facts.name)]
}

fn flag(so: bool) -> f64 {
    f64::from(u8::from(so))
}

/// Writes one family after the other.
struct Sheet<'a>(DescriptorEncoder<'a>);

impl Sheet<'_> {
    fn counter(&mut self, name: &str, help: &str, count: u64) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, u64>(&count, None)
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        counts: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, count) in counts {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (L, f64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in values {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn histograms<'h, L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        histograms: impl IntoIterator<Item = (L, &'h Histogram)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, histogram) in histograms {
            // The encoder makes them cumulative.
            let buckets: Vec<_> = histogram
                .buckets()
                .map(|(bound, count)| (bound.map_or(f64::INFINITY, |bound| bound.as_secs_f64()), count))
                .collect();
            let (sum, count) = (histogram.sum().as_secs_f64(), histogram.count());
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }
}
