//! Content headers: the frame between a method and a message's body, with the body's size, the properties and the headers.
//!
//! Pure. The size of what it encodes has been checked before ([`super::limits::check_size`]), so encoding cannot fail. Trusts nothing
//! that came over the network.

use bytes::{Buf, BufMut, BytesMut};

use super::encoding::{ProtocolError, get_text, put_short_string};
use super::field_table::{get_table, put_table};
use super::frame::{FrameType, put_frame};
use super::method_id::MethodId;
use crate::message::{Headers, Message, Properties};

/// The delivery mode of messages that survive a restart of the broker.
const PERSISTENT: u8 = 2;
/// The largest message that RabbitMQ accepts, whatever its `max_message_size`, in bytes.
const MAX_BODY: usize = 512 * 1024 * 1024;

/// The fields of a content header.
#[derive(Debug, PartialEq)]
pub struct ContentHeader {
    pub body_size: usize,
    pub properties: Properties,
    pub headers: Headers,
}

/// Appends the content header frame of a message, with this `user_id` instead of its own.
pub fn put_content_header(out: &mut BytesMut, channel: u16, message: &Message, user_id: Option<&str>) {
    put_frame(out, FrameType::Header, channel, |out| {
        out.put_u16(MethodId::BASIC_CLASS);
        // The weight, which AMQP does not use.
        out.put_u16(0);
        out.put_u64(message.body.len() as u64);
        put_properties(out, message, user_id);
    });
}

/// Decodes the payload of a content header frame.
pub fn get_content_header(mut payload: &[u8]) -> Result<ContentHeader, ProtocolError> {
    let _class_and_weight = payload.try_get_u32()?;
    let body_size = usize::try_from(payload.try_get_u64()?).unwrap_or(usize::MAX);
    if body_size > MAX_BODY {
        return Err(ProtocolError("announced body size above RabbitMQ's maximum"));
    }
    let (properties, headers) = get_properties(&mut payload)?;
    Ok(ContentHeader { body_size, properties, headers })
}

/// Appends flags that say which properties follow, from the highest bit on, then the properties.
fn put_properties(out: &mut BytesMut, message: &Message, user_id: Option<&str>) {
    let Message { properties, headers, body: _, missing_bytes: _ } = message;
    let Properties { content_type, content_encoding, priority, correlation_id, reply_to, .. } = properties;
    let Properties { expiration, message_id, timestamp, message_type, user_id: _, app_id, .. } = properties;
    let flags_at = out.len();
    out.put_u16(0);
    let mut flags = 0;
    let mut text = |out: &mut BytesMut, bit: u32, value: Option<&str>| {
        if let Some(value) = value {
            flags |= 1 << bit;
            put_short_string(out, value);
        }
    };
    text(out, 15, content_type.as_deref());
    text(out, 14, content_encoding.as_deref());
    if !headers.is_empty() {
        put_table(out, headers);
    }
    out.put_u8(PERSISTENT);
    if let Some(priority) = priority {
        out.put_u8(*priority);
    }
    text(out, 10, correlation_id.as_deref());
    text(out, 9, reply_to.as_deref());
    text(out, 8, expiration.as_deref());
    text(out, 7, message_id.as_deref());
    if let Some(timestamp) = timestamp {
        out.put_u64(*timestamp);
    }
    text(out, 5, message_type.as_deref());
    text(out, 4, user_id);
    text(out, 3, app_id.as_deref());
    flags |= u16::from(!headers.is_empty()) << 13;
    flags |= 1 << 12;
    flags |= u16::from(priority.is_some()) << 11;
    flags |= u16::from(timestamp.is_some()) << 6;
    out[flags_at..flags_at + 2].copy_from_slice(&flags.to_be_bytes());
}

/// Takes properties and headers off the front.
fn get_properties(bytes: &mut &[u8]) -> Result<(Properties, Headers), ProtocolError> {
    let flags = bytes.try_get_u16()?;
    let has = |bit: u32| flags & (1 << bit) != 0;
    let text = |bytes: &mut &[u8], bit: u32| {
        if has(bit) { get_text(bytes).map(|text| Some(text.into_owned())) } else { Ok(None) }
    };
    let (content_type, content_encoding) = (text(bytes, 15)?, text(bytes, 14)?);
    let headers = if has(13) { get_table(bytes)? } else { Headers::new() };
    if has(12) {
        let _delivery_mode = bytes.try_get_u8()?;
    }
    let properties = Properties {
        content_type,
        content_encoding,
        priority: if has(11) { Some(bytes.try_get_u8()?) } else { None },
        correlation_id: text(bytes, 10)?,
        reply_to: text(bytes, 9)?,
        expiration: text(bytes, 8)?,
        message_id: text(bytes, 7)?,
        timestamp: if has(6) { Some(bytes.try_get_u64()?) } else { None },
        message_type: text(bytes, 5)?,
        user_id: text(bytes, 4)?,
        app_id: text(bytes, 3)?,
    };
    Ok((properties, headers))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::HeaderValue;

    fn bytes_of(message: &Message) -> BytesMut {
        let mut out = BytesMut::new();
        put_properties(&mut out, message, message.properties.user_id.as_deref());
        out
    }

    fn full(headers: Headers) -> Message {
        let text = |text: &str| Some(text.to_owned());
        let properties = Properties {
            content_type: text("a"),
            content_encoding: text("b"),
            priority: Some(9),
            correlation_id: text("c"),
            reply_to: text("d"),
            expiration: text("e"),
            message_id: text("f"),
            timestamp: Some(7),
            message_type: text("g"),
            user_id: text("h"),
            app_id: text("i"),
        };
        Message { properties, headers, ..Message::default() }
    }

    #[test]
    fn every_message_is_persistent() {
        assert_eq!(bytes_of(&Message::default())[..], [&(1_u16 << 12).to_be_bytes()[..], &[2]].concat());
    }

    #[test]
    fn properties_are_encoded_in_the_order_of_their_flags() {
        let message = full(Headers::from([("x".to_owned(), HeaderValue::Void)]));
        let expected =
            b"\xff\xf8\x01a\x01b\0\0\0\x03\x01xV\x02\x09\x01c\x01d\x01e\x01f\0\0\0\0\0\0\0\x07\x01g\x01h\x01i";
        assert_eq!(bytes_of(&message)[..], expected[..]);
        assert_eq!(get_properties(&mut &expected[..]), Ok((message.properties, message.headers)));
    }

    #[test]
    fn a_truncated_content_header_is_an_error_and_no_panic() {
        let inner = Headers::from([("a".to_owned(), HeaderValue::List(vec!["b".into(), HeaderValue::I64(1)]))]);
        let whole = bytes_of(&full(Headers::from([("x".to_owned(), HeaderValue::Table(inner))])));
        for cut in 0..whole.len() {
            assert!(get_properties(&mut &whole[..cut]).is_err(), "{cut} bytes");
        }
        assert!(get_properties(&mut &whole[..]).is_ok());
    }

    #[test]
    fn a_body_larger_than_any_message_is_an_error() {
        let header = |size: u64| [&[0, 60, 0, 0][..], &size.to_be_bytes(), &[0, 0]].concat();
        assert_eq!(get_content_header(&header(5)).unwrap().body_size, 5);
        for size in [MAX_BODY as u64 + 1, u64::MAX] {
            assert!(get_content_header(&header(size)).is_err());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = get_properties(&mut &bytes[..]);
            let _ = get_content_header(&bytes);
        }
    }
}
