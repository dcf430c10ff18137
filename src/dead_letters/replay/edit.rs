//! What the new body of a letter says. Pure.

use std::borrow::Cow;

use bytes::Bytes;
use jiff::Timestamp;

use super::super::message_json::properties_json;
use super::super::order::Reading;
use super::super::reading::{BodyRefused, KnownConsumers, LetterReading, Searched, consumer_of, is_order};
use super::message::{provenance, stored_delivery};
use crate::domain::{BodyError, body_text, encoded_body};
use crate::ledger::{DeadLetterDetail, LetterOrder, NewOrder};
use crate::message::{Message, TrustedUsers};
use crate::recovery::ClaimedRun;

/// The longest body that can be edited, decompressed, in bytes: what a request may contain in Base64.
pub const MAX_EDITED_BYTES: usize = 16 << 20;

/// Why a new body is not accepted.
#[derive(Debug, thiserror::Error)]
pub(super) enum EditError {
    /// It is larger than orderd reads.
    #[error("the body is larger than broker.max_body, or than 16 MiB")]
    TooLarge,
    /// The letter's properties or headers cannot be read.
    #[error("the letter's properties or headers cannot be read")]
    Unreadable,
    /// Nobody could process it.
    #[error(transparent)]
    Refused(#[from] BodyRefused),
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
    /// The queue that a replay would publish it to; `None`: one must be named.
    pub queue: Option<String>,
    /// The order whose steps were called for the letter, and are not undone: its replays are about that order, whatever the body says.
    pub order_of_steps: Option<String>,
}

/// Reads a new body as the letter's consumer does.
pub(super) fn edited(
    detail: DeadLetterDetail,
    body: Vec<u8>,
    consumers: &KnownConsumers,
    users: &TrustedUsers,
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
    let provenance = provenance(&letter, &delivery, users);
    let claimed = ClaimedRun::read(&delivery, provenance).filter(|claimed| claimed.key.scope.is_empty());
    let order_of_steps = claimed.map(|claimed| claimed.key.identity);
    let was_order = is_order(letter.order_id.as_deref(), letter.identity.as_deref());
    let reading = LetterReading::new(consumers, letter.origin_queue.as_deref(), letter.consumer.as_deref());
    reading.check(&delivery, provenance, was_order, max_body)?;
    let Reading { mut order, identity } = reading.read(&delivery, provenance.is_copy, max_body);
    if order.id.is_none() && (!was_order || matches!(reading, LetterReading::Message(_))) {
        // What is about an order, as an event is, does not say in its body which.
        order.id.clone_from(&letter.order_id);
    }
    let whole = reading.whole_order(&delivery, max_body, Timestamp::now());
    let text = delivery.message.text(max_body).ok();
    let searched = Searched {
        identity: identity.as_deref().or(letter.identity.as_deref()),
        order: &order,
        message_id: letter.message_id.as_deref(),
        routing_key: &letter.routing_key,
        code: &letter.code,
        failure_reason: letter.failure_reason.as_deref(),
        body: text.as_deref(),
    };
    let search = searched.text();
    let queue = consumer_of(consumers, letter.origin_queue.as_deref(), letter.consumer.as_deref());
    let queue = queue.map(|(queue, _)| queue.clone());
    drop(text);
    Ok(Edited { body: delivery.message.body, properties, order, identity, search, whole, queue, order_of_steps })
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
