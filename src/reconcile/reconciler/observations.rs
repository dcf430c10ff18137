//! Makes observations, with their texts, from the state of one queue or from one gap. Pure.

use jiff::{SignedDuration, Timestamp};

use super::super::broker_view::{FindingKind, QueueView};
use super::super::count_comparison::Gap;
use super::super::findings::Observation;
use crate::metrics::{CollectionPause, CollectorReading, FailedUndos};
use crate::topology::ExchangeNames;

/// Messages wait, and the queue has no consumer.
pub(super) fn no_consumer(name: &str, queue: &QueueView) -> Option<Observation> {
    let ready = queue.ready.filter(|ready| *ready > 0)?;
    (queue.consumers == Some(0)).then(|| Observation {
        queue: name.to_owned(),
        kind: FindingKind::NoConsumer,
        messages: Some(ready),
        detail: "messages are waiting, but the queue has no consumer".to_owned(),
    })
}

/// Messages wait, and the consumer is paused. No observation if another instance consumes the queue, where the consumer need
/// not be paused.
pub(super) fn paused_consumer(name: &str, queue: &QueueView, consumer: &str, since: Timestamp) -> Option<Observation> {
    let ready = queue.ready.filter(|ready| *ready > 0)?;
    queue.consumers.is_none_or(|consumers| consumers == 0).then(|| Observation {
        queue: name.to_owned(),
        kind: FindingKind::ConsumerPaused,
        messages: Some(ready),
        detail: format!(
            "messages are waiting: consumer {consumer:?} has been paused since {since:.0}; resume it with \
             `orderd resume {consumer}`"
        ),
    })
}

/// How long a failed undo is a finding. Only the person who undoes it knows when that is done.
const FAILED_UNDO_SHOWN: SignedDuration = SignedDuration::from_hours(24);

/// What the steps of dead-lettered messages have done could not be undone.
pub(super) fn failed_undos(FailedUndos { messages, last }: FailedUndos, now: Timestamp) -> Option<Observation> {
    let last = last.filter(|last| now.duration_since(*last) < FAILED_UNDO_SHOWN)?;
    Some(Observation {
        queue: ExchangeNames::DEAD_LETTER_QUEUE.to_owned(),
        kind: FindingKind::UndoFailed,
        messages: Some(messages),
        detail: format!(
            "what the steps of failed messages have done could not be undone, the last time at {last:.0}; the number is since orderd \
             started, with those that were undone later. What is left: `orderd dead-letters list --reason undo_failed`; undo it by hand, \
             or replay the dead letter once the service works"
        ),
    })
}

/// Messages stay in a dead letter queue although it is drained.
pub(super) fn not_collected(queue: &str, collector: &CollectorReading) -> Option<Observation> {
    let CollectorReading { too_large, refused, .. } = collector;
    let detail = match (too_large, refused) {
        (0, 0) => {
            return (collector.pause == Some(CollectionPause::DiskSpace)).then(|| Observation {
                queue: queue.to_owned(),
                kind: FindingKind::NotCollected,
                messages: None,
                detail:
                    "the ledger's disk is nearly full, and what is left is for orders: make room, or move the ledger"
                        .to_owned(),
            });
        }
        (_, 0) => {
            "they are larger than broker.max_body, or than 64 MiB, so they cannot be stored: raise the former and restart orderd, \
             or take them out; thousands of them use up broker.max_unsettled_bytes, and keep those behind them in the queue"
                .to_owned()
        }
        (0, _) => "the ledger refuses them: the log of level debug has the errors; report it".to_owned(),
        _ => format!("{too_large} are larger than broker.max_body, and the ledger refuses {refused}"),
    };
    Some(Observation {
        queue: queue.to_owned(),
        kind: FindingKind::NotCollected,
        messages: Some(too_large + refused),
        detail,
    })
}

/// The broker's count of acks differs from orderd's.
pub(super) fn ack_gap(queue: &str, gap: Option<Gap>) -> Option<Observation> {
    let (kind, messages, detail) = match gap? {
        Gap::More(messages) => {
            let detail = "the broker counts more acks than orderd has sent: another client has taken messages";
            (FindingKind::AckedByOthers, messages, detail)
        }
        Gap::Fewer(messages) => {
            let detail = "the broker counts fewer acks than orderd has sent, although the connection was not lost";
            (FindingKind::AcksMissing, messages, detail)
        }
    };
    Some(Observation { queue: queue.to_owned(), kind, messages: Some(messages), detail: detail.to_owned() })
}

/// The broker's count of deliveries exceeds orderd's. The opposite is no observation: orderd cannot have received more than
/// was delivered, so the broker must have lost statistics.
pub(super) fn delivery_gap(queue: &str, gap: Option<Gap>) -> Option<Observation> {
    match gap? {
        Gap::More(messages) => Some(Observation {
            queue: queue.to_owned(),
            kind: FindingKind::DeliveriesMissing,
            messages: Some(messages),
            detail: "the broker delivered more messages than orderd received; it redelivers them when the connection \
                     closes"
                .to_owned(),
        }),
        Gap::Fewer(_) => None,
    }
}
