//! What fits AMQP.
//!
//! Pure. Checks everything that AMQP has no room for before it is written, by the library or by us.

use amqprs::{FieldTable, FieldValue};

use super::connect::SHORT_STRING;
use crate::message::{HeaderValue, Headers, Properties, Publication, PublishError};

/// RabbitMQ's largest message by default (`max_message_size` before 4.0), in bytes.
pub(super) const MAX_BODY: usize = 128 * 1024 * 1024;
/// All properties and headers go into one frame, as AMQP has it. RabbitMQ's default
/// `frame_max` is 128 KiB; 1 KiB is left for the frame's own fields.
const MAX_PROPERTIES: usize = 127 * 1024;
/// What a publication takes beyond what is counted: frame headers, fixed fields.
const OVERHEAD: usize = 64;

/// Checks that a publication can be sent, and tells its size in bytes for the limit on unconfirmed ones.
pub(super) fn measure(publication: &Publication, max_bytes: usize) -> Result<usize, PublishError> {
    let invalid = |problem: String| PublishError::Invalid { exchange: publication.exchange.clone(), problem };
    check(publication).map_err(invalid)?;
    let message = &publication.message;
    let properties = properties_len(&message.properties) + table_len(&message.headers).map_err(invalid)?;
    if properties > MAX_PROPERTIES {
        return Err(invalid(format!("its properties and headers take {properties} of {MAX_PROPERTIES} bytes")));
    }
    let size = OVERHEAD + publication.exchange.len() + publication.routing_key.len() + properties + message.body.len();
    if size > max_bytes {
        return Err(invalid(format!("it takes {size} of broker.max_unconfirmed_bytes = {max_bytes}")));
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
        0..=SHORT_STRING => Ok(()),
        length => Err(format!("its {what} has {length} bytes, more than {SHORT_STRING}")),
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

/// The encoded size of a table.
pub(super) fn table_len(headers: &Headers) -> Result<usize, String> {
    let mut length = 4;
    for (name, value) in headers {
        if name.len() > SHORT_STRING {
            return Err(format!("a header's name has {} bytes, more than {SHORT_STRING}", name.len()));
        }
        length += 1 + name.len() + value_len(value)?;
    }
    Ok(length)
}

/// The encoded size of a value and its type.
fn value_len(value: &HeaderValue) -> Result<usize, String> {
    Ok(1 + match value {
        HeaderValue::Void => 0,
        HeaderValue::Bool(_) | HeaderValue::I8(_) | HeaderValue::U8(_) => 1,
        HeaderValue::I16(_) | HeaderValue::U16(_) => 2,
        HeaderValue::I32(_) | HeaderValue::U32(_) | HeaderValue::F32(_) => 4,
        HeaderValue::Decimal { .. } => 5,
        HeaderValue::I64(_) | HeaderValue::F64(_) | HeaderValue::Timestamp(_) => 8,
        HeaderValue::Text(text) => 4 + text.len(),
        HeaderValue::Bytes(bytes) => 4 + bytes.len(),
        HeaderValue::List(values) => {
            let mut length = 4;
            for value in values {
                length += value_len(value)?;
            }
            length
        }
        HeaderValue::Table(headers) => table_len(headers)?,
    })
}

/// Inserts or replaces. Inserting over a name would corrupt the encoded table, whose length the library keeps
/// by adding up.
pub(super) fn insert(table: &mut FieldTable, name: &str, value: FieldValue) {
    let name = name.try_into().expect("checked: names fit 255 bytes");
    table.remove(&name);
    table.insert(name, value);
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::Message;

    fn publication() -> Publication {
        Publication { exchange: "orders".into(), routing_key: "order.normal.new".into(), message: Message::default() }
    }

    fn problem(publication: &Publication) -> String {
        match measure(publication, usize::MAX) {
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
        assert!(measure(&p, 1000).is_err());
        let size = measure(&p, 2000).expect("fits");
        assert!((1000..1200).contains(&size), "{size}");
    }
}
