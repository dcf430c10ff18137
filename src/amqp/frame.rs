//! Frames and methods of AMQP 0-9-1, for what orderd says and hears itself instead of through the client library.
//!
//! Pure: it knows how bytes are laid out (AMQP 0-9-1, sections 4.2.2 to 4.2.5), not what they are for. It trusts nothing
//! that came over the network.

use bytes::{Buf, BufMut, BytesMut, TryGetError};

/// What every connection begins with.
pub(super) const PROTOCOL: &[u8] = b"AMQP\x00\x00\x09\x01";

/// The kinds of frames.
pub(super) const METHOD: u8 = 1;
pub(super) const HEADER: u8 = 2;
pub(super) const BODY: u8 = 3;
pub(super) const HEARTBEAT: u8 = 8;

/// What a frame takes beside its payload: kind, channel, size, end.
pub(super) const AROUND: usize = 8;
const END: u8 = 0xCE;

/// A method's class and its number in it.
pub(super) type Method = (u16, u16);

/// What came does not keep to the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not AMQP 0-9-1: {0}")]
pub(super) struct Malformed(pub &'static str);

impl From<TryGetError> for Malformed {
    fn from(_: TryGetError) -> Self {
        Malformed("it ends before its time")
    }
}

/// A frame that has come, in the buffer that it came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub kind: u8,
    pub channel: u16,
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame in these bytes; `None` while part of it is still to come. It takes [`Frame::len`] of them.
    ///
    /// # Errors
    /// When it is of no known kind or larger than `max`, or does not end where it says.
    pub fn first(mut bytes: &'a [u8], max: usize) -> Result<Option<Self>, Malformed> {
        if bytes.len() < AROUND {
            return Ok(None);
        }
        let (kind, channel, size) = (bytes.get_u8(), bytes.get_u16(), bytes.get_u32() as usize);
        if !matches!(kind, METHOD | HEADER | BODY | HEARTBEAT) {
            return Err(Malformed("a frame of no known kind"));
        }
        if size > max.saturating_sub(AROUND) {
            return Err(Malformed("an oversized frame"));
        }
        match bytes.get(size) {
            None => Ok(None),
            Some(&END) => Ok(Some(Frame { kind, channel, payload: &bytes[..size] })),
            Some(_) => Err(Malformed("a frame without its end")),
        }
    }

    /// All its bytes.
    pub fn len(&self) -> usize {
        AROUND + self.payload.len()
    }

    /// What method it is, with its arguments; `None` if it is none.
    pub fn method(&self) -> Result<Option<(Method, &'a [u8])>, Malformed> {
        let mut rest = self.payload;
        match self.kind {
            METHOD => Ok(Some(((rest.try_get_u16()?, rest.try_get_u16()?), rest))),
            _ => Ok(None),
        }
    }
}

/// Appends a frame with the payload that `fill` appends.
pub(super) fn put_frame(out: &mut BytesMut, kind: u8, channel: u16, fill: impl FnOnce(&mut BytesMut)) {
    out.put_u8(kind);
    out.put_u16(channel);
    put_sized(out, fill);
    out.put_u8(END);
}

/// Appends a method with the arguments that `fill` appends.
pub(super) fn put_method(out: &mut BytesMut, channel: u16, (class, number): Method, fill: impl FnOnce(&mut BytesMut)) {
    put_frame(out, METHOD, channel, |out| {
        out.put_u16(class);
        out.put_u16(number);
        fill(out);
    });
}

/// Appends what `fill` appends, its size in four octets before it: tables, lists, long strings.
pub(super) fn put_sized(out: &mut BytesMut, fill: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    fill(out);
    let size = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

/// Appends a short string. Callers have checked that it fits 255 bytes.
pub(super) fn put_short(out: &mut BytesMut, text: &str) {
    debug_assert!(text.len() <= 255, "unchecked: {text}");
    out.put_u8(text.len() as u8);
    out.put_slice(text.as_bytes());
}

/// Appends a long string.
pub(super) fn put_long(out: &mut BytesMut, bytes: &[u8]) {
    put_sized(out, |out| out.put_slice(bytes));
}

/// Takes a short string off the front.
pub(super) fn get_short<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let size = usize::from(bytes.try_get_u8()?);
    take(bytes, size)
}

/// Takes a long string, a table or a list off the front.
pub(super) fn get_long<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let size = bytes.try_get_u32()? as usize;
    take(bytes, size)
}

fn take<'a>(bytes: &mut &'a [u8], size: usize) -> Result<&'a [u8], Malformed> {
    bytes.split_off(..size).ok_or(Malformed("it ends before its time"))
}

/// The code and the words of `connection.close` and `channel.close`, in a broker's refusals mostly.
pub(super) fn reason(mut arguments: &[u8]) -> Result<(u16, String), Malformed> {
    let code = arguments.try_get_u16()?;
    Ok((code, String::from_utf8_lossy(get_short(&mut arguments)?).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(fill: impl FnOnce(&mut BytesMut)) -> BytesMut {
        let mut out = BytesMut::new();
        put_method(&mut out, 7, (60, 40), fill);
        out
    }

    #[test]
    fn what_is_put_comes_out_once_all_of_it_is_there() {
        let bytes = one(|out| {
            put_short(out, "orders");
            put_long(out, b"x\xff");
        });
        for some in 0..bytes.len() {
            assert_eq!(Frame::first(&bytes[..some], 4096), Ok(None));
        }
        let more = [&bytes[..], b"and more"].concat();
        let frame = Frame::first(&more, 4096).unwrap().unwrap();
        assert_eq!((frame.len(), frame.channel), (bytes.len(), 7));
        let (method, mut arguments) = frame.method().unwrap().unwrap();
        assert_eq!(method, (60, 40));
        assert_eq!((get_short(&mut arguments), get_long(&mut arguments)), (Ok(&b"orders"[..]), Ok(&b"x\xff"[..])));
        assert_eq!(arguments, b"");
    }

    #[test]
    fn what_breaks_the_protocol_is_an_error_and_no_panic() {
        let good = one(|out| out.put_slice(b"abc"));
        assert!(Frame::first(&good, good.len()).is_ok());
        assert_eq!(Frame::first(&good, good.len() - 1), Err(Malformed("an oversized frame")));
        assert_eq!(Frame::first(b"HTTP/1.1 400", 4096), Err(Malformed("a frame of no known kind")));
        let mut endless = good.clone();
        *endless.last_mut().unwrap() = 0;
        assert_eq!(Frame::first(&endless, 4096), Err(Malformed("a frame without its end")));
        assert!(Frame { kind: METHOD, channel: 1, payload: &[0, 60, 0] }.method().is_err());
        for cut in [&b""[..], b"\x05abcd", b"\x00\x00\x00\x05abcd"] {
            assert!(get_short(&mut &*cut).is_err() || cut.len() > 5);
            assert!(get_long(&mut &*cut).is_err());
        }
    }
}
