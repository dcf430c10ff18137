//! What a message says about the order that it is. Pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use crate::domain::{CANCELLATION_SUFFIX, EVENT_ID_SUFFIXES, Order, OrderDocument};
use crate::formats::{Format, OrderFaults};
use crate::ledger::{LetterOrder, NewOrder};
use crate::message::Delivery;

/// What was read of a message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    pub order: LetterOrder,
    /// The identity of an order, or of its cancellation.
    pub identity: Option<String>,
}

/// Reads an order, or the cancellation of one, in a format. Its id counts even if the rest is invalid, and so does the customer's: erasing
/// the customer must find the letter.
pub(super) fn read_failed_order(delivery: &Delivery, format: &Format, max_body: usize) -> Reading {
    let Ok(document) = delivery.message.document(max_body) else { return Reading::default() };
    match format.read(&document, delivery.message.order_event(max_body)) {
        Ok(OrderDocument::Placed(order)) => placed(&order, format),
        Ok(OrderDocument::Cancelled(id)) => cancelled(id.as_str()),
        Err(_) => {
            let id = format.order_id(&document).map(|id| id.as_str().to_owned());
            let customer_id = format.customer_id(&document);
            Reading { identity: id.clone(), order: LetterOrder { id, customer_id, ..LetterOrder::default() } }
        }
    }
}

/// Reads a message of which nothing says that it is an order: it is one if it is valid in one of the formats.
pub(super) fn read_order(delivery: &Delivery, formats: &[&Format], max_body: usize) -> Reading {
    let Ok(document) = delivery.message.document(max_body) else { return Reading::default() };
    let event = delivery.message.order_event(max_body);
    let valid = formats.iter().find_map(|format| match format.read(&document, event) {
        Ok(OrderDocument::Placed(order)) => format.check(&order).is_ok().then(|| placed(&order, format)),
        Ok(OrderDocument::Cancelled(id)) => Some(cancelled(id.as_str())),
        Err(_) => None,
    });
    valid.unwrap_or_default()
}

/// Whether a message is a valid order, or the cancellation of one.
///
/// # Errors
/// Why not.
pub(super) fn check_order(delivery: &Delivery, format: &Format, max_body: usize) -> Result<(), String> {
    let document = delivery.message.document(max_body).map_err(|error| error.to_string())?;
    let refused = |faults: OrderFaults| faults.to_string();
    match format.read(&document, delivery.message.order_event(max_body)).map_err(refused)? {
        OrderDocument::Placed(order) => format.check(&order).map(drop).map_err(refused),
        OrderDocument::Cancelled(_) => Ok(()),
    }
}

/// The whole order that a message is, if it is a valid one.
pub(super) fn whole_order(
    delivery: &Delivery,
    format: &Format,
    consumer: &Arc<str>,
    max_body: usize,
    now: Timestamp,
) -> Option<Box<NewOrder>> {
    let document = delivery.message.document(max_body).ok()?;
    let OrderDocument::Placed(order) = format.read(&document, delivery.message.order_event(max_body)).ok()? else {
        return None;
    };
    let amounts = format.check(&order).ok()?;
    Some(Box::new(NewOrder::new(&order, consumer, amounts, now)))
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
