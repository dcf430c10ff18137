//! One order's life, as far as the ledger knows it, and where it is now.
//!
//! It says what is recorded and what follows from it. It never guesses: what is not recorded is left out.

use std::path::Path;

use jiff::Timestamp;
use serde::Serialize;

use super::sqlite::{self, OpenError};
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
    pub steps: Vec<Step>,
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
pub struct Step {
    /// When. Failures that went through a queue are known to the second.
    pub at: Timestamp,
    /// Which message it happened to.
    pub message: Subject,
    /// What happened.
    #[serde(flatten)]
    pub event: Happened,
}

/// An order's own message, and the two that orderd publishes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
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
pub enum Happened {
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
pub enum Place {
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

impl Subject {
    /// What follows the order's id in the message's identity.
    pub(super) const SUFFIXES: [(Subject, &str); 4] = [
        (Subject::Order, ""),
        (Subject::Notification, "/notification/processed"),
        (Subject::Analytics, "/analytics/processed"),
        (Subject::AnalyticsFailed, "/analytics/failed"),
    ];
}

impl Trace {
    /// Whether the ledger knows nothing of the order.
    pub fn is_empty(&self) -> bool {
        self.order.is_none() && self.steps.is_empty()
    }

    /// Drops failures that do not belong to the order: messages of different kinds may have the same identity, such as
    /// an order `o/notification/processed` and the notification of order `o`. `belongs` is told the message and the
    /// consumer that failed.
    pub fn keep_failures(&mut self, belongs: impl Fn(Subject, &str) -> bool) {
        self.steps.retain(|step| match &step.event {
            Happened::Failed { consumer, .. } | Happened::DeadLettered { consumer, .. } => {
                belongs(step.message, consumer)
            }
            Happened::Accepted { .. } | Happened::Processed | Happened::Notified { .. } | Happened::Counted => true,
        });
    }

    /// Where each message of the order is that must be somewhere: the order, what was published of it, and another order
    /// of its id that was dead-lettered after it was done.
    pub fn places(&self, now: Timestamp) -> Vec<(Subject, Place)> {
        let order = self.place(Subject::Order, now).unwrap_or(Place::Unknown);
        let done = match order {
            Place::Done { since } => Some(since),
            Place::Unknown
            | Place::DeadLettered { .. }
            | Place::Waiting { .. }
            | Place::Due { .. }
            | Place::UnderWay { .. } => None,
        };
        let mut places = vec![(Subject::Order, order)];
        let dead_lettered_since = self.steps.iter().rfind(|step| {
            step.message == Subject::Order
                && matches!(step.event, Happened::DeadLettered { .. })
                && done < Some(step.at)
        });
        if let (Some(_), Some(step)) = (done, dead_lettered_since) {
            // Another order of the same id.
            places.push((Subject::Order, Place::DeadLettered { since: step.at }));
        }
        for subject in [Subject::Notification, Subject::Analytics, Subject::AnalyticsFailed] {
            let published = done.filter(|_| subject != Subject::AnalyticsFailed).map(|since| Place::UnderWay { since });
            places.extend(self.place(subject, now).or(published).map(|place| (subject, place)));
        }
        places
    }

    /// What the last step of a message says. A message that is done stays so, whatever came later: what is delivered
    /// again is recognised.
    fn place(&self, subject: Subject, now: Timestamp) -> Option<Place> {
        let steps = || self.steps.iter().filter(|step| step.message == subject);
        let done =
            |step: &&Step| matches!(step.event, Happened::Processed | Happened::Notified { .. } | Happened::Counted);
        if let Some(step) = steps().find(done) {
            return Some(Place::Done { since: step.at });
        }
        let last = steps().next_back()?;
        Some(match &last.event {
            Happened::Failed { consumer, delay: Some(delay), due_at: Some(due_at), .. } if *due_at > now => {
                let (consumer, delay) = (consumer.clone(), delay.clone());
                Place::Waiting { consumer, delay, since: last.at, due_at: *due_at }
            }
            Happened::Failed { consumer, due_at, .. } => {
                Place::Due { consumer: consumer.clone(), since: due_at.unwrap_or(last.at) }
            }
            Happened::DeadLettered { .. } => Place::DeadLettered { since: last.at },
            Happened::Accepted { .. } => Place::UnderWay { since: last.at },
            Happened::Processed | Happened::Notified { .. } | Happened::Counted => Place::Done { since: last.at },
        })
    }
}

/// When a delay that began then is over.
pub(super) fn due(failed_at: Timestamp, delay: &str) -> Option<Timestamp> {
    failed_at.checked_add(delay.parse::<Delay>().ok()?.as_duration()).ok()
}

/// Reads what is recorded of an order, from any process while a daemon writes. Blocks for some milliseconds of disk
/// I/O; found by keys alone, however large the ledger.
///
/// # Errors
/// There is no readable ledger of this version in the directory.
pub fn read(directory: &Path, id: &str) -> Result<Trace, OpenError> {
    sqlite::read_trace(directory, id)
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;
