//! An order as its steps are called with it: as orderd understood it, with its amounts. Pure.
//!
//! `docs/guides/steps.md` lists its fields, and `orderd schema step` has its schema: services of the shop rely on both.

use jiff::Timestamp;
use rust_decimal::Decimal;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::domain::{Amounts, Charges, Currency, Item, Order};

/// The order as orderd understood it. Amounts are decimals as text.
#[derive(Serialize, JsonSchema)]
#[schemars(title = "order")]
pub struct StepOrder<'a> {
    /// The order's id, with the prefix of its format.
    id: &'a str,
    /// What was ordered, unless the order has several lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    product: Option<&'a str>,
    /// Number of pieces, unless the order has several lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<i64>,
    /// Price of one piece, unless the order has several lines.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    price: Option<Decimal>,
    /// The lines, also if there is only one.
    items: Vec<StepItem<'a>>,
    /// The sum of the lines.
    #[schemars(with = "String")]
    goods_total: Decimal,
    /// Charged for shipping, if the order states it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    shipping: Option<Decimal>,
    /// Charged for other things, if the order states it. May be negative.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    fees: Option<Decimal>,
    /// The tax, if the order states it, whether the prices include it or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    tax: Option<Decimal>,
    /// With `tax`: whether the prices include it, so that it adds nothing to the total.
    #[serde(skip_serializing_if = "Option::is_none")]
    tax_included: Option<bool>,
    /// Deducted, if the order states it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    discount: Option<Decimal>,
    /// What the customer pays.
    #[schemars(with = "String")]
    total: Decimal,
    /// The amounts' currency; `XXX` if the order states none.
    #[schemars(with = "String")]
    currency: Currency,
    /// Whether the producer marked the order as priority.
    priority: bool,
    /// Id of the customer, if the order names one.
    #[serde(skip_serializing_if = "Option::is_none")]
    customer_id: Option<&'a str>,
    /// The customer's email address, if the order has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<&'a str>,
    /// The customer's telephone number, if the order has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    phone: Option<&'a str>,
    /// The customer's language, if the order has one, such as `de-AT`.
    #[serde(skip_serializing_if = "Option::is_none")]
    locale: Option<&'a str>,
    /// When the customer placed the order, if the order says so. RFC 3339, in UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    placed_at: Option<Timestamp>,
}

/// A line of the order.
#[derive(Serialize, JsonSchema)]
#[schemars(title = "line")]
struct StepItem<'a> {
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
}

impl<'a> StepOrder<'a> {
    /// The order with its checked amounts.
    pub fn new(order: &'a Order, amounts: &Amounts) -> Self {
        let only = match &order.items[..] {
            [only] => Some(only),
            _ => None,
        };
        // Without `..`: a new charge must not be forgotten here.
        let Charges { shipping, fees, tax, discount, tax_included: _ } = amounts.charges;
        StepOrder {
            id: order.id.as_str(),
            product: only.map(|item| item.product.as_str()),
            quantity: only.map(|item| item.quantity),
            price: only.map(|item| item.price),
            items: order.items.iter().map(item).collect(),
            goods_total: amounts.goods,
            shipping,
            fees,
            tax,
            tax_included: amounts.charges.stated_tax_included(),
            discount,
            total: amounts.total,
            currency: amounts.currency,
            priority: order.priority,
            customer_id: order.customer_id.as_deref(),
            email: order.email.as_deref(),
            phone: order.customer_phone(),
            locale: order.customer_locale(),
            placed_at: order.placed_at,
        }
    }
}

/// The value of `order` in a call.
pub(super) fn step_order(order: &Order, amounts: &Amounts) -> Box<RawValue> {
    to_raw_value(&StepOrder::new(order, amounts)).expect("an order consists of texts and numbers")
}

fn item(item: &Item) -> StepItem<'_> {
    StepItem { product: &item.product, quantity: item.quantity, price: item.price, total: item.total }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::OrderDocument;
    use crate::formats::Format;

    fn called_with(format: &Format, document: &Value) -> Value {
        let OrderDocument::Placed(order) = format.read(&document.to_string(), None).unwrap() else { unreachable!() };
        let amounts = order.check().unwrap();
        serde_json::from_str(step_order(&order, &amounts).get()).unwrap()
    }

    #[test]
    fn a_step_receives_every_field_of_an_order_with_all_charges() {
        let document = json!({"id": 7, "currency": "EUR", "total_price": "31.40", "taxes_included": true, "total_tax": "5.01",
            "total_discounts": "1.00", "customer": {"id": 5}, "email": "ada@example.com", "phone": "+43 1 234",
            "customer_locale": "de-AT", "created_at": "2026-11-22T09:00:00+01:00", "shipping_lines": [{"price": "4.90"}],
            "original_total_duties_set": {"shop_money": {"amount": "2.50"}},
            "line_items": [{"name": "Lamp", "quantity": 1, "price": "20.00"}, {"name": "Bulb", "quantity": 2, "price": "2.50"}]});
        let lines = json!([{"product": "Lamp", "quantity": 1, "price": "20.00", "total": "20.00"},
            {"product": "Bulb", "quantity": 2, "price": "2.50", "total": "5.00"}]);
        assert_eq!(
            called_with(&Format::built_in("shopify").unwrap(), &document),
            json!({"id": "7", "items": lines, "goods_total": "25.00", "shipping": "4.90", "fees": "2.50", "tax": "5.01",
                "tax_included": true, "discount": "1.00", "total": "31.40", "currency": "EUR", "priority": false,
                "customer_id": "5", "email": "ada@example.com", "phone": "+43 1 234", "locale": "de-AT",
                "placed_at": "2026-11-22T08:00:00Z"})
        );
    }

    #[test]
    fn a_step_receives_an_order_for_one_product_in_both_notations() {
        let document = json!({"id": "ord-2", "product": "Laptop", "quantity": 3, "price": 400, "priority": true});
        assert_eq!(
            called_with(&Format::Own, &document),
            json!({"id": "ord-2", "product": "Laptop", "quantity": 3, "price": "400", "goods_total": "1200", "total": "1200",
                "items": [{"product": "Laptop", "quantity": 3, "price": "400", "total": "1200"}], "currency": "XXX",
                "priority": true})
        );
    }
}
