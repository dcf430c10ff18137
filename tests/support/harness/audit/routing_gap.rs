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
    /// Whether a message with this id may have been unrouted because of it. The ids of orders begin with `prefix`.
    pub fn explains(&self, prefix: &str, id: &str) -> bool {
        let order = id.split('/').next().unwrap_or(id);
        let Some(number) = order.strip_prefix(prefix).and_then(|rest| rest.strip_prefix("ord-")?.parse::<u64>().ok())
        else {
            return false;
        };
        let is_new = number > self.published_before && self.published_until.is_none_or(|last| number <= last);
        let existed = is_new || self.unsettled.contains(id) || self.unsettled.contains(order);
        existed && self.queues.iter().any(|queue| leads_to(id, number, queue))
    }
}

/// Whether a message is published for this queue: the one of its kind, or that of failed messages.
fn leads_to(id: &str, order: u64, queue: &str) -> bool {
    let own = match id.split('/').nth(1) {
        Some("notification") => "notification_queue",
        Some(_) => "analytics_queue",
        None if is_urgent(order) => "priority_order_queue",
        None => "order_queue",
    };
    queue == own || queue == "failed_order_queue"
}

/// Whether the order with this number is urgent: every tenth one.
pub fn is_urgent(order: u64) -> bool {
    order.is_multiple_of(10)
}
