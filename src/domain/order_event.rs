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

    /// What the type of a message or of a CloudEvent says: `order.<event>`. What precedes that, such as a domain name, counts only if
    /// the order was cancelled. `None`: the type is not about orders.
    pub fn of_type(message_type: &str) -> Option<Self> {
        const ABOUT_ORDERS: &str = "order.";
        if let Some(word) = message_type.strip_prefix(ABOUT_ORDERS) {
            return Some(Self::of_word(word));
        }
        let (prefix, word) = message_type.rsplit_once(ABOUT_ORDERS)?;
        let event = Self::of_word(word);
        (prefix.ends_with('.') && event == OrderEvent::Cancelled).then_some(event)
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
            ("com.example.order.updated", None),
            ("com.example.order.created.v1", None),
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
