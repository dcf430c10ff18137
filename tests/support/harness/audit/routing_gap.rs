//! Times in which messages may be unrouted, because a fault has removed a part of the topology. Pure.

use std::collections::HashSet;

/// A time in which bindings to the exchange of orders were missing. It explains only messages that did not exist before or were
/// not settled then, and only those that the missing bindings would have routed.
#[derive(Debug, Clone, Default)]
pub struct RoutingGap {
    /// The queues whose bindings were missing.
    pub queues: Vec<&'static str>,
    /// The ids of orders that were published but not settled when it began, and of events that were not recorded then.
    pub unsettled: HashSet<String>,
    /// The orders that were published before it began.
    pub published_before: u64,
    /// The orders that were published until it ended; `None` if it lasted until the end of the run.
    pub published_until: Option<u64>,
}

impl RoutingGap {
    /// Whether a message with this id may have been unrouted because of it. The ids of orders begin with `prefix`. `is_recorded`:
    /// it is in the ledger, so an analytics event may be a repeat, which orderd publishes if it was killed before an ack.
    pub fn explains(&self, prefix: &str, id: &str, is_recorded: bool) -> bool {
        let order = id.split('/').next().unwrap_or(id);
        let Some(number) = order.strip_prefix(prefix).and_then(|rest| rest.strip_prefix("ord-")?.parse::<u64>().ok())
        else {
            return false;
        };
        let was_published = self.published_until.is_none_or(|last| number <= last);
        let is_new = number > self.published_before && was_published;
        let existed = is_new || self.unsettled.contains(id) || self.unsettled.contains(order);
        let is_repeat =
            is_recorded && was_published && own_queue(id, number) == ANALYTICS && self.queues.contains(&ANALYTICS);
        is_repeat || existed && self.queues.iter().any(|queue| leads_to(id, number, queue))
    }
}

const ANALYTICS: &str = "analytics_queue";

/// Whether a message is published for this queue: the one of its kind, or that of failed messages.
fn leads_to(id: &str, order: u64, queue: &str) -> bool {
    queue == own_queue(id, order) || queue == "failed_order_queue"
}

fn own_queue(id: &str, order: u64) -> &'static str {
    match id.split('/').nth(1) {
        Some("notification") => "notification_queue",
        Some(_) => ANALYTICS,
        None if is_urgent(order) => "priority_order_queue",
        None => "order_queue",
    }
}

/// Whether the order with this number is urgent: every tenth one.
pub fn is_urgent(order: u64) -> bool {
    order.is_multiple_of(10)
}
