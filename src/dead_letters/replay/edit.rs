//! What the new body of a letter says. Pure.

use bytes::Bytes;
use jiff::Timestamp;

use super::super::letter_reader::KnownConsumers;
use super::super::order::read_failed_order;
use super::message::{order as whole_order, stored_delivery, target};
use crate::domain::OrderDocument;
use crate::formats::{Format, OrderFaults};
use crate::ledger::{DeadLetter, DeadLetterDetail, LetterOrder, MAX_SEARCH_BYTES, NewOrder};
use crate::message::{Delivery, DocumentError};

/// Why a new body is not accepted.
#[derive(Debug, thiserror::Error)]
pub(super) enum EditError {
    /// It is larger than orderd reads.
    #[error("the body is larger than broker.max_body")]
    TooLarge,
    /// The letter's properties or headers cannot be read.
    #[error("the letter's properties or headers cannot be read")]
    Unreadable,
    /// The consumer would refuse it.
    #[error("the consumer would refuse it: {0}")]
    Format(String),
}

/// A new body, and what it says.
pub(super) struct Edited {
    pub body: Bytes,
    pub order: LetterOrder,
    /// Of an order.
    pub identity: Option<String>,
    pub search: String,
    pub whole: Option<Box<NewOrder>>,
}

/// Reads a new body as the letter's consumer does.
pub(super) fn edited(
    detail: DeadLetterDetail,
    body: Vec<u8>,
    consumers: &KnownConsumers,
    max_body: usize,
) -> Result<Edited, EditError> {
    if body.len() > max_body {
        return Err(EditError::TooLarge);
    }
    let (letter, mut delivery) = stored_delivery(detail).ok_or(EditError::Unreadable)?;
    delivery.message.body = body.into();
    let consumer = target(consumers, None, letter.origin_queue.as_deref(), letter.consumer.as_deref());
    let whole = consumer.and_then(|(_, consumer)| whole_order(&delivery, consumer, max_body, Timestamp::now()));
    let (order, identity) = match consumer.and_then(|(_, consumer)| consumer.format.as_ref()) {
        Some(format) => {
            check(&delivery, format, max_body)?;
            let reading = read_failed_order(&delivery, format, max_body);
            (reading.order, reading.identity)
        }
        // Nothing is known about its format.
        None => (LetterOrder { id: letter.order_id.clone(), ..LetterOrder::default() }, None),
    };
    let search = search_text(&letter, &order, &delivery, max_body);
    Ok(Edited { body: delivery.message.body, order, identity, search, whole })
}

fn check(delivery: &Delivery, format: &Format, max_body: usize) -> Result<(), EditError> {
    let unreadable = |error: DocumentError| EditError::Format(error.to_string());
    let document = delivery.message.document(max_body).map_err(unreadable)?;
    let refused = |faults: OrderFaults| EditError::Format(faults.to_string());
    match format.read(&document, delivery.message.order_event(max_body)).map_err(refused)? {
        OrderDocument::Placed(order) => format.check(&order).map(drop).map_err(refused),
        OrderDocument::Cancelled(_) => Ok(()),
    }
}

fn search_text(letter: &DeadLetter, order: &LetterOrder, delivery: &Delivery, max_body: usize) -> String {
    let text = delivery.message.text(max_body).unwrap_or_default();
    let known = [&letter.identity, &order.id, &order.customer_id, &letter.message_id, &letter.failure_reason];
    let known = known.into_iter().flatten().chain([&letter.routing_key, &letter.code]).chain(&order.products);
    let mut search = String::new();
    for part in known.map(String::as_str).chain([&text[..text.floor_char_boundary(MAX_SEARCH_BYTES)]]) {
        search.push_str(&part.to_lowercase());
        search.push('\n');
        if search.len() >= MAX_SEARCH_BYTES {
            break;
        }
    }
    search.truncate(search.floor_char_boundary(MAX_SEARCH_BYTES));
    search
}
