//! The strings that AMQP arguments consist of, and the error for input that is not AMQP.
//!
//! Pure. Knows how bytes are laid out (AMQP 0-9-1, section 4.2.5), not what they mean. Trusts nothing that came over the
//! network.

use std::borrow::Cow;

use bytes::{Buf, BufMut, BytesMut, TryGetError};
use sha2::{Digest, Sha256};

/// Longest short string in bytes: exchange, queue and virtual host names, routing keys, most properties.
pub const MAX_SHORT_STRING: usize = 255;

/// The peer sent something that AMQP 0-9-1 does not allow, or that orderd never asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not valid AMQP 0-9-1: {0}")]
pub struct ProtocolError(pub &'static str);

const TRUNCATED: ProtocolError = ProtocolError("truncated frame payload");

impl From<TryGetError> for ProtocolError {
    fn from(_: TryGetError) -> Self {
        TRUNCATED
    }
}

/// Appends what `fill` appends, preceded by its size in four octets: tables, arrays, long strings.
pub fn put_sized(out: &mut BytesMut, fill: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    fill(out);
    let size = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

/// Appends a short string. Callers have checked that it fits [`MAX_SHORT_STRING`].
pub fn put_short_string(out: &mut BytesMut, text: &str) {
    debug_assert!(text.len() <= MAX_SHORT_STRING, "unchecked: {text}");
    out.put_u8(text.len() as u8);
    out.put_slice(text.as_bytes());
}

/// Appends a long string.
pub fn put_long_string(out: &mut BytesMut, bytes: &[u8]) {
    put_sized(out, |out| out.put_slice(bytes));
}

/// Takes a short string off the front, as bytes.
pub fn get_short_string<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], ProtocolError> {
    let size = usize::from(bytes.try_get_u8()?);
    take(bytes, size)
}

/// Takes a short string off the front, as text.
///
/// AMQP says it is UTF-8, but no broker checks names of headers. Invalid UTF-8 is escaped (`\xff`); replacement
/// characters would make different names equal. What does not fit a short string any more, since an escaped byte takes four,
/// is cut and ends with a hash of all of it.
pub fn get_text<'a>(bytes: &mut &'a [u8]) -> Result<Cow<'a, str>, ProtocolError> {
    let text = get_short_string(bytes)?;
    Ok(str::from_utf8(text).map_or_else(|_| escape(text).into(), Cow::Borrowed))
}

fn escape(text: &[u8]) -> String {
    let mut escaped = text.escape_ascii().to_string();
    if escaped.len() > MAX_SHORT_STRING {
        let hash: String = Sha256::digest(text)[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        // ASCII, so every place is a character boundary.
        escaped.truncate(MAX_SHORT_STRING - hash.len() - 1);
        escaped.push('~');
        escaped.push_str(&hash);
    }
    escaped
}

/// Takes a long string, table or array off the front, as bytes.
pub fn get_long_string<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], ProtocolError> {
    let size = bytes.try_get_u32()? as usize;
    take(bytes, size)
}

fn take<'a>(bytes: &mut &'a [u8], size: usize) -> Result<&'a [u8], ProtocolError> {
    bytes.split_off(..size).ok_or(TRUNCATED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_read_as_they_were_written() {
        let mut out = BytesMut::new();
        put_short_string(&mut out, "orders");
        put_long_string(&mut out, b"x\xff");
        let bytes = &mut &out[..];
        assert_eq!((get_short_string(bytes), get_long_string(bytes)), (Ok(&b"orders"[..]), Ok(&b"x\xff"[..])));
        assert_eq!(*bytes, b"");
    }

    #[test]
    fn a_truncated_string_is_an_error() {
        for cut in [&b""[..], b"\x05abcd", b"\x00\x00\x00\x05abcd"] {
            assert!(get_short_string(&mut &*cut).is_err() || cut.len() > 5);
            assert!(get_long_string(&mut &*cut).is_err());
        }
    }

    #[test]
    fn invalid_utf8_is_escaped_and_stays_distinct() {
        assert_eq!(get_text(&mut &b"\x03a\xff\xfe"[..]).unwrap(), r"a\xff\xfe");
        assert_ne!(get_text(&mut &b"\x01\xff"[..]), get_text(&mut &b"\x01\xfe"[..]));
    }

    #[test]
    fn an_escaped_text_can_be_sent_again() {
        let text = |last: u8| {
            let bytes = [&[255][..], &[0xff; 254], &[last]].concat();
            get_text(&mut &bytes[..]).unwrap().into_owned()
        };
        assert_eq!(text(0xff).len(), MAX_SHORT_STRING);
        assert_ne!(text(0xff), text(0xfe));
    }
}
