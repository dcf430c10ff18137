//! Answers of the management API about queue totals, queue details and alarms. Types only; no I/O.
//!
//! Any statistics field may be missing or have an unexpected type. It is then `None`, never an error.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// The kinds of errors of the management API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ManagementErrorKind {
    /// No connection: no broker, or the management plugin is not enabled.
    Unreachable,
    /// No complete answer in time.
    TimedOut,
    /// The user or the password is wrong, or the user lacks the tag `monitoring` or the permission to see the virtual
    /// host.
    Refused,
    /// The virtual host does not exist.
    NoVirtualHost,
    /// The answer is not what a management API would send.
    Malformed,
    /// orderd's own poller keeps failing, which is a bug.
    PollerFailed,
}

/// A resource alarm of a node. While there is one, the broker blocks connections that publish.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, ToSchema)]
pub struct Alarm {
    /// The node's name.
    pub node: String,
    /// The resource that is low: `memory` or `disk space`.
    pub resource: String,
}

/// The broker's message counters of one queue since its statistics began. `None`: the broker has not reported the counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
pub struct MessageCounters {
    /// Messages published into it. Excludes messages that were dead-lettered into it.
    pub published: Option<u64>,
    /// Deliveries and redeliveries to consumers that ack.
    pub delivered: Option<u64>,
    /// Messages acked.
    pub acked: Option<u64>,
    /// Redeliveries.
    pub redelivered: Option<u64>,
    /// Messages taken with `basic.get` or without acks; orderd does neither.
    pub taken_by_others: Option<u64>,
}

/// One page of the answer to `GET /api/queues/{vhost}?disable_stats=true&enable_queue_totals=true&page=…`.
#[derive(Debug, Deserialize)]
pub(crate) struct Page {
    pub items: Vec<Totals>,
    #[serde(default)]
    pub page_count: Option<u32>,
}

/// One queue of a page.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Totals {
    pub name: String,
    #[serde(default, rename = "messages_ready", deserialize_with = "count")]
    pub ready: Option<u64>,
    #[serde(default, rename = "messages_unacknowledged", deserialize_with = "count")]
    pub unacked: Option<u64>,
}

/// The answer to `GET /api/queues/{vhost}/{name}`: the fields that orderd uses.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub(crate) struct Detail {
    #[serde(default, rename = "messages_ready", deserialize_with = "count")]
    pub ready: Option<u64>,
    #[serde(default, deserialize_with = "count")]
    pub consumers: Option<u64>,
    #[serde(default, rename = "messages_dlx", deserialize_with = "count")]
    pub dead_letters_held: Option<u64>,
    #[serde(default, deserialize_with = "name")]
    pub policy: Option<String>,
    #[serde(default, rename = "consumer_details", deserialize_with = "tags")]
    pub consumer_tags: Option<Vec<String>>,
    #[serde(default, rename = "message_stats", deserialize_with = "stats")]
    pub stats: Option<Stats>,
}

/// `message_stats`. A counter that is missing from it is 0: the broker adds a counter when it first counts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Stats {
    pub counted: MessageCounters,
    pub in_rate: f64,
    pub out_rate: f64,
}

/// The answer to `GET /api/health/checks/alarms`: 503 and a list when there are any.
#[derive(Debug, Deserialize)]
pub(crate) struct Alarms {
    /// `ok` or `failed`. Required, because other answers with status 503 do not have it.
    #[serde(rename = "status")]
    pub _status: String,
    #[serde(default)]
    pub alarms: Vec<Alarm>,
}

fn count<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    Ok(Value::deserialize(deserializer)?.as_u64())
}

fn name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(value.as_str().filter(|name| !name.is_empty()).map(str::to_owned))
}

fn tags<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let tag = |consumer: &Value| Some(consumer.get("consumer_tag")?.as_str()?.to_owned());
    Ok(value.as_array().map(|consumers| consumers.iter().filter_map(tag).collect()))
}

/// Empty statistics are reported as `{}` or `[]`. They may also mean that statistics are disabled, so they are unknown.
fn stats<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Stats>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let Some(stats) = value.as_object().filter(|stats| !stats.is_empty()) else { return Ok(None) };
    let count = |key: &str| stats.get(key).and_then(Value::as_u64).unwrap_or(0);
    let rate = |key: &str| stats.get(key).and_then(|details| details.get("rate")?.as_f64()).unwrap_or(0.0);
    let counted = MessageCounters {
        published: Some(count("publish")),
        delivered: Some(count("deliver")),
        acked: Some(count("ack")),
        redelivered: Some(count("redeliver")),
        taken_by_others: Some(count("get") + count("get_no_ack") + count("deliver_no_ack")),
    };
    Ok(Some(Stats { counted, in_rate: rate("publish_details"), out_rate: rate("ack_details") }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn detail(answer: Value) -> Detail {
        serde_json::from_value(answer).unwrap()
    }

    #[test]
    fn details_reported_by_rabbitmq_3_10_8_are_parsed() {
        let read = detail(json!({
            "name": "order_queue", "consumers": 1, "messages": 7, "messages_ready": 4, "messages_dlx": 1, "policy": "mine",
            "consumer_details": [{"consumer_tag": "orderd-25", "prefetch_count": 400}],
            "message_stats": {"ack": 60, "ack_details": {"rate": 1.5}, "deliver": 61, "deliver_get": 64, "get": 2,
                "get_no_ack": 1, "deliver_no_ack": 0, "publish": 67, "publish_details": {"rate": 2.0}, "redeliver": 1}
        }));
        assert_eq!((read.ready, read.consumers, read.dead_letters_held), (Some(4), Some(1), Some(1)));
        assert_eq!((read.policy.as_deref(), read.consumer_tags), (Some("mine"), Some(vec!["orderd-25".to_owned()])));
        let stats = read.stats.unwrap();
        assert_eq!((stats.in_rate, stats.out_rate), (2.0, 1.5));
        let expected = MessageCounters {
            published: Some(67),
            delivered: Some(61),
            acked: Some(60),
            redelivered: Some(1),
            taken_by_others: Some(3),
        };
        assert_eq!(stats.counted, expected);
    }

    #[test]
    fn a_counter_missing_from_the_statistics_is_0() {
        let stats = detail(json!({"message_stats": {"publish": 8, "publish_details": {"rate": 0.0}}})).stats.unwrap();
        assert_eq!((stats.counted.published, stats.counted.acked), (Some(8), Some(0)));
    }

    #[test]
    fn an_error_answer_is_not_taken_for_an_absence_of_alarms() {
        let alarms = |answer: Value| serde_json::from_value::<Alarms>(answer).map(|answer| answer.alarms.len()).ok();
        assert_eq!(alarms(json!({"status": "ok"})), Some(0));
        assert_eq!(alarms(json!({"status": "failed", "alarms": [{"node": "a@b", "resource": "memory"}]})), Some(1));
        assert_eq!(alarms(json!({"error": "service unavailable"})), None);
    }

    #[test]
    fn missing_empty_or_unexpected_fields_are_unknown_and_not_an_error() {
        assert_eq!(detail(json!({"name": "q"})), Detail::default());
        let odd = json!({"messages_ready": "many", "consumers": -1, "messages_dlx": null, "policy": "",
            "consumer_details": {}, "message_stats": []});
        assert_eq!(detail(odd), Detail::default());
        let totals: Totals = serde_json::from_value(json!({"name": "q", "messages": 1})).unwrap();
        assert_eq!((totals.ready, totals.unacked), (None, None));
    }
}
