//! A trace as text. It decides nothing.

use std::io::{self, Write};

use jiff::{SignedDuration, Timestamp};

use super::queue_depth::QueueDepth;
use super::{MessageLocation, TraceReport, TracedQueue};
use crate::cli::outcome_text::outcome_text;
use crate::cli::table;
use crate::cli::text::{counted, round_text, route};
use crate::escape::escaped;
use crate::ledger::trace::{MessageState, StoredCopy, TraceEvent, TraceStep, TracedMessage, TracedOrder};

/// How much of a step's result is shown, in characters.
const MAX_RESULT_CHARS: usize = 120;

/// How old the broker's counts of a queue are.
const BROKER_DELAY: &str = "some seconds ago";

/// Writes the whole trace.
pub(super) fn write(report: &TraceReport, now: Timestamp, out: &mut dyn Write) -> io::Result<()> {
    let trace = &report.trace;
    writeln!(out, "order {}", escaped(&trace.id))?;
    match &trace.order {
        Some(order) => write_order(order, out)?,
        None if trace.is_empty() && report.places.iter().any(|place| !place.stored.is_empty()) => {
            writeln!(out, "  never processed: what is known is its dead letter")?;
        }
        None if trace.is_empty() => writeln!(
            out,
            "  not in the ledger: it may still be in a queue, have another id, or be older than ledger.retention"
        )?,
        None if trace.steps.iter().any(|step| matches!(step.event, TraceEvent::Cancelled)) => {
            writeln!(out, "  cancelled before it arrived: what it contains is not known")?;
        }
        None => writeln!(out, "  not accepted, or done and older than ledger.retention")?,
    }
    if !trace.steps.is_empty() {
        writeln!(out)?;
        table::write_rows(out, ["UTC", "MESSAGE", "EVENT"], trace.steps.iter().map(row))?;
    }
    writeln!(out, "\nnow")?;
    table::write_rows(
        out,
        ["MESSAGE", "LOCATION"],
        report.places.iter().map(|message| {
            let is_skipped =
                |step: &TraceStep| step.message == message.message && matches!(step.event, TraceEvent::Skipped { .. });
            let location = match &message.state {
                MessageState::Done { since } if trace.steps.iter().any(is_skipped) => {
                    format!("done since {}: not delivered, see above", moment(*since))
                }
                _ => location(message, report.has_config, now),
            };
            [message_name(message.message).to_owned(), location]
        }),
    )?;
    match &report.broker_error {
        Some(error) => writeln!(out, "  queue depths unknown: {}", escaped(error)),
        None => Ok(()),
    }
}

/// Most lines of an order that are shown. The JSON output has all of them.
const MAX_ITEMS_SHOWN: usize = 20;

fn write_order(order: &TracedOrder, out: &mut dyn Write) -> io::Result<()> {
    let TracedOrder { items, quantity, goods_total, total, currency, .. } = order;
    let mut line = match items.as_slice() {
        [item] => format!("{quantity} × {} at {} = {goods_total}", escaped(&item.product), item.price),
        items => {
            format!("{} in {} = {goods_total}", counted(*quantity, "piece"), counted(items.len() as i64, "line"))
        }
    };
    let tax = if order.tax_included == Some(true) { "included tax" } else { "tax" };
    for (name, amount) in
        [("shipping", order.shipping), ("fees", order.fees), (tax, order.tax), ("discount", order.discount)]
    {
        line.extend(amount.map(|amount| format!(", {name} {amount}")));
    }
    if total != goods_total {
        line.push_str(&format!(", total {total}"));
    }
    line.push_str(&format!(" {}", escaped(currency)));
    if order.priority {
        line.push_str(", priority");
    }
    if let Some(customer) = &order.customer_id {
        line.push_str(&format!(", customer {}", escaped(customer)));
    }
    if let Some(at) = order.placed_at {
        line.push_str(&format!(", placed {at}"));
    }
    writeln!(out, "  {line}")?;
    if items.len() > 1 {
        for item in items.iter().take(MAX_ITEMS_SHOWN) {
            writeln!(out, "    {} × {} at {} = {}", item.quantity, escaped(&item.product), item.price, item.total)?;
        }
        if let Some(more @ 1..) = items.len().checked_sub(MAX_ITEMS_SHOWN) {
            writeln!(out, "    and {more} more: --format json shows them")?;
        }
    }
    Ok(())
}

fn row(step: &TraceStep) -> [String; 3] {
    [moment(step.at), message_name(step.message).to_owned(), escaped(&event_text(&step.event))]
}

/// To the millisecond. Failures are known to the second only.
fn moment(at: Timestamp) -> String {
    if at.as_millisecond() % 1_000 == 0 { format!("{at:.0}") } else { format!("{at:.3}") }
}

fn message_name(message: TracedMessage) -> &'static str {
    match message {
        TracedMessage::Order => "order",
        TracedMessage::Notification => "notification",
        TracedMessage::Analytics => "analytics",
        TracedMessage::AnalyticsFailed => "analytics (failed)",
        TracedMessage::Cancellation => "cancellation",
        TracedMessage::NotificationCancelled => "notification (cancelled)",
        TracedMessage::AnalyticsCancelled => "analytics (cancelled)",
    }
}

fn event_text(event: &TraceEvent) -> String {
    match event {
        TraceEvent::Accepted { consumer } => format!("accepted by consumer {consumer}"),
        TraceEvent::Failed { consumer, replay, retries, kind, code, reason, delay, due_at } => {
            let attempt = match retries {
                0 => "first attempt".to_owned(),
                retries => format!("retry {retries}"),
            };
            let replay = replay.map_or_else(String::new, |replay| format!(" after replay {replay}"));
            let next = match (delay, due_at) {
                (Some(delay), Some(due_at)) => format!("; next retry after {delay}, at {}", moment(*due_at)),
                (Some(delay), None) => format!("; next retry after {delay}"),
                (None, _) => "; no retry".to_owned(),
            };
            format!("{attempt}{replay} failed in consumer {consumer}: {kind} {code}: {reason}{next}")
        }
        TraceEvent::DeadLettered { consumer, reason, retries, code, letter, .. } => {
            let (retries, letter) = (counted(*retries, "retry"), as_letter(*letter));
            format!("dead-lettered{letter}: {reason} ({code} in consumer {consumer}, after {retries})")
        }
        TraceEvent::Replayed { replay, by, letter, outcome, code, came_back_as, .. } => {
            let code = code.as_deref().map_or_else(String::new, |code| format!(" ({code})"));
            let outcome = outcome_text(*outcome);
            let became = came_back_as.map_or_else(String::new, |id| format!(", now dead letter {id}"));
            format!("dead letter {letter} published again (replay {replay} by {by}): {outcome}{code}{became}")
        }
        TraceEvent::StepCalled { name, action, round, status, attempts, duration_ms, result, code, reason } => {
            let what = if action == "do" { format!("step {name}") } else { format!("{action} of step {name}") };
            let attempts = counted(*attempts, "call");
            let duration = duration_ms.map_or_else(String::new, |duration| format!(", {duration} ms"));
            let end = match (status.as_str(), result, code, reason) {
                ("done", Some(result), ..) => format!(": {}", cut(&result.to_string())),
                ("failed", _, Some(code), Some(reason)) => format!(": {code}: {reason}"),
                _ => String::new(),
            };
            let round = round_text(*round);
            format!("{what} {status} ({attempts}{round}{duration}){end}")
        }
        TraceEvent::Processed => "processed: its events are confirmed".to_owned(),
        TraceEvent::Cancelled => "cancelled".to_owned(),
        TraceEvent::CancellationFinished => "complete: steps are undone, and its events are confirmed".to_owned(),
        TraceEvent::Prevented => "arrived after its cancellation: not processed".to_owned(),
        TraceEvent::DeliveryFailed { channel, provider, recipient, kind, code, reason } => {
            let route = route(channel, Some(provider), recipient.as_deref());
            format!("not delivered to {route}: {kind} {code}: {reason}")
        }
        TraceEvent::Notified { channel, provider: None, .. } => {
            format!("written to the file of notifications (channel {channel})")
        }
        TraceEvent::Notified { channel, provider, recipient } => {
            format!("delivered to {}", route(channel, provider.as_deref(), recipient.as_deref()))
        }
        TraceEvent::Skipped { channel, code } => format!("not delivered to channel {channel}: {code}"),
        TraceEvent::Counted => "counted in the statistics".to_owned(),
    }
}

/// The number of a stored dead letter.
fn as_letter(letter: Option<i64>) -> String {
    letter.map_or_else(String::new, |id| format!(" as dead letter {id}"))
}

/// The beginning of a result. JSON output has all of it.
fn cut(result: &str) -> String {
    let cut: String = result.chars().take(MAX_RESULT_CHARS).collect();
    if cut.len() < result.len() { cut + "…" } else { cut }
}

fn location(message: &MessageLocation, has_config: bool, now: Timestamp) -> String {
    // It is not in an empty queue, unless all are reported as empty: the broker's counts are some seconds old.
    let all_are_empty = message.queues.iter().all(TracedQueue::is_empty);
    let shown = message.queues.iter().filter(|queue| all_are_empty || !queue.is_empty());
    let queues = shown.map(|queue| format!("{}{}", queue.name, depth(queue.depth))).collect::<Vec<_>>();
    let queues = match queues.is_empty() {
        true if has_config => "a queue that is not in the configuration".to_owned(),
        true => "a queue that the configuration names".to_owned(),
        false => queues.join(" or "),
    };
    let copy = |StoredCopy { id, state, edited_to }: &StoredCopy| {
        let edited =
            edited_to.as_ref().map_or_else(String::new, |order| format!(", edited to order {}", escaped(order)));
        format!("{id} ({}{edited})", state.as_str())
    };
    let copies: Vec<_> = message.stored.iter().map(copy).collect();
    let stored = (!copies.is_empty()).then(|| format!("stored as dead letter {}", copies.join(", ")));
    match (&message.state, stored) {
        (MessageState::DeadLettered { since }, Some(stored)) => format!("{stored}, since {}", moment(*since)),
        (MessageState::Unknown, Some(stored)) => stored,
        (state, _) => state_text(message, state, all_are_empty, &queues, now),
    }
}

fn state_text(
    message: &MessageLocation,
    state: &MessageState,
    all_are_empty: bool,
    queues: &str,
    now: Timestamp,
) -> String {
    match state {
        MessageState::Unknown if all_are_empty && !message.queues.is_empty() => {
            let names: Vec<_> = message.queues.iter().map(|queue| queue.name.as_str()).collect();
            format!("unknown: the queues that may contain it ({}) were empty {BROKER_DELAY}", names.join(", "))
        }
        MessageState::Unknown => format!("unknown; if it was published, possibly in {queues}"),
        MessageState::Done { since } => format!("done since {}", moment(*since)),
        MessageState::Cancelled { since } => format!("cancelled since {}", moment(*since)),
        MessageState::DeadLettered { since } => {
            format!("in {queues} since {}, unless removed there", moment(*since))
        }
        MessageState::Waiting { due_at, .. } => {
            format!("in {queues}, retry due at {} (in {})", moment(*due_at), seconds_between(now, *due_at))
        }
        MessageState::Due { since, .. } => {
            format!(
                "retry due since {} ({} ago): ready or in flight in {queues}",
                moment(*since),
                seconds_between(*since, now)
            )
        }
        MessageState::UnderWay { since } => {
            format!(
                "in progress since {} ({}): ready or in flight in {queues}",
                moment(*since),
                seconds_between(*since, now)
            )
        }
    }
}

fn depth(depth: Option<QueueDepth>) -> String {
    match depth {
        Some(QueueDepth { ready: Some(0), unacknowledged: Some(0) }) => format!(" (empty {BROKER_DELAY})"),
        Some(QueueDepth { ready: Some(ready), unacknowledged: Some(unacked) }) => {
            format!(" (about {ready} ready, {unacked} in flight)")
        }
        Some(_) | None => String::new(),
    }
}

/// The time from one moment to another, in whole seconds.
fn seconds_between(from: Timestamp, to: Timestamp) -> String {
    format!("{:#}", SignedDuration::from_secs(to.duration_since(from).as_secs().max(0)))
}
