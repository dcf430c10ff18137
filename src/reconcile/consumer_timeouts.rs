//! Finds queues whose `consumer_timeout` on the broker is shorter than a delivery may be held: the broker would take deliveries back,
//! again and again, and dead-letter them at last. Pure: the broker's answers are arguments.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::Value;

use crate::management::ObservedTopology;

/// A queue whose `consumer_timeout` is too short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShortConsumerTimeout {
    /// The queue's name.
    pub queue: String,
    /// How long the broker waits for an ack.
    pub consumer_timeout: Duration,
    /// How long orderd may hold a delivery: all attempts of its handler, and an outage that it waits for.
    pub longest_hold: Duration,
}

impl fmt::Display for ShortConsumerTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ShortConsumerTimeout { queue, consumer_timeout, longest_hold } = self;
        write!(
            f,
            "queue {queue:?}: the broker's consumer_timeout is {consumer_timeout:?}, but orderd may hold a delivery for \
             {longest_hold:?}, all attempts and the wait for an outage"
        )
    }
}

/// Compares what the broker reports of each queue with how long its deliveries may be held. The shortest of the policy, the
/// queue's argument and what is reported of its consumers applies; what is not reported is not known.
pub(super) fn short_consumer_timeouts(
    longest_holds: &BTreeMap<String, Duration>,
    observed: &ObservedTopology,
) -> Vec<ShortConsumerTimeout> {
    let of_queue = |(queue, longest_hold): (&String, &Duration)| {
        let found = observed.queues.get(queue)?;
        let policy = found.effective_policy.as_ref().and_then(|policy| policy.get("consumer-timeout"));
        let configured = [policy, found.arguments.get("x-consumer-timeout")];
        let configured = configured.into_iter().flatten().filter_map(Value::as_u64);
        let millis = configured.chain(observed.consumer_timeouts.get(queue).copied()).min()?;
        let consumer_timeout = Duration::from_millis(millis);
        let longest_hold = *longest_hold;
        (consumer_timeout < longest_hold).then(|| ShortConsumerTimeout {
            queue: queue.clone(),
            consumer_timeout,
            longest_hold,
        })
    };
    longest_holds.iter().filter_map(of_queue).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_consumer_timeout_below_the_longest_hold_is_found_wherever_the_broker_shows_it() {
        let holds = BTreeMap::from([("q".to_owned(), Duration::from_secs(330))]);
        let found = |policy: Value, arguments: Value, of_consumers: Option<u64>| {
            let queue = json!({"durable": true, "auto_delete": false, "arguments": arguments,
                "effective_policy_definition": policy});
            let observed = ObservedTopology {
                queues: BTreeMap::from([("q".to_owned(), serde_json::from_value(queue).unwrap())]),
                consumer_timeouts: of_consumers.map(|millis| ("q".to_owned(), millis)).into_iter().collect(),
                ..ObservedTopology::default()
            };
            let found = short_consumer_timeouts(&holds, &observed);
            found.first().map(|short| (short.consumer_timeout.as_secs(), short.longest_hold.as_secs()))
        };
        assert_eq!(found(json!({}), json!({}), None), None, "not reported");
        assert_eq!(found(json!({"consumer-timeout": 120_000}), json!({}), Some(1_800_000)), Some((120, 330)));
        assert_eq!(found(json!({}), json!({"x-consumer-timeout": 329_999}), None), Some((329, 330)));
        assert_eq!(found(json!({"consumer-timeout": 600_000}), json!({}), Some(60_000)), Some((60, 330)));
        assert_eq!(found(json!({"consumer-timeout": 330_000}), json!({}), Some(1_800_000)), None);
    }
}
