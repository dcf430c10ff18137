//! Queues, bindings and retry queues that a changed configuration no longer uses and that stay on the broker.
//!
//! Pure: it compares two configurations and names the commands that remove what is no longer used. orderd itself never
//! deletes anything on the broker.

use std::fmt::Write;

use crate::config::Config;
use crate::topology::{Binding, ExchangeNames};

/// One note for each queue, binding and retry queue that the new configuration does not have.
pub(super) fn orphaned_objects(old: &Config, new: &Config) -> Vec<String> {
    let mut notes = Vec::new();
    for (queue, settings) in &old.queues {
        let Some(kept) = new.queues.get(queue) else {
            let commands: Vec<_> = settings.bindings.iter().map(|pattern| unbind(new, queue, pattern)).collect();
            notes.push(format!(
                "queue {queue:?} stays on the broker with its messages and still receives orders, but has no consumer any \
                 more; to remove its bindings: {}",
                commands.join("; ")
            ));
            continue;
        };
        for pattern in settings.bindings.iter().filter(|pattern| !kept.bindings.contains(pattern)) {
            let command = unbind(new, queue, pattern);
            notes.push(format!(
                "queue {queue:?} is still bound by {pattern:?} on the broker; to remove the binding: {command}"
            ));
        }
        notes.extend(orphaned_retry_queues(old, new, queue));
    }
    notes
}

/// One note for each retry queue whose delay is no longer configured.
fn orphaned_retry_queues(old: &Config, new: &Config, queue: &str) -> Vec<String> {
    let delays = |config: &Config| {
        let consumers = config.consumers.values().filter(|consumer| !consumer.handles_failures());
        let of_queue = consumers.filter(|consumer| consumer.queue == queue);
        of_queue.flat_map(|consumer| consumer.retry.delays.clone()).collect::<std::collections::BTreeSet<_>>()
    };
    let removed =
        delays(old).difference(&delays(new)).map(|delay| ExchangeNames::retry_queue(queue, *delay)).collect::<Vec<_>>();
    let note =
        |name| format!("queue {name:?} stays on the broker; its messages still return to {queue:?} after the delay");
    removed.into_iter().map(note).collect()
}

/// The command that removes a binding to the orders exchange.
fn unbind(config: &Config, queue: &str, pattern: &str) -> String {
    let binding = Binding {
        exchange: config.names().orders.to_string(),
        queue: queue.to_owned(),
        routing_key: pattern.to_owned(),
    };
    format!(
        "curl -u '{}' -X DELETE '{}{}'",
        config.management.username,
        config.management.urls[0],
        binding_path(&config.broker.virtual_host, &binding)
    )
}

/// The binding's path in the management API.
fn binding_path(virtual_host: &str, binding: &Binding) -> String {
    let Binding { exchange, queue, routing_key } = binding;
    format!(
        "/api/bindings/{}/e/{}/q/{}/{}",
        percent_encoded(virtual_host),
        percent_encoded(exchange),
        percent_encoded(queue),
        percent_encoded(routing_key)
    )
}

fn percent_encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(char::from(byte)),
            other => write!(encoded, "%{other:02X}").expect("writing to a string does not fail"),
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use crate::handlers;

    fn config(settings: &[&str]) -> Config {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml");
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let sources = Sources { file: Some(file.into()), settings, ..handlers::sources() };
        Config::load(&sources).unwrap().config
    }

    #[test]
    fn additions_orphan_nothing() {
        let more = config(&["queues.order_queue.bindings=order.normal.*,order.bulk.*", "consumers.order.workers=9"]);
        assert_eq!(orphaned_objects(&config(&[]), &more), [""; 0]);
    }

    #[test]
    fn a_removed_binding_is_noted_with_the_command_that_removes_it_from_the_broker() {
        let before = config(&["queues.order_queue.bindings=order.normal.*,order.bulk.#", "broker.virtual_host=a/b"]);
        let after = config(&["broker.virtual_host=a/b"]);
        let notes = orphaned_objects(&before, &after);
        let command = "curl -u 'guest' -X DELETE \
            'http://127.0.0.1:15672/api/bindings/a%2Fb/e/orders/q/order_queue/order.bulk.%23'";
        assert_eq!(notes.len(), 1, "{notes:?}");
        assert!(notes[0].ends_with(command), "{notes:?}");
    }

    #[test]
    fn a_removed_queue_and_a_removed_delay_are_noted() {
        let (before, mut after) = (config(&[]), config(&["consumers.order.retry.delays=1s,10s,2m"]));
        after.queues.remove("analytics_queue");
        after.consumers.remove("analytics");
        let notes = orphaned_objects(&before, &after);
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].contains("analytics_queue") && notes[0].contains("order.analytics.%2A"), "{notes:?}");
        assert!(notes[1].contains("order_queue.retry.1m"), "{notes:?}");
    }
}
