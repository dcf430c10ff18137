//! The events about an order: the bodies of notifications and analytics events.
//!
//! Bodies only: routing keys and message ids are chosen where the events are published.

use std::collections::BTreeMap;

use jiff::Timestamp;
use rust_decimal::Decimal;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

use super::item::{Amounts, Item};
use super::model::UnknownFields;
use super::{Currency, Order};

/// The end of the identity of an order's cancellation; the order's id precedes it.
pub const CANCELLATION_SUFFIX: &str = "/cancellation";

/// The ends of the message ids of the events about an order; the order's id precedes them.
pub const EVENT_ID_SUFFIXES: [&str; 5] = [
    "/analytics/processed",
    "/analytics/failed",
    "/analytics/cancelled",
    "/notification/processed",
    "/notification/cancelled",
];

/// The body of `order.notification.<channel>`: a message for the customer.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "order.notification.<channel>")]
pub struct Notification<'a> {
    /// What happened: `processed` or `cancelled`.
    #[schemars(extend("enum" = ["processed", "cancelled"]))]
    pub event: &'static str,
    /// The order it is about.
    pub order_id: &'a str,
    /// The channel that the order asked for, else `email`.
    pub channel: &'a str,
    /// The customer's email address, if the order has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub email: Option<&'a str>,
    /// The customer's telephone number, if the order has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phone: Option<&'a str>,
    /// The customer's language, if the order has one, such as `de-AT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub locale: Option<&'a str>,
    /// Id of the customer, if the order names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<&'a str>,
    /// When the customer placed the order, if the order says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub placed_at: Option<Timestamp>,
    /// What was ordered, unless the order has several lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<&'a str>,
    /// Number of pieces.
    pub quantity: i64,
    /// The lines, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<EventItem<'_>>>")]
    pub items: Option<EventItems<'a>>,
    /// What the order costs.
    #[serde(flatten)]
    pub costs: Costs,
}

/// The body of `order.analytics.processed`.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "order.analytics.processed")]
pub struct AnalyticsEvent<'a> {
    /// `processed`.
    #[schemars(extend("const" = "processed"))]
    pub event: &'static str,
    /// The order.
    #[serde(flatten)]
    pub order: EventOrder<'a>,
    /// When the order was processed. The aggregates count it at this time.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// The order's fields that orderd does not know. They are in an object of their own, because a field named `total`
    /// or `at` in an order has another meaning than here.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    pub extra: &'a UnknownFields,
    /// Set if unknown fields were left out because they have more than 256 KiB, or the lines too many of them.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    #[schemars(with = "Option<bool>")]
    pub extra_dropped: bool,
}

/// The body of `order.analytics.cancelled`: an order that may have been announced as processed was cancelled.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "order.analytics.cancelled")]
pub struct CancelledEvent<'a> {
    /// `cancelled`.
    #[schemars(extend("const" = "cancelled"))]
    pub event: &'static str,
    /// The order, as it was accepted.
    #[serde(flatten)]
    pub order: EventOrder<'a>,
    /// When the order was cancelled. The aggregates subtract it at this time.
    #[schemars(with = "String")]
    pub at: Timestamp,
}

/// An order in an analytics event.
#[derive(Debug, Serialize, JsonSchema)]
pub struct EventOrder<'a> {
    /// The order it is about.
    pub order_id: &'a str,
    /// What was ordered, unless the order has several lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub product: Option<&'a str>,
    /// Number of pieces.
    pub quantity: i64,
    /// Price of one piece, unless the order has several lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub price: Option<Decimal>,
    /// The fields of the only line that orderd does not know, if it was given in a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    pub item_extra: Option<&'a UnknownFields>,
    /// The lines, if there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<EventItem<'_>>>")]
    pub items: Option<EventItems<'a>>,
    /// What the order costs.
    #[serde(flatten)]
    pub costs: Costs,
    /// Whether the producer marked the order as priority.
    pub priority: bool,
    /// Id of the customer, if the order names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub customer_id: Option<&'a str>,
    /// When the customer placed the order, if the order says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub placed_at: Option<Timestamp>,
}

/// What an order costs, with what it charges besides its goods.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
pub struct Costs {
    /// The sum of the lines, if the order states a charge or its total is rounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub goods_total: Option<Decimal>,
    /// Charged for shipping.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub shipping: Option<Decimal>,
    /// Charged for other things, such as a duty or a fee for the payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub fees: Option<Decimal>,
    /// The tax, whether the prices include it or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub tax: Option<Decimal>,
    /// With `tax`: whether it is included in the prices, and so in `goods_total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tax_included: Option<bool>,
    /// Deducted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub discount: Option<Decimal>,
    /// What the order costs.
    #[schemars(with = "String")]
    pub total: Decimal,
    /// The amounts' currency.
    #[schemars(with = "String")]
    pub currency: Currency,
}

/// The lines of an order in an event.
#[derive(Debug, Clone, Copy)]
pub struct EventItems<'a> {
    items: &'a [Item],
    /// Empty, or one for each line.
    extra: &'a [UnknownFields],
}

/// One line.
#[derive(Serialize, JsonSchema)]
#[schemars(title = "item")]
struct EventItem<'a> {
    /// What was ordered.
    product: &'a str,
    /// Number of pieces.
    quantity: i64,
    /// Price of one piece.
    #[schemars(with = "String")]
    price: Decimal,
    /// What all of them cost.
    #[schemars(with = "String")]
    total: Decimal,
    /// The line's fields that orderd does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    extra: Option<&'a UnknownFields>,
}

impl Serialize for EventItems<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.items.iter().enumerate().map(|(index, item)| EventItem {
            product: &item.product,
            quantity: item.quantity,
            price: item.price,
            total: item.total,
            extra: self.extra.get(index).filter(|extra| !extra.is_empty()),
        }))
    }
}

/// The only line of an order.
fn only_item(order: &Order) -> Option<&Item> {
    match &*order.items {
        [item] => Some(item),
        _ => None,
    }
}

impl<'a> Notification<'a> {
    /// The event for a processed order, with its checked amounts.
    pub fn processed(order: &'a Order, amounts: &Amounts) -> Self {
        Self::of("processed", order, amounts)
    }

    /// The event for a cancelled order, with its checked amounts.
    pub fn cancelled(order: &'a Order, amounts: &Amounts) -> Self {
        Self::of("cancelled", order, amounts)
    }

    fn of(event: &'static str, order: &'a Order, amounts: &Amounts) -> Self {
        let item = only_item(order);
        Notification {
            event,
            order_id: order.id.as_str(),
            channel: order.notification_channel(),
            email: order.email.as_deref(),
            phone: order.customer_phone(),
            locale: order.customer_locale(),
            customer_id: order.customer_id.as_deref(),
            placed_at: order.placed_at,
            product: item.map(|item| item.product.as_str()),
            quantity: amounts.quantity,
            items: item.is_none().then_some(EventItems { items: &order.items, extra: &[] }),
            costs: Costs::from(amounts),
        }
    }
}

impl<'a> AnalyticsEvent<'a> {
    /// The event for a processed order, with its checked amounts.
    pub fn processed(order: &'a Order, amounts: &Amounts, at: Timestamp) -> Self {
        let (extra, extra_dropped) = (&order.extra, order.extra_dropped);
        AnalyticsEvent { event: "processed", order: EventOrder::new(order, amounts), at, extra, extra_dropped }
    }
}

impl<'a> CancelledEvent<'a> {
    /// The event for a cancelled order, with its checked amounts.
    pub fn new(order: &'a Order, amounts: &Amounts, at: Timestamp) -> Self {
        CancelledEvent { event: "cancelled", order: EventOrder::new(order, amounts), at }
    }
}

impl<'a> EventOrder<'a> {
    fn new(order: &'a Order, amounts: &Amounts) -> Self {
        let item = only_item(order);
        let items = EventItems { items: &order.items, extra: &order.item_extra };
        EventOrder {
            order_id: order.id.as_str(),
            product: item.map(|item| item.product.as_str()),
            quantity: amounts.quantity,
            price: item.map(|item| item.price),
            item_extra: item.and_then(|_| order.item_extra.first()).filter(|extra| !extra.is_empty()),
            items: item.is_none().then_some(items),
            costs: Costs::from(amounts),
            priority: order.priority,
            customer_id: order.customer_id.as_deref(),
            placed_at: order.placed_at,
        }
    }
}

impl From<&Amounts> for Costs {
    fn from(amounts: &Amounts) -> Self {
        let charges = &amounts.charges;
        let states_goods = charges.count() > 0 || amounts.goods != amounts.total;
        Costs {
            goods_total: states_goods.then_some(amounts.goods),
            shipping: charges.shipping,
            fees: charges.fees,
            tax: charges.tax,
            tax_included: charges.stated_tax_included(),
            discount: charges.discount,
            total: amounts.total,
            currency: amounts.currency,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::MAX_EXTRA_BYTES;
    use super::*;

    fn events(order: &str) -> [String; 2] {
        let order = Order::decode(order.as_bytes()).unwrap();
        let amounts = order.check().unwrap();
        let at = "2026-11-22T08:00:01.5Z".parse().unwrap();
        let notification = serde_json::to_string(&Notification::processed(&order, &amounts)).unwrap();
        let analytics = serde_json::to_string(&AnalyticsEvent::processed(&order, &amounts, at)).unwrap();
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
            r#"{"event":"processed","order_id":"a\"b","channel":"sms","email":"a@b.c","customer_id":"7","placed_at":"2026-11-22T08:00:00Z","product":"Bücher\n","quantity":3,"total":"0.30","currency":"EUR"}"#
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

    #[test]
    fn the_events_of_an_order_with_several_lines_contain_each_line() {
        let [notification, analytics] = events(
            r#"{"id":1,"currency":"EUR","items":[{"product":"Pen","quantity":2,"price":"1.20","colour":"red"},
                {"product":"Ink","quantity":1,"price":3}]}"#,
        );
        assert_eq!(
            notification,
            r#"{"event":"processed","order_id":"1","channel":"email","quantity":3,"items":[{"product":"Pen","quantity":2,"price":"1.20","total":"2.40"},{"product":"Ink","quantity":1,"price":"3","total":"3"}],"total":"5.40","currency":"EUR"}"#
        );
        assert_eq!(
            analytics,
            r#"{"event":"processed","order_id":"1","quantity":3,"items":[{"product":"Pen","quantity":2,"price":"1.20","total":"2.40","extra":{"colour":"red"}},{"product":"Ink","quantity":1,"price":"3","total":"3"}],"total":"5.40","currency":"EUR","priority":false,"at":"2026-11-22T08:00:01.5Z"}"#
        );
    }

    #[test]
    fn an_order_with_one_line_has_the_same_events_in_either_notation() {
        let plain = events(r#"{"id":1,"product":"Pen","quantity":2,"price":"1.20"}"#);
        assert_eq!(events(r#"{"id":1,"items":[{"product":"Pen","quantity":2,"price":"1.20"}]}"#), plain);
    }

    #[test]
    fn the_fields_of_an_only_line_are_beside_its_product_and_it_is_not_repeated_as_a_list() {
        let [_, analytics] =
            events(r#"{"id":1,"items":[{"product":"Pen","quantity":2,"price":"1.20","colour":"red"}],"gift":true}"#);
        assert_eq!(
            analytics,
            r#"{"event":"processed","order_id":"1","product":"Pen","quantity":2,"price":"1.20","item_extra":{"colour":"red"},"total":"2.40","currency":"XXX","priority":false,"at":"2026-11-22T08:00:01.5Z","extra":{"gift":true}}"#
        );
    }

    #[test]
    fn events_have_the_goods_total_whenever_a_charge_is_stated_and_say_whether_prices_include_the_tax() {
        let mut order = Order::decode(br#"{"id":1,"product":"p","quantity":1,"price":"1.19"}"#).unwrap();
        for (included, total) in [(true, "1.19"), (false, "1.38")] {
            order.charges.tax = Some("0.19".parse().unwrap());
            order.charges.tax_included = included;
            let amounts = order.check().unwrap();
            let notification = serde_json::to_value(Notification::processed(&order, &amounts)).unwrap();
            let analytics = AnalyticsEvent::processed(&order, &amounts, Timestamp::UNIX_EPOCH);
            for event in [notification, serde_json::to_value(analytics).unwrap()] {
                assert_eq!((&event["goods_total"], &event["total"]), (&"1.19".into(), &total.into()));
                assert_eq!((&event["tax"], &event["tax_included"]), (&"0.19".into(), &included.into()));
            }
        }
    }

    #[test]
    fn the_largest_events_are_smaller_than_a_mebibyte() {
        let line = |n: usize| {
            format!(
                r#"{{"product":"{}","quantity":1,"price":"0.0000000000000000000000000001","n":{n}}}"#,
                "x".repeat(500)
            )
        };
        let lines: Vec<_> = (0..1000).map(line).collect();
        let note = "x".repeat(MAX_EXTRA_BYTES - 20_000);
        let [notification, analytics] = events(&format!(r#"{{"id":1,"note":"{note}","items":[{}]}}"#, lines.join(",")));
        assert!(notification.len() < 1 << 20 && analytics.len() < 1 << 20, "{}", analytics.len());
        assert!(analytics.contains(r#""extra":{"n":999}"#));
    }
}
