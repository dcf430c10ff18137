//! Field tables: AMQP's encoding of a message's headers, whose values have one of seventeen types.
//!
//! Pure. Loses nothing of what came over the network: what it cannot represent is kept as bytes. The size of what it encodes
//! has been checked with [`super::limits::check_size`] before, so encoding cannot fail.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::encoding::{
    MAX_SHORT_STRING, ProtocolError, get_long_string, get_text, put_long_string, put_short_string, put_sized,
};
use crate::message::{HeaderContent, HeaderValue, Headers};

/// Tables and arrays nested deeper than this are kept as bytes. Each level costs a stack frame in every function that
/// walks them, and one AMQP frame has room for twenty thousand levels.
const MAX_DEPTH: usize = 32;

/// Appends a table.
pub fn put_table(out: &mut BytesMut, headers: &Headers) {
    put_sized(out, |out| {
        for (name, value) in headers {
            put_short_string(out, name);
            put_value(out, value);
        }
    });
}

/// Appends the letter of a value's type, then the value. Where RabbitMQ's letters differ from the specification's, RabbitMQ's are used.
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
        HeaderValue::Text(text) => put_long_string(out, text.as_bytes()),
        HeaderValue::Bytes(bytes) => put_long_string(out, bytes),
        HeaderValue::List(values) => put_sized(out, |out| values.iter().for_each(|value| put_value(out, value))),
        HeaderValue::Table(headers) => put_table(out, headers),
        HeaderValue::Timestamp(seconds) => out.put_u64(*seconds),
        HeaderValue::Void => {}
    }
}

/// Takes a table off the front.
pub fn get_table(bytes: &mut &[u8]) -> Result<Headers, ProtocolError> {
    get_nested_table(bytes, MAX_DEPTH)
}

fn get_nested_table(bytes: &mut &[u8], depth: usize) -> Result<Headers, ProtocolError> {
    let (mut rest, mut headers) = (get_long_string(bytes)?, Headers::new());
    while !rest.is_empty() {
        let name = get_text(&mut rest)?.into_owned();
        headers.insert(name, get_value(&mut rest, depth)?);
    }
    Ok(headers)
}

fn get_list(bytes: &mut &[u8], depth: usize) -> Result<Vec<HeaderValue>, ProtocolError> {
    let (mut rest, mut values) = (get_long_string(bytes)?, Vec::new());
    while !rest.is_empty() {
        values.push(get_value(&mut rest, depth)?);
    }
    Ok(values)
}

fn get_value(bytes: &mut &[u8], depth: usize) -> Result<HeaderValue, ProtocolError> {
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
            let text = get_long_string(bytes)?;
            str::from_utf8(text).map_or_else(|_| kept(text), HeaderValue::from)
        }
        b'A' | b'F' if depth == 0 => kept(get_long_string(bytes)?),
        b'A' => HeaderValue::List(get_list(bytes, depth - 1)?),
        b'F' => HeaderValue::Table(get_nested_table(bytes, depth - 1)?),
        b'x' => kept(get_long_string(bytes)?),
        b'T' => HeaderValue::Timestamp(bytes.try_get_u64()?),
        b'V' => HeaderValue::Void,
        _ => return Err(ProtocolError("unknown field type")),
    })
}

/// Checks that every name in a table can be encoded.
///
/// # Errors
/// If a header's name is too long.
pub fn check_names(headers: &Headers) -> Result<(), String> {
    headers.iter().try_for_each(|(name, value)| match name.len() {
        length if length > MAX_SHORT_STRING => {
            Err(format!("a header's name has {length} bytes, more than {MAX_SHORT_STRING}"))
        }
        _ => check_names_in(value),
    })
}

fn check_names_in(value: &HeaderValue) -> Result<(), String> {
    match value.content() {
        HeaderContent::Scalar { .. } => Ok(()),
        HeaderContent::List(values) => values.iter().try_for_each(check_names_in),
        HeaderContent::Table(headers) => check_names(headers),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::headers_len;

    #[test]
    fn every_field_type_is_encoded_measured_and_decoded() {
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
            assert_eq!(headers_len(&headers), out.len(), "{headers:?}");
            assert_eq!(get_table(&mut &out[..]), Ok(headers));
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_kept_as_bytes() {
        let header = b"\0\0\0\x09\x01nS\0\0\0\x02\xff\xfe";
        let kept = HeaderValue::Bytes(Bytes::from_static(b"\xff\xfe"));
        assert_eq!(get_table(&mut &header[..]), Ok(Headers::from([("n".to_owned(), kept)])));
    }

    #[test]
    fn a_deeply_nested_table_is_kept_as_bytes_below_the_maximum_depth() {
        let mut nested = BytesMut::new();
        put_table(&mut nested, &Headers::from([("n".to_owned(), HeaderValue::Void)]));
        for _ in 0..15_000 {
            let inner = nested.split();
            put_sized(&mut nested, |out| out.put_slice(&[&b"\x01nF"[..], &inner].concat()));
        }
        let mut value = &HeaderValue::Table(get_table(&mut &nested[..]).unwrap());
        let mut depth = 0;
        while let HeaderValue::Table(table) = value {
            value = &table["n"];
            depth += 1;
        }
        assert_eq!(depth, MAX_DEPTH + 1);
        assert!(matches!(value, HeaderValue::Bytes(rest) if rest.len() > 100_000), "{value:?}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = get_table(&mut &bytes[..]);
        }
    }
}
