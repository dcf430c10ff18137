//! `orderd trace`: the history of one order, from the daemon's ledger or that of this machine, and where it is now.
//!
//! It only reads. The number of messages in a queue comes from the broker's management API; it never takes a message out
//! of a queue.

mod queue_depth;
mod text;

use std::io::{self, Write};

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use self::queue_depth::QueueDepth;
use super::admin_client::DaemonTarget;
use super::ledger_source::{LedgerSource, OpenedSource, SourceError};
use super::output::write_json;
use super::{Exit, Format};
use crate::chain::chain;
use crate::config::{Config, MessageKind, Sources};
use crate::delay::Delay;
use crate::ledger::trace::{MessageState, StoredCopy, Trace, TracedMessage};
use crate::message::ExchangeNames;

/// Arguments of `orderd trace`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Id of the order
    #[arg(value_name = "ORDER_ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    id: String,
    #[command(flatten)]
    daemon: DaemonTarget,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// What is printed. Its JSON is a contract: see `docs/reference/http-api.md`.
#[derive(Debug, Serialize)]
struct TraceReport {
    #[serde(flatten)]
    trace: Trace,
    /// Where its messages are now.
    places: Vec<MessageLocation>,
    /// Why the depths of queues are not known; `None` if the broker answered.
    broker_error: Option<String>,
    /// Whether the configuration, which names the queues, is valid.
    #[serde(skip)]
    has_config: bool,
}

/// Where one message is now.
#[derive(Debug, Serialize)]
struct MessageLocation {
    message: TracedMessage,
    #[serde(flatten)]
    state: MessageState,
    /// The queues that may contain it.
    queues: Vec<TracedQueue>,
    /// Its copies in the store of dead letters, the latest first.
    stored: Vec<StoredCopy>,
}

/// A queue that may contain a message.
#[derive(Debug, Serialize)]
struct TracedQueue {
    name: String,
    /// The broker's latest counts; `None` if it did not report any.
    #[serde(flatten)]
    depth: Option<QueueDepth>,
}

impl TracedQueue {
    /// Whether the broker reports that it has no messages. Its counts are some seconds old.
    fn is_empty(&self) -> bool {
        matches!(self.depth, Some(QueueDepth { ready: Some(0), unacknowledged: Some(0) }))
    }
}

/// Reads what is recorded, asks the broker, and prints the trace. Without a valid configuration, which names the queues and the broker's
/// address, it prints what the ledger knows.
///
/// Returns the exit code: 0, 1 if nothing is recorded about the order, 69 if the daemon that is named does not answer, 70 or 78 if the ledger
/// cannot be read.
///
/// # Errors
/// When `out` or `err` cannot be written.
pub async fn run(
    args: &TraceArgs,
    sources: &Sources,
    now: Timestamp,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> io::Result<Exit> {
    let OpenedSource { source, config } = match LedgerSource::open(&args.daemon, sources, err).await? {
        Ok(opened) => opened,
        Err(exit) => return Ok(exit),
    };
    let config = config.as_ref();
    let stored = StoredCopy::query(&args.id);
    let read = async { Ok((source.trace(&args.id).await?, source.letters(stored).await?.letters)) };
    let (mut trace, stored) = match read.await {
        Ok(found) => found,
        Err(error) => return SourceError::report(&error, err),
    };
    let is_accepted = trace.order.is_some();
    trace.keep_failures(|message, consumer| {
        let kind = config.and_then(|config| config.consumers.get(consumer)).map(|consumer| consumer.messages);
        match message {
            // Without an accepted order, the id may be that of another message that failed.
            TracedMessage::Order | TracedMessage::Cancellation => {
                !is_accepted || !matches!(kind, Some(MessageKind::Notification | MessageKind::Analytics))
            }
            TracedMessage::Notification
            | TracedMessage::NotificationCancelled
            | TracedMessage::Analytics
            | TracedMessage::AnalyticsFailed
            | TracedMessage::AnalyticsCancelled => kind != Some(MessageKind::Order),
        }
    });
    let exit = if trace.is_empty() && stored.is_empty() { Exit::Refused } else { Exit::Done };
    let mut places: Vec<MessageLocation> = trace
        .message_states(now)
        .into_iter()
        .map(|(message, state)| {
            let queues = config.map_or_else(Vec::new, |config| queues(config, message, &state, &trace));
            MessageLocation {
                message,
                queues: queues.into_iter().map(|name| TracedQueue { name, depth: None }).collect(),
                stored: StoredCopy::of_message(&args.id, message, &stored),
                state,
            }
        })
        .collect();
    let broker_error = match config {
        Some(config) => queue_depth::add_depths(config, &mut places).await.err().map(|error| chain(&error)),
        None => Some("there is no valid configuration here".to_owned()),
    };
    let report = TraceReport { trace, places, broker_error, has_config: config.is_some() };
    match args.format {
        Format::Text => text::write(&report, now, out)?,
        Format::Json => write_json(&report, out)?,
    }
    Ok(exit)
}

/// The names of the queues that may contain a message.
fn queues(config: &Config, message: TracedMessage, state: &MessageState, trace: &Trace) -> Vec<String> {
    let queue_of = |consumer: &str| config.consumers.get(consumer).map(|consumer| consumer.queue.clone());
    let of_kind = |kind: MessageKind| {
        let consumers = config.consumers.values().filter(|consumer| consumer.messages == kind);
        consumers.map(|consumer| consumer.queue.clone()).collect::<Vec<_>>()
    };
    // A failure that the failed-order consumer has not handled yet is still in that consumer's queue.
    let with_failed_queue = |mut queues: Vec<String>| {
        queues.extend(of_kind(MessageKind::Failure));
        queues
    };
    match state {
        MessageState::Done { .. } | MessageState::Cancelled { .. } => Vec::new(),
        MessageState::DeadLettered { .. } => vec![ExchangeNames::DEAD_LETTER_QUEUE.to_owned()],
        MessageState::Waiting { consumer, delay, .. } => {
            let queue = queue_of(consumer).zip(delay.parse::<Delay>().ok());
            queue.map(|(queue, delay)| ExchangeNames::retry_queue(&queue, delay)).into_iter().collect()
        }
        MessageState::Due { consumer, .. } => with_failed_queue(queue_of(consumer).into_iter().collect()),
        // A mistyped routing key matches no binding.
        MessageState::Unknown => {
            let mut queues = with_failed_queue(of_kind(MessageKind::Order));
            queues.push(ExchangeNames::UNROUTED_QUEUE.to_owned());
            queues
        }
        MessageState::UnderWay { .. } => with_failed_queue(match message {
            TracedMessage::Order | TracedMessage::Cancellation => {
                let accepted = trace.order.as_ref().map(|order| order.consumer.as_str());
                accepted.or_else(|| trace.replayed_in()).and_then(queue_of).into_iter().collect()
            }
            TracedMessage::Notification | TracedMessage::NotificationCancelled => of_kind(MessageKind::Notification),
            TracedMessage::Analytics | TracedMessage::AnalyticsFailed | TracedMessage::AnalyticsCancelled => {
                of_kind(MessageKind::Analytics)
            }
        }),
    }
}
