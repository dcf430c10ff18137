//! Traces: what the ledger has recorded about one order, and the state of its messages that follows from it.
//!
//! It never guesses: what is not recorded is left out.

mod order;
mod stored_copy;

use jiff::{SignedDuration, Timestamp};
pub use order::{TracedItem, TracedOrder};
use serde::{Deserialize, Serialize};
use serde_json::Value;
pub use stored_copy::StoredCopy;
use utoipa::ToSchema;

use crate::delay::Delay;
use crate::domain::CANCELLATION_SUFFIX;
use crate::ledger::dead_letters::LetterProgress;

/// Everything recorded about one order. Its JSON is a contract: see `docs/reference/http-api.md`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trace {
    /// The order's id.
    pub id: String,
    /// The accepted order; `None` if no order with this id was accepted, or its row was removed by retention.
    pub order: Option<TracedOrder>,
    /// What happened to the order and to its events, sorted by time.
    pub steps: Vec<TraceStep>,
}

/// One thing that happened to a message of the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceStep {
    /// When. Failures that went through a queue are known to the second.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Which message it happened to.
    pub message: TracedMessage,
    /// What happened.
    #[serde(flatten)]
    pub event: TraceEvent,
}

/// A message of an order: the order itself, or an event that orderd published about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TracedMessage {
    /// The order itself.
    Order,
    /// The notification of the customer.
    Notification,
    /// The analytics event for a processed order.
    Analytics,
    /// The analytics event for a dead-lettered order.
    AnalyticsFailed,
    /// The cancellation of the order.
    Cancellation,
    /// The notification of the customer that the order was cancelled.
    NotificationCancelled,
    /// The analytics event for a cancelled order.
    AnalyticsCancelled,
}

/// What happened in a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum TraceEvent {
    /// The order passed its checks and was recorded.
    Accepted {
        /// The consumer that accepted it.
        consumer: String,
    },
    /// An attempt failed. It is retried after the delay; without a delay it was the last attempt.
    Failed {
        /// The consumer that failed.
        consumer: String,
        /// The replay after which it was made, if there was one.
        replay: Option<i64>,
        /// Delayed retries before this attempt, since the replay.
        retries: i64,
        /// The failure's kind.
        kind: String,
        /// The failure's stable code.
        code: String,
        /// The failure's text.
        reason: String,
        /// The delay before the next attempt.
        delay: Option<String>,
        /// The earliest time of the next attempt.
        #[schema(value_type = Option<String>, format = DateTime)]
        due_at: Option<Timestamp>,
    },
    /// The message was dead-lettered.
    DeadLettered {
        /// The consumer that failed.
        consumer: String,
        /// The value of `x-dead-letter-reason`.
        reason: String,
        /// Delayed retries before it was dead-lettered.
        retries: i64,
        /// The last failure's stable code.
        code: String,
        /// The queue it failed in, if known.
        origin_queue: Option<String>,
        /// Its number in the store of dead letters, if it is there.
        letter: Option<i64>,
    },
    /// A stored dead letter of it was published again.
    Replayed {
        /// The replay's number.
        replay: i64,
        /// Who has started it.
        by: String,
        /// The dead letter's number.
        letter: i64,
        /// The consumer that had failed.
        consumer: Option<String>,
        /// The outcome, or how far it is.
        outcome: LetterProgress,
        /// The code with which it failed again.
        code: Option<String>,
        /// The dead letter that it is now, if it was dead-lettered again.
        came_back_as: Option<i64>,
    },
    /// A step, or its undo, was called.
    #[serde(rename = "called")]
    StepCalled {
        /// The step's name.
        name: String,
        /// `do` or `undo`.
        action: String,
        /// 1, and one more each time that a replayed order begins anew with its steps.
        round: i64,
        /// `called`, `done` or `failed`.
        status: String,
        /// Calls so far.
        attempts: i64,
        /// How long the last call took; `None` if it is not recorded how it ended.
        duration_ms: Option<i64>,
        /// The result, JSON, once it is done.
        result: Option<Value>,
        /// The last failure's stable code.
        code: Option<String>,
        /// The last failure's text.
        reason: Option<String>,
    },
    /// The broker had confirmed the order's events: the order is done.
    Processed,
    /// The order was cancelled.
    Cancelled,
    /// The cancellation is complete: steps are undone, and its events are confirmed. Only if that was later than the cancellation.
    CancellationFinished,
    /// The order arrived after it was cancelled, and was not processed.
    Prevented,
    /// A provider of a channel did not accept the notification.
    DeliveryFailed {
        /// The channel.
        channel: String,
        /// The provider: the channel itself, or a fallback.
        provider: String,
        /// The recipient, shortened so that it names nobody.
        recipient: Option<String>,
        /// The failure's kind.
        kind: String,
        /// The failure's stable code.
        code: String,
        /// The failure's text.
        reason: String,
    },
    /// The notification was sent to its channel.
    Notified {
        /// The channel.
        channel: String,
        /// The provider that accepted it; `None`: it was written to the file of notifications.
        provider: Option<String>,
        /// The recipient, shortened so that it names nobody.
        recipient: Option<String>,
    },
    /// The notification was not sent, because of what the order lacks.
    Skipped {
        /// The channel.
        channel: String,
        /// Why, a stable code.
        code: String,
    },
    /// The analytics event was recorded, and its sale, if it has one, added to the aggregates.
    Counted,
}

/// Where a message is, derived from what is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum MessageState {
    /// Nothing is recorded about it: it may still be in a queue.
    Unknown,
    /// Done.
    Done {
        /// When that was recorded.
        #[schema(value_type = String, format = DateTime)]
        since: Timestamp,
    },
    /// It was cancelled before it was done: it will not be processed.
    Cancelled {
        /// When.
        #[schema(value_type = String, format = DateTime)]
        since: Timestamp,
    },
    /// In the dead letter queue or in the store of dead letters, unless it was removed there.
    DeadLettered {
        /// When it was dead-lettered.
        #[schema(value_type = String, format = DateTime)]
        since: Timestamp,
    },
    /// In a retry queue until its delay is over.
    Waiting {
        /// The consumer that will retry it.
        consumer: String,
        /// The retry queue's delay.
        delay: String,
        /// When it failed.
        #[schema(value_type = String, format = DateTime)]
        since: Timestamp,
        /// The earliest time of the retry.
        #[schema(value_type = String, format = DateTime)]
        due_at: Timestamp,
    },
    /// Its delay is over: ready or in flight in its queue.
    Due {
        /// The consumer that retries it.
        consumer: String,
        /// The earliest time at which it was due.
        #[schema(value_type = String, format = DateTime)]
        since: Timestamp,
    },
    /// Accepted, or published by orderd, and not failed since: ready or in flight in its queue.
    UnderWay {
        /// When it was accepted; for an event, when its order was processed.
        #[schema(value_type = String, format = DateTime)]
        since: Timestamp,
    },
}

impl TracedMessage {
    /// The suffix that a message's identity has after the order's id.
    pub(super) const SUFFIXES: [(TracedMessage, &str); 7] = [
        (TracedMessage::Order, ""),
        (TracedMessage::Notification, "/notification/processed"),
        (TracedMessage::Analytics, "/analytics/processed"),
        (TracedMessage::AnalyticsFailed, "/analytics/failed"),
        (TracedMessage::Cancellation, CANCELLATION_SUFFIX),
        (TracedMessage::NotificationCancelled, "/notification/cancelled"),
        (TracedMessage::AnalyticsCancelled, "/analytics/cancelled"),
    ];

    /// The identity of this message of an order.
    pub fn identity(self, order: &str) -> String {
        let suffix = Self::SUFFIXES.iter().find(|(message, _)| *message == self).map_or("", |(_, suffix)| suffix);
        [order, suffix].concat()
    }

    /// Whether a stored dead letter about an order that has this identity is this message of it. One that says nothing about itself is the
    /// order.
    pub fn is_meant_by(self, order: &str, identity: Option<&str>) -> bool {
        match identity {
            Some(identity) => self.identity(order) == identity,
            None => self == TracedMessage::Order,
        }
    }
}

impl TraceEvent {
    /// Whether it is the last one of an attempt to handle its message, and so follows a failure of the same second.
    fn is_end(&self) -> bool {
        match self {
            TraceEvent::DeadLettered { .. }
            | TraceEvent::Processed
            | TraceEvent::Cancelled
            | TraceEvent::CancellationFinished
            | TraceEvent::Prevented
            | TraceEvent::Notified { .. }
            | TraceEvent::Skipped { .. }
            | TraceEvent::Counted => true,
            TraceEvent::Accepted { .. }
            | TraceEvent::Failed { .. }
            | TraceEvent::Replayed { .. }
            | TraceEvent::StepCalled { .. }
            | TraceEvent::DeliveryFailed { .. } => false,
        }
    }
}

/// The latest time at which a step may have happened. Of a failure, only the second is known: it happened in it, after all else that
/// did, but before the message was done. After a replay, it has failed after that.
fn latest_time(step: &TraceStep, ends: &[(TracedMessage, Timestamp)], replays: &[PublishedAgain]) -> Timestamp {
    let replay = match &step.event {
        TraceEvent::Failed { replay, .. } if step.at.as_millisecond() % 1_000 == 0 => *replay,
        _ => return step.at,
    };
    let is_replay = |again: &&PublishedAgain| again.message == step.message && Some(again.replay) == replay;
    let replayed_at = replays.iter().find(is_replay).map(|again| again.at);
    let first = replayed_at.map_or(step.at, |replayed_at| replayed_at.max(step.at));
    let last = step.at + SignedDuration::from_millis(999);
    // An event about an order follows the order's failure.
    let is_meant = |message| step.message == TracedMessage::Order || message == step.message;
    let end = ends.iter().filter(|(message, at)| is_meant(*message) && (first..=last).contains(at));
    end.map(|(_, at)| *at - SignedDuration::from_micros(1)).min().unwrap_or(last).max(first)
}

/// When a replay has published a message again.
struct PublishedAgain {
    message: TracedMessage,
    replay: i64,
    at: Timestamp,
}

impl PublishedAgain {
    fn read(step: &TraceStep) -> Option<Self> {
        match step.event {
            TraceEvent::Replayed { replay, .. } => Some(PublishedAgain { message: step.message, replay, at: step.at }),
            _ => None,
        }
    }
}

impl Trace {
    /// That of an order about which nothing is recorded.
    pub fn empty(id: &str) -> Self {
        Trace::new(id, None, Vec::new())
    }

    /// A trace with its steps sorted by time. The sort is stable, so steps with the same time must be passed in the
    /// order they happened: an attempt before the dead-lettering that followed it.
    pub(super) fn new(id: &str, order: Option<TracedOrder>, mut steps: Vec<TraceStep>) -> Self {
        // Failures are recorded to the second only, so a failed event may seem up to a second older than its order. An older
        // one is older: the order was accepted only after a replay, and what is known from before is its failure.
        let accepted = steps.iter().find(|step| matches!(step.event, TraceEvent::Accepted { .. })).map(|step| step.at);
        let ends: Vec<(TracedMessage, Timestamp)> =
            steps.iter().filter(|step| step.event.is_end()).map(|step| (step.message, step.at)).collect();
        let replays: Vec<_> = steps.iter().filter_map(PublishedAgain::read).collect();
        steps.sort_by_key(|step| {
            let at = latest_time(step, &ends, &replays);
            match accepted {
                Some(accepted)
                    if step.message != TracedMessage::Order
                        && accepted.duration_since(at) <= SignedDuration::from_secs(1) =>
                {
                    at.max(accepted)
                }
                _ => at,
            }
        });
        Trace { id: id.to_owned(), order, steps }
    }

    /// Whether nothing is recorded about the order.
    pub fn is_empty(&self) -> bool {
        self.order.is_none() && self.steps.is_empty()
    }

    /// The consumer in whose queue the order is that was published again, as far as that is known.
    pub fn replayed_in(&self) -> Option<&str> {
        self.steps.iter().rev().find_map(|step| match &step.event {
            TraceEvent::Replayed { consumer, .. } if step.message == TracedMessage::Order => consumer.as_deref(),
            _ => None,
        })
    }

    /// Drops failures that do not belong to the order: messages of different kinds may have the same identity, such as
    /// an order `o/notification/processed` and the notification of order `o`. `belongs` receives the message and the
    /// consumer that failed.
    pub fn keep_failures(&mut self, belongs: impl Fn(TracedMessage, &str) -> bool) {
        self.steps.retain(|step| match &step.event {
            TraceEvent::Failed { consumer, .. } | TraceEvent::DeadLettered { consumer, .. } => {
                belongs(step.message, consumer)
            }
            TraceEvent::Replayed { consumer, .. } => {
                consumer.as_deref().is_none_or(|consumer| belongs(step.message, consumer))
            }
            TraceEvent::Accepted { .. }
            | TraceEvent::StepCalled { .. }
            | TraceEvent::Processed
            | TraceEvent::Cancelled
            | TraceEvent::CancellationFinished
            | TraceEvent::Prevented
            | TraceEvent::DeliveryFailed { .. }
            | TraceEvent::Notified { .. }
            | TraceEvent::Skipped { .. }
            | TraceEvent::Counted => true,
        });
    }

    /// The state of each message of the order: the order itself, the events published about it, and a dead letter of an order with
    /// this id that is kept although this one is done or cancelled.
    pub fn message_states(&self, now: Timestamp) -> Vec<(TracedMessage, MessageState)> {
        let order = self.state(TracedMessage::Order, now).unwrap_or(MessageState::Unknown);
        let done = match order {
            MessageState::Done { since } => Some(since),
            MessageState::Unknown
            | MessageState::Cancelled { .. }
            | MessageState::DeadLettered { .. }
            | MessageState::Waiting { .. }
            | MessageState::Due { .. }
            | MessageState::UnderWay { .. } => None,
        };
        let cancelled = self.steps.iter().find(|step| matches!(step.event, TraceEvent::Cancelled));
        let order = cancelled.map_or(order, |step| MessageState::Cancelled { since: step.at });
        let mut states = vec![(TracedMessage::Order, order)];
        let dead_lettered_since = self.steps.iter().rfind(|step| {
            step.message == TracedMessage::Order
                && matches!(step.event, TraceEvent::DeadLettered { .. })
                && done < Some(step.at)
        });
        if let (true, Some(step)) = (done.is_some() || cancelled.is_some(), dead_lettered_since) {
            // Of this order, which had failed before it was cancelled, or of another one with the same id.
            states.push((TracedMessage::Order, MessageState::DeadLettered { since: step.at }));
        }
        for (message, _) in TracedMessage::SUFFIXES.into_iter().skip(1) {
            let published = done
                .filter(|_| matches!(message, TracedMessage::Notification | TracedMessage::Analytics))
                .map(|since| MessageState::UnderWay { since });
            states.extend(self.state(message, now).or(published).map(|state| (message, state)));
        }
        states
    }

    /// The state that follows from the last step of a message; `None` if it has no steps. A message that is done stays
    /// done, because a redelivery is recognised as a duplicate.
    fn state(&self, message: TracedMessage, now: Timestamp) -> Option<MessageState> {
        let steps = || self.steps.iter().filter(|step| step.message == message);
        let done = |step: &&TraceStep| {
            matches!(
                step.event,
                TraceEvent::Processed
                    | TraceEvent::CancellationFinished
                    | TraceEvent::Notified { .. }
                    | TraceEvent::Skipped { .. }
                    | TraceEvent::Counted
            )
        };
        if let Some(step) = steps().find(done) {
            return Some(MessageState::Done { since: step.at });
        }
        // A failure is known to the second only, so the call that failed may seem to be later. A replay that has ended is followed by
        // what came of it.
        let is_no_state = |step: &&TraceStep| match &step.event {
            TraceEvent::StepCalled { .. } | TraceEvent::DeliveryFailed { .. } => true,
            TraceEvent::Replayed { outcome, .. } => !outcome.is_under_way(),
            _ => false,
        };
        let last = steps().rfind(|step| !is_no_state(step))?;
        Some(match &last.event {
            TraceEvent::Failed { consumer, delay: Some(delay), due_at: Some(due_at), .. } if *due_at > now => {
                let (consumer, delay) = (consumer.clone(), delay.clone());
                MessageState::Waiting { consumer, delay, since: last.at, due_at: *due_at }
            }
            TraceEvent::Failed { consumer, due_at, .. } => {
                MessageState::Due { consumer: consumer.clone(), since: due_at.unwrap_or(last.at) }
            }
            TraceEvent::DeadLettered { .. } => MessageState::DeadLettered { since: last.at },
            TraceEvent::Accepted { .. }
            | TraceEvent::Replayed { .. }
            | TraceEvent::StepCalled { .. }
            | TraceEvent::DeliveryFailed { .. }
            | TraceEvent::Cancelled
            | TraceEvent::Prevented => MessageState::UnderWay { since: last.at },
            TraceEvent::Processed
            | TraceEvent::CancellationFinished
            | TraceEvent::Notified { .. }
            | TraceEvent::Skipped { .. }
            | TraceEvent::Counted => MessageState::Done { since: last.at },
        })
    }
}

/// When a delay such as `10s` is over that began at `failed_at`.
pub(super) fn due(failed_at: Timestamp, delay: &str) -> Option<Timestamp> {
    failed_at.checked_add(delay.parse::<Delay>().ok()?.as_duration()).ok()
}

#[cfg(test)]
mod tests;
