//! The AMQP client and a real broker, including the broker behaviours that are known to break clients.

mod connecting;
mod consuming;
mod declaring;
mod own_node;
mod publishing;
mod smoke;

use bytes::Bytes;
use orderd::message::{Message, Publication};

/// A publication to a queue through the default exchange.
fn to_queue(queue: &str, body: impl Into<Bytes>) -> Publication {
    let message = Message { body: body.into(), ..Message::default() };
    Publication { exchange: "".into(), routing_key: queue.into(), message }
}
