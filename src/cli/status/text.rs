//! The status as text, on one screen. It computes only sums and ages.

use std::collections::BTreeMap;
use std::io::{self, Write};

use jiff::Timestamp;

use super::{reload, tables};
use crate::alerts::AlertsStatus;
use crate::cli::outcome_text::outcome_text;
use crate::cli::text::{age, counted, labelled, whole_seconds, wrapped};
use crate::escape::escaped;
use crate::ledger::LetterProgress;
use crate::reconcile::{ApiState, BrokerView};
use crate::status::{
    ActiveReplay, BreakerStatus, CollectorStatus, ConsumerStatus, DaemonState, DeadLettersStatus, OtherConsumer,
    ReadinessCheck, SenderCounts, Status,
};

/// Most open alerts that are shown. The JSON output has all of them.
const MAX_ALERTS_SHOWN: usize = 10;

/// Writes the whole status. Ages are relative to `now`.
pub(super) fn write(status: &Status, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    write_daemon(status, out)?;
    reload::write(&status.daemon, now, out)?;
    write_alerts(status.alerts.as_ref(), now, out)?;
    write_broker(&status.broker, now, out)?;
    tables::write_queues(&status.broker, out)?;
    tables::write_consumers(&status.consumers, out)?;
    tables::write_steps(&status.consumers, out)?;
    tables::write_channels(&status.consumers, out)?;
    write_consumer_notes(&status.consumers, now, out)?;
    writeln!(out)?;
    write_counts("retries", status, |consumer| &consumer.retries, |other| &other.retries, out)?;
    write_counts("dead letters", status, |consumer| &consumer.dead_letters, |other| &other.dead_letters, out)?;
    write_store(&status.dead_letters, now, out)?;
    write_cancellations(status, out)?;
    write_failures(status, out)?;
    write_senders(status, out)?;
    write_conservation(status, out)?;
    write_findings(&status.broker, now, out)
}

fn write_daemon(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let daemon = &status.daemon;
    let program = format!("orderd {}", escaped(&daemon.version));
    let life = format!(
        "{}, up {}, pid {}, configuration {} (generation {})",
        daemon.state.as_str(),
        whole_seconds(daemon.uptime_seconds),
        daemon.pid,
        escaped(&daemon.config),
        daemon.config_generation
    );
    labelled(&program, &life, out)?;
    let publisher = match &daemon.publisher {
        Some(publisher) if publisher.connected => {
            let address = publisher.address.as_deref().map_or_else(String::new, |at| format!(" to {}", escaped(at)));
            format!("publisher connected{address}, {} unconfirmed", publisher.unconfirmed)
        }
        Some(publisher) => format!("publisher NOT CONNECTED, {} unconfirmed", publisher.unconfirmed),
        None => "publisher not started yet".to_owned(),
    };
    let ledger = match (daemon.ledger.recording, daemon.state) {
        (true, _) => "recording".to_owned(),
        (false, DaemonState::Starting) => "not recording yet".to_owned(),
        (false, DaemonState::Draining) => "no longer recording".to_owned(),
        (false, DaemonState::Running) => match &daemon.ledger.outage {
            Some(outage) => format!("CANNOT RECORD ({})", outage.cause.as_str()),
            None => "CANNOT RECORD".to_owned(),
        },
    };
    let outages = match daemon.ledger.outages {
        0 => String::new(),
        count => format!(", {}", counted(count, "outage")),
    };
    let connections = format!(
        "{} open, {} made since start; {publisher}; ledger {ledger}, {}{outages}",
        daemon.connections,
        daemon.connections_made,
        counted(daemon.ledger.commits, "commit")
    );
    labelled("connections", &connections, out)?;
    labelled("ready", &readiness(status), out)
}

/// Whether orderd is ready or which checks fail, and which consumers are paused.
fn readiness(status: &Status) -> String {
    let failing = failing(&status.checks);
    let ready = if failing.is_empty() { "yes".to_owned() } else { format!("NO: {}", failing.join(", ")) };
    let paused = names(&status.consumers, |consumer| consumer.paused);
    if paused.is_empty() { ready } else { format!("{ready}, but PAUSED: {paused}") }
}

/// The failing checks with their details. What several have as their cause, such as a broker that is away, is shown once.
fn failing(checks: &[ReadinessCheck]) -> Vec<String> {
    let failing = || checks.iter().filter(|check| !check.ok);
    let cause = |check: &ReadinessCheck| check.detail.split_once(": ").map(|(_, cause)| cause.to_owned());
    let is_shared = |wanted: &str| failing().filter(|check| cause(check).as_deref() == Some(wanted)).count() > 1;
    let mut shown: Vec<String> = Vec::new();
    let mut shared: Vec<(String, Vec<String>)> = Vec::new();
    for check in failing() {
        let name = escaped(&check.name);
        match cause(check).filter(|cause| is_shared(cause)) {
            None => shown.push(format!("{name} ({})", escaped(&check.detail))),
            Some(cause) => match shared.iter_mut().find(|(known, _)| *known == cause) {
                Some((_, names)) => names.push(name),
                None => shared.push((cause, vec![name])),
            },
        }
    }
    shown.extend(shared.into_iter().map(|(cause, names)| format!("{} ({})", names.join(", "), escaped(&cause))));
    shown
}

fn write_alerts(alerts: Option<&AlertsStatus>, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    let Some(AlertsStatus { channel, open, unsent, sent_at, problem, .. }) = alerts else { return Ok(()) };
    let sent = sent_at.map_or_else(|| "none sent yet".to_owned(), |at| format!("last message {} ago", age(at, now)));
    let unsent = if *unsent == 0 { String::new() } else { format!(", {unsent} NOT SENT") };
    let problem = problem.as_deref().map_or_else(String::new, |problem| format!(": {}", escaped(problem)));
    let text = format!("{} open, through channel {}; {sent}{unsent}{problem}", open.len(), escaped(channel));
    labelled("alerts", &text, out)?;
    for alert in open.iter().take(MAX_ALERTS_SHOWN) {
        labelled("", &format!("ALERT for {}: {}", age(alert.since, now), escaped(&alert.title)), out)?;
    }
    match open.len().checked_sub(MAX_ALERTS_SHOWN) {
        Some(more @ 1..) => labelled("", &format!("and {more} more: --format json has them"), out),
        Some(0) | None => Ok(()),
    }
}

fn write_broker(view: &BrokerView, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    let updated =
        view.taken_at.map_or_else(|| "no data yet".to_owned(), |taken| format!("data from {} ago", age(taken, now)));
    match &view.api {
        ApiState::Off => labelled("broker", "not polled: management.poll_every is \"off\"", out)?,
        ApiState::Pending => labelled("broker", "not polled yet", out)?,
        ApiState::Fresh => labelled("broker", &updated, out)?,
        ApiState::Stale { since, reason, .. } => {
            let unreachable = format!("UNREACHABLE for {}: {}; {updated}", age(*since, now), escaped(reason));
            labelled("broker", &unreachable, out)?;
        }
    }
    for alarm in view.alarms.iter().flatten() {
        let text = format!("{} on {}: publishing is blocked", escaped(&alarm.resource), escaped(&alarm.node));
        labelled("ALARM", &text, out)?;
    }
    Ok(())
}

/// Notes on consumers in an unusual state: paused, in safe mode, or removed but still draining.
fn write_consumer_notes(
    consumers: &BTreeMap<String, ConsumerStatus>,
    now: Timestamp,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut notes = Vec::new();
    for (name, consumer) in consumers.iter().filter(|(_, consumer)| consumer.paused) {
        let age = consumer.paused_since.map_or_else(String::new, |since| format!(" for {}", age(since, now)));
        notes.push(("PAUSED", format!("{}{age}: takes no deliveries until `orderd resume {0}`", escaped(name))));
    }
    for (name, consumer) in consumers {
        for (step, breaker) in consumer.breakers.iter().filter(|(_, breaker)| breaker.state != "closed") {
            let BreakerStatus { state, since, waiting, last_failure, .. } = breaker;
            let cause = last_failure
                .as_deref()
                .map_or_else(String::new, |failure| format!("; last failure: {}", escaped(failure)));
            let (name, step, state, age) = (escaped(name), escaped(step), escaped(state), age(*since, now));
            notes.push((
                "BREAKER",
                format!("{name}/{step} {state}, opened {age} ago; deliveries waiting: {waiting}{cause}"),
            ));
        }
    }
    let safe_mode = names(consumers, |consumer| consumer.safe_mode);
    if !safe_mode.is_empty() {
        notes.push(("SAFE MODE", format!("{safe_mode}: one delivery at a time, since deliveries keep coming back")));
    }
    let limited =
        consumers.iter().filter_map(|(name, consumer)| Some((escaped(name), consumer.rate_limit.as_deref()?)));
    let limited: Vec<_> = limited.map(|(name, limit)| format!("{name} starts at most {}", escaped(limit))).collect();
    if !limited.is_empty() {
        notes.push(("rate limit", limited.join(", ")));
    }
    let removed = names(consumers, |consumer| consumer.workers_configured == 0 && consumer.draining > 0);
    if !removed.is_empty() {
        notes.push(("removed", format!("{removed}: finishing deliveries in flight")));
    }
    if !notes.is_empty() {
        writeln!(out)?;
    }
    notes.iter().try_for_each(|(label, text)| labelled(label, text, out))
}

/// The names of the consumers for which something holds, separated by commas.
fn names(consumers: &BTreeMap<String, ConsumerStatus>, holds: impl Fn(&ConsumerStatus) -> bool) -> String {
    let names = consumers.iter().filter(|(_, consumer)| holds(consumer)).map(|(name, _)| escaped(name));
    names.collect::<Vec<_>>().join(", ")
}

/// One line with the counts of each consumer by delay or reason; nothing if there are none.
fn write_counts(
    label: &str,
    status: &Status,
    counts: fn(&ConsumerStatus) -> &BTreeMap<String, u64>,
    other_counts: fn(&OtherConsumer) -> &BTreeMap<String, u64>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let consumers = status.consumers.iter().map(|(name, consumer)| (name, counts(consumer)));
    let others = status.other_consumers.iter().map(|(name, other)| (name, other_counts(other)));
    let counted: Vec<_> = consumers
        .chain(others)
        .filter(|(_, counts)| !counts.is_empty())
        .map(|(name, counts)| {
            let counts: Vec<_> = counts.iter().map(|(key, count)| format!("{} {count}", escaped(key))).collect();
            format!("{}: {}", escaped(name), counts.join(", "))
        })
        .collect();
    if counted.is_empty() {
        return Ok(());
    }
    wrapped(&format!("{label}: {}", counted.join("; ")), out)
}

/// One line with the cancellations of each consumer, and its orders that were cancelled; nothing if there are none.
fn write_cancellations(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let any = status.consumers.iter().filter(|(_, consumer)| consumer.cancelled + consumer.prevented > 0);
    let counts = any.map(|(name, consumer)| {
        let counts = [(consumer.cancelled, "carried out"), (consumer.prevented, "orders prevented")];
        let counts = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{what} {count}"));
        format!("{}: {}", escaped(name), counts.collect::<Vec<_>>().join(", "))
    });
    let counts: Vec<_> = counts.collect();
    if counts.is_empty() { Ok(()) } else { wrapped(&format!("cancellations: {}", counts.join("; ")), out) }
}

fn write_failures(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    for (name, consumer) in status.consumers.iter().filter(|(_, consumer)| !consumer.failures.is_empty()) {
        let failures = consumer
            .failures
            .iter()
            .map(|failure| format!("{} {} {}", failure.count, escaped(&failure.kind), escaped(&failure.code)));
        wrapped(&format!("failed attempts of {}: {}", escaped(name), failures.collect::<Vec<_>>().join(", ")), out)?;
    }
    Ok(())
}

/// One line for each consumer with deliveries whose senders should change something.
fn write_senders(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    for (name, consumer) in &status.consumers {
        let SenderCounts { without_message_id, implausible_timestamps, unproven, headers_dropped } = consumer.senders;
        let counted = [
            (unproven, "not proven to be orderd's own"),
            (without_message_id, "without message_id"),
            (implausible_timestamps, "with an implausible timestamp"),
            (headers_dropped, "with headers too large to keep"),
        ];
        let counted: Vec<_> =
            counted.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        if !counted.is_empty() {
            wrapped(
                &format!("messages of {} to correct at their senders: {}", escaped(name), counted.join(", ")),
                out,
            )?;
        }
    }
    Ok(())
}

/// What the store of dead letters has, and what keeps messages from getting there.
fn write_store(store: &DeadLettersStatus, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    for (queue, collector) in store.collectors.iter().filter(|(_, collector)| collector.enabled) {
        let CollectorStatus { subscribed, subscribe_error, pause, too_large, refused, .. } = collector;
        if !subscribed {
            let waits = match pause.as_deref() {
                Some("consumers") => Some("waiting until all consumers have a subscription"),
                Some("connection_limit") => Some("the consumers need the connections that the broker allows"),
                Some("disk_space") => Some("the ledger's disk is nearly full"),
                Some(_) | None => None,
            };
            let cause = waits.or(subscribe_error.as_deref());
            let cause = cause.map_or_else(String::new, |cause| format!(": {}", escaped(cause)));
            wrapped(&format!("{} is NOT COLLECTED{cause}", escaped(queue)), out)?;
        }
        if too_large + refused > 0 {
            let kept = format!(
                "{} keeps {too_large} messages that are too large, {refused} that the ledger refuses",
                escaped(queue)
            );
            wrapped(&kept, out)?;
        }
    }
    for ActiveReplay { id, state, by, letters, waiting, .. } in &store.replays {
        let mut counts: Vec<(&str, u64)> = Vec::new();
        for (progress, letters) in letters {
            let text = LetterProgress::parse(progress).map(outcome_text).unwrap_or(progress);
            match counts.iter_mut().find(|(known, _)| *known == text) {
                Some((_, sum)) => *sum += letters,
                None => counts.push((text, *letters)),
            }
        }
        let letters = counts.iter().map(|(text, letters)| format!("{letters} {}", escaped(text)));
        let letters = letters.collect::<Vec<_>>().join(", ");
        let waits = waiting.as_ref().map_or_else(String::new, |waiting| format!("; waits: {}", escaped(waiting)));
        wrapped(&format!("replay {id} (by {}) {}: {letters}{waits}", escaped(by), escaped(state)), out)?;
    }
    let states = [(store.open, "open"), (store.held, "held"), (store.replaying, "replaying")];
    let states =
        states.iter().filter(|(messages, _)| *messages > 0).map(|(messages, state)| format!("{messages} {state}"));
    let states: Vec<_> = states.collect();
    if states.is_empty() {
        return Ok(());
    }
    let mut reasons: BTreeMap<_, u64> = BTreeMap::new();
    for letters in &store.by_reason {
        *reasons.entry(&letters.reason).or_default() += letters.messages;
    }
    let reasons = reasons.iter().map(|(reason, messages)| format!("{} {messages}", escaped(reason)));
    let mut line = format!("in the store: {} ({})", states.join(", "), reasons.collect::<Vec<_>>().join(", "));
    if let Some(oldest) = store.oldest {
        line.push_str(&format!(", oldest open {} ago", age(oldest, now)));
    }
    let money = store.money.iter().map(|(currency, sum)| format!("{} {}", escaped(sum), escaped(currency)));
    let money: Vec<_> = money.collect();
    if !money.is_empty() {
        line.push_str(&format!(", worth {}", money.join(" + ")));
    }
    if let Some(counted_at) = store.counted_at {
        line.push_str(&format!("; counted {} ago", age(counted_at, now)));
    }
    if let Some(error) = &store.count_error {
        line.push_str(&format!("; CANNOT BE COUNTED now: {}", escaped(error)));
    }
    wrapped(&line, out)
}

fn write_conservation(status: &Status, out: &mut dyn Write) -> io::Result<()> {
    let sum = |count: fn(&ConsumerStatus) -> u64| status.consumers.values().map(count).sum::<u64>();
    // The sums of the columns with these names, of the line about cancellations, and what no column shows.
    let terms = [
        (sum(|consumer| consumer.processed), "done", true),
        (sum(|consumer| consumer.duplicates), "duplicate", true),
        (sum(|consumer| consumer.cancelled), "cancellations carried out", false),
        (sum(|consumer| consumer.prevented), "orders prevented", false),
        (sum(|consumer| consumer.failed), "failed", true),
        (sum(|consumer| consumer.conservation.released), "released", true),
        (sum(|consumer| consumer.conservation.rejected), "rejected", true),
        (sum(|consumer| consumer.conservation.in_flight), "in flight", true),
    ];
    let terms = terms.iter().filter(|(count, _, is_always_shown)| *is_always_shown || *count > 0);
    let equation = format!(
        "{}: {} = {}",
        if status.conservation_ok { "nothing is missing" } else { "COUNTS DO NOT ADD UP" },
        match sum(|consumer| consumer.conservation.deliveries) {
            1 => "1 delivery".to_owned(),
            count => format!("{count} deliveries"),
        },
        terms.map(|(count, what, _)| format!("{count} {what}")).collect::<Vec<_>>().join(" + ")
    );
    wrapped(&equation, out)?;
    for (name, consumer) in &status.consumers {
        if let Some(problem) = &consumer.conservation.problem {
            wrapped(&format!("  consumer {}: {}", escaped(name), escaped(problem)), out)?;
        }
    }
    Ok(())
}

fn write_findings(view: &BrokerView, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    for finding in &view.findings {
        let age = age(finding.since, now);
        let label = if finding.kind.requires_action() { "FINDING" } else { "finding" };
        let count = finding.messages.map_or_else(String::new, |count| format!(" ({})", counted(count, "message")));
        let text = format!("{label} on {} for {age}{count}: {}", escaped(finding.subject()), escaped(&finding.detail));
        wrapped(&text, out)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::text::MAX_WIDTH;
    use crate::reconcile::{QueueRole, QueueView};

    /// A daemon with every kind of problem, with control characters in names, and with the largest counts to expect.
    fn status_with_every_problem() -> Status {
        let long = "why ".repeat(60);
        let conservation = json!({"deliveries": 98_765_432, "succeeded": 98_765_000, "republished": 432, "released": 123_456,
            "rejected": 0, "in_flight": 1000, "problem": "\u{1b}[31m3 deliveries are neither settled nor in flight"});
        let quantiles = json!({"p50": 0.0487, "p95": 0.2274, "p99": 0.4937, "count": 5});
        let breaker = json!({"state": "open", "since": "2026-11-22T08:00:00Z", "openings": 3, "calls": 10, "failures": 10,
            "waiting": 4, "last_failure": "transient (http_503): \u{1b}[31m closed"});
        let consumer = json!({"queue": "notification_queue", "subscribed": true, "workers_running": 1, "workers_configured": 16,
            "prefetch": 1, "rate_limit": "200/s", "safe_mode": true, "breakers": {"charge": breaker, "a\u{7}": breaker}, "in_flight": 1000, "oldest_in_flight_seconds": 0.478,
            "processed": 9_876_543, "duplicates": 12_345, "cancelled": 7, "prevented": 8, "failed": 123_456, "failed_attempts": 1,
            "failures": [{"kind": "transient", "code": "a\u{9b}2J", "count": 1}], "retried": 1_234_567,
            "retries": {"10s": 1_234_000, "1m": 500, "10m": 60, "1h": 7}, "dead_lettered": 1234,
            "senders": {"without_message_id": 5, "implausible_timestamps": 6, "unproven": 7, "headers_dropped": 8},
            "dead_letters": {"malformed": 1000, "retries_exhausted": 200, "too_old": 34}, "restarts": 123,
            "subscriptions": 9, "acks_per_second": 1234.56, "handling_seconds": quantiles, "publish_to_ack_seconds": null,
            "steps": [{"step": "charge", "action": "undo", "in_flight": 64, "done": 1_234_567, "failed": 123, "refused": 45,
                "abandoned": 6, "call_seconds": quantiles}],
            "channels": [{"channel": "email", "provider": "backup", "in_use": true, "breaker": "half_open", "in_flight": 8,
                "sent": 1_234_567, "failed": 123, "failures": {"smtp_421": 100, "a\u{9b}2J": 23}, "abandoned": 0,
                "call_seconds": null, "send_seconds": quantiles}],
            "conservation": conservation});
        let mut paused = consumer.clone();
        paused["paused"] = json!(true);
        paused["paused_since"] = json!("2026-11-22T08:00:00Z");
        let mut consumers: serde_json::Map<_, _> = ["analytics", "failed", "notification", "order", "priority"]
            .map(|name| (name.to_owned(), consumer.clone()))
            .into_iter()
            .collect();
        consumers.insert("priority".to_owned(), paused);
        let check = |(name, detail): (&str, &str)| json!({"name": name, "ok": false, "detail": detail});
        let checks = [
            ("publisher", "no connection: refused"),
            ("consumer analytics", "no subscription: refused"),
            ("consumer failed", "no subscription: refused"),
            ("consumer notification", "no subscription"),
            ("topology", "waiting: for the broker"),
        ]
        .map(check);
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
        let open = json!({"cause": "reload", "scope": "shop-1", "title": "A reload was rejected", "instance": "shop-1:7",
            "since": "2026-11-22T08:00:00Z", "reported_at": null});
        let alerts = json!({"channel": "operators", "open": [open], "unsent": 2, "sent": 1, "failed": 7,
            "sent_at": "2026-11-22T08:00:00Z", "problem": format!("\u{1b}[31m{long}")});
        let finding = json!({"queue": "order_queue", "kind": "no_consumer", "since": "2026-11-22T08:00:00Z",
            "messages": 7, "detail": long});
        let report = json!({"outcome": "rejected", "generation": 7, "changes": [], "notes": [],
            "problems": [long, "a\u{1b}b", long, long]});
        let reload = json!({"at": "2026-11-22T08:00:00Z", "by": "SIGHUP", "report": report});
        let daemon = json!({"version": "0.1.0", "pid": 4_194_303, "state": "running",
            "started_at": "2026-11-22T08:00:00Z", "uptime_seconds": 8e7, "config": "/etc/orderd/production/orderd.toml",
            "config_generation": 1, "last_reload": reload, "connections": 6, "connections_made": 123_456, "publisher": null,
            "ledger": {"recording": false, "commits": 123_456_789, "outages": 2}});
        serde_json::from_value(json!({"daemon": daemon, "conservation_ok": false, "consumers": consumers,
            "checks": checks, "other_consumers": {"unknown": {"retries": {}, "dead_letters": {"no_origin": 3}}},
            "alerts": alerts,
            "broker": {"api": api, "taken_at": null, "queues": queues, "missing_queues": [],
                "alarms": [{"node": "rabbit@a\u{1b}]0;x", "resource": "memory"}], "findings": [finding]}}))
        .unwrap()
    }

    #[test]
    fn every_line_fits_the_width_and_no_control_character_reaches_the_terminal() {
        let mut out = Vec::new();
        write(&status_with_every_problem(), "2026-11-22T09:00:00Z".parse().unwrap(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        for line in text.lines() {
            assert!(line.chars().count() <= MAX_WIDTH, "{}: {line}", line.chars().count());
            assert!(!line.contains(char::is_control), "{line:?}");
            assert_eq!(line, line.trim_end());
        }
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "CONSUMER WORKERS IN-FLIGHT OLDEST DONE DUPLICATE FAILED RETRIED DEAD RESTARTS RATE/S P50 P95 P99",
            "notification 1/16 1000 478ms 9876543 12345 123456 1234567 1234 123 1234.6 48.7ms 227ms 494ms",
            "CONSUMER STEP IN-FLIGHT DONE FAILED REFUSED ABANDONED P50 P95 P99",
            "order charge (undo) 64 1234567 123 45 6 48.7ms 227ms 494ms",
            "CONSUMER CHANNEL PROVIDER IN USE BREAKER IN-FLIGHT SENT FAILED P50 P95 P99",
            "order email backup yes half_open 8 1234567 123 48.7ms 227ms 494ms",
            "failed attempts of channel email by backup: 23 a\\u{9b}2J, 100 smtp_421",
            "ledger CANNOT RECORD",
            "123456789 commits, 2 outages",
            "messages of order to correct at their senders: 7 not proven to be orderd's own, 5 without message_id, 6 with an \
             implausible timestamp, 8 with headers too large to keep",
            "consumer notification (no subscription), topology (waiting: for the broker), publisher, consumer analytics, consumer \
             failed (refused)",
            "too_old 34; unknown: no_origin 3",
            "1234567 in 10s, 1234567 in 1h, 1234567 in 1m",
            "COUNTS DO NOT ADD UP: 493827160 deliveries = 49382715 done + 61725 duplicate + 35 cancellations carried out + 40 \
             orders prevented + 617280 failed + 617280 released + 0 rejected + 5000 in flight",
            "cancellations: analytics: carried out 7, orders prevented 8; failed: carried out 7",
            "SAFE MODE analytics, failed,",
            "BREAKER order/charge open, opened 1h ago; deliveries waiting: 4; last failure: transient (http_503)",
            "rate limit analytics starts at most 200/s, failed starts at most",
            "but PAUSED: priority",
            "priority PAUSED 1000 478ms",
            "PAUSED priority for 1h: takes no deliveries until `orderd resume priority`",
            "reload REJECTED 1h ago, requested by SIGHUP",
            "alerts 1 open, through channel operators; last message 1h ago, 2 NOT SENT:",
            "ALERT for 1h: A reload was rejected",
            "finding on order_queue for 1h (7 messages): why",
        ] {
            assert!(words.to_lowercase().contains(&part.to_lowercase()), "no {part:?}:\n{text}");
        }
    }
}
