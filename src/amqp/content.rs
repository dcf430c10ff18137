//! A message's properties and headers, as they lie in the frame before its body.
//!
//! Pure. What it writes has been measured before ([`super::convert::measure`]), so that cannot fail; it trusts nothing that
//! came over the network, and loses nothing of it: what orderd cannot make sense of stays as bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::{Malformed, get_long, get_short, put_long, put_short, put_sized};
use crate::message::{HeaderValue, Headers, Message, Properties};

/// The delivery mode that survives a broker's end.
const PERSISTENT: u8 = 2;
/// Tables and lists nested deeper stay as they came, in bytes: each level takes a turn of every function that walks them,
/// and a frame has room for twenty thousand.
const MAX_DEPTH: usize = 32;

/// Which properties follow, a bit for each from the highest on, then those.
pub(super) fn put_properties(out: &mut BytesMut, message: &Message) {
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

/// Takes properties and headers off the front.
pub(super) fn get_properties(bytes: &mut &[u8]) -> Result<(Properties, Headers), Malformed> {
    let flags = bytes.try_get_u16()?;
    let has = |bit: u32| flags & (1 << bit) != 0;
    let text = |bytes: &mut &[u8], bit: u32| if has(bit) { get_text(bytes).map(Some) } else { Ok(None) };
    let (content_type, content_encoding) = (text(bytes, 15)?, text(bytes, 14)?);
    let headers = if has(13) { get_table(bytes, MAX_DEPTH)? } else { Headers::new() };
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

/// Takes a short string off the front. AMQP has it in UTF-8, which no broker checks in names of headers; one that is not
/// comes with its odd bytes spelled out, since replacing them would make different ones alike.
pub(super) fn get_text(bytes: &mut &[u8]) -> Result<String, Malformed> {
    let text = get_short(bytes)?;
    Ok(str::from_utf8(text).map_or_else(|_| text.escape_ascii().to_string(), str::to_owned))
}

fn get_table(bytes: &mut &[u8], depth: usize) -> Result<Headers, Malformed> {
    let (mut rest, mut headers) = (get_long(bytes)?, Headers::new());
    while !rest.is_empty() {
        let name = get_text(&mut rest)?;
        headers.insert(name, get_value(&mut rest, depth)?);
    }
    Ok(headers)
}

fn get_list(bytes: &mut &[u8], depth: usize) -> Result<Vec<HeaderValue>, Malformed> {
    let (mut rest, mut values) = (get_long(bytes)?, Vec::new());
    while !rest.is_empty() {
        values.push(get_value(&mut rest, depth)?);
    }
    Ok(values)
}

fn get_value(bytes: &mut &[u8], depth: usize) -> Result<HeaderValue, Malformed> {
    let kept = |bytes: &[u8]| HeaderValue::Bytes(Bytes::copy_from_slice(bytes));
    Ok(match bytes.try_get_u8()? {
        b't' => HeaderValue::Bool(bytes.try_get_u8()? != 0),
        b'b' => HeaderValue::I8(bytes.try_get_i8()?),
        b'B' => HeaderValue::U8(bytes.try_get_u8()?),
        b's' => HeaderValue::I16(bytes.try_get_i16()?),
        b'u' => HeaderValue::U16(bytes.try_get_u16()?),
        b'I' => HeaderValue::I32(bytes.try_get_i32()?),
        b'i' => HeaderValue::U32(bytes.try_get_u32()?),
        b'l' => HeaderValue::I64(bytes.try_get_i64()?),
        b'f' => HeaderValue::F32(bytes.try_get_f32()?),
        b'd' => HeaderValue::F64(bytes.try_get_f64()?),
        b'D' => HeaderValue::Decimal { scale: bytes.try_get_u8()?, digits: bytes.try_get_i32()? },
        b'S' => {
            let text = get_long(bytes)?;
            str::from_utf8(text).map_or_else(|_| kept(text), HeaderValue::from)
        }
        b'A' | b'F' if depth == 0 => kept(get_long(bytes)?),
        b'A' => HeaderValue::List(get_list(bytes, depth - 1)?),
        b'F' => HeaderValue::Table(get_table(bytes, depth - 1)?),
        b'x' => kept(get_long(bytes)?),
        b'T' => HeaderValue::Timestamp(bytes.try_get_u64()?),
        b'V' => HeaderValue::Void,
        _ => return Err(Malformed("a header of no known type")),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::amqp::convert::table_len;

    fn bytes_of(message: &Message) -> BytesMut {
        let mut out = BytesMut::new();
        put_properties(&mut out, message);
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
        Message { properties, headers, body: Bytes::new() }
    }

    #[test]
    fn everything_written_is_persistent() {
        assert_eq!(bytes_of(&Message::default())[..], [&(1_u16 << 12).to_be_bytes()[..], &[2]].concat());
    }

    #[test]
    fn all_properties_follow_in_the_order_of_their_bits() {
        let message = full(Headers::from([("x".to_owned(), HeaderValue::Void)]));
        let expected =
            b"\xff\xf8\x01a\x01b\0\0\0\x03\x01xV\x02\x09\x01c\x01d\x01e\x01f\0\0\0\0\0\0\0\x07\x01g\x01h\x01i";
        assert_eq!(bytes_of(&message)[..], expected[..]);
        assert_eq!(get_properties(&mut &expected[..]), Ok((message.properties, message.headers)));
    }

    #[test]
    fn every_header_type_has_its_letter_and_is_measured_right() {
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
            assert_eq!(get_table(&mut &out[..], MAX_DEPTH), Ok(headers));
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_kept_and_told_apart() {
        let header = b"\0\0\0\x09\x01nS\0\0\0\x02\xff\xfe";
        let kept = HeaderValue::Bytes(Bytes::from_static(b"\xff\xfe"));
        assert_eq!(get_table(&mut &header[..], MAX_DEPTH), Ok(Headers::from([("n".to_owned(), kept)])));
        assert_eq!(get_text(&mut &b"\x03a\xff\xfe"[..]).unwrap(), r"a\xff\xfe");
        assert_ne!(get_text(&mut &b"\x01\xff"[..]), get_text(&mut &b"\x01\xfe"[..]));
    }

    #[test]
    fn a_header_nested_without_end_is_kept_in_bytes_from_some_depth_on() {
        let mut nested = BytesMut::new();
        put_table(&mut nested, &Headers::from([("n".to_owned(), HeaderValue::Void)]));
        for _ in 0..15_000 {
            let inner = nested.split();
            put_sized(&mut nested, |out| out.put_slice(&[&b"\x01nF"[..], &inner].concat()));
        }
        let mut value = &HeaderValue::Table(get_table(&mut &nested[..], MAX_DEPTH).unwrap());
        let mut depth = 0;
        while let HeaderValue::Table(table) = value {
            value = &table["n"];
            depth += 1;
        }
        assert_eq!(depth, MAX_DEPTH + 1);
        assert!(matches!(value, HeaderValue::Bytes(rest) if rest.len() > 100_000), "{value:?}");
    }

    #[test]
    fn what_is_cut_short_is_an_error_and_no_panic() {
        let inner = Headers::from([("a".to_owned(), HeaderValue::List(vec!["b".into(), HeaderValue::I64(1)]))]);
        let whole = bytes_of(&full(Headers::from([("x".to_owned(), HeaderValue::Table(inner))])));
        for cut in 0..whole.len() {
            assert!(get_properties(&mut &whole[..cut]).is_err(), "{cut} bytes");
        }
        assert!(get_properties(&mut &whole[..]).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = get_properties(&mut &bytes[..]);
            let _ = get_table(&mut &bytes[..], MAX_DEPTH);
        }
    }
}
