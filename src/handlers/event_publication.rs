//! Builds the publications of the events that orderd emits about orders.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::message::{ExchangeNames, Message, Properties, Publication};

/// Initial capacity of the buffer for a body, in bytes. Most events fit, so the buffer rarely grows.
const TYPICAL_BODY_BYTES: usize = 384;

/// An event about an order, on the orders exchange. Its message id derives from the order's
/// (`ord-2/notification/processed`), so that duplicates are recognised.
pub(super) fn event(
    names: &ExchangeNames,
    routing_key: String,
    order_id: &str,
    topic: &str,
    body: &impl Serialize,
    now: Timestamp,
) -> Publication {
    let mut bytes = Vec::with_capacity(TYPICAL_BODY_BYTES);
    serde_json::to_writer(&mut bytes, body).expect("events consist of text, numbers and JSON that was parsed before");
    let properties = Properties {
        content_type: Some("application/json".to_owned()),
        message_id: Some([order_id, "/", topic].concat()),
        correlation_id: Some(order_id.to_owned()),
        timestamp: u64::try_from(now.as_second()).ok(),
        ..Properties::default()
    };
    let message = Message { properties, body: bytes.into(), ..Message::default() };
    Publication { exchange: Arc::clone(&names.orders), routing_key, message }
}
