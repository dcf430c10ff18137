//! The events about a processed order: the bodies of notifications and analytics events, and the sale that is read back
//! from an analytics event.
//!
//! Bodies only: routing keys and message ids are chosen where the events are published.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Currency, Order};

/// The ends of the message ids of the events about an order; the order's id precedes them.
pub const EVENT_ID_SUFFIXES: [&str; 3] = ["/analytics/processed", "/analytics/failed", "/notification/processed"];

/// The body of `order.notification.<channel>`: a message for the customer.
#[derive(Debug, Serialize)]
pub struct Notification<'a> {
    /// What happened: `processed`.
    pub event: &'static str,
    /// The order it is about.
    pub order_id: &'a str,
    /// The channel that the order asked for, else `email`.
    pub channel: &'a str,
    /// The customer's email address, if the order has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<&'a str>,
    /// Id of the customer, if the order names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<&'a str>,
    /// What was ordered.
    pub product: &'a str,
    /// Number of items.
    pub quantity: i64,
    /// Price times quantity.
    pub total: Decimal,
    /// The total's currency.
    pub currency: Currency,
}

/// The body of `order.analytics.processed` and `order.analytics.failed`.
#[derive(Debug, Serialize)]
pub struct AnalyticsEvent<'a> {
    /// `processed` or `failed`.
    pub event: &'static str,
    /// The order it is about.
    pub order_id: &'a str,
    /// What was ordered.
    pub product: &'a str,
    /// Number of items.
    pub quantity: i64,
    /// Price of one item.
    pub price: Decimal,
    /// Price times quantity.
    pub total: Decimal,
    /// The amounts' currency.
    pub currency: Currency,
    /// Whether the producer marked the order as priority.
    pub priority: bool,
    /// Id of the customer, if the order names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<&'a str>,
    /// When the customer placed the order, if the order says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placed_at: Option<Timestamp>,
    /// When the order was processed. The aggregates count it at this time.
    pub at: Timestamp,
    /// The order's fields that orderd does not know. They are in an object of their own, because a field named `total`
    /// or `at` in an order has another meaning than here.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: &'a BTreeMap<String, Box<RawValue>>,
    /// Set if `extra` was left out because it is larger than [`MAX_EXTRA_BYTES`](super::model::MAX_EXTRA_BYTES).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub extra_dropped: bool,
}

impl<'a> Notification<'a> {
    /// The event for a processed order, with its checked total.
    pub fn processed(order: &'a Order, total: Decimal, currency: Currency) -> Self {
        Notification {
            event: "processed",
            order_id: order.id.as_str(),
            channel: order.notification_channel(),
            email: order.email.as_deref(),
            customer_id: order.customer_id.as_deref(),
            product: &order.product,
            quantity: order.quantity,
            total,
            currency,
        }
    }
}

impl<'a> AnalyticsEvent<'a> {
    /// The event for a processed order, with its checked total.
    pub fn processed(order: &'a Order, total: Decimal, currency: Currency, at: Timestamp) -> Self {
        AnalyticsEvent {
            event: "processed",
            order_id: order.id.as_str(),
            product: &order.product,
            quantity: order.quantity,
            price: order.price,
            total,
            currency,
            priority: order.priority,
            customer_id: order.customer_id.as_deref(),
            placed_at: order.placed_at,
            at,
            extra: &order.extra,
            extra_dropped: order.extra_dropped,
        }
    }
}

/// The part of an analytics event that the aggregates count. Only events of processed orders have these fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sale {
    /// What was ordered.
    pub product: String,
    /// Number of items.
    pub quantity: i64,
    /// Price times quantity.
    pub total: Decimal,
    /// The total's currency.
    pub currency: Currency,
    /// When the order was processed.
    pub at: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::super::model::MAX_EXTRA_BYTES;
    use super::*;

    fn events(order: &str) -> [String; 2] {
        let order = Order::decode(order.as_bytes()).unwrap();
        let (total, currency) = order.check().unwrap();
        let at = "2026-11-22T08:00:01.5Z".parse().unwrap();
        let notification = serde_json::to_string(&Notification::processed(&order, total, currency)).unwrap();
        let analytics = serde_json::to_string(&AnalyticsEvent::processed(&order, total, currency, at)).unwrap();
        [notification, analytics]
    }

    #[test]
    fn events_contain_the_fields_of_their_order() {
        let [notification, analytics] = events(
            r#"{"id":"a\"b","product":"Bücher\n","quantity":3,"price":"0.10","priority":true,"customer_id":7,
                "email":"a@b.c","currency":"EUR","placed_at":"2026-11-22T08:00:00Z","notify":"sms","gift":{"wrap":[1]}}"#,
        );
        assert_eq!(
            notification,
            r#"{"event":"processed","order_id":"a\"b","channel":"sms","email":"a@b.c","customer_id":"7","product":"Bücher\n","quantity":3,"total":"0.30","currency":"EUR"}"#
        );
        assert_eq!(
            analytics,
            r#"{"event":"processed","order_id":"a\"b","product":"Bücher\n","quantity":3,"price":"0.10","total":"0.30","currency":"EUR","priority":true,"customer_id":"7","placed_at":"2026-11-22T08:00:00Z","at":"2026-11-22T08:00:01.5Z","extra":{"gift":{"wrap":[1]}}}"#
        );
    }

    #[test]
    fn a_large_order_has_small_events() {
        let note = "x".repeat(MAX_EXTRA_BYTES);
        let [notification, analytics] =
            events(&format!(r#"{{"id":1,"product":"p","quantity":1,"price":1,"note":"{note}"}}"#));
        assert!(notification.len() + analytics.len() < 1000);
        assert!(analytics.ends_with(r#","extra_dropped":true}"#), "{analytics}");
    }

    #[test]
    fn fields_missing_from_an_order_are_missing_from_its_events() {
        let [notification, analytics] = events(r#"{"id":1,"product":"p","quantity":1,"price":1}"#);
        assert_eq!(
            notification,
            r#"{"event":"processed","order_id":"1","channel":"email","product":"p","quantity":1,"total":"1","currency":"XXX"}"#
        );
        assert_eq!(
            analytics,
            r#"{"event":"processed","order_id":"1","product":"p","quantity":1,"price":"1","total":"1","currency":"XXX","priority":false,"at":"2026-11-22T08:00:01.5Z"}"#
        );
    }
}
