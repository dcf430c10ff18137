//! Frames of AMQP 0-9-1: how they are delimited in the byte stream (section 4.2.3).
//!
//! Pure. Knows nothing about what frames carry. Trusts nothing that came over the network.

use bytes::{Buf, BufMut, BytesMut};

use super::encoding::{ProtocolError, put_sized};

/// The octets a frame has besides its payload: type, channel, payload size, frame end.
pub const FRAME_OVERHEAD: usize = 8;
const FRAME_END: u8 = 0xCE;

/// What a frame carries. The values are those of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameType {
    Method = 1,
    /// A content header: body size and properties.
    Header = 2,
    /// A part of a message's body.
    Body = 3,
    Heartbeat = 8,
}

impl FrameType {
    fn from_octet(octet: u8) -> Option<Self> {
        match octet {
            1 => Some(FrameType::Method),
            2 => Some(FrameType::Header),
            3 => Some(FrameType::Body),
            8 => Some(FrameType::Heartbeat),
            _ => None,
        }
    }
}

/// A complete frame, borrowed from the receive buffer.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: FrameType,
    pub channel: u16,
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame in `bytes`, where it occupies [`Frame::len`] bytes; `None` while it is incomplete.
    ///
    /// # Errors
    /// If its type is unknown, if it is larger than `max_size` bytes, or if its end octet is missing.
    pub fn parse(mut bytes: &'a [u8], max_size: usize) -> Result<Option<Self>, ProtocolError> {
        if bytes.len() < FRAME_OVERHEAD {
            return Ok(None);
        }
        let (octet, channel, size) = (bytes.get_u8(), bytes.get_u16(), bytes.get_u32() as usize);
        let kind = FrameType::from_octet(octet).ok_or(ProtocolError("unknown frame type"))?;
        if size > max_size.saturating_sub(FRAME_OVERHEAD) {
            return Err(ProtocolError("oversized frame"));
        }
        match bytes.get(size) {
            None => Ok(None),
            Some(&FRAME_END) => Ok(Some(Frame { kind, channel, payload: &bytes[..size] })),
            Some(_) => Err(ProtocolError("missing frame end")),
        }
    }

    /// Its size in the stream, in bytes.
    pub fn len(&self) -> usize {
        FRAME_OVERHEAD + self.payload.len()
    }
}

/// Appends a frame whose payload is what `fill` appends.
pub fn put_frame(out: &mut BytesMut, kind: FrameType, channel: u16, fill: impl FnOnce(&mut BytesMut)) {
    out.put_u8(kind as u8);
    out.put_u16(channel);
    put_sized(out, fill);
    out.put_u8(FRAME_END);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(payload: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        put_frame(&mut out, FrameType::Method, 7, |out| out.put_slice(payload));
        out
    }

    #[test]
    fn a_frame_is_parsed_once_it_is_complete() {
        let bytes = frame(b"payload");
        for some in 0..bytes.len() {
            assert_eq!(Frame::parse(&bytes[..some], 4096), Ok(None));
        }
        let more = [&bytes[..], b"and more"].concat();
        let frame = Frame::parse(&more, 4096).unwrap().unwrap();
        assert_eq!((frame.len(), frame.kind, frame.channel), (bytes.len(), FrameType::Method, 7));
        assert_eq!(frame.payload, b"payload");
    }

    #[test]
    fn what_is_not_a_frame_is_an_error_and_no_panic() {
        let good = frame(b"abc");
        assert!(Frame::parse(&good, good.len()).is_ok());
        assert_eq!(Frame::parse(&good, good.len() - 1), Err(ProtocolError("oversized frame")));
        assert_eq!(Frame::parse(b"HTTP/1.1 400", 4096), Err(ProtocolError("unknown frame type")));
        let mut endless = good.clone();
        *endless.last_mut().unwrap() = 0;
        assert_eq!(Frame::parse(&endless, 4096), Err(ProtocolError("missing frame end")));
    }
}
