//! What a message says about the order that it is. Pure.

use std::collections::BTreeSet;

use crate::domain::{CANCELLATION_SUFFIX, EVENT_ID_SUFFIXES, Order, OrderDocument};
use crate::formats::Format;
use crate::ledger::LetterOrder;
use crate::message::Delivery;

/// What was read of a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    pub order: LetterOrder,
    /// The identity of an order, or of its cancellation.
    pub identity: Option<String>,
}

/// Reads an order, or the cancellation of one, in a format. Its id counts even if the rest is invalid.
pub(super) fn read_failed_order(delivery: &Delivery, format: &Format, max_body: usize) -> Reading {
    let Ok(document) = delivery.message.document(max_body) else { return Reading::default() };
    match format.read(&document, delivery.message.order_event(max_body)) {
        Ok(OrderDocument::Placed(order)) => placed(&order, format),
        Ok(OrderDocument::Cancelled(id)) => cancelled(id.as_str()),
        Err(_) => match format.order_id(&document) {
            Some(id) => Reading {
                order: LetterOrder { id: Some(id.as_str().to_owned()), ..LetterOrder::default() },
                identity: Some(id.as_str().to_owned()),
            },
            None => Reading::default(),
        },
    }
}

/// Reads a message of which nothing says that it is an order: it is one if it is valid in one of the formats.
pub(super) fn read_order(delivery: &Delivery, formats: &[Format], max_body: usize) -> Reading {
    let Ok(document) = delivery.message.document(max_body) else { return Reading::default() };
    let event = delivery.message.order_event(max_body);
    let valid = formats.iter().find_map(|format| match format.read(&document, event) {
        Ok(OrderDocument::Placed(order)) => format.check(&order).is_ok().then(|| placed(&order, format)),
        Ok(OrderDocument::Cancelled(id)) => Some(cancelled(id.as_str())),
        Err(_) => None,
    });
    valid.unwrap_or_default()
}

/// The order that an event of orderd's own is about.
pub(super) fn order_of_event(identity: &str) -> Option<String> {
    let mut suffixes = EVENT_ID_SUFFIXES.iter().copied().chain([CANCELLATION_SUFFIX]);
    suffixes.find_map(|suffix| identity.strip_suffix(suffix)).map(str::to_owned)
}

fn placed(order: &Order, format: &Format) -> Reading {
    let id = order.id.as_str().to_owned();
    let mut known = BTreeSet::new();
    let products = order.items.iter().map(|item| item.product.clone());
    let products = products.filter(|product| known.insert(product.clone())).collect();
    let amounts = format.check(order).ok();
    let order = LetterOrder {
        id: Some(id.clone()),
        customer_id: order.customer_id.clone(),
        products,
        total: amounts.map(|amounts| (amounts.total.to_string(), amounts.currency.as_str().to_owned())),
    };
    Reading { order, identity: Some(id) }
}

fn cancelled(id: &str) -> Reading {
    let order = LetterOrder { id: Some(id.to_owned()), ..LetterOrder::default() };
    Reading { order, identity: Some([id, CANCELLATION_SUFFIX].concat()) }
}
