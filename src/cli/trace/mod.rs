//! `orderd trace`: one order's life, from the ledger of this machine, and where it is now.
//!
//! It only reads. What the ledger cannot know, which is how much waits in a queue, it asks the broker's management
//! API; it never takes a message out of a queue to look at it.

mod broker;
mod text;

use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use self::broker::Depth;
use super::report::unreadable;
use super::{Exit, Format};
use crate::chain::chain;
use crate::config::{Config, MessageKind};
use crate::delay::Delay;
use crate::ledger::trace::{MessageState, Trace, TracedMessage};
use crate::message::ExchangeNames;

/// Arguments of `orderd trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The order's id
    #[arg(value_name = "ORDER ID")]
    id: String,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What is printed. As JSON, a contract: see the README.
#[derive(Debug, Serialize)]
struct Told {
    #[serde(flatten)]
    trace: Trace,
    /// Where its messages are.
    places: Vec<Whereabouts>,
    /// Why the broker could not be asked, if it was.
    broker_error: Option<String>,
}

/// Where one message is.
#[derive(Debug, Serialize)]
struct Whereabouts {
    message: TracedMessage,
    #[serde(flatten)]
    place: MessageState,
    /// The queues in which it may be.
    queues: Vec<Queue>,
}

/// A queue, and what waits in it.
#[derive(Debug, Serialize)]
struct Queue {
    name: String,
    /// What the broker counted last; `None` if it was not asked, or did not say.
    #[serde(flatten)]
    depth: Option<Depth>,
}

/// Reads, asks and prints.
///
/// Returns the exit code: 0, 1 if the ledger knows nothing of the order, 70 or 78 where it cannot be read.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(
    args: &TraceArgs,
    config: &Config,
    now: Timestamp,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let mut trace = match config.ledger.location().reader().trace(&args.id).await {
        Ok(trace) => trace,
        Err(error) => {
            writeln!(err, "orderd: cannot read the ledger: {}", chain(&error))?;
            return Ok(unreadable(&error));
        }
    };
    let accepted = trace.order.is_some();
    trace.keep_failures(|message, consumer| {
        let kind = config.consumers.get(consumer).map(|consumer| consumer.messages);
        match message {
            // Without an order, it may be the id of some other message that failed.
            TracedMessage::Order => {
                !accepted || !matches!(kind, Some(MessageKind::Notification | MessageKind::Analytics))
            }
            TracedMessage::Notification | TracedMessage::Analytics | TracedMessage::AnalyticsFailed => {
                kind != Some(MessageKind::Order)
            }
        }
    });
    let exit = if trace.is_empty() { Exit::Refused } else { Exit::Done };
    let mut places: Vec<Whereabouts> = trace
        .message_states(now)
        .into_iter()
        .map(|(message, place)| {
            let queues = queues(config, message, &place, &trace);
            Whereabouts { message, queues: queues.into_iter().map(|name| Queue { name, depth: None }).collect(), place }
        })
        .collect();
    let broker_error = broker::measure(config, &mut places).await.err().map(|error| chain(&error));
    let told = Told { trace, places, broker_error };
    match args.format {
        Format::Text => text::write(&told, now, out)?,
        Format::Json => writeln!(out, "{:#}", serde_json::to_value(&told)?)?,
    }
    Ok(exit)
}

/// The names of the queues in which a message may be.
fn queues(config: &Config, message: TracedMessage, place: &MessageState, trace: &Trace) -> Vec<String> {
    let of = |consumer: &str| config.consumers.get(consumer).map(|consumer| consumer.queue.clone());
    let of_kind = |kind: MessageKind| {
        let consumers = config.consumers.values().filter(|consumer| consumer.messages == kind);
        consumers.map(|consumer| consumer.queue.clone()).collect::<Vec<_>>()
    };
    // A failure that its handler has not worked on yet is in none of its consumer's queues.
    let with_failures = |mut queues: Vec<String>| {
        queues.extend(of_kind(MessageKind::Failure));
        queues
    };
    match place {
        MessageState::Done { .. } => Vec::new(),
        MessageState::DeadLettered { .. } => vec![ExchangeNames::DEAD_LETTER_QUEUE.to_owned()],
        MessageState::Waiting { consumer, delay, .. } => {
            let queue = of(consumer).zip(delay.parse::<Delay>().ok());
            queue.map(|(queue, delay)| ExchangeNames::retry_queue(&queue, delay)).into_iter().collect()
        }
        MessageState::Due { consumer, .. } => with_failures(of(consumer).into_iter().collect()),
        MessageState::Unknown => with_failures(of_kind(MessageKind::Order)),
        MessageState::UnderWay { .. } => with_failures(match message {
            TracedMessage::Order => trace.order.iter().filter_map(|order| of(&order.consumer)).collect(),
            TracedMessage::Notification => of_kind(MessageKind::Notification),
            TracedMessage::Analytics | TracedMessage::AnalyticsFailed => of_kind(MessageKind::Analytics),
        }),
    }
}
