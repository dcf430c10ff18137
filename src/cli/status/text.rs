//! A status for people: one screen. It decides nothing.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::Duration;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use jiff::Timestamp;

use super::reload;
use crate::cli::table::plain;
use crate::config::duration;
use crate::reconcile::{ApiState, BrokerView, QueueRole, QueueView};
use crate::status::{ConsumerStatus, DaemonState, Quantiles, Status};

/// Columns that everything fits into.
const WIDTH: usize = 100;
/// Where what stands behind a label begins.
const INDENT: usize = 14;
/// What is not known.
const UNKNOWN: &str = "-";

/// Writes the whole status. `now` is what ages are told from.
pub(super) fn write(status: &Status, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    daemon(status, out)?;
    reload::write(&status.daemon, now, out)?;
    broker(&status.broker, now, out)?;
    queues(&status.broker, out)?;
    consumers(&status.consumers, now, out)?;
    writeln!(out)?;
    counts("retries", status, |consumer| &consumer.retries, out)?;
    counts("dead letters", status, |consumer| &consumer.dead_letters, out)?;
    failures(status, out)?;
    conservation(status, out)?;
    findings(&status.broker, now, out)
}

fn daemon(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let daemon = &status.daemon;
    let program = format!("orderd {}", plain(&daemon.version));
    let told = format!(
        "{}, up {}, pid {}, configuration {} (generation {})",
        daemon.state.as_str(),
        whole_seconds(daemon.uptime_seconds),
        daemon.pid,
        plain(&daemon.config),
        daemon.config_generation
    );
    labelled(&program, &told, out)?;
    let publishing = match &daemon.publisher {
        Some(publisher) if publisher.connected => format!("publishing, {} unconfirmed", publisher.unconfirmed),
        Some(publisher) => format!("not connected for publishing, {} unconfirmed", publisher.unconfirmed),
        None => "not publishing yet".to_owned(),
    };
    let ledger = match (daemon.ledger.recording, daemon.state) {
        (true, _) => "records",
        (false, DaemonState::Starting) => "does not record yet",
        (false, DaemonState::Draining) => "does not record any more",
        (false, DaemonState::Running) => "CANNOT RECORD",
    };
    let told = format!(
        "{} of {} made so far; {publishing}; the ledger {ledger}, {} commits",
        daemon.connections, daemon.connections_made, daemon.ledger.commits
    );
    labelled("connections", &told, out)?;
    let failing: Vec<_> = status.checks.iter().filter(|check| !check.ok).collect();
    let paused: Vec<_> = status.consumers.iter().filter(|(_, one)| one.paused).map(|(name, _)| plain(name)).collect();
    let but = if paused.is_empty() { String::new() } else { format!(", but PAUSED: {}", paused.join(", ")) };
    if failing.is_empty() {
        return labelled("ready", &format!("yes{but}"), out);
    }
    let told: Vec<_> =
        failing.iter().map(|check| format!("{} ({})", plain(&check.name), plain(&check.detail))).collect();
    labelled("ready", &format!("NO: {}{but}", told.join(", ")), out)
}

fn broker(view: &BrokerView, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    let told =
        view.taken_at.map_or_else(|| "nothing told yet".to_owned(), |taken| format!("told {} ago", age(taken, now)));
    match &view.api {
        ApiState::Off => labelled("broker", "not asked: management.poll_every is \"off\"", out)?,
        ApiState::Pending => labelled("broker", "not asked yet", out)?,
        ApiState::Fresh => labelled("broker", &told, out)?,
        ApiState::Stale { since, reason, .. } => {
            let told = format!("DOES NOT TELL for {}: {}; {told}", age(*since, now), plain(reason));
            labelled("broker", &told, out)?;
        }
    }
    for alarm in view.alarms.iter().flatten() {
        let told = format!("{} on {}: publishing is blocked", plain(&alarm.resource), plain(&alarm.node));
        labelled("ALARM", &told, out)?;
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
    print(table, 1..6, 2, out)?;
    for (name, queue) in &view.queues {
        if let Some(reason) = &queue.detail_error {
            wrapped(&format!("{}: consumers and rates are not told: {}", plain(name), plain(reason)), out)?;
        }
    }
    Ok(())
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

fn consumers(consumers: &BTreeMap<String, ConsumerStatus>, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header([
        "CONSUMER", "UP", "HAND", "OLDEST", "DONE", "AGAIN", "FAILED", "RETRIED", "DEAD", "DIED", "RATE/S", "P50",
        "P95", "P99",
    ]);
    for (name, one) in consumers {
        let quantile =
            |of: fn(&Quantiles) -> f64| one.handling_seconds.as_ref().map_or(UNKNOWN.to_owned(), |q| short(of(q)));
        table.add_row([
            plain(name),
            if one.paused {
                "PAUSED".to_owned()
            } else {
                format!("{}/{}", one.workers_running, one.workers_configured)
            },
            one.in_flight.to_string(),
            one.oldest_in_flight_seconds.map_or_else(|| UNKNOWN.to_owned(), short),
            one.processed.to_string(),
            one.duplicates.to_string(),
            one.failed.to_string(),
            one.retried.to_string(),
            one.dead_lettered.to_string(),
            one.restarts.to_string(),
            one.acks_per_second.map_or_else(|| UNKNOWN.to_owned(), |rate| format!("{rate:.1}")),
            quantile(|q| q.p50),
            quantile(|q| q.p95),
            quantile(|q| q.p99),
        ]);
    }
    print(table, 1..14, 1, out)?;
    let mut told = Vec::new();
    for (name, one) in consumers.iter().filter(|(_, one)| one.paused) {
        let age = one.paused_since.map_or_else(String::new, |since| format!(" for {}", age(since, now)));
        told.push(("PAUSED", format!("{}{age}: takes nothing in until `orderd resume {0}`", plain(name))));
    }
    let safe: Vec<_> = consumers.iter().filter(|(_, one)| one.safe_mode).map(|(name, _)| plain(name)).collect();
    if !safe.is_empty() {
        told.push((
            "SAFE MODE",
            format!("{}: one delivery at a time, since deliveries keep coming back", safe.join(", ")),
        ));
    }
    let removed = consumers.iter().filter(|(_, one)| one.workers_configured == 0 && one.draining > 0);
    let removed: Vec<_> = removed.map(|(name, _)| plain(name)).collect();
    if !removed.is_empty() {
        told.push(("removed", format!("{}: finishes what it was handed", removed.join(", "))));
    }
    if !told.is_empty() {
        writeln!(out)?;
    }
    told.iter().try_for_each(|(label, text)| labelled(label, text, out))
}

/// Counts of each consumer by some word, where there are any.
fn counts(
    what: &str,
    status: &Status,
    of: fn(&ConsumerStatus) -> &BTreeMap<String, u64>,
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
    wrapped(&format!("{what}: {}", told.join("; ")), out)
}

fn failures(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    for (name, consumer) in status.consumers.iter().filter(|(_, consumer)| !consumer.failures.is_empty()) {
        let told =
            consumer.failures.iter().map(|one| format!("{} {} {}", one.count, plain(&one.kind), plain(&one.code)));
        wrapped(&format!("failed attempts of {}: {}", plain(name), told.collect::<Vec<_>>().join(", ")), out)?;
    }
    Ok(())
}

fn conservation(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let sum = |of: fn(&ConsumerStatus) -> u64| status.consumers.values().map(of).sum::<u64>();
    let told = format!(
        "{}: {} deliveries = {} done + {} handed on + {} released + {} rejected + {} in hand",
        if status.conservation_ok { "nothing is missing" } else { "THIS DOES NOT ADD UP" },
        sum(|one| one.conservation.deliveries),
        sum(|one| one.conservation.succeeded),
        sum(|one| one.conservation.republished),
        sum(|one| one.conservation.released),
        sum(|one| one.conservation.rejected),
        sum(|one| one.conservation.in_flight),
    );
    wrapped(&told, out)?;
    for (name, consumer) in &status.consumers {
        if let Some(problem) = &consumer.conservation.problem {
            wrapped(&format!("  consumer {}: {}", plain(name), plain(problem)), out)?;
        }
    }
    Ok(())
}

fn findings(view: &BrokerView, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    for finding in &view.findings {
        let age = age(finding.since, now);
        let word = if finding.kind.requires_action() { "FOUND" } else { "found" };
        let count = finding.messages.map_or_else(String::new, |count| format!(" ({count})"));
        let told = format!("{word} on {} for {age}{count}: {}", plain(&finding.queue), plain(&finding.detail));
        wrapped(&told, out)?;
    }
    Ok(())
}

/// Writes a table with so much space between columns. What does not fit is broken within its column.
fn print(mut table: Table, numbers: std::ops::Range<usize>, gap: u16, out: &mut dyn Write) -> io::Result<()> {
    let last = table.column_count().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == last { 0 } else { gap }));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(WIDTH as u16);
    writeln!(out)?;
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// How long ago something was.
pub(super) fn age(moment: Timestamp, now: Timestamp) -> String {
    whole_seconds(now.duration_since(moment).as_secs_f64())
}

/// Writes a label and, beside it, text.
pub(super) fn labelled(label: &str, text: &str, out: &mut dyn Write) -> io::Result<()> {
    broken(&format!("{label:<width$} {text}", width = INDENT - 1), INDENT, out)
}

/// Writes text that goes on below its beginning.
fn wrapped(text: &str, out: &mut dyn Write) -> io::Result<()> {
    broken(text, 2, out)
}

/// Writes text in lines that fit, broken at spaces; all but the first are indented. A longer word has its own line.
fn broken(text: &str, indent: usize, out: &mut dyn Write) -> io::Result<()> {
    let columns = |text: &str| text.chars().count();
    let (mut line, mut begun) = (String::new(), false);
    for word in text.split(' ') {
        if begun && columns(&line) + 1 + columns(word) > WIDTH {
            writeln!(out, "{}", line.trim_end())?;
            (line, begun) = (" ".repeat(indent), false);
        }
        if begun {
            line.push(' ');
        }
        line.push_str(word);
        begun = true;
    }
    writeln!(out, "{}", line.trim_end())
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
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_short() {
        for (seconds, text) in
            [(0.000_25, "250µs"), (0.0123, "12.3ms"), (0.25, "250ms"), (2.5, "2.5s"), (3725.0, "1h 2m 5s")]
        {
            assert_eq!(short(seconds), text);
        }
    }

    /// A daemon in every kind of trouble, with names that a terminal would obey and counts as large as they get.
    fn troubled() -> Status {
        let long = "why ".repeat(60);
        let books = json!({"deliveries": 98_765_432, "succeeded": 98_765_000, "republished": 432, "released": 123_456,
            "rejected": 0, "in_flight": 1000, "problem": "\u{1b}[31m3 deliveries are neither settled nor in flight"});
        let quantiles = json!({"p50": 0.0487, "p95": 0.2274, "p99": 0.4937, "count": 5});
        let consumer = json!({"queue": "notification_queue", "subscribed": true, "workers_running": 1, "workers_configured": 16,
            "prefetch": 1, "safe_mode": true, "in_flight": 1000, "oldest_in_flight_seconds": 0.478,
            "processed": 9_876_543, "duplicates": 12_345, "failed": 123_456, "failed_attempts": 1,
            "failures": [{"kind": "transient", "code": "a\u{9b}2J", "count": 1}], "retried": 1_234_567,
            "retries": {"10s": 1_234_000, "1m": 500, "10m": 60, "1h": 7}, "dead_lettered": 1234,
            "dead_letters": {"malformed": 1000, "retries_exhausted": 200, "too_old": 34}, "restarts": 123,
            "subscriptions": 9, "acks_per_second": 1234.56, "handling_seconds": quantiles, "publish_to_ack_seconds": null,
            "conservation": books});
        let mut paused = consumer.clone();
        paused["paused"] = json!(true);
        paused["paused_since"] = json!("2026-11-22T08:00:00Z");
        let mut consumers: serde_json::Map<_, _> = ["analytics", "failed", "notification", "order", "priority"]
            .map(|name| (name.to_owned(), consumer.clone()))
            .into_iter()
            .collect();
        consumers.insert("priority".to_owned(), paused);
        let check = |name: &str| json!({"name": name, "ok": false, "detail": "no subscription"});
        let checks = ["publisher", "consumer analytics", "consumer failed", "consumer notification"].map(check);
        let mut queue = serde_json::to_value(QueueView::unknown(QueueRole::Work { consumer: "order".into() })).unwrap();
        queue["ready"] = json!(98_765_432);
        queue["detail_error"] = json!(long);
        let retry = |delay: &str| {
            let role = QueueRole::Retry { of: "order_queue".into(), delay: delay.into(), configured: true };
            let mut retry = serde_json::to_value(QueueView::unknown(role)).unwrap();
            retry["ready"] = json!(1_234_567);
            retry
        };
        let queues = json!({"order_queue": queue, "a\u{7}": queue, "order_queue.retry.10s": retry("10s"),
            "order_queue.retry.1m": retry("1m"), "order_queue.retry.1h": retry("1h")});
        let api = json!({"state": "stale", "since": "2026-11-22T08:00:00Z", "cause": "timed_out", "reason": long});
        let finding = json!({"queue": "order_queue", "kind": "no_consumer", "since": "2026-11-22T08:00:00Z",
            "messages": 7, "detail": long});
        let verdict = json!({"outcome": "rejected", "generation": 7, "changes": [], "notes": [],
            "problems": [long, "a\u{1b}b", long, long]});
        let reload = json!({"at": "2026-11-22T08:00:00Z", "by": "SIGHUP", "report": verdict});
        let daemon = json!({"version": "0.1.0", "pid": 4_194_303, "state": "running",
            "started_at": "2026-11-22T08:00:00Z", "uptime_seconds": 8e7, "config": "/etc/orderd/production/orderd.toml",
            "config_generation": 1, "last_reload": reload, "connections": 6, "connections_made": 123_456, "publisher": null,
            "ledger": {"recording": false, "commits": 123_456_789}});
        serde_json::from_value(json!({"daemon": daemon, "conservation_ok": false, "consumers": consumers,
            "checks": checks,
            "broker": {"api": api, "taken_at": null, "queues": queues, "missing_queues": [],
                "alarms": [{"node": "rabbit@a\u{1b}]0;x", "resource": "memory"}], "findings": [finding]}}))
        .unwrap()
    }

    #[test]
    fn everything_fits_100_columns_and_nothing_reaches_the_terminal_raw() {
        let mut out = Vec::new();
        write(&troubled(), "2026-11-22T09:00:00Z".parse().unwrap(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for line in text.lines() {
            assert!(line.chars().count() <= WIDTH, "{}: {line}", line.chars().count());
            assert!(!line.contains(char::is_control), "{line:?}");
            assert_eq!(line, line.trim_end());
        }
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "CONSUMER UP HAND OLDEST DONE AGAIN FAILED RETRIED DEAD DIED RATE/S P50 P95 P99",
            "notification 1/16 1000 478ms 9876543 12345 123456 1234567 1234 123 1234.6 48.7ms 227ms 494ms",
            "the ledger CANNOT RECORD",
            "consumer notification (no subscription)",
            "1234567 in 10s, 1234567 in 1h, 1234567 in 1m",
            "THIS DOES NOT ADD UP",
            "SAFE MODE analytics, failed,",
            "but PAUSED: priority",
            "priority PAUSED 1000 478ms",
            "PAUSED priority for 1h: takes nothing in until `orderd resume priority`",
            "reload REJECTED 1h ago, asked for by SIGHUP",
            "found on order_queue for 1h (7): why",
        ] {
            assert!(words.to_lowercase().contains(&part.to_lowercase()), "no {part:?}:\n{text}");
        }
    }
}
