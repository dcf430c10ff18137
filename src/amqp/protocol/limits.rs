//! The limits of AMQP and RabbitMQ that a publication must fit, checked before it is encoded.
//!
//! Pure. Never truncates anything: a publication that does not fit is an error.

use super::encoding::MAX_SHORT_STRING;
use super::field_table::encoded_len;
use crate::message::{Properties, Publication, PublishError};

/// RabbitMQ's largest message by default (`max_message_size` before 4.0), in bytes.
const MAX_BODY: usize = 128 * 1024 * 1024;
/// All properties and headers go into one frame. RabbitMQ's default `frame_max` is 128 KiB; 1 KiB is left for the frame's
/// own fields.
const MAX_PROPERTIES: usize = 127 * 1024;
/// The bytes of a publication that are not counted one by one: frame headers, fixed fields.
const OVERHEAD: usize = 64;

/// Checks that a publication can be encoded, and returns its size in bytes, which counts against the limit on
/// unconfirmed bytes (`max_bytes`).
///
/// # Errors
/// [`PublishError::Invalid`] with the limit it breaks.
pub fn check_size(publication: &Publication, max_bytes: usize) -> Result<usize, PublishError> {
    let invalid = |problem: String| PublishError::Invalid { exchange: publication.exchange.clone(), problem };
    check(publication).map_err(invalid)?;
    let message = &publication.message;
    let properties = properties_len(&message.properties) + encoded_len(&message.headers).map_err(invalid)?;
    if properties > MAX_PROPERTIES {
        return Err(invalid(format!("its properties and headers take {properties} bytes, more than {MAX_PROPERTIES}")));
    }
    let size = OVERHEAD + publication.exchange.len() + publication.routing_key.len() + properties + message.body.len();
    if size > max_bytes {
        return Err(invalid(format!("it takes {size} bytes, more than broker.max_unconfirmed_bytes = {max_bytes}")));
    }
    Ok(size)
}

fn check(publication: &Publication) -> Result<(), String> {
    fits("exchange", &publication.exchange)?;
    fits("routing key", &publication.routing_key)?;
    for (name, value) in short_strings(&publication.message.properties) {
        fits(name, value)?;
    }
    match publication.message.body.len() {
        length if length > MAX_BODY => Err(format!("its body has {length} bytes, more than {MAX_BODY}")),
        _ => Ok(()),
    }
}

fn fits(what: &str, text: &str) -> Result<(), String> {
    match text.len() {
        0..=MAX_SHORT_STRING => Ok(()),
        length => Err(format!("its {what} has {length} bytes, more than {MAX_SHORT_STRING}")),
    }
}

fn short_strings(properties: &Properties) -> impl Iterator<Item = (&'static str, &str)> {
    let Properties { content_type, content_encoding, priority: _, correlation_id, reply_to, .. } = properties;
    let Properties { expiration, message_id, timestamp: _, message_type, user_id, app_id, .. } = properties;
    [
        ("content_type", content_type),
        ("content_encoding", content_encoding),
        ("correlation_id", correlation_id),
        ("reply_to", reply_to),
        ("expiration", expiration),
        ("message_id", message_id),
        ("type", message_type),
        ("user_id", user_id),
        ("app_id", app_id),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value.as_deref()?)))
}

fn properties_len(properties: &Properties) -> usize {
    let strings: usize = short_strings(properties).map(|(_, value)| 1 + value.len()).sum();
    // Flags, delivery mode, priority, timestamp.
    strings + 2 + 1 + 1 + 8
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{HeaderValue, Headers, Message};

    fn publication() -> Publication {
        Publication { exchange: "orders".into(), routing_key: "order.normal.new".into(), message: Message::default() }
    }

    fn problem(publication: &Publication) -> String {
        match check_size(publication, usize::MAX) {
            Err(PublishError::Invalid { problem, .. }) => problem,
            other => panic!("expected it to be invalid, got {other:?}"),
        }
    }

    #[test]
    fn names_over_255_bytes_are_errors_and_no_panics() {
        let long = "x".repeat(256);
        let mut p = publication();
        p.routing_key = long.clone();
        assert!(problem(&p).contains("routing key has 256 bytes"));
        let mut p = publication();
        p.exchange = long.as_str().into();
        assert!(problem(&p).contains("exchange has 256 bytes"));
        let mut p = publication();
        p.message.properties.message_id = Some(long.clone());
        assert!(problem(&p).contains("message_id has 256 bytes"));
        let mut p = publication();
        let nested = Headers::from([(long, HeaderValue::Void)]);
        p.message.headers.insert("outer".into(), HeaderValue::List(vec![HeaderValue::Table(nested)]));
        assert!(problem(&p).contains("header's name has 256 bytes"));
    }

    #[test]
    fn what_one_frame_or_the_byte_limit_cannot_hold_is_invalid() {
        let mut p = publication();
        p.message.headers.insert("note".into(), HeaderValue::Text("x".repeat(MAX_PROPERTIES)));
        assert!(problem(&p).contains("properties and headers"));
        let mut p = publication();
        p.message.body = Bytes::from(vec![0; 1000]);
        assert!(check_size(&p, 1000).is_err());
        let size = check_size(&p, 2000).expect("fits");
        assert!((1000..1200).contains(&size), "{size}");
    }
}
