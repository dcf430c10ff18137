//! What the broker says on a connection that only publishes.
//!
//! Pure. It trusts nothing that came over the network: what it cannot read is an error.

use bytes::Buf;

use super::outstanding::Word;
use crate::amqp::convert::MAX_BODY;
use crate::amqp::epoch::EpochEnd;
use crate::amqp::frame::{BODY, Frame, HEADER, Malformed, Method, get_long, get_short, reason};
use crate::amqp::handshake::{CLOSE, CLOSE_OK};

/// The broker ends the channel.
pub(super) const CHANNEL_CLOSE: Method = (20, 40);
const RETURN: Method = (60, 50);
const ACK: Method = (60, 80);
const NACK: Method = (60, 120);

/// A publication that the broker sent back: it found no queue for it. Its confirm follows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Returned {
    /// Such as `312 NO_ROUTE`.
    pub reply: String,
    pub exchange: String,
    pub routing_key: String,
    pub message_id: Option<String>,
    pub body: Vec<u8>,
}

/// What a frame comes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The broker's word on one publication, or on all up to it.
    Confirmed {
        tag: u64,
        multiple: bool,
        word: Word,
    },
    Returned(Returned),
    /// The broker ends the channel or the connection, and waits for us to agree.
    Ended(EpochEnd),
    /// It agrees that the connection ends.
    Agreed,
}

/// Reads frames one after another. A return comes in several.
#[derive(Default)]
pub(super) struct Ear {
    /// The return whose content is coming, and how much of its body is still missing once its header is here.
    returning: Option<(Returned, Option<u64>)>,
}

impl Ear {
    /// What this frame completes; `None` if nothing.
    pub fn hear(&mut self, frame: &Frame<'_>) -> Result<Option<Heard>, Malformed> {
        match frame.method()? {
            Some((method, arguments)) => self.method(method, arguments),
            None => self.content(frame),
        }
    }

    fn method(&mut self, method: Method, mut arguments: &[u8]) -> Result<Option<Heard>, Malformed> {
        Ok(Some(match method {
            ACK | NACK => {
                let (tag, bits) = (arguments.try_get_u64()?, arguments.try_get_u8()?);
                let word = if method == ACK { Word::Taken } else { Word::Refused };
                Heard::Confirmed { tag, multiple: bits & 1 == 1, word }
            }
            RETURN => {
                let code = arguments.try_get_u16()?;
                let reply = format!("{code} {}", text(&mut arguments)?);
                let (exchange, routing_key) = (text(&mut arguments)?, text(&mut arguments)?);
                let (message_id, body) = (None, Vec::new());
                self.returning = Some((Returned { reply, exchange, routing_key, message_id, body }, None));
                return Ok(None);
            }
            CLOSE => {
                let (code, text) = reason(arguments)?;
                Heard::Ended(EpochEnd::ConnectionClosed { code, text })
            }
            CHANNEL_CLOSE => {
                let (code, text) = reason(arguments)?;
                Heard::Ended(EpochEnd::ChannelClosed { code, text })
            }
            CLOSE_OK => Heard::Agreed,
            _ => return Err(Malformed("a method that nobody asked for")),
        }))
    }

    fn content(&mut self, frame: &Frame<'_>) -> Result<Option<Heard>, Malformed> {
        let left = match (frame.kind, &mut self.returning) {
            (HEADER, Some((returned, left @ None))) => {
                let (size, message_id) = content_header(frame.payload)?;
                if size > MAX_BODY as u64 {
                    return Err(Malformed("a return that is larger than anything published"));
                }
                returned.message_id = message_id;
                *left.insert(size)
            }
            (BODY, Some((returned, Some(left)))) => {
                returned.body.extend_from_slice(frame.payload);
                *left =
                    left.checked_sub(frame.payload.len() as u64).ok_or(Malformed("more body than was announced"))?;
                *left
            }
            (HEADER | BODY, _) => return Err(Malformed("content that belongs to nothing")),
            // A heartbeat.
            (_, _) => return Ok(None),
        };
        Ok(if left == 0 { self.returning.take().map(|(returned, _)| Heard::Returned(returned)) } else { None })
    }
}

/// The body's size and the message's id, out of a content header.
fn content_header(mut header: &[u8]) -> Result<(u64, Option<String>), Malformed> {
    let _class_and_weight = header.try_get_u32()?;
    let (size, flags) = (header.try_get_u64()?, header.try_get_u16()?);
    let has = |bit: u32| flags & (1 << bit) != 0;
    // Those before it: content type and encoding, headers, delivery mode, priority, correlation id, reply to, expiration.
    for bit in [15, 14, 13, 12, 11, 10, 9, 8] {
        match bit {
            _ if !has(bit) => {}
            13 => drop(get_long(&mut header)?),
            11 | 12 => drop(header.try_get_u8()?),
            _ => drop(get_short(&mut header)?),
        }
    }
    let message_id = if has(7) { Some(text(&mut header)?) } else { None };
    Ok((size, message_id))
}

fn text(bytes: &mut &[u8]) -> Result<String, Malformed> {
    Ok(String::from_utf8_lossy(get_short(bytes)?).into_owned())
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};

    use super::*;
    use crate::amqp::frame::{HEARTBEAT, put_frame, put_long, put_method, put_short};

    /// What is heard of all these frames.
    fn hear(fill: impl FnOnce(&mut BytesMut)) -> Result<Vec<Heard>, Malformed> {
        let (mut bytes, mut ear, mut heard) = (BytesMut::new(), Ear::default(), Vec::new());
        fill(&mut bytes);
        while let Some(frame) = Frame::first(&bytes, 4096)? {
            heard.extend(ear.hear(&frame)?);
            let _ = bytes.split_to(frame.len());
        }
        Ok(heard)
    }

    fn put_return(out: &mut BytesMut) {
        put_method(out, 1, RETURN, |out| {
            out.put_u16(312);
            for text in ["NO_ROUTE", "orders", "order.odd"] {
                put_short(out, text);
            }
        });
    }

    /// With everything that can stand before the message id, and something behind it.
    fn put_header(out: &mut BytesMut, size: u64) {
        put_frame(out, HEADER, 1, |out| {
            out.put_u32(60 << 16);
            out.put_u64(size);
            out.put_u16(0xFFC0);
            put_short(out, "application/json");
            put_short(out, "identity");
            put_long(out, b"\x01xV");
            out.put_slice(&[2, 9]);
            for text in ["correlation", "reply", "10", "ord-1"] {
                put_short(out, text);
            }
            out.put_u64(1);
        });
    }

    #[test]
    fn a_return_is_heard_when_all_of_it_is_here() {
        let heard = hear(|out| {
            put_return(out);
            put_header(out, 5);
            put_frame(out, BODY, 1, |out| out.put_slice(b"abc"));
            put_frame(out, HEARTBEAT, 0, |_| {});
            put_frame(out, BODY, 1, |out| out.put_slice(b"de"));
            put_method(out, 1, ACK, |out| {
                out.put_u64(7);
                out.put_u8(0);
            });
        });
        let returned = Returned {
            reply: "312 NO_ROUTE".into(),
            exchange: "orders".into(),
            routing_key: "order.odd".into(),
            message_id: Some("ord-1".into()),
            body: b"abcde".to_vec(),
        };
        let confirmed = Heard::Confirmed { tag: 7, multiple: false, word: Word::Taken };
        assert_eq!(hear(put_return), Ok(vec![]));
        assert_eq!(heard, Ok(vec![Heard::Returned(returned), confirmed]));
    }

    #[test]
    fn a_returned_message_may_be_empty() {
        let heard = hear(|out| {
            put_return(out);
            put_frame(out, HEADER, 1, |out| out.put_slice(&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        });
        assert!(
            matches!(&heard.unwrap()[..], [Heard::Returned(Returned { message_id: None, body, .. })] if body.is_empty())
        );
    }

    #[test]
    fn what_the_broker_would_never_say_is_an_error_and_no_panic() {
        let body = |out: &mut BytesMut| put_frame(out, BODY, 1, |out| out.put_slice(b"abc"));
        assert!(hear(body).is_err(), "a body of nothing");
        assert!(hear(|out| put_header(out, 1)).is_err(), "a header of nothing");
        let early = |out: &mut BytesMut| {
            put_return(out);
            body(out);
        };
        assert!(hear(early).is_err(), "a body before its header");
        let long = |out: &mut BytesMut| {
            put_return(out);
            put_header(out, 2);
            body(out);
        };
        assert!(hear(long).is_err(), "a body that is too long");
        let endless = |out: &mut BytesMut| {
            put_return(out);
            put_header(out, u64::MAX);
        };
        assert!(hear(endless).is_err(), "a body without end");
        assert!(hear(|out| put_method(out, 1, (60, 60), |_| {})).is_err(), "a delivery");
        for method in [ACK, NACK, RETURN, CLOSE, CHANNEL_CLOSE] {
            for cut in 0..3 {
                let short = |out: &mut BytesMut| put_method(out, 1, method, |out| out.put_slice(&[1, 1, 9][..cut]));
                assert!(hear(short).is_err(), "{method:?} of {cut} bytes");
            }
        }
        for cut in 0..60 {
            let mut whole = BytesMut::new();
            put_header(&mut whole, 1);
            let payload = &whole[7..whole.len() - 9][..cut];
            let heard = hear(|out| {
                put_return(out);
                put_frame(out, HEADER, 1, |out| out.put_slice(payload));
            });
            assert!(heard.is_err(), "a header of {cut} bytes");
        }
    }
}
