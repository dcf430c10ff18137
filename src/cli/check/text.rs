//! A check for people: aligned text. It decides nothing.

use std::io::{self, Write};

use serde_json::{Map, Value};

use super::broker::BrokerReport;
use super::report::{CheckReport, ConsumerReport, QueueReport, Schedule};
use crate::cli::table;
use crate::config::duration::format as duration;

/// Writes the whole report.
pub(super) fn write(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    let broker = &report.broker;
    writeln!(out, "configuration  {}", report.config)?;
    writeln!(
        out,
        "broker         {}, virtual host {:?}, user {:?}",
        broker.addresses.join(", "),
        broker.virtual_host,
        broker.username
    )?;
    let kept = report.ledger.retention.map_or_else(|| "forever".to_owned(), duration);
    writeln!(out, "ledger         {}, rows of what is done kept {kept}", report.ledger.directory.display())?;
    let applied = if report.reload.watch { "by itself, once it rests" } else { "by `orderd reload` or SIGHUP" };
    writeln!(out, "a changed file is applied {applied}")?;
    handler_lines(report, out)?;
    topology(report, out)?;
    pools(report, out)?;
    retries(report, out)?;
    match &report.connected {
        Some(broker) => connected(broker, out),
        None => Ok(()),
    }
}

fn handler_lines(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    let mut lines = report.consumers.iter().flat_map(|consumer| &consumer.handler_lines);
    lines.try_for_each(|line| writeln!(out, "\n{line}"))
}

fn topology(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    let topology = &report.topology;
    writeln!(out, "\nexchanges (durable)")?;
    let rows = topology
        .exchanges
        .iter()
        .map(|exchange| [exchange.name.clone(), exchange.kind.to_owned(), arguments(&exchange.arguments, &Map::new())]);
    table::write_rows(out, ["NAME", "TYPE", "ARGUMENTS"], rows)?;

    let common = common(&topology.queues);
    writeln!(out, "\nqueues (durable, all with {})", arguments(&common, &Map::new()))?;
    let rows = topology.queues.iter().map(|queue| [queue.name.clone(), arguments(&queue.arguments, &common)]);
    table::write_rows(out, ["NAME", "FURTHER ARGUMENTS"], rows)?;

    writeln!(out, "\nbindings")?;
    let rows = topology
        .bindings
        .iter()
        .map(|binding| [binding.exchange.clone(), binding.routing_key.clone(), binding.queue.clone()]);
    table::write_rows(out, ["EXCHANGE", "ROUTING KEY", "QUEUE"], rows)?;
    if !topology.declare {
        writeln!(out, "  orderd declares none of this: topology.declare is false")?;
    }
    Ok(())
}

/// The arguments that all queues share.
fn common(queues: &[QueueReport]) -> Map<String, Value> {
    let Some((first, rest)) = queues.split_first() else { return Map::new() };
    let shared =
        |(name, value): &(&String, &Value)| rest.iter().all(|queue| queue.arguments.get(*name) == Some(*value));
    first.arguments.iter().filter(shared).map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn arguments(arguments: &Map<String, Value>, but: &Map<String, Value>) -> String {
    let shown: Vec<String> = arguments
        .iter()
        .filter(|(name, _)| !but.contains_key(*name))
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name}={text}"),
            other => format!("{name}={other}"),
        })
        .collect();
    shown.join(" ")
}

fn pools(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\nconsumers")?;
    let row = |consumer: &ConsumerReport| {
        [
            consumer.name.clone(),
            consumer.queue.clone(),
            consumer.handler.clone(),
            format!("{} × {} = {}", consumer.workers, consumer.prefetch, consumer.slots),
            duration(consumer.timeout),
        ]
    };
    table::write_rows(
        out,
        ["NAME", "QUEUE", "HANDLER", "WORKERS × PREFETCH", "TIMEOUT"],
        report.consumers.iter().map(row),
    )
}

fn retries(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\nretries")?;
    let row = |consumer: &ConsumerReport| {
        let Some(retry) = &consumer.retry else {
            let dash = "–".to_owned();
            return [
                consumer.name.clone(),
                dash.clone(),
                "never: it holds on to what it cannot settle".to_owned(),
                dash,
            ];
        };
        [consumer.name.clone(), at_once(retry.immediate), delayed(retry), worst_case(retry, consumer)]
    };
    table::write_rows(
        out,
        ["CONSUMER", "AT ONCE", "THEN AFTER", "DEAD AT THE LATEST"],
        report.consumers.iter().map(row),
    )?;
    writeln!(
        out,
        "  Waiting for a free worker comes on top. An order whose first failure is older than its consumer's"
    )?;
    writeln!(
        out,
        "  max_age is dead-lettered instead of retried; a malformed or permanent failure is dead-lettered at once."
    )
}

fn at_once(immediate: u32) -> String {
    match immediate {
        0 => "never".to_owned(),
        1 => "once".to_owned(),
        more => format!("{more} times"),
    }
}

fn delayed(retry: &Schedule) -> String {
    if retry.delayed.is_empty() {
        return "never".to_owned();
    }
    let steps: Vec<String> = retry.delayed.iter().map(|step| format!("+{}", duration(step.after))).collect();
    steps.join(", ")
}

fn worst_case(retry: &Schedule, consumer: &ConsumerReport) -> String {
    format!(
        "{} = {} of delays + {} tries × {}; max_age {}",
        duration(retry.worst_case),
        duration(retry.total_delay),
        retry.tries,
        duration(consumer.timeout),
        duration(retry.max_age)
    )
}

fn connected(broker: &BrokerReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\nthe broker")?;
    for reach in &broker.addresses {
        let state = reach.error.as_deref().unwrap_or("takes connections");
        writeln!(out, "  {}: {state}", reach.address)?;
    }
    let audit = match &broker.audit {
        Ok(audit) => audit,
        Err(_) => return writeln!(out, "  {}: no answer", broker.management_url),
    };
    let mut clean = true;
    let mut tell = |line: String| {
        clean = false;
        writeln!(out, "  {line}")
    };
    for object in &audit.missing {
        tell(format!("missing: {object}"))?;
    }
    for mismatch in &audit.mismatches {
        tell(format!("differs: {mismatch}"))?;
    }
    for policy in &audit.dangerous_policies {
        tell(format!("dangerous: {policy}"))?;
    }
    for queue in &audit.unknown_policies {
        tell(format!("unknown: queue {queue:?} has not told its policies"))?;
    }
    for binding in &audit.extra_bindings {
        tell(format!("left over: {binding}"))?;
    }
    if clean { writeln!(out, "  has all of this, as it must be") } else { Ok(()) }
}
