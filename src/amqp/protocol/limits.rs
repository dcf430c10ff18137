//! The limits of AMQP and RabbitMQ that a publication must fit, checked before it is encoded.
//!
//! Pure. Never truncates anything: a publication that does not fit is an error.

use super::encoding::MAX_SHORT_STRING;
use super::field_table::check_names;
use crate::message::{Publication, PublishError};

/// RabbitMQ's largest message whatever its `max_message_size`, in bytes.
const MAX_BODY: usize = 512 * 1024 * 1024;
/// All properties and headers go into one frame. RabbitMQ's default `frame_max` is 128 KiB; 1 KiB is left for the frame's
/// own fields.
const MAX_PROPERTIES: usize = 127 * 1024;
/// The bytes of a publication that are not counted one by one: frame headers, fixed fields.
const OVERHEAD: usize = 64;

/// Checks that a publication can be encoded, and returns its size in bytes.
///
/// # Errors
/// [`PublishError::Invalid`] with the limit it breaks.
pub fn check_size(publication: &Publication) -> Result<usize, PublishError> {
    let invalid = |problem: String| PublishError::Invalid { exchange: publication.exchange.clone(), problem };
    check(publication).map_err(invalid)?;
    let message = &publication.message;
    let properties = message.properties_len();
    if properties > MAX_PROPERTIES {
        return Err(invalid(format!("its properties and headers take {properties} bytes, more than {MAX_PROPERTIES}")));
    }
    Ok(OVERHEAD + publication.exchange.len() + publication.routing_key.len() + properties + message.body.len())
}

fn check(publication: &Publication) -> Result<(), String> {
    fits("exchange", &publication.exchange)?;
    fits("routing key", &publication.routing_key)?;
    for (name, value) in publication.message.properties.short_strings() {
        fits(name, value)?;
    }
    check_names(&publication.message.headers)?;
    if publication.message.missing_bytes > 0 {
        return Err(format!("{} bytes of its body are missing", publication.message.missing_bytes));
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::message::{HeaderValue, Headers, Message};

    fn publication() -> Publication {
        Publication { exchange: "orders".into(), routing_key: "order.normal.new".into(), message: Message::default() }
    }

    fn problem(publication: &Publication) -> String {
        match check_size(publication) {
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
    fn what_one_frame_cannot_hold_is_invalid() {
        let mut p = publication();
        p.message.headers.insert("note".into(), HeaderValue::Text("x".repeat(MAX_PROPERTIES)));
        assert!(problem(&p).contains("properties and headers"));
        let mut p = publication();
        p.message.body = Bytes::from(vec![0; 1000]);
        let size = check_size(&p).expect("fits");
        assert!((1000..1200).contains(&size), "{size}");
    }
}
