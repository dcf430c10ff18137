//! An order as its steps are called with it: as orderd understood it, with its amounts. Pure.

use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::domain::{Amounts, Charges, Currency, Item, Order};

/// The value of `order` in a call.
#[derive(Serialize)]
struct StepOrder<'a> {
    id: &'a str,
    /// This and the next two: of an order with one line.
    #[serde(skip_serializing_if = "Option::is_none")]
    product: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantity: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    price: Option<Decimal>,
    items: Vec<StepItem<'a>>,
    goods_total: Decimal,
    #[serde(skip_serializing_if = "Option::is_none")]
    shipping: Option<Decimal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fees: Option<Decimal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tax: Option<Decimal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    discount: Option<Decimal>,
    total: Decimal,
    currency: Currency,
    priority: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    customer_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    phone: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    locale: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    placed_at: Option<Timestamp>,
}

/// One line.
#[derive(Serialize)]
struct StepItem<'a> {
    product: &'a str,
    quantity: i64,
    price: Decimal,
    total: Decimal,
}

/// The order with its checked amounts, as JSON.
pub(super) fn step_order(order: &Order, amounts: &Amounts) -> Box<RawValue> {
    let only = match &order.items[..] {
        [only] => Some(only),
        _ => None,
    };
    let Charges { shipping, fees, tax, discount, .. } = amounts.charges;
    let body = StepOrder {
        id: order.id.as_str(),
        product: only.map(|item| item.product.as_str()),
        quantity: only.map(|item| item.quantity),
        price: only.map(|item| item.price),
        items: order.items.iter().map(item).collect(),
        goods_total: amounts.goods,
        shipping,
        fees,
        tax,
        discount,
        total: amounts.total,
        currency: amounts.currency,
        priority: order.priority,
        customer_id: order.customer_id.as_deref(),
        email: order.email.as_deref(),
        phone: order.customer_phone(),
        locale: order.customer_locale(),
        placed_at: order.placed_at,
    };
    to_raw_value(&body).expect("an order consists of texts and numbers")
}

fn item(item: &Item) -> StepItem<'_> {
    StepItem { product: &item.product, quantity: item.quantity, price: item.price, total: item.total }
}
