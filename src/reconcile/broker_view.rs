//! The broker's state as last reported by the management API, the age of that report, and the findings. Types only; no
//! I/O, no clock, no decisions.
//!
//! The status contains it unchanged as JSON: field names and values are a contract.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::management::{Alarm, ManagementErrorKind, MessageCounters};
use crate::topology::Object;

/// The broker's state as far as it is known. Readers hold a `watch::Receiver<Arc<BrokerView>>`; a new view is sent after
/// every answer and every change of [`BrokerView::api`].
#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct BrokerView {
    /// Whether the management API answers.
    pub api: ApiState,
    /// The address of the management API that answered last; `None` before the first answer.
    #[serde(default)]
    pub api_address: Option<String>,
    /// When the totals (`ready`, `unacked`) of all queues were last reported; `None`: not since orderd started. They are
    /// kept while the API is [`ApiState::Stale`].
    #[schema(value_type = Option<String>, format = DateTime)]
    pub taken_at: Option<Timestamp>,
    /// Existing queues of the topology and retry queues of earlier configurations, by name. Other queues of the virtual
    /// host do not belong to orderd.
    pub queues: BTreeMap<String, QueueView>,
    /// Queues of the topology that did not exist when the totals were last reported.
    pub missing_queues: Vec<String>,
    /// Resource alarms of all nodes, as last reported. While there is one, publishing is blocked. `None`: not known yet.
    pub alarms: Option<Vec<Alarm>>,
    /// Lasting problems: missing objects, dangerous policies, counts that differ from orderd's own, queues without a consumer, overdue retries. Sorted by
    /// queue and kind. Kept while the API is stale.
    pub findings: Vec<Finding>,
}

/// Whether the management API answers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum ApiState {
    /// Polling is off: `management.poll_every` is `"off"`.
    Off,
    /// The first request has not been answered yet, and has not failed.
    #[default]
    Pending,
    /// The last request was answered.
    Fresh,
    /// The API does not answer; the rest of the view dates from `taken_at`.
    Stale {
        /// Since when.
        #[schema(value_type = String, format = DateTime)]
        since: Timestamp,
        /// The kind of error.
        cause: ManagementErrorKind,
        /// The error with its causes; never contains a password.
        reason: String,
    },
}

/// One queue. Its totals are refreshed with every poll, its details less often; the details are `detail_at` and the fields
/// after it. The broker itself refreshes both every 5 s by default.
///
/// What the broker has not reported is `None`. It reports statistics only some seconds after the broker was started or the
/// queue was declared, and never if they are disabled (`management_agent.disable_metrics_collector`, `rates_mode = none`).
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize, ToSchema)]
pub struct QueueView {
    /// Its role in the topology.
    pub role: QueueRole,
    /// Messages ready for delivery; in a retry queue, messages whose delay has not ended.
    pub ready: Option<u64>,
    /// Messages delivered and not yet acked.
    pub unacked: Option<u64>,
    /// When the details were last reported.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub detail_at: Option<Timestamp>,
    /// Why the details could not be read since then, although the API answers; never contains a password.
    pub detail_error: Option<String>,
    /// Consumers, of orderd or of other clients. Quorum queues also count clients that hold messages taken with
    /// `basic.get`.
    pub consumers: Option<u64>,
    /// Messages being dead-lettered that the target has not confirmed yet (`messages_dlx`); in a retry queue, messages
    /// whose delay has ended. If they remain, the target refuses them or does not exist.
    pub dead_letters_held: Option<u64>,
    /// The name of the effective policy; operator policies are not included.
    pub policy: Option<String>,
    /// Messages published into it, per second. The broker does not count dead-lettered ones.
    pub in_rate: Option<f64>,
    /// Messages acked, per second. Always 0 for a retry queue, whose messages leave it without an ack.
    pub out_rate: Option<f64>,
    /// The broker's counters. They start over when a node restarts.
    pub counted: MessageCounters,
}

impl QueueView {
    /// A queue of which only the role is known.
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
            counted: MessageCounters::default(),
        }
    }
}

/// The role of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum QueueRole {
    /// Consumed by orderd.
    Work {
        /// The consumer's name.
        consumer: String,
    },
    /// Holds messages until their retry.
    Retry {
        /// The work queue to which they return.
        of: String,
        /// The delay of each message, such as `10s`.
        delay: String,
        /// Whether the current configuration contains it. If not, an earlier one did, and no more messages enter the queue.
        configured: bool,
    },
    /// Holds dead letters until an operator handles them.
    DeadLetter,
    /// Holds messages that matched no binding.
    Unrouted,
}

/// A lasting problem with one queue, exchange, binding or policy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct Finding {
    /// The queue's name; `None` for a finding about an exchange or a policy.
    #[serde(default)]
    pub queue: Option<String>,
    /// The exchange's name, for a finding about an exchange or a binding.
    #[serde(default)]
    pub exchange: Option<String>,
    /// The routing key, for a finding about a binding.
    #[serde(default)]
    pub routing_key: Option<String>,
    /// The policies' names, for a finding about a policy.
    #[serde(default)]
    pub policy: Option<String>,
    /// The queues that it affects, for a finding about a policy.
    #[serde(default)]
    pub queues: Vec<String>,
    /// The kind of problem.
    pub kind: FindingKind,
    /// When it was first observed.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
    /// How many messages are affected; `None` if that is unknown.
    pub messages: Option<u64>,
    /// An explanation for the operator.
    pub detail: String,
}

impl Finding {
    /// A finding about an object of the topology.
    pub(super) fn about(object: &Object, kind: FindingKind, since: Timestamp, detail: String) -> Self {
        let (queue, exchange, routing_key) = match object.clone() {
            Object::Queue(queue) => (Some(queue), None, None),
            Object::Exchange(exchange) => (None, Some(exchange), None),
            Object::Binding { exchange, queue, routing_key } => (Some(queue), Some(exchange), Some(routing_key)),
        };
        Finding { queue, exchange, routing_key, policy: None, queues: Vec::new(), kind, since, messages: None, detail }
    }

    /// A finding about policies.
    pub(super) fn about_policy(policy: String, queues: Vec<String>, since: Timestamp, detail: String) -> Self {
        Finding {
            queue: None,
            exchange: None,
            routing_key: None,
            policy: Some(policy),
            queues,
            kind: FindingKind::DangerousPolicy,
            since,
            messages: None,
            detail,
        }
    }

    /// What it is about: the queue, the exchange, or the policy.
    pub fn subject(&self) -> &str {
        self.queue.as_deref().or(self.exchange.as_deref()).or(self.policy.as_deref()).unwrap_or_default()
    }
}

/// The kinds of findings; also the values of a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// An exchange of the topology does not exist.
    ExchangeMissing,
    /// A queue of the topology does not exist.
    QueueMissing,
    /// A binding of the topology does not exist.
    BindingMissing,
    /// An exchange has other properties than the topology's, such as no alternate exchange.
    ExchangeMismatch,
    /// A queue has other properties than the topology's.
    QueueMismatch,
    /// A policy would delete or divert messages of a queue.
    DangerousPolicy,
    /// The broker's `consumer_timeout` of a queue is shorter than a delivery may be held.
    ShortConsumerTimeout,
    /// An exchange or queue was deleted and has been declared again.
    Redeclared,
    /// Messages wait in a work queue that has no consumer.
    NoConsumer,
    /// Messages wait in a work queue whose consumer is paused.
    ConsumerPaused,
    /// The broker counts more acks than orderd has sent: another client has consumed messages, or messages were acked
    /// without being settled.
    AckedByOthers,
    /// The broker counts fewer acks than orderd has sent, although no connection was lost.
    AcksMissing,
    /// The broker delivered more messages than orderd received, although no connection was lost.
    DeliveriesMissing,
    /// The broker counted fewer messages into a queue than it confirmed to orderd.
    PublishesMissing,
    /// Another client takes messages with `basic.get`, or consumes without acks.
    TakenByOthers,
    /// The broker waits for acks of messages that orderd does not hold.
    UnackedNotHeld,
    /// The broker cannot dead-letter messages: the target refuses them or does not exist.
    DeadLettersHeld,
    /// Messages stay in a retry queue past its delay.
    RetriesOverdue,
    /// What the steps of dead-lettered messages have done could not be undone.
    UndoFailed,
    /// Dead letters stay in their queue, because they cannot be stored.
    NotCollected,
}

impl FindingKind {
    /// All kinds, in order.
    pub const ALL: [FindingKind; 20] = [
        FindingKind::ExchangeMissing,
        FindingKind::QueueMissing,
        FindingKind::BindingMissing,
        FindingKind::ExchangeMismatch,
        FindingKind::QueueMismatch,
        FindingKind::DangerousPolicy,
        FindingKind::ShortConsumerTimeout,
        FindingKind::Redeclared,
        FindingKind::NoConsumer,
        FindingKind::ConsumerPaused,
        FindingKind::AckedByOthers,
        FindingKind::AcksMissing,
        FindingKind::DeliveriesMissing,
        FindingKind::PublishesMissing,
        FindingKind::TakenByOthers,
        FindingKind::UnackedNotHeld,
        FindingKind::DeadLettersHeld,
        FindingKind::RetriesOverdue,
        FindingKind::UndoFailed,
        FindingKind::NotCollected,
    ];

    /// Its name in JSON, metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            FindingKind::ExchangeMissing => "exchange_missing",
            FindingKind::QueueMissing => "queue_missing",
            FindingKind::BindingMissing => "binding_missing",
            FindingKind::ExchangeMismatch => "exchange_mismatch",
            FindingKind::QueueMismatch => "queue_mismatch",
            FindingKind::DangerousPolicy => "dangerous_policy",
            FindingKind::ShortConsumerTimeout => "short_consumer_timeout",
            FindingKind::Redeclared => "redeclared",
            FindingKind::NoConsumer => "no_consumer",
            FindingKind::ConsumerPaused => "consumer_paused",
            FindingKind::AckedByOthers => "acked_by_others",
            FindingKind::AcksMissing => "acks_missing",
            FindingKind::DeliveriesMissing => "deliveries_missing",
            FindingKind::PublishesMissing => "publishes_missing",
            FindingKind::TakenByOthers => "taken_by_others",
            FindingKind::UnackedNotHeld => "unacked_not_held",
            FindingKind::DeadLettersHeld => "dead_letters_held",
            FindingKind::RetriesOverdue => "retries_overdue",
            FindingKind::UndoFailed => "undo_failed",
            FindingKind::NotCollected => "not_collected",
        }
    }

    /// Whether it says that an object of the topology does not exist.
    pub fn is_missing_object(self) -> bool {
        matches!(self, FindingKind::ExchangeMissing | FindingKind::QueueMissing | FindingKind::BindingMissing)
    }

    /// Whether messages may be lost or go astray while it lasts, so that orderd is not ready.
    pub fn prevents_readiness(self) -> bool {
        self.is_missing_object()
            || matches!(self, FindingKind::ExchangeMismatch | FindingKind::QueueMismatch | FindingKind::DangerousPolicy)
    }

    /// Whether an operator must act. If not, the problem ends by itself or was caused on purpose.
    pub fn requires_action(self) -> bool {
        match self {
            FindingKind::ExchangeMissing
            | FindingKind::QueueMissing
            | FindingKind::BindingMissing
            | FindingKind::ExchangeMismatch
            | FindingKind::QueueMismatch
            | FindingKind::DangerousPolicy
            | FindingKind::ShortConsumerTimeout
            | FindingKind::Redeclared
            | FindingKind::NoConsumer
            | FindingKind::AckedByOthers
            | FindingKind::PublishesMissing
            | FindingKind::TakenByOthers
            | FindingKind::DeadLettersHeld
            | FindingKind::RetriesOverdue
            | FindingKind::UndoFailed
            | FindingKind::NotCollected => true,
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
    fn a_kind_has_the_same_name_in_json_and_in_text() {
        for kind in FindingKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        }
    }

    #[test]
    fn states_and_roles_are_flat_in_json() {
        let since = "2026-11-22T08:00:00Z".parse().unwrap();
        let stale = ApiState::Stale { since, cause: ManagementErrorKind::TimedOut, reason: "slow".into() };
        let expected = serde_json::json!(
            {"state": "stale", "since": "2026-11-22T08:00:00Z", "cause": "timed_out", "reason": "slow"}
        );
        assert_eq!(serde_json::to_value(stale).unwrap(), expected);
        assert_eq!(serde_json::to_value(ApiState::default()).unwrap(), serde_json::json!({"state": "pending"}));
        let role = QueueRole::Retry { of: "order_queue".into(), delay: "10s".into(), configured: true };
        let expected = serde_json::json!(
            {"kind": "retry", "of": "order_queue", "delay": "10s", "configured": true}
        );
        assert_eq!(serde_json::to_value(role).unwrap(), expected);
    }
}
