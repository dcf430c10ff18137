//! What makes two deliveries the same message: everything that it contains. Pure.

use sha2::{Digest, Sha256};

use super::message_json::{headers_json, properties_json};
use crate::message::{Delivery, Headers, names};

/// Headers in which the broker counts deliveries: they change when it delivers the message again.
const COUNTS: [&str; 2] = [names::DELIVERY_COUNT, names::ACQUIRED_COUNT];

/// SHA-256 of the message as it was published, of where it was published, and of the queue.
pub(super) fn fingerprint(queue: &str, delivery: &Delivery) -> [u8; 32] {
    let message = &delivery.message;
    let properties = properties_json(&message.properties).to_string();
    let headers = headers_json(&without_counts(&message.headers)).to_string();
    let parts: [&[u8]; 6] = [
        queue.as_bytes(),
        delivery.exchange.as_bytes(),
        delivery.routing_key.as_bytes(),
        properties.as_bytes(),
        headers.as_bytes(),
        &message.body,
    ];
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    digest.finalize().into()
}

/// The headers as they were published.
pub(super) fn without_counts(headers: &Headers) -> Headers {
    let published = headers.iter().filter(|(name, _)| !COUNTS.contains(&name.as_str()));
    published.map(|(name, value)| (name.clone(), value.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{DeliveryId, HeaderValue, Message};

    fn delivery(key: &str, body: &'static str, headers: &[(&str, HeaderValue)]) -> Delivery {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        Delivery {
            id: DeliveryId { connection: 1, tag: 1 },
            exchange: "orders.unrouted".to_owned(),
            routing_key: key.to_owned(),
            redelivered: false,
            message: Message { body: body.into(), headers, ..Message::default() },
        }
    }

    #[test]
    fn a_message_is_the_same_however_often_it_is_delivered_and_no_other_is() {
        let first = fingerprint("q", &delivery("k", "body", &[("a", HeaderValue::I64(1))]));
        let counted = [("a", HeaderValue::I64(1)), (names::DELIVERY_COUNT, HeaderValue::I64(2))];
        assert_eq!(first, fingerprint("q", &delivery("k", "body", &counted)));
        for other in [
            fingerprint("q2", &delivery("k", "body", &[("a", HeaderValue::I64(1))])),
            fingerprint("q", &delivery("kb", "ody", &[("a", HeaderValue::I64(1))])),
            fingerprint("q", &delivery("k", "body", &[("a", HeaderValue::I32(1))])),
            fingerprint("q", &delivery("k", "body", &[])),
        ] {
            assert_ne!(first, other);
        }
    }
}
