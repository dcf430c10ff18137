//! One order's life, as far as the ledger knows it, and where it is now.
//!
//! It says what is recorded and what follows from it. It never guesses: what is not recorded is left out.

use jiff::Timestamp;
use serde::Serialize;

use crate::delay::Delay;
use crate::domain::ExactSum;

/// What is recorded of one order. Its JSON is a contract: see the README.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// The order's id.
    pub id: String,
    /// What was ordered; `None` if no order of this id was accepted, or its row is older than the retention.
    pub order: Option<TracedOrder>,
    /// What happened to it and to its events, in the order of their times.
    pub steps: Vec<TraceStep>,
}

/// An accepted order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TracedOrder {
    /// `accepted` or `processed`.
    pub status: String,
    /// The consumer that took it.
    pub consumer: String,
    /// What was ordered.
    pub product: String,
    /// How many pieces.
    pub quantity: i64,
    /// Price of one piece.
    pub price: ExactSum,
    /// Price times quantity.
    pub total: ExactSum,
    /// The amounts' currency.
    pub currency: String,
    /// Whether the producer marked it urgent.
    pub priority: bool,
    /// Who ordered, if named.
    pub customer_id: Option<String>,
    /// When the customer ordered, if the order said so.
    pub placed_at: Option<Timestamp>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TraceStep {
    /// When. Failures that went through a queue are known to the second.
    pub at: Timestamp,
    /// Which message it happened to.
    pub message: TracedMessage,
    /// What happened.
    #[serde(flatten)]
    pub event: TraceEvent,
}

/// An order's own message, and the two that orderd publishes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TracedMessage {
    /// The order.
    Order,
    /// What the customer is told.
    Notification,
    /// What is counted: that it was processed.
    Analytics,
    /// What is counted: that it was dead-lettered.
    AnalyticsFailed,
}

/// What happened in a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum TraceEvent {
    /// The order passed its checks and was entered.
    Accepted {
        /// The consumer that took it.
        consumer: String,
    },
    /// An attempt failed, and was to be retried after a delay; without one, it was the last.
    Failed {
        /// The consumer that failed.
        consumer: String,
        /// Delayed retries before this attempt.
        retries: i64,
        /// The failure's kind.
        kind: String,
        /// Its stable code.
        code: String,
        /// Its text for people.
        reason: String,
        /// The delay before the next attempt.
        delay: Option<String>,
        /// When that delay was over, at the earliest.
        due_at: Option<Timestamp>,
    },
    /// The message was dead-lettered in the dead letter queue.
    DeadLettered {
        /// The consumer that failed.
        consumer: String,
        /// The value of `x-dead-letter-reason`.
        reason: String,
        /// Delayed retries before.
        retries: i64,
        /// The last failure's stable code.
        code: String,
        /// The queue it failed in, where known.
        origin_queue: Option<String>,
    },
    /// The order's events had been confirmed by the broker: it is done.
    Processed,
    /// The notification was handed to its channel.
    Notified {
        /// The channel.
        channel: String,
    },
    /// The analytics event was recorded, and a sale added to the aggregates.
    Counted,
}

/// Where a message is, by what the ledger knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum MessageState {
    /// Nothing is recorded of it: it may wait unread in a queue.
    Unknown,
    /// All is done, since then.
    Done {
        /// When that was recorded.
        since: Timestamp,
    },
    /// In the dead letter queue since then, unless somebody has taken it out.
    DeadLettered {
        /// When it was dead-lettered.
        since: Timestamp,
    },
    /// In a retry queue.
    Waiting {
        /// The consumer that will try again.
        consumer: String,
        /// The retry queue's delay.
        delay: String,
        /// When it failed.
        since: Timestamp,
        /// When its delay is over, at the earliest.
        due_at: Timestamp,
    },
    /// In its queue, ready or in work: its delay is over.
    Due {
        /// The consumer that will try again, or does.
        consumer: String,
        /// Since when, at the earliest.
        since: Timestamp,
    },
    /// In its queue, ready or in work: it was accepted, or published by orderd, and has not failed since.
    UnderWay {
        /// Since when.
        since: Timestamp,
    },
}

impl TracedMessage {
    /// What follows the order's id in the message's identity.
    pub(super) const SUFFIXES: [(TracedMessage, &str); 4] = [
        (TracedMessage::Order, ""),
        (TracedMessage::Notification, "/notification/processed"),
        (TracedMessage::Analytics, "/analytics/processed"),
        (TracedMessage::AnalyticsFailed, "/analytics/failed"),
    ];
}

impl Trace {
    /// Sorts the steps by time. They must come with those of one time in the order they happened: an attempt before the
    /// dead-lettering it led to.
    pub(super) fn new(id: &str, order: Option<TracedOrder>, mut steps: Vec<TraceStep>) -> Self {
        // Failures are recorded to the second only. Whatever happened to an order's events happened after the order was
        // accepted.
        let accepted = steps.iter().find(|step| matches!(step.event, TraceEvent::Accepted { .. })).map(|step| step.at);
        steps.sort_by_key(|step| {
            if step.message == TracedMessage::Order { step.at } else { step.at.max(accepted.unwrap_or(step.at)) }
        });
        Trace { id: id.to_owned(), order, steps }
    }

    /// Whether the ledger knows nothing of the order.
    pub fn is_empty(&self) -> bool {
        self.order.is_none() && self.steps.is_empty()
    }

    /// Drops failures that do not belong to the order: messages of different kinds may have the same identity, such as
    /// an order `o/notification/processed` and the notification of order `o`. `belongs` is told the message and the
    /// consumer that failed.
    pub fn keep_failures(&mut self, belongs: impl Fn(TracedMessage, &str) -> bool) {
        self.steps.retain(|step| match &step.event {
            TraceEvent::Failed { consumer, .. } | TraceEvent::DeadLettered { consumer, .. } => {
                belongs(step.message, consumer)
            }
            TraceEvent::Accepted { .. } | TraceEvent::Processed | TraceEvent::Notified { .. } | TraceEvent::Counted => {
                true
            }
        });
    }

    /// Where each message of the order is that must be somewhere: the order, what was published of it, and another order
    /// of its id that was dead-lettered after it was done.
    pub fn message_states(&self, now: Timestamp) -> Vec<(TracedMessage, MessageState)> {
        let order = self.place(TracedMessage::Order, now).unwrap_or(MessageState::Unknown);
        let done = match order {
            MessageState::Done { since } => Some(since),
            MessageState::Unknown
            | MessageState::DeadLettered { .. }
            | MessageState::Waiting { .. }
            | MessageState::Due { .. }
            | MessageState::UnderWay { .. } => None,
        };
        let mut places = vec![(TracedMessage::Order, order)];
        let dead_lettered_since = self.steps.iter().rfind(|step| {
            step.message == TracedMessage::Order
                && matches!(step.event, TraceEvent::DeadLettered { .. })
                && done < Some(step.at)
        });
        if let (Some(_), Some(step)) = (done, dead_lettered_since) {
            // Another order of the same id.
            places.push((TracedMessage::Order, MessageState::DeadLettered { since: step.at }));
        }
        for subject in [TracedMessage::Notification, TracedMessage::Analytics, TracedMessage::AnalyticsFailed] {
            let published = done
                .filter(|_| subject != TracedMessage::AnalyticsFailed)
                .map(|since| MessageState::UnderWay { since });
            places.extend(self.place(subject, now).or(published).map(|place| (subject, place)));
        }
        places
    }

    /// What the last step of a message says. A message that is done stays so, whatever came later: what is delivered
    /// again is recognised.
    fn place(&self, subject: TracedMessage, now: Timestamp) -> Option<MessageState> {
        let steps = || self.steps.iter().filter(|step| step.message == subject);
        let done = |step: &&TraceStep| {
            matches!(step.event, TraceEvent::Processed | TraceEvent::Notified { .. } | TraceEvent::Counted)
        };
        if let Some(step) = steps().find(done) {
            return Some(MessageState::Done { since: step.at });
        }
        let last = steps().next_back()?;
        Some(match &last.event {
            TraceEvent::Failed { consumer, delay: Some(delay), due_at: Some(due_at), .. } if *due_at > now => {
                let (consumer, delay) = (consumer.clone(), delay.clone());
                MessageState::Waiting { consumer, delay, since: last.at, due_at: *due_at }
            }
            TraceEvent::Failed { consumer, due_at, .. } => {
                MessageState::Due { consumer: consumer.clone(), since: due_at.unwrap_or(last.at) }
            }
            TraceEvent::DeadLettered { .. } => MessageState::DeadLettered { since: last.at },
            TraceEvent::Accepted { .. } => MessageState::UnderWay { since: last.at },
            TraceEvent::Processed | TraceEvent::Notified { .. } | TraceEvent::Counted => {
                MessageState::Done { since: last.at }
            }
        })
    }
}

/// When a delay that began then is over.
pub(super) fn due(failed_at: Timestamp, delay: &str) -> Option<Timestamp> {
    failed_at.checked_add(delay.parse::<Delay>().ok()?.as_duration()).ok()
}
