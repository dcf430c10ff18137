//! A status for people: one screen. It decides nothing.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};
use jiff::Timestamp;

use crate::cli::table::plain;
use crate::config::duration;
use crate::monitor::status::{Consumer, Quantiles, Status};
use crate::monitor::view::{ApiState, BrokerView, QueueRole, QueueView};

/// What is not known.
const UNKNOWN: &str = "-";

/// Writes the whole status. `now` is what ages are told from.
pub(super) fn write(status: &Status, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    daemon(status, out)?;
    broker(&status.broker, now, out)?;
    queues(&status.broker, out)?;
    consumers(&status.consumers, out)?;
    counts("retries", status, |consumer| &consumer.retries, out)?;
    counts("dead letters", status, |consumer| &consumer.dead_letters, out)?;
    failures(status, out)?;
    conservation(status, out)?;
    findings(&status.broker, now, out)
}

fn daemon(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let daemon = &status.daemon;
    writeln!(
        out,
        "orderd {}   {}, up {}, pid {}, configuration {} (generation {})",
        plain(&daemon.version),
        daemon.stage.as_str(),
        whole_seconds(daemon.uptime_seconds),
        daemon.pid,
        plain(&daemon.config),
        daemon.config_generation
    )?;
    let publishing = match &daemon.publisher {
        Some(publisher) if publisher.connected => format!("publishing, {} unconfirmed", publisher.unconfirmed),
        Some(publisher) => format!("not connected for publishing, {} unconfirmed", publisher.unconfirmed),
        None => "not publishing yet".to_owned(),
    };
    let ledger = if daemon.ledger.recording { "records" } else { "CANNOT RECORD" };
    writeln!(
        out,
        "connections   {} of {} made so far; {publishing}; the ledger {ledger}, {} commits",
        daemon.connections, daemon.epochs, daemon.ledger.commits
    )?;
    let failing: Vec<_> = status.checks.iter().filter(|check| !check.ok).collect();
    if failing.is_empty() {
        return writeln!(out, "ready         yes");
    }
    let told: Vec<_> =
        failing.iter().map(|check| format!("{} ({})", plain(&check.name), plain(&check.detail))).collect();
    writeln!(out, "ready         NO: {}", told.join(", "))
}

fn broker(view: &BrokerView, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    let age = |moment: Timestamp| whole_seconds(now.duration_since(moment).as_secs_f64().max(0.0));
    let told = view.taken_at.map_or_else(|| "nothing told yet".to_owned(), |taken| format!("told {} ago", age(taken)));
    match &view.api {
        ApiState::Off => writeln!(out, "broker        not asked: management.poll_every is \"off\"")?,
        ApiState::Unasked => writeln!(out, "broker        not asked yet")?,
        ApiState::Fresh => writeln!(out, "broker        {told}")?,
        ApiState::Stale { since, reason, .. } => {
            writeln!(out, "broker        DOES NOT TELL since {}: {}; {told}", age(*since), plain(reason))?;
        }
    }
    for alarm in view.alarms.iter().flatten() {
        writeln!(out, "ALARM         {} on {}: publishing is blocked", plain(&alarm.resource), plain(&alarm.node))?;
    }
    Ok(())
}

fn queues(view: &BrokerView, out: &mut dyn Write) -> io::Result<()> {
    if view.queues.is_empty() {
        return Ok(());
    }
    let mut table = Table::new();
    let heading = ["QUEUE", "READY", "UNACKED", "CONSUMERS", "IN/S", "OUT/S", "WAITING FOR A RETRY"];
    table.load_style(NOTHING).set_header(heading);
    for (name, queue) in view.queues.iter().filter(|(_, queue)| !matches!(queue.role, QueueRole::Retry { .. })) {
        let count = |count: Option<u64>| count.map_or_else(|| UNKNOWN.to_owned(), |count| count.to_string());
        let rate = |rate: Option<f64>| rate.map_or_else(|| UNKNOWN.to_owned(), |rate| format!("{rate:.1}"));
        table.add_row([
            plain(name),
            count(queue.ready),
            count(queue.unacked),
            count(queue.consumers),
            rate(queue.in_rate),
            rate(queue.out_rate),
            waiting(name, view),
        ]);
    }
    print(table, 1..6, out)
}

/// Messages that wait for their retry, by delay.
fn waiting(queue: &str, view: &BrokerView) -> String {
    let waits = |retry: &QueueView| {
        let QueueRole::Retry { of, delay, .. } = &retry.role else { return None };
        let count = retry.ready.filter(|count| *count > 0 && of == queue)?;
        Some(format!("{} in {}", count, plain(delay)))
    };
    view.queues.values().filter_map(waits).collect::<Vec<_>>().join(", ")
}

fn consumers(consumers: &BTreeMap<String, Consumer>, out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "CONSUMER", "WORKERS", "IN HAND", "OLDEST", "DONE", "AGAIN", "FAILED", "RETRIED", "DEAD", "RESTARTS", "RATE/S",
        "P50", "P95", "P99", "",
    ]);
    for (name, one) in consumers {
        let quantile =
            |of: fn(&Quantiles) -> f64| one.handling_seconds.as_ref().map_or(UNKNOWN.to_owned(), |q| short(of(q)));
        let note = match (one.subscribed, one.safe_mode) {
            (false, _) => "NO SUBSCRIPTION",
            (true, true) => "SAFE MODE",
            (true, false) => "",
        };
        table.add_row([
            plain(name),
            format!("{}/{}", one.workers_up, one.workers_wanted),
            one.in_flight.to_string(),
            one.oldest_in_flight_seconds.map_or_else(|| UNKNOWN.to_owned(), short),
            one.processed.to_string(),
            one.duplicates.to_string(),
            one.failed.to_string(),
            one.retried.to_string(),
            one.dead_lettered.to_string(),
            one.restarts.to_string(),
            one.rate.map_or_else(|| UNKNOWN.to_owned(), |rate| format!("{rate:.1}")),
            quantile(|q| q.p50),
            quantile(|q| q.p95),
            quantile(|q| q.p99),
            note.to_owned(),
        ]);
    }
    print(table, 1..14, out)
}

/// Counts of each consumer by some word, where there are any.
fn counts(
    what: &str,
    status: &Status,
    of: fn(&Consumer) -> &BTreeMap<String, u64>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let consumers = status.consumers.iter().filter(|(_, consumer)| !of(consumer).is_empty());
    let told: Vec<_> = consumers
        .map(|(name, consumer)| {
            let by: Vec<_> = of(consumer).iter().map(|(word, count)| format!("{} {count}", plain(word))).collect();
            format!("{}: {}", plain(name), by.join(", "))
        })
        .collect();
    if told.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n{what}: {}", told.join("; "))
}

fn failures(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    for (name, consumer) in status.consumers.iter().filter(|(_, consumer)| !consumer.failures.is_empty()) {
        let told =
            consumer.failures.iter().map(|one| format!("{} {} {}", one.count, plain(&one.kind), plain(&one.code)));
        writeln!(out, "failed attempts of {}: {}", plain(name), told.collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}

fn conservation(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let sum = |of: fn(&Consumer) -> u64| status.consumers.values().map(of).sum::<u64>();
    writeln!(
        out,
        "\n{} deliveries = {} done + {} handed on + {} released + {} rejected + {} in hand: {}",
        sum(|one| one.conservation.deliveries),
        sum(|one| one.conservation.succeeded),
        sum(|one| one.conservation.handed_on),
        sum(|one| one.conservation.released),
        sum(|one| one.conservation.rejected),
        sum(|one| one.conservation.in_flight),
        if status.conserved { "nothing is missing" } else { "THIS DOES NOT ADD UP" }
    )?;
    for (name, consumer) in &status.consumers {
        if let Some(problem) = &consumer.conservation.problem {
            writeln!(out, "  consumer {}: {}", plain(name), plain(problem))?;
        }
    }
    Ok(())
}

fn findings(view: &BrokerView, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    for finding in &view.findings {
        let age = whole_seconds(now.duration_since(finding.since).as_secs_f64().max(0.0));
        let word = if finding.kind.needs_a_person() { "FOUND" } else { "found" };
        writeln!(out, "{word} on {} for {age}: {}", plain(&finding.queue), plain(&finding.detail))?;
    }
    Ok(())
}

fn print(mut table: Table, numbers: std::ops::Range<usize>, out: &mut dyn Write) -> io::Result<()> {
    for column in table.column_iter_mut().skip(numbers.start).take(numbers.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    writeln!(out)?;
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn whole_seconds(seconds: f64) -> String {
    duration::format(Duration::from_secs(seconds.max(0.0) as u64))
}

/// Three digits and a unit.
fn short(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0}µs", s * 1e6),
        s if s < 0.1 => format!("{:.1}ms", s * 1e3),
        s if s < 1.0 => format!("{:.0}ms", s * 1e3),
        s if s < 100.0 => format!("{s:.1}s"),
        s => whole_seconds(s),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        for (seconds, text) in
            [(0.000_25, "250µs"), (0.0123, "12.3ms"), (0.25, "250ms"), (2.5, "2.5s"), (3725.0, "1h 2m 5s")]
        {
            assert_eq!(short(seconds), text);
        }
    }
}
