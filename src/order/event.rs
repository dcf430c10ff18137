//! What orderd tells others about an order: notifications and analytics events, and how it reads them.
//!
//! Only shapes; routing keys and message ids are made where the events are published.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Currency, Order};

/// Bytes that hold most events, so that their buffer need not grow.
const USUAL_JSON: usize = 384;

/// The body of `order.notification.<channel>`: what a customer is to be told.
#[derive(Debug)]
pub struct Notification<'a> {
    /// What happened: `processed`.
    pub event: &'static str,
    /// The order it is about.
    pub order_id: &'a str,
    /// `email` or the channel the order asked for.
    pub channel: &'a str,
    /// The customer's address, if the order had one.
    pub email: Option<&'a str>,
    /// The customer, if the order named one.
    pub customer_id: Option<&'a str>,
    /// What was ordered.
    pub product: &'a str,
    /// How many pieces.
    pub quantity: i64,
    /// Price times quantity.
    pub total: Decimal,
    /// The total's currency.
    pub currency: Currency,
}

/// The body of `order.analytics.processed` and `order.analytics.failed`.
#[derive(Debug)]
pub struct AnalyticsEvent<'a> {
    /// `processed` or `failed`.
    pub event: &'static str,
    /// The order it is about.
    pub order_id: &'a str,
    /// What was ordered.
    pub product: &'a str,
    /// How many pieces.
    pub quantity: i64,
    /// Price of one piece.
    pub price: Decimal,
    /// Price times quantity.
    pub total: Decimal,
    /// The amounts' currency.
    pub currency: Currency,
    /// Whether the order was marked urgent.
    pub priority: bool,
    /// Who ordered, if named.
    pub customer_id: Option<&'a str>,
    /// When the customer ordered, if the order said so.
    pub placed_at: Option<Timestamp>,
    /// When it was processed; the time the aggregates count it at.
    pub at: Timestamp,
    /// The order's fields that orderd does not know. In an object of their own, since a shop's `total` or `at` is
    /// not orderd's.
    pub extra: &'a BTreeMap<String, Box<RawValue>>,
}

impl<'a> Notification<'a> {
    /// Tells of a processed order with its checked total.
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
    /// Tells of a processed order with its checked total.
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
        }
    }
}

impl Notification<'_> {
    /// Its JSON.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = Json::beginning("{\"event\":", self.event);
        json.field(",\"order_id\":", self.order_id);
        json.field(",\"channel\":", self.channel);
        json.field_if(",\"email\":", self.email);
        json.field_if(",\"customer_id\":", self.customer_id);
        json.field(",\"product\":", self.product);
        json.field(",\"quantity\":", self.quantity);
        json.field(",\"total\":", self.total);
        json.field(",\"currency\":", self.currency);
        json.end()
    }
}

impl AnalyticsEvent<'_> {
    /// Its JSON.
    pub fn to_json(&self) -> Vec<u8> {
        let mut json = Json::beginning("{\"event\":", self.event);
        json.field(",\"order_id\":", self.order_id);
        json.field(",\"product\":", self.product);
        json.field(",\"quantity\":", self.quantity);
        json.field(",\"price\":", self.price);
        json.field(",\"total\":", self.total);
        json.field(",\"currency\":", self.currency);
        json.field(",\"priority\":", self.priority);
        json.field_if(",\"customer_id\":", self.customer_id);
        json.field_if(",\"placed_at\":", self.placed_at);
        json.field(",\"at\":", self.at);
        json.field_if(",\"extra\":", (!self.extra.is_empty()).then_some(self.extra));
        json.end()
    }
}

/// A JSON object whose names are known beforehand, each written in one piece with what stands around it: serde would
/// write the same in five.
struct Json(Vec<u8>);

impl Json {
    fn beginning(name: &str, value: impl Serialize) -> Self {
        let mut json = Json(Vec::with_capacity(USUAL_JSON));
        json.field(name, value);
        json
    }

    fn field(&mut self, name: &str, value: impl Serialize) {
        self.0.extend_from_slice(name.as_bytes());
        serde_json::to_writer(&mut self.0, &value).expect("text, numbers and JSON that was parsed before");
    }

    fn field_if(&mut self, name: &str, value: Option<impl Serialize>) {
        if let Some(value) = value {
            self.field(name, value);
        }
    }

    fn end(mut self) -> Vec<u8> {
        self.0.push(b'}');
        self.0
    }
}

/// What the aggregates take from an analytics event of a processed order; other events lack these fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sale {
    /// What was ordered.
    pub product: String,
    /// How many pieces.
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
    use super::*;

    fn events(order: &str) -> [String; 2] {
        let order = Order::decode(order.as_bytes()).unwrap();
        let (total, currency) = order.check().unwrap();
        let at = "2026-11-22T08:00:01.5Z".parse().unwrap();
        let notification = Notification::processed(&order, total, currency).to_json();
        let analytics = AnalyticsEvent::processed(&order, total, currency, at).to_json();
        [notification, analytics].map(|json| String::from_utf8(json).unwrap())
    }

    #[test]
    fn an_event_tells_all_of_its_order() {
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
    fn what_an_order_does_not_say_its_events_leave_out() {
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
