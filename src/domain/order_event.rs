//! What happened to an order: it was placed, or it was cancelled. Pure.

use super::model::{Order, OrderId};

/// What happened to an order, as a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrderEvent {
    /// It was placed.
    Placed,
    /// It was cancelled.
    Cancelled,
    /// Something else, which is not processed.
    Other,
}

/// Neither placed nor cancelled. Failure kind `malformed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the order's event, or the message's type, must be \"placed\", \"created\" or \"cancelled\": other events are not processed"
)]
pub struct UnsupportedEvent;

impl UnsupportedEvent {
    /// The stable code for `x-failure-code`.
    pub const CODE: &'static str = "unsupported_event";
}

/// What a message's document is about.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "it exists briefly, and most documents are orders that were placed")]
pub enum OrderDocument {
    /// An order that was placed.
    Placed(Order),
    /// The cancellation of the order with this id.
    Cancelled(OrderId),
}

/// What happens to an order later. A message that says so is never taken for a new order, whatever precedes the word in its type.
/// Not here: words that some shops use for an order that is to be processed, such as `paid` and `confirmed`.
const LATER_EVENTS: [&str; 17] = [
    "updated",
    "changed",
    "edited",
    "shipped",
    "fulfilled",
    "partially_fulfilled",
    "delivered",
    "completed",
    "returned",
    "refunded",
    "partially_refunded",
    "rejected",
    "failed",
    "expired",
    "closed",
    "archived",
    "deleted",
];

impl OrderEvent {
    /// The event with this name, in upper or lower case.
    pub fn of_word(word: &str) -> Self {
        let word = word.trim_ascii();
        let is = |known: &str| word.eq_ignore_ascii_case(known);
        if is("placed") || is("created") {
            OrderEvent::Placed
        } else if is("cancelled") || is("canceled") {
            OrderEvent::Cancelled
        } else {
            OrderEvent::Other
        }
    }

    /// What the type of a message or of a CloudEvent says: `order.<event>`. What precedes that may be a domain name; then an event
    /// that orderd does not know says nothing. A version, such as `v1`, is ignored. `None`: the type is not about orders.
    pub fn of_type(message_type: &str) -> Option<Self> {
        let is_version = |part: &&str| {
            part.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        };
        let parts: Vec<&str> = message_type.split(['.', '/']).filter(|part| !is_version(part)).collect();
        let at = parts.iter().rposition(|part| ["order", "orders"].contains(part))?;
        let (word, more) = parts[at + 1..].split_first()?;
        let event = if more.is_empty() { Self::of_word(word) } else { OrderEvent::Other };
        let is_plain = message_type.starts_with("order.");
        let is_known = event != OrderEvent::Other
            || more.is_empty() && LATER_EVENTS.iter().any(|later| word.eq_ignore_ascii_case(later));
        (is_plain || is_known).then_some(event)
    }

    /// What several sources say together. A cancellation is never taken for an order, whatever else is said; `None` if none says
    /// anything.
    pub fn of_all(events: [Option<Self>; 2]) -> Option<Self> {
        let said = |event| events.contains(&Some(event)).then_some(event);
        said(OrderEvent::Cancelled).or_else(|| said(OrderEvent::Other)).or_else(|| said(OrderEvent::Placed))
    }
}

#[cfg(test)]
mod tests {
    use super::OrderEvent::{Cancelled, Other, Placed};
    use super::*;

    #[test]
    fn a_type_says_what_happened_to_the_order_or_nothing() {
        for (message_type, expected) in [
            ("order.placed", Some(Placed)),
            ("order.created", Some(Placed)),
            ("order.cancelled", Some(Cancelled)),
            ("order.canceled", Some(Cancelled)),
            ("order.CANCELLED", Some(Cancelled)),
            ("order.updated", Some(Other)),
            ("order.", Some(Other)),
            ("com.example.order.cancelled", Some(Cancelled)),
            ("order.placed.v1", Some(Placed)),
            ("order.v2.shipped", Some(Other)),
            ("order.paid", Some(Other)),
            ("order.line.added", Some(Other)),
            ("com.example.order.created", Some(Placed)),
            ("com.example.order.created.v1", Some(Placed)),
            ("com.example.v1.order.cancelled.v2", Some(Cancelled)),
            ("com.example.order.shipped", Some(Other)),
            ("com.example.order.refunded", Some(Other)),
            ("com.example.order.updated.v12", Some(Other)),
            ("com.example.order.paid", None),
            ("com.example.order.line.added", None),
            ("com.example.order.v1", None),
            ("orders/cancelled", Some(Cancelled)),
            ("orders/updated", Some(Other)),
            ("orders/paid", None),
            ("com.order.example", None),
            ("reorder.cancelled", None),
            ("order", None),
            ("Order", None),
            ("", None),
        ] {
            assert_eq!(OrderEvent::of_type(message_type), expected, "{message_type}");
        }
    }

    #[test]
    fn a_cancellation_wins_over_everything_else_and_an_unknown_event_over_placed() {
        for (events, expected) in [
            ([None, None], None),
            ([Some(Placed), None], Some(Placed)),
            ([None, Some(Placed)], Some(Placed)),
            ([Some(Placed), Some(Other)], Some(Other)),
            ([Some(Other), None], Some(Other)),
            ([Some(Other), Some(Cancelled)], Some(Cancelled)),
            ([Some(Cancelled), Some(Placed)], Some(Cancelled)),
        ] {
            assert_eq!(OrderEvent::of_all(events), expected, "{events:?}");
        }
    }
}
