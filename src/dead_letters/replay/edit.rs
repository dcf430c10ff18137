//! What the new body of a letter says. Pure.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;

use super::super::letter_parser::KnownConsumers;
use super::super::message_json::properties_json;
use super::super::order::read_failed_order;
use super::message::{order as whole_order, stored_delivery, target};
use crate::domain::{BodyError, OrderDocument, body_text, encoded_body};
use crate::formats::{Format, OrderFaults};
use crate::ledger::{DeadLetter, DeadLetterDetail, LetterOrder, MAX_SEARCH_BYTES, NewOrder};
use crate::message::{Delivery, DocumentError, Message};

/// The longest body that can be edited, decompressed, in bytes: what a request may contain in Base64.
pub(super) const MAX_EDITED_BYTES: usize = 16 << 20;

/// Why a new body is not accepted.
#[derive(Debug, thiserror::Error)]
pub(super) enum EditError {
    /// It is larger than orderd reads.
    #[error("the body is larger than broker.max_body, or than 16 MiB")]
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
    /// As JSON, if they change.
    pub properties: Option<String>,
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
    if body.len() > max_body.min(MAX_EDITED_BYTES) {
        return Err(EditError::TooLarge);
    }
    let (letter, mut delivery) = stored_delivery(detail).ok_or(EditError::Unreadable)?;
    let properties = encode(&mut delivery.message, body)?;
    if delivery.message.body.len() > max_body {
        return Err(EditError::TooLarge);
    }
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
    Ok(Edited { body: delivery.message.body, properties, order, identity, search, whole })
}

/// The body as it is edited: without its compression. What cannot be decompressed is shown as it is.
pub(super) fn present_body(detail: DeadLetterDetail, max_body: usize) -> Result<Vec<u8>, EditError> {
    let (_, delivery) = stored_delivery(detail).ok_or(EditError::Unreadable)?;
    let Message { body, properties, .. } = &delivery.message;
    let encoding = properties.content_encoding.as_deref();
    let text = match body_text(body, encoding, max_body) {
        // Its producer did not say that it is compressed. The new body is not.
        Err(BodyError::UndeclaredGzip) => body_text(body, Some("gzip"), max_body),
        text => text,
    };
    Ok(match text {
        Ok(Cow::Owned(text)) => text.into_bytes(),
        Ok(Cow::Borrowed(_)) | Err(_) => body.to_vec(),
    })
}

/// Gives a message a new body, as its `content_encoding` says. One that orderd cannot read is removed: then the properties are returned
/// as JSON.
fn encode(message: &mut Message, text: Vec<u8>) -> Result<Option<String>, EditError> {
    let encoding = message.properties.content_encoding.as_deref();
    let encoded = encoded_body(text.clone(), encoding).map_err(|_| EditError::Unreadable)?;
    let Some(body) = encoded else {
        message.body = text.into();
        message.properties.content_encoding = None;
        return Ok(Some(properties_json(&message.properties).to_string()));
    };
    message.body = body.into();
    Ok(None)
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
