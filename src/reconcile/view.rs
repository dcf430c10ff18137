//! The broker's view: what the management API told last, how fresh that is, and what does not fit orderd's own
//! counts. Shapes only; no I/O, no clock, no judgement.
//!
//! It serializes as it stands into the status; names of fields and words are a contract.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::management::{Alarm, Counted, Trouble};

/// What the broker says about itself, as far as it told. Readers hold a `watch::Receiver<Arc<BrokerView>>`; a new
/// one is sent after every answer and every change of [`BrokerView::api`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
pub struct BrokerView {
    /// Whether the management API answers.
    pub api: ApiState,
    /// When the totals (`ready`, `unacked`) were last told in full. `None`: never since orderd started. They are kept
    /// while the API is [`ApiState::Stale`].
    pub taken_at: Option<Timestamp>,
    /// Queues of the topology that are there, and retry queues left over from earlier configurations, by name. Other
    /// queues of the virtual host are none of orderd's.
    pub queues: BTreeMap<String, QueueView>,
    /// Queues of the topology that were not there when the totals were last told.
    pub missing_queues: Vec<String>,
    /// Alarms in effect on any node, now or when last told: while there is one, publishing is blocked. `None`: not told
    /// yet.
    pub alarms: Option<Vec<Alarm>>,
    /// What lasts and should not: the broker against orderd's own counts, queues without a consumer, overdue retries.
    /// By queue, then kind. Kept while the API is stale, for nothing can be learnt then.
    pub findings: Vec<Finding>,
}

/// Whether the management API answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ApiState {
    /// It is not asked: `management.poll_every` is `"off"`.
    Off,
    /// It has not answered yet, nor failed to.
    #[default]
    Unasked,
    /// The last question was answered.
    Fresh,
    /// It does not answer; everything else in the view is as old as it says.
    Stale {
        /// Since when.
        since: Timestamp,
        /// Why, in a word.
        cause: Trouble,
        /// Why, in full, with its causes; never holds a password.
        reason: String,
    },
}

/// One queue. The totals come with every poll; the details, all that follows `detail_at`, at a slower rate. What the
/// broker has not told yet is `None`: it tells statistics only seconds after a queue's or its own start, and never if
/// they are switched off there (`management_agent.disable_metrics_collector`, `rates_mode = none`).
///
/// The broker itself refreshes totals and details every 5 s unless it is configured otherwise.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct QueueView {
    /// What it is for.
    pub role: QueueRole,
    /// Messages that wait to be handed out; in a retry queue, for their delay to end.
    pub ready: Option<u64>,
    /// Messages handed out and not settled.
    pub unacked: Option<u64>,
    /// When the details were last told.
    pub detail_at: Option<Timestamp>,
    /// Why the details were not told since, though the API answers; never holds a password.
    pub detail_error: Option<String>,
    /// Consumers, of orderd or of others. Quorum queues count who holds messages taken by `basic.get` as well.
    pub consumers: Option<u64>,
    /// Messages that are to be dead-lettered and that the target has not confirmed yet (`messages_dlx`). In a retry
    /// queue: whose delay is over. More than a moment means that the target refuses or is not there.
    pub dead_letters_held: Option<u64>,
    /// The policy in force, operators' policies not counted.
    pub policy: Option<String>,
    /// Messages published into it, per second. Dead-lettered ones are not counted by the broker.
    pub in_rate: Option<f64>,
    /// Messages acked, per second. Retry queues have none: messages leave them by their delay.
    pub out_rate: Option<f64>,
    /// What the broker has counted. Starts over when a node does.
    pub counted: Counted,
}

impl QueueView {
    /// One of which nothing is known yet.
    pub fn unknown(role: QueueRole) -> Self {
        QueueView {
            role,
            ready: None,
            unacked: None,
            detail_at: None,
            detail_error: None,
            consumers: None,
            dead_letters_held: None,
            policy: None,
            in_rate: None,
            out_rate: None,
            counted: Counted::default(),
        }
    }
}

/// What a queue is for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum QueueRole {
    /// Consumed by orderd.
    Work {
        /// The consumer's name.
        consumer: String,
    },
    /// Where messages wait for a retry.
    Retry {
        /// The work queue to which they return.
        of: String,
        /// How long each waits, such as `10s`.
        delay: String,
        /// Whether the configuration has it; else an earlier one had, and it only drains.
        configured: bool,
    },
    /// Where messages are dead-lettered for a person.
    DeadLetter,
    /// Where messages go that no binding matched.
    Unrouted,
}

/// Something that lasts and should not.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Finding {
    /// Which queue.
    pub queue: String,
    /// What.
    pub kind: FindingKind,
    /// Since when it has been so, as far as it was seen.
    pub since: Timestamp,
    /// How many messages, where that is known.
    pub messages: Option<u64>,
    /// For people: what, and what it means.
    pub detail: String,
}

/// What can be found. Few words, fit for a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A queue of the topology is not there.
    QueueMissing,
    /// Messages wait in a work queue, and nobody consumes it.
    NoConsumer,
    /// Messages wait in a work queue whose consumer is paused.
    ConsumerPaused,
    /// The broker counts more acks than orderd: messages were taken by somebody else, or acked without being settled.
    AckedByOthers,
    /// The broker counts fewer acks than orderd, though no connection was lost.
    AcksMissing,
    /// The broker handed out more than orderd received, though no connection was lost.
    DeliveriesMissing,
    /// The broker took in fewer messages than it confirmed to orderd.
    PublishesMissing,
    /// Somebody takes messages with `basic.get`, or consumes without acks.
    TakenOtherwise,
    /// The broker waits for acks of messages that orderd does not hold.
    UnackedNotHeld,
    /// The broker cannot hand on dead-lettered messages: their target refuses or is not there.
    DeadLettersHeld,
    /// Messages stay in a retry queue past its delay.
    RetriesOverdue,
}

impl FindingKind {
    /// All of them, in order.
    pub const ALL: [FindingKind; 11] = [
        FindingKind::QueueMissing,
        FindingKind::NoConsumer,
        FindingKind::ConsumerPaused,
        FindingKind::AckedByOthers,
        FindingKind::AcksMissing,
        FindingKind::DeliveriesMissing,
        FindingKind::PublishesMissing,
        FindingKind::TakenOtherwise,
        FindingKind::UnackedNotHeld,
        FindingKind::DeadLettersHeld,
        FindingKind::RetriesOverdue,
    ];

    /// Its name in JSON, in metrics and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            FindingKind::QueueMissing => "queue_missing",
            FindingKind::NoConsumer => "no_consumer",
            FindingKind::ConsumerPaused => "consumer_paused",
            FindingKind::AckedByOthers => "acked_by_others",
            FindingKind::AcksMissing => "acks_missing",
            FindingKind::DeliveriesMissing => "deliveries_missing",
            FindingKind::PublishesMissing => "publishes_missing",
            FindingKind::TakenOtherwise => "taken_otherwise",
            FindingKind::UnackedNotHeld => "unacked_not_held",
            FindingKind::DeadLettersHeld => "dead_letters_held",
            FindingKind::RetriesOverdue => "retries_overdue",
        }
    }

    /// Whether a person must act; else it heals by itself once its cause is gone, or a person wants it so.
    pub fn needs_a_person(self) -> bool {
        match self {
            FindingKind::QueueMissing
            | FindingKind::NoConsumer
            | FindingKind::AckedByOthers
            | FindingKind::PublishesMissing
            | FindingKind::TakenOtherwise
            | FindingKind::DeadLettersHeld
            | FindingKind::RetriesOverdue => true,
            FindingKind::ConsumerPaused
            | FindingKind::AcksMissing
            | FindingKind::DeliveriesMissing
            | FindingKind::UnackedNotHeld => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_one_name_everywhere() {
        for kind in FindingKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn states_and_roles_are_flat_in_json() {
        let since = "2026-11-22T08:00:00Z".parse().unwrap();
        let stale = ApiState::Stale { since, cause: Trouble::TimedOut, reason: "slow".into() };
        let expected = serde_json::json!(
            {"state": "stale", "since": "2026-11-22T08:00:00Z", "cause": "timed_out", "reason": "slow"}
        );
        assert_eq!(serde_json::to_value(stale).unwrap(), expected);
        assert_eq!(serde_json::to_value(ApiState::default()).unwrap(), serde_json::json!({"state": "unasked"}));
        let role = QueueRole::Retry { of: "order_queue".into(), delay: "10s".into(), configured: true };
        let expected = serde_json::json!(
            {"kind": "retry", "of": "order_queue", "delay": "10s", "configured": true}
        );
        assert_eq!(serde_json::to_value(role).unwrap(), expected);
    }
}
