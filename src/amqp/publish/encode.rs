//! A publication as the frames that the broker gets.
//!
//! Pure. Everything it writes has been measured before ([`crate::amqp::convert::measure`]), so nothing can fail.

use bytes::{BufMut, BytesMut};

use crate::amqp::frame::{AROUND, BODY, HEADER, Method, put_frame, put_long, put_method, put_short, put_sized};
use crate::message::{HeaderValue, Headers, Message, Properties, Publication};

const PUBLISH: Method = (60, 40);
/// The broker returns what no queue takes.
const MANDATORY: u8 = 1;
/// The delivery mode that survives a broker's end.
const PERSISTENT: u8 = 2;

/// Appends `basic.publish` with its content, the body in frames of at most `max_frame` bytes.
pub(super) fn put_publication(out: &mut BytesMut, channel: u16, publication: &Publication, max_frame: usize) {
    let Publication { exchange, routing_key, message } = publication;
    put_method(out, channel, PUBLISH, |out| {
        // Reserved.
        out.put_u16(0);
        put_short(out, exchange);
        put_short(out, routing_key);
        out.put_u8(MANDATORY);
    });
    put_frame(out, HEADER, channel, |out| {
        out.put_u16(PUBLISH.0);
        // Reserved.
        out.put_u16(0);
        out.put_u64(message.body.len() as u64);
        put_properties(out, message);
    });
    for part in message.body.chunks(max_frame - AROUND) {
        put_frame(out, BODY, channel, |out| out.put_slice(part));
    }
}

/// Which properties follow, a bit for each from the highest on, then those.
fn put_properties(out: &mut BytesMut, message: &Message) {
    let Message { properties, headers, body: _ } = message;
    let Properties { content_type, content_encoding, priority, correlation_id, reply_to, .. } = properties;
    let Properties { expiration, message_id, timestamp, message_type, user_id, app_id, .. } = properties;
    let flags_at = out.len();
    out.put_u16(0);
    let mut flags = 0;
    let mut text = |out: &mut BytesMut, bit: u32, value: &Option<String>| {
        if let Some(value) = value {
            flags |= 1 << bit;
            put_short(out, value);
        }
    };
    text(out, 15, content_type);
    text(out, 14, content_encoding);
    if !headers.is_empty() {
        put_table(out, headers);
    }
    out.put_u8(PERSISTENT);
    if let Some(priority) = priority {
        out.put_u8(*priority);
    }
    text(out, 10, correlation_id);
    text(out, 9, reply_to);
    text(out, 8, expiration);
    text(out, 7, message_id);
    if let Some(timestamp) = timestamp {
        out.put_u64(*timestamp);
    }
    text(out, 5, message_type);
    text(out, 4, user_id);
    text(out, 3, app_id);
    flags |= u16::from(!headers.is_empty()) << 13;
    flags |= 1 << 12;
    flags |= u16::from(priority.is_some()) << 11;
    flags |= u16::from(timestamp.is_some()) << 6;
    out[flags_at..flags_at + 2].copy_from_slice(&flags.to_be_bytes());
}

fn put_table(out: &mut BytesMut, headers: &Headers) {
    put_sized(out, |out| {
        for (name, value) in headers {
            put_short(out, name);
            put_value(out, value);
        }
    });
}

/// A value behind the letter of its type, by RabbitMQ's letters where they differ from the specification's.
fn put_value(out: &mut BytesMut, value: &HeaderValue) {
    let kind = match value {
        HeaderValue::Bool(_) => b't',
        HeaderValue::I8(_) => b'b',
        HeaderValue::U8(_) => b'B',
        HeaderValue::I16(_) => b's',
        HeaderValue::U16(_) => b'u',
        HeaderValue::I32(_) => b'I',
        HeaderValue::U32(_) => b'i',
        HeaderValue::I64(_) => b'l',
        HeaderValue::F32(_) => b'f',
        HeaderValue::F64(_) => b'd',
        HeaderValue::Decimal { .. } => b'D',
        HeaderValue::Text(_) => b'S',
        HeaderValue::Bytes(_) => b'x',
        HeaderValue::List(_) => b'A',
        HeaderValue::Table(_) => b'F',
        HeaderValue::Timestamp(_) => b'T',
        HeaderValue::Void => b'V',
    };
    out.put_u8(kind);
    match value {
        HeaderValue::Bool(v) => out.put_u8(u8::from(*v)),
        HeaderValue::I8(v) => out.put_i8(*v),
        HeaderValue::U8(v) => out.put_u8(*v),
        HeaderValue::I16(v) => out.put_i16(*v),
        HeaderValue::U16(v) => out.put_u16(*v),
        HeaderValue::I32(v) => out.put_i32(*v),
        HeaderValue::U32(v) => out.put_u32(*v),
        HeaderValue::I64(v) => out.put_i64(*v),
        HeaderValue::F32(v) => out.put_f32(*v),
        HeaderValue::F64(v) => out.put_f64(*v),
        HeaderValue::Decimal { scale, digits } => {
            out.put_u8(*scale);
            out.put_i32(*digits);
        }
        HeaderValue::Text(text) => put_long(out, text.as_bytes()),
        HeaderValue::Bytes(bytes) => put_long(out, bytes),
        HeaderValue::List(values) => put_sized(out, |out| values.iter().for_each(|value| put_value(out, value))),
        HeaderValue::Table(headers) => put_table(out, headers),
        HeaderValue::Timestamp(seconds) => out.put_u64(*seconds),
        HeaderValue::Void => {}
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::amqp::convert::table_len;
    use crate::amqp::frame::{Frame, METHOD};

    fn publication(message: Message) -> Publication {
        Publication { exchange: "orders".into(), routing_key: "order.normal.new".into(), message }
    }

    /// The kind and the payload of each frame.
    fn frames(publication: &Publication, max_frame: usize) -> Vec<(u8, Vec<u8>)> {
        let (mut out, mut frames) = (BytesMut::new(), Vec::new());
        put_publication(&mut out, 1, publication, max_frame);
        while let Some(frame) = Frame::first(&out, max_frame).unwrap() {
            assert_eq!(frame.channel, 1);
            frames.push((frame.kind, frame.payload.to_vec()));
            let _ = out.split_to(frame.len());
        }
        assert!(out.is_empty(), "half a frame");
        frames
    }

    #[test]
    fn everything_published_is_persistent_and_mandatory() {
        let frames = frames(&publication(Message::default()), 4096);
        assert_eq!(frames[0], (METHOD, b"\0\x3c\0\x28\0\0\x06orders\x10order.normal.new\x01".to_vec()));
        let persistent = [&[0, 60, 0, 0][..], &0_u64.to_be_bytes(), &(1_u16 << 12).to_be_bytes(), &[2]].concat();
        assert_eq!(frames[1], (HEADER, persistent));
        assert_eq!(frames.len(), 2, "an empty body has no frame");
    }

    #[test]
    fn all_properties_follow_in_the_order_of_their_bits() {
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
        let headers = Headers::from([("x".to_owned(), HeaderValue::Void)]);
        let frames = frames(&publication(Message { properties, headers, body: Bytes::new() }), 4096);
        let expected =
            b"\xff\xf8\x01a\x01b\0\0\0\x03\x01xV\x02\x09\x01c\x01d\x01e\x01f\0\0\0\0\0\0\0\x07\x01g\x01h\x01i";
        assert_eq!(frames[1].1[12..], expected[..]);
    }

    #[test]
    fn a_body_is_cut_into_frames_that_the_broker_takes() {
        let body = Bytes::from((0..=255).cycle().take(10_000).collect::<Vec<u8>>());
        let frames = frames(&publication(Message { body: body.clone(), ..Message::default() }), 4096);
        assert_eq!(frames[1].1[4..12], 10_000_u64.to_be_bytes());
        let sizes: Vec<_> = frames[2..].iter().map(|(kind, payload)| (*kind, payload.len())).collect();
        assert_eq!(sizes, [(BODY, 4088), (BODY, 4088), (BODY, 1824)]);
        assert_eq!(frames[2..].iter().flat_map(|(_, payload)| payload.clone()).collect::<Vec<_>>(), body);
    }

    #[test]
    fn every_header_type_is_written_by_its_letter_and_measured_right() {
        let inner = Headers::from([("a".to_owned(), HeaderValue::U16(7))]);
        for (value, expected) in [
            (HeaderValue::Bool(true), &b"t\x01"[..]),
            (HeaderValue::I8(-8), b"b\xf8"),
            (HeaderValue::U8(200), b"B\xc8"),
            (HeaderValue::I16(-2), b"s\xff\xfe"),
            (HeaderValue::U16(258), b"u\x01\x02"),
            (HeaderValue::I32(-2), b"I\xff\xff\xff\xfe"),
            (HeaderValue::U32(258), b"i\0\0\x01\x02"),
            (HeaderValue::I64(-2), b"l\xff\xff\xff\xff\xff\xff\xff\xfe"),
            (HeaderValue::F32(1.5), b"f\x3f\xc0\0\0"),
            (HeaderValue::F64(-2.25), b"d\xc0\x02\0\0\0\0\0\0"),
            (HeaderValue::Decimal { scale: 2, digits: 258 }, b"D\x02\0\0\x01\x02"),
            (HeaderValue::Text("ü".into()), b"S\0\0\0\x02\xc3\xbc"),
            (HeaderValue::Bytes(Bytes::from_static(b"\xff\0")), b"x\0\0\0\x02\xff\0"),
            (HeaderValue::List(vec![HeaderValue::Bool(false), HeaderValue::Void]), b"A\0\0\0\x03t\0V"),
            (HeaderValue::Table(inner), b"F\0\0\0\x05\x01au\0\x07"),
            (HeaderValue::Timestamp(258), b"T\0\0\0\0\0\0\x01\x02"),
            (HeaderValue::Void, b"V"),
        ] {
            let headers = Headers::from([("n".to_owned(), value)]);
            let mut out = BytesMut::new();
            put_table(&mut out, &headers);
            assert_eq!(out[4..], [b"\x01n", expected].concat(), "{headers:?}");
            assert_eq!(table_len(&headers), Ok(out.len()), "{headers:?}");
        }
    }
}
