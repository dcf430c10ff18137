//! The tables of a status: queues and consumers.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use crate::cli::table::{self, Layout};
use crate::cli::text::{MAX_WIDTH, line_width, wrapped};
use crate::config::duration;
use crate::escape::escaped;
use crate::reconcile::{BrokerView, QueueRole, QueueView};
use crate::status::{ConsumerStatus, Quantiles};

/// Shown for a value that is not known.
const UNKNOWN: &str = "-";

/// Writes a row for each queue except retry queues, which are a column in the row of their work queue.
pub(super) fn write_queues(view: &BrokerView, out: &mut dyn Write) -> io::Result<()> {
    if view.queues.is_empty() {
        return Ok(());
    }
    let count = |count: Option<u64>| count.map_or_else(|| UNKNOWN.to_owned(), |count| count.to_string());
    let mut table = table::new(["QUEUE", "READY", "UNACKED", "CONSUMERS", "IN/S", "OUT/S", "WAITING FOR RETRY"]);
    for (name, queue) in view.queues.iter().filter(|(_, queue)| !matches!(queue.role, QueueRole::Retry { .. })) {
        table.add_row([
            escaped(name),
            count(queue.ready),
            count(queue.unacked),
            count(queue.consumers),
            rate(queue.in_rate),
            rate(queue.out_rate),
            waiting_for_retry(name, view),
        ]);
    }
    writeln!(out)?;
    table::write(table, &layout(2, 1..6), out)?;
    for (name, queue) in &view.queues {
        if let Some(reason) = &queue.detail_error {
            wrapped(&format!("{}: consumers and rates unavailable: {}", escaped(name), escaped(reason)), out)?;
        }
    }
    Ok(())
}

/// Messages in the retry queues of a work queue, by delay.
fn waiting_for_retry(queue: &str, view: &BrokerView) -> String {
    let waiting = |retry: &QueueView| {
        let QueueRole::Retry { of, delay, .. } = &retry.role else { return None };
        let count = retry.ready.filter(|count| *count > 0 && of == queue)?;
        Some(format!("{count} in {}", escaped(delay)))
    };
    view.queues.values().filter_map(waiting).collect::<Vec<_>>().join(", ")
}

/// Writes the consumers.
pub(super) fn write_consumers(consumers: &BTreeMap<String, ConsumerStatus>, out: &mut dyn Write) -> io::Result<()> {
    let mut table = table::new([
        "CONSUMER",
        "WORKERS",
        "IN-FLIGHT",
        "OLDEST",
        "DONE",
        "DUPLICATE",
        "FAILED",
        "RETRIED",
        "DEAD",
        "RESTARTS",
        "RATE/S",
        "P50",
        "P95",
        "P99",
    ]);
    for (name, consumer) in consumers {
        let workers = || format!("{}/{}", consumer.workers_running, consumer.workers_configured);
        let quantile = |value: fn(&Quantiles) -> f64| seconds(consumer.handling_seconds.as_ref().map(value));
        table.add_row([
            escaped(name),
            if consumer.paused { "PAUSED".to_owned() } else { workers() },
            consumer.in_flight.to_string(),
            seconds(consumer.oldest_in_flight_seconds),
            consumer.processed.to_string(),
            consumer.duplicates.to_string(),
            consumer.failed.to_string(),
            consumer.retried.to_string(),
            consumer.dead_lettered.to_string(),
            consumer.restarts.to_string(),
            rate(consumer.acks_per_second),
            quantile(|quantiles| quantiles.p50),
            quantile(|quantiles| quantiles.p95),
            quantile(|quantiles| quantiles.p99),
        ]);
    }
    writeln!(out)?;
    table::write(table, &layout(1, 1..14), out)
}

/// Writes a row for each step and each undo; nothing if no consumer has steps.
pub(super) fn write_steps(consumers: &BTreeMap<String, ConsumerStatus>, out: &mut dyn Write) -> io::Result<()> {
    if consumers.values().all(|consumer| consumer.steps.is_empty()) {
        return Ok(());
    }
    let mut table =
        table::new(["CONSUMER", "STEP", "IN-FLIGHT", "DONE", "FAILED", "REFUSED", "ABANDONED", "P50", "P95", "P99"]);
    for (name, consumer) in consumers {
        for step in &consumer.steps {
            let quantile = |value: fn(&Quantiles) -> f64| seconds(step.call_seconds.as_ref().map(value));
            let action = if step.action == "do" { String::new() } else { format!(" ({})", step.action) };
            table.add_row([
                escaped(name),
                escaped(&format!("{}{action}", step.step)),
                step.in_flight.to_string(),
                step.done.to_string(),
                step.failed.to_string(),
                step.refused.to_string(),
                step.abandoned.to_string(),
                quantile(|quantiles| quantiles.p50),
                quantile(|quantiles| quantiles.p95),
                quantile(|quantiles| quantiles.p99),
            ]);
        }
    }
    writeln!(out)?;
    table::write(table, &layout(1, 2..10), out)
}

/// Writes a row for each provider of each notification channel; nothing if there are no channels.
pub(super) fn write_channels(consumers: &BTreeMap<String, ConsumerStatus>, out: &mut dyn Write) -> io::Result<()> {
    if consumers.values().all(|consumer| consumer.channels.is_empty()) {
        return Ok(());
    }
    let mut table = table::new([
        "CONSUMER",
        "CHANNEL",
        "PROVIDER",
        "IN USE",
        "BREAKER",
        "IN-FLIGHT",
        "SENT",
        "FAILED",
        "P50",
        "P95",
        "P99",
    ]);
    for (name, consumer) in consumers {
        for channel in &consumer.channels {
            let quantile = |value: fn(&Quantiles) -> f64| seconds(channel.send_seconds.as_ref().map(value));
            table.add_row([
                escaped(name),
                escaped(&channel.channel),
                escaped(&channel.provider),
                if channel.in_use { "yes" } else { "no" }.to_owned(),
                channel.breaker.as_deref().map_or_else(|| UNKNOWN.to_owned(), escaped),
                channel.in_flight.to_string(),
                channel.sent.to_string(),
                channel.failed.to_string(),
                quantile(|quantiles| quantiles.p50),
                quantile(|quantiles| quantiles.p95),
                quantile(|quantiles| quantiles.p99),
            ]);
        }
    }
    writeln!(out)?;
    table::write(table, &layout(1, 5..11), out)?;
    let failing = consumers.values().flat_map(|consumer| &consumer.channels);
    for channel in failing.filter(|channel| channel.failed + channel.abandoned > 0) {
        let codes = channel.failures.iter().map(|(code, count)| format!("{count} {}", escaped(code)));
        let abandoned = (channel.abandoned > 0).then(|| format!("{} abandoned", channel.abandoned));
        let codes = codes.chain(abandoned);
        let (name, provider) = (escaped(&channel.channel), escaped(&channel.provider));
        let codes = codes.collect::<Vec<_>>().join(", ");
        wrapped(&format!("failed attempts of channel {name} by {provider}: {codes}"), out)?;
    }
    Ok(())
}

fn layout(gap: u16, numbers: std::ops::Range<usize>) -> Layout {
    // A row of numbers is cut by a narrow terminal rather than broken within a number.
    let max_width = line_width().map(|_| MAX_WIDTH as u16);
    Layout { indent: 0, gap, numbers, max_width }
}

fn rate(rate: Option<f64>) -> String {
    rate.map_or_else(|| UNKNOWN.to_owned(), |rate| format!("{rate:.1}"))
}

fn seconds(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| UNKNOWN.to_owned(), three_digits)
}

/// A time with three significant digits and a unit; whole seconds from 100 seconds on.
fn three_digits(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0}µs", s * 1e6),
        s if s < 0.1 => format!("{:.1}ms", s * 1e3),
        s if s < 1.0 => format!("{:.0}ms", s * 1e3),
        s if s < 100.0 => format!("{s:.1}s"),
        s => duration::format(Duration::from_secs(s as u64)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_three_significant_digits() {
        for (seconds, text) in
            [(0.000_25, "250µs"), (0.0123, "12.3ms"), (0.25, "250ms"), (2.5, "2.5s"), (3725.0, "1h 2m 5s")]
        {
            assert_eq!(three_digits(seconds), text);
        }
    }
}
