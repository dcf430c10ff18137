//! A trace for people. It decides nothing.

use std::io::{self, Write};

use jiff::{SignedDuration, Timestamp};

use super::broker::Depth;
use super::{Told, Whereabouts};
use crate::cli::table;
use crate::cli::text::plain;
use crate::ledger::trace::{MessageState, TraceEvent, TraceStep, TracedMessage, TracedOrder};

/// Writes the whole trace.
pub(super) fn write(told: &Told, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    let trace = &told.trace;
    writeln!(out, "order {}", plain(&trace.id))?;
    match &trace.order {
        Some(order) => writeln!(out, "  {}", ordered(order))?,
        None if trace.is_empty() => writeln!(
            out,
            "  the ledger knows nothing of it: it may wait unread in a queue, have another id, or be older than \
             ledger.retention"
        )?,
        None => writeln!(out, "  not accepted, or done for longer than ledger.retention")?,
    }
    if !trace.steps.is_empty() {
        writeln!(out)?;
        table::write_rows(out, ["UTC", "MESSAGE", "WHAT HAPPENED"], trace.steps.iter().map(row))?;
    }
    writeln!(out, "\nnow")?;
    table::write_rows(
        out,
        ["MESSAGE", "WHERE IT IS"],
        told.places.iter().map(|place| [subject(place.message).to_owned(), whereabouts(place, now)]),
    )?;
    match &told.broker_error {
        Some(error) => writeln!(out, "  the broker does not say how much waits there: {}", plain(error)),
        None => Ok(()),
    }
}

fn ordered(order: &TracedOrder) -> String {
    let TracedOrder { product, quantity, price, total, currency, .. } = order;
    let mut line = format!("{quantity} × {} at {price} = {total} {currency}", plain(product));
    if order.priority {
        line.push_str(", urgent");
    }
    if let Some(customer) = &order.customer_id {
        line.push_str(&format!(", customer {}", plain(customer)));
    }
    if let Some(at) = order.placed_at {
        line.push_str(&format!(", placed {at}"));
    }
    line
}

fn row(step: &TraceStep) -> [String; 3] {
    [moment(step.at), subject(step.message).to_owned(), plain(&happened(&step.event))]
}

fn moment(at: Timestamp) -> String {
    format!("{at:.3}")
}

fn subject(subject: TracedMessage) -> &'static str {
    match subject {
        TracedMessage::Order => "order",
        TracedMessage::Notification => "notification",
        TracedMessage::Analytics => "analytics",
        TracedMessage::AnalyticsFailed => "analytics (failed)",
    }
}

fn happened(event: &TraceEvent) -> String {
    match event {
        TraceEvent::Accepted { consumer } => format!("accepted by consumer {consumer}"),
        TraceEvent::Failed { consumer, retries, kind, code, reason, delay, due_at } => {
            let attempt = match retries {
                0 => "first attempt".to_owned(),
                retries => format!("retry {retries}"),
            };
            let next = match (delay, due_at) {
                (Some(delay), Some(due_at)) => format!("; to be retried after {delay}, at {}", moment(*due_at)),
                (Some(delay), None) => format!("; to be retried after {delay}"),
                (None, _) => "; not to be retried".to_owned(),
            };
            format!("{attempt} failed in consumer {consumer}: {kind} {code}: {reason}{next}")
        }
        TraceEvent::DeadLettered { consumer, reason, retries, code, .. } => {
            format!(
                "dead-lettered in the dead letter queue: {reason} ({code} in consumer {consumer}, after {retries} retries)"
            )
        }
        TraceEvent::Processed => "processed: its events are confirmed".to_owned(),
        TraceEvent::Notified { channel } => format!("handed to channel {channel}"),
        TraceEvent::Counted => "counted".to_owned(),
    }
}

fn whereabouts(told: &Whereabouts, now: Timestamp) -> String {
    let queues = told.queues.iter().map(|queue| format!("{}{}", queue.name, depth(queue.depth)));
    let queues = match queues.collect::<Vec<_>>() {
        queues if queues.is_empty() => "a queue that is not in the configuration".to_owned(),
        queues => queues.join(" or "),
    };
    match &told.place {
        MessageState::Unknown => format!("unknown; if it was published, perhaps in {queues}"),
        MessageState::Done { since } => format!("done, since {}", moment(*since)),
        MessageState::DeadLettered { since } => {
            format!("in {queues} since {}, unless somebody has taken it out", moment(*since))
        }
        MessageState::Waiting { due_at, .. } => {
            format!("in {queues}, to be retried at {} ({} from now)", moment(*due_at), apart(now, *due_at))
        }
        MessageState::Due { since, .. } => {
            format!("to be retried since {} ({} ago): ready or in work in {queues}", moment(*since), apart(*since, now))
        }
        MessageState::UnderWay { since } => {
            format!("under way since {} ({}): ready or in work in {queues}", moment(*since), apart(*since, now))
        }
    }
}

fn depth(depth: Option<Depth>) -> String {
    match depth {
        Some(Depth { ready: Some(ready), unacknowledged: Some(unacked) }) => {
            format!(" (about {ready} ready, {unacked} in work)")
        }
        Some(_) | None => String::new(),
    }
}

/// How long it is from one time to another, in whole seconds.
fn apart(from: Timestamp, to: Timestamp) -> String {
    format!("{:#}", SignedDuration::from_secs(to.duration_since(from).as_secs().max(0)))
}
