//! The report as text. It computes nothing.

use std::io::{self, Write};

use serde_json::{Map, Value};

use super::broker::BrokerReport;
use super::channel_servers::{ChannelServerError, ChannelServerReport};
use super::report::{CheckReport, ConsumerReport, QueueReport, TopologyReport};
use super::schedule::RetrySchedule;
use super::step_commands::StepCommandReport;
use super::step_servers::StepServerReport;
use crate::chain::chain;
use crate::cli::table::{self, Layout};
use crate::config::duration::format as duration;
use crate::escape::escaped;

/// Writes the whole report.
pub(super) fn write(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    write_settings(report, out)?;
    write_handler_lines(report, out)?;
    write_topology(&report.topology, out)?;
    write_consumers(&report.consumers, out)?;
    write_retries(&report.consumers, out)?;
    if let Some(broker) = &report.connected {
        write_broker(broker, &report.topology, out)?;
    }
    write_step_servers(report.step_servers.as_deref().unwrap_or_default(), out)?;
    write_step_commands(report.step_commands.as_deref().unwrap_or_default(), out)?;
    write_channel_servers(report.channel_servers.as_deref().unwrap_or_default(), out)
}

fn write_settings(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    let broker = &report.broker;
    writeln!(out, "configuration  {}", escaped(&report.config))?;
    writeln!(
        out,
        "broker         {}, virtual host {:?}, user {:?}",
        broker.addresses.join(", "),
        broker.virtual_host,
        broker.username
    )?;
    let retention = report.ledger.retention.map_or_else(|| "forever".to_owned(), duration);
    let directory = report.ledger.directory.to_string_lossy();
    writeln!(out, "ledger         {}, retention {retention}", escaped(&directory))?;
    let trigger = if report.reload.watch { "when the file changes" } else { "by `orderd reload` or SIGHUP" };
    writeln!(out, "reload         {trigger}")
}

/// What the handlers say about their own settings, such as steps and injected faults, and then what is said about notifications. Each
/// is a block with a blank line before it.
fn write_handler_lines(report: &CheckReport, out: &mut dyn Write) -> io::Result<()> {
    let consumers: Vec<&String> = report.consumers.iter().flat_map(|consumer| &consumer.handler_lines).collect();
    for lines in [consumers, report.notification_lines.iter().collect()] {
        let breaks = std::iter::once("\n").chain(std::iter::repeat(""));
        lines.iter().zip(breaks).try_for_each(|(line, before)| writeln!(out, "{before}{line}"))?;
    }
    Ok(())
}

fn write_topology(topology: &TopologyReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\nexchanges (durable)")?;
    let mut exchanges = table::new(["NAME", "TYPE", "ARGUMENTS"]);
    for exchange in &topology.exchanges {
        exchanges.add_row([&exchange.name, exchange.kind, &arguments(&exchange.arguments, &Map::new())]);
    }
    table::write(exchanges, &Layout::default(), out)?;

    let common = common_arguments(&topology.queues);
    writeln!(out, "\nqueues (durable, all with {})", arguments(&common, &Map::new()))?;
    let mut queues = table::new(["NAME", "FURTHER ARGUMENTS"]);
    for queue in &topology.queues {
        queues.add_row([&queue.name, &arguments(&queue.arguments, &common)]);
    }
    table::write(queues, &Layout::default(), out)?;

    writeln!(out, "\nbindings")?;
    let mut bindings = table::new(["EXCHANGE", "ROUTING KEY", "QUEUE"]);
    for binding in &topology.bindings {
        bindings.add_row([&binding.exchange, &binding.routing_key, &binding.queue]);
    }
    table::write(bindings, &Layout::default(), out)?;
    if !topology.declare {
        writeln!(out, "  orderd declares none of these: topology.declare is false")?;
    }
    Ok(())
}

/// The arguments that all queues share.
fn common_arguments(queues: &[QueueReport]) -> Map<String, Value> {
    let Some((first, rest)) = queues.split_first() else { return Map::new() };
    let is_common =
        |(name, value): &(&String, &Value)| rest.iter().all(|queue| queue.arguments.get(*name) == Some(*value));
    first.arguments.iter().filter(is_common).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Arguments as `name=value`, without those in `except`.
fn arguments(arguments: &Map<String, Value>, except: &Map<String, Value>) -> String {
    let shown: Vec<String> = arguments
        .iter()
        .filter(|(name, _)| !except.contains_key(*name))
        .map(|(name, value)| match value {
            Value::String(text) => format!("{name}={text}"),
            other => format!("{name}={other}"),
        })
        .collect();
    shown.join(" ")
}

fn write_consumers(consumers: &[ConsumerReport], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\nconsumers")?;
    let mut table = table::new(["NAME", "QUEUE", "HANDLER", "WORKERS × PREFETCH", "TIMEOUT"]);
    for consumer in consumers {
        table.add_row([
            consumer.name.clone(),
            consumer.queue.clone(),
            consumer.handler.clone(),
            format!("{} × {} = {}", consumer.workers, consumer.prefetch, consumer.slots),
            duration(consumer.timeout),
        ]);
    }
    table::write(table, &Layout::default(), out)?;
    let limited = consumers.iter().filter_map(|consumer| Some((&consumer.name, consumer.rate_limit?)));
    limited.into_iter().try_for_each(|(name, limit)| writeln!(out, "  {name} starts at most {limit}"))
}

fn write_retries(consumers: &[ConsumerReport], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\nretries")?;
    let mut table =
        table::new(["CONSUMER", "IMMEDIATE", "DELAYED, AFTER FIRST FAILURE", "DEAD-LETTERED AFTER AT MOST"]);
    for consumer in consumers {
        table.add_row(match &consumer.retry {
            Some(retry) => [consumer.name.clone(), immediate(retry.immediate), delayed(retry), worst_case(retry)],
            None => [
                consumer.name.clone(),
                "–".to_owned(),
                "none: holds a delivery until it can be settled".to_owned(),
                "–".to_owned(),
            ],
        });
    }
    table::write(table, &Layout::default(), out)?;
    writeln!(
        out,
        "  Waiting for a free worker is not included. An order whose first failure is older than max_age is"
    )?;
    writeln!(out, "  dead-lettered instead of retried; a malformed or permanent failure is dead-lettered at once.")
}

fn immediate(retries: u32) -> String {
    match retries {
        0 => "none".to_owned(),
        1 => "once".to_owned(),
        more => format!("{more} times"),
    }
}

fn delayed(retry: &RetrySchedule) -> String {
    if retry.delayed.is_empty() {
        return "none".to_owned();
    }
    let times: Vec<String> = retry.delayed.iter().map(|retry| format!("+{}", duration(retry.after))).collect();
    times.join(", ")
}

fn worst_case(retry: &RetrySchedule) -> String {
    let attempt = (retry.worst_case.saturating_sub(retry.total_delay)) / retry.attempts.max(1);
    format!(
        "{} = {} of delays + {} attempts × {}; max_age {}",
        duration(retry.worst_case),
        duration(retry.total_delay),
        retry.attempts,
        duration(attempt),
        duration(retry.max_age)
    )
}

fn write_step_servers(servers: &[StepServerReport], out: &mut dyn Write) -> io::Result<()> {
    if !servers.is_empty() {
        writeln!(out, "\nservers of steps")?;
    }
    servers.iter().try_for_each(|StepServerReport { address, steps, error }| {
        let state = error.as_deref().unwrap_or("accepts connections");
        writeln!(out, "  {}: {} ({})", escaped(address), escaped(state), steps.join(", "))
    })
}

fn write_step_commands(commands: &[StepCommandReport], out: &mut dyn Write) -> io::Result<()> {
    if !commands.is_empty() {
        writeln!(out, "\nprograms of steps")?;
    }
    commands.iter().try_for_each(|StepCommandReport { step, program, error }| {
        let state = error.as_deref().unwrap_or("can be executed");
        writeln!(out, "  {}: {} ({step})", escaped(program), escaped(state))
    })
}

fn write_channel_servers(servers: &[ChannelServerReport], out: &mut dyn Write) -> io::Result<()> {
    if !servers.is_empty() {
        writeln!(out, "\nservers of notification channels")?;
    }
    servers.iter().try_for_each(|ChannelServerReport { channel, address, error }| {
        let error = error.as_ref().map(|ChannelServerError { code, reason }| format!("{code}: {reason}"));
        let state = error.unwrap_or_else(|| "can be used".to_owned());
        writeln!(out, "  {channel}: {} ({})", escaped(&state), escaped(address))
    })
}

fn write_broker(broker: &BrokerReport, topology: &TopologyReport, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\nbroker")?;
    for address in &broker.addresses {
        let state = address.error.as_deref().unwrap_or("accepts connections");
        writeln!(out, "  {}: {state}", address.address)?;
    }
    // An address that accepts connections need not be that of a broker, or of one that lets orderd in.
    let is_usable = broker.denied.is_ok();
    if let Err(error) = &broker.denied {
        writeln!(out, "  AMQP: {}", chain(error))?;
    }
    if let Some(name) = broker.user_name() {
        writeln!(out, "  user {name:?}")?;
    }
    let audit = match &broker.audit {
        Ok(audit) => audit,
        Err(error) => return writeln!(out, "  {}: {}", broker.management_url, chain(error)),
    };
    if audit.missing.len() == topology.object_count() {
        return writeln!(
            out,
            "  nothing is declared yet: all {} exchanges, queues and bindings are missing",
            topology.object_count()
        );
    }
    let missing = audit.missing.iter().map(|object| format!("missing: {object}"));
    let mismatches = audit.mismatches.iter().map(|mismatch| format!("differs: {mismatch}"));
    let policies = audit.dangerous_policies.iter().map(|policy| format!("dangerous: {policy}"));
    let timeouts = audit.short_consumer_timeouts.iter().map(|short| format!("too short: {short}"));
    let unknown = audit.unknown_policies.iter().map(|queue| format!("unknown: policies of queue {queue:?}"));
    let extra = audit.extra_bindings.iter().map(|binding| format!("not in the configuration: {binding}"));
    let differences: Vec<String> =
        missing.chain(mismatches).chain(policies).chain(timeouts).chain(unknown).chain(extra).collect();
    if differences.is_empty() {
        let source = if is_usable { "" } else { ", as the management API says; AMQP does not work" };
        return writeln!(out, "  the topology is complete and as configured{source}");
    }
    differences.iter().try_for_each(|difference| writeln!(out, "  {difference}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::ConnectError;
    use crate::cli::check::AddressReport;
    use crate::config::{Config, DEFAULT_FILE};
    use crate::handlers;
    use crate::reconcile::audit::Audit;
    use crate::topology::Object;

    fn topology() -> TopologyReport {
        let loaded = Config::from_bytes(DEFAULT_FILE.as_bytes(), "orderd.toml".into(), &handlers::sources()).unwrap();
        CheckReport::new(&loaded).topology
    }

    /// A broker whose management API answers, and whose AMQP port is another one.
    fn broker(audit: Audit) -> BrokerReport {
        let (host, port) = ("127.0.0.1".to_owned(), 1);
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let address = crate::config::Address { host, port };
        BrokerReport {
            addresses: vec![AddressReport { address: address.to_string(), error: None }],
            denied: Err(ConnectError::Unreachable { address, source: refused() }),
            user: None,
            management_url: "http://127.0.0.1:2".to_owned(),
            audit: Ok(audit),
        }
    }

    fn written(broker: &BrokerReport) -> String {
        let mut out = Vec::new();
        write_broker(broker, &topology(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_broker_that_cannot_be_used_is_not_reported_as_complete_because_its_management_api_answers() {
        let text = written(&broker(Audit::default()));
        assert!(text.contains("AMQP: cannot reach the broker"), "{text}");
        assert!(!text.lines().any(|line| line.ends_with("the topology is complete and as configured")), "{text}");
    }

    #[test]
    fn before_the_first_start_one_line_says_that_nothing_is_declared_yet() {
        let count = topology().object_count();
        let missing = (0..count).map(|number| Object::Queue(number.to_string())).collect();
        let broker = broker(Audit { missing, ..Audit::default() });
        assert_eq!(written(&broker).matches("missing").count(), 1);
        let problems = broker.problems(true);
        assert_eq!(problems.iter().filter(|problem| problem.contains("missing")).count(), 1, "{problems:?}");
        assert!(problems.iter().any(|problem| problem.contains(&(count - 1).to_string())), "{problems:?}");
    }
}
