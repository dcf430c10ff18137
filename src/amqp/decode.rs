//! What the broker says on a connection that publishes or consumes.
//!
//! Pure. It trusts nothing that came over the network: what it cannot read is an error.

use bytes::{Buf, Bytes};

use super::content::{get_properties, get_text};
use super::epoch::ConnectionEnd;
use super::frame::{BODY, Frame, HEADER, Malformed, Method, get_short, reason};
use super::handshake::{CLOSE, CLOSE_OK};
use crate::message::{Headers, Message, Properties};

/// RabbitMQ takes no message larger than 512 MiB, whatever `max_message_size` says, in bytes.
const LARGEST: usize = 512 * 1024 * 1024;
/// Room made for a body before any of it is here, at most, in bytes.
const READY: usize = 64 * 1024;

pub(super) const CHANNEL_OPEN: Method = (20, 10);
/// The broker ends the channel.
pub(super) const CHANNEL_CLOSE: Method = (20, 40);
pub(super) const CONFIRM_SELECT: Method = (85, 10);
pub(super) const QUEUE_DECLARE: Method = (50, 10);
pub(super) const QOS: Method = (60, 10);
pub(super) const CONSUME: Method = (60, 20);
/// From either side: the broker's queue is gone, or we want no more.
pub(super) const CANCEL: Method = (60, 30);
const RETURN: Method = (60, 50);
const DELIVER: Method = (60, 60);
pub(super) const ACK: Method = (60, 80);
pub(super) const NACK: Method = (60, 120);

/// The method that answers this one: AMQP numbers it next.
pub(super) const fn answer_to((class, number): Method) -> Method {
    (class, number + 1)
}

/// What the broker answers to what we ask for.
const ANSWERS: [Method; 6] = [
    answer_to(CHANNEL_OPEN),
    answer_to(CONFIRM_SELECT),
    answer_to(QUEUE_DECLARE),
    answer_to(QOS),
    answer_to(CONSUME),
    answer_to(CANCEL),
];

/// The broker's word on a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Word {
    Taken,
    Refused,
}

/// A publication that the broker sent back: it found no queue for it. Its confirm follows.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Returned {
    /// Such as `312 NO_ROUTE`.
    pub reply: String,
    pub exchange: String,
    pub routing_key: String,
    pub message: Message,
}

/// A message that the broker hands out.
#[derive(Debug, PartialEq)]
pub(super) struct Delivered {
    pub tag: u64,
    pub redelivered: bool,
    pub exchange: String,
    pub routing_key: String,
    pub message: Message,
}

/// What a frame comes to.
#[derive(Debug, PartialEq)]
pub(super) enum Heard {
    /// The broker's word on one publication, or on all up to it.
    Confirmed {
        tag: u64,
        multiple: bool,
        word: Word,
    },
    Returned(Returned),
    Delivered(Delivered),
    /// What was asked for is done: the answer's method and its arguments.
    Answered(Method, Vec<u8>),
    /// The broker ends the consumer, the channel or the connection, and waits in the last two cases for us to agree.
    Ended(ConnectionEnd),
    /// It agrees that the connection ends.
    Agreed,
}

/// Whose content is coming.
enum Head {
    Returned(Returned),
    Delivered(Delivered),
}

impl Head {
    fn message(&mut self) -> &mut Message {
        match self {
            Head::Returned(returned) => &mut returned.message,
            Head::Delivered(delivered) => &mut delivered.message,
        }
    }

    fn heard(self) -> Heard {
        match self {
            Head::Returned(returned) => Heard::Returned(returned),
            Head::Delivered(delivered) => Heard::Delivered(delivered),
        }
    }
}

/// How far a message with its content has come.
#[derive(Default)]
enum Coming {
    #[default]
    Nothing,
    /// Its properties are next.
    Head(Head),
    /// So much of its body is missing, and so much is here.
    Body(Head, usize, Vec<u8>),
}

/// Reads frames one after another. Messages come in several.
#[derive(Default)]
pub(super) struct Ear {
    coming: Coming,
}

impl Ear {
    /// What this frame completes; `None` if nothing.
    pub fn hear(&mut self, frame: &Frame<'_>) -> Result<Option<Heard>, Malformed> {
        match frame.method()? {
            // The connection's own affairs go between anything.
            Some(_) if frame.channel != 0 && !matches!(self.coming, Coming::Nothing) => {
                Err(Malformed("a method in the middle of a message"))
            }
            Some((method, arguments)) => self.method(method, arguments),
            None => self.content(frame),
        }
    }

    fn method(&mut self, method: Method, mut arguments: &[u8]) -> Result<Option<Heard>, Malformed> {
        let bytes = &mut arguments;
        Ok(Some(match method {
            ACK | NACK => {
                let (tag, bits) = (bytes.try_get_u64()?, bytes.try_get_u8()?);
                let word = if method == ACK { Word::Taken } else { Word::Refused };
                Heard::Confirmed { tag, multiple: bits & 1 == 1, word }
            }
            RETURN => {
                let reply = format!("{} {}", bytes.try_get_u16()?, get_text(bytes)?);
                let (exchange, routing_key, message) = (get_text(bytes)?, get_text(bytes)?, Message::default());
                self.coming = Coming::Head(Head::Returned(Returned { reply, exchange, routing_key, message }));
                return Ok(None);
            }
            DELIVER => {
                let _consumer_tag = get_short(bytes)?;
                let (tag, redelivered) = (bytes.try_get_u64()?, bytes.try_get_u8()? & 1 == 1);
                let (exchange, routing_key, message) = (get_text(bytes)?, get_text(bytes)?, Message::default());
                let delivered = Delivered { tag, redelivered, exchange, routing_key, message };
                self.coming = Coming::Head(Head::Delivered(delivered));
                return Ok(None);
            }
            CANCEL => Heard::Ended(ConnectionEnd::ConsumerCancelled),
            CLOSE => {
                let (code, text) = reason(bytes)?;
                Heard::Ended(ConnectionEnd::ConnectionClosed { code, text })
            }
            CHANNEL_CLOSE => {
                let (code, text) = reason(bytes)?;
                Heard::Ended(ConnectionEnd::ChannelClosed { code, text })
            }
            CLOSE_OK => Heard::Agreed,
            answer if ANSWERS.contains(&answer) => Heard::Answered(answer, bytes.to_vec()),
            _ => return Err(Malformed("a method that nobody asked for")),
        }))
    }

    fn content(&mut self, frame: &Frame<'_>) -> Result<Option<Heard>, Malformed> {
        let (mut head, left, body) = match (frame.kind, std::mem::take(&mut self.coming)) {
            (HEADER, Coming::Head(mut head)) => {
                let (size, properties, headers) = content_header(frame.payload)?;
                let message = head.message();
                (message.properties, message.headers) = (properties, headers);
                // Most bodies come in one frame.
                (head, size, Vec::with_capacity(size.min(READY)))
            }
            (BODY, Coming::Body(head, left, mut body)) => {
                let left = left.checked_sub(frame.payload.len()).ok_or(Malformed("more body than was announced"))?;
                body.extend_from_slice(frame.payload);
                (head, left, body)
            }
            (HEADER | BODY, _) => return Err(Malformed("content that belongs to nothing")),
            // A heartbeat.
            (_, coming) => {
                self.coming = coming;
                return Ok(None);
            }
        };
        if left > 0 {
            self.coming = Coming::Body(head, left, body);
            return Ok(None);
        }
        head.message().body = Bytes::from(body);
        Ok(Some(head.heard()))
    }
}

/// The body's size, properties and headers, out of a content header.
fn content_header(mut header: &[u8]) -> Result<(usize, Properties, Headers), Malformed> {
    let _class_and_weight = header.try_get_u32()?;
    let size = usize::try_from(header.try_get_u64()?).unwrap_or(usize::MAX);
    if size > LARGEST {
        return Err(Malformed("a message that is larger than any"));
    }
    let (properties, headers) = get_properties(&mut header)?;
    Ok((size, properties, headers))
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};

    use super::*;
    use crate::amqp::fake_broker::put_deliver;
    use crate::amqp::frame::{HEARTBEAT, put_frame, put_long, put_method, put_short};
    use crate::message::HeaderValue;

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

    /// Of a message with an id and a header.
    fn put_header(out: &mut BytesMut, size: u64) {
        put_frame(out, HEADER, 1, |out| {
            out.put_u32(60 << 16);
            out.put_u64(size);
            out.put_u16(0x2080);
            put_long(out, b"\x01xV");
            put_short(out, "ord-1");
        });
    }

    fn put_body(out: &mut BytesMut, body: &[u8]) {
        put_frame(out, BODY, 1, |out| out.put_slice(body));
    }

    fn message(body: &'static [u8]) -> Message {
        let properties = Properties { message_id: Some("ord-1".into()), ..Properties::default() };
        let headers = Headers::from([("x".to_owned(), HeaderValue::Void)]);
        Message { properties, headers, body: Bytes::from_static(body) }
    }

    #[test]
    fn a_return_is_heard_when_all_of_it_is_here() {
        let heard = hear(|out| {
            put_return(out);
            put_header(out, 5);
            put_body(out, b"abc");
            put_frame(out, HEARTBEAT, 0, |_| {});
            put_body(out, b"de");
            put_method(out, 1, ACK, |out| {
                out.put_u64(7);
                out.put_u8(0);
            });
        });
        let returned = Returned {
            reply: "312 NO_ROUTE".into(),
            exchange: "orders".into(),
            routing_key: "order.odd".into(),
            message: message(b"abcde"),
        };
        let confirmed = Heard::Confirmed { tag: 7, multiple: false, word: Word::Taken };
        assert_eq!(hear(put_return), Ok(vec![]));
        assert_eq!(heard, Ok(vec![Heard::Returned(returned), confirmed]));
    }

    #[test]
    fn a_delivery_is_heard_when_all_of_it_is_here() {
        let delivered = |tag, body| {
            let (exchange, routing_key) = ("orders".into(), "order.normal.new".into());
            Heard::Delivered(Delivered { tag, redelivered: true, exchange, routing_key, message: message(body) })
        };
        let heard = hear(|out| {
            put_deliver(out, 1);
            put_header(out, 3);
            put_body(out, b"abc");
            put_deliver(out, 2);
            put_header(out, 0);
        });
        assert_eq!(heard, Ok(vec![delivered(1, b"abc"), delivered(2, b"")]));
    }

    #[test]
    fn the_end_of_the_connection_may_come_in_the_middle_of_a_message() {
        let close = |channel, method| {
            hear(|out| {
                put_deliver(out, 1);
                put_method(out, channel, method, |out| {
                    out.put_u16(320);
                    put_short(out, "shutdown");
                    out.put_u32(0);
                });
            })
        };
        let end = ConnectionEnd::ConnectionClosed { code: 320, text: "shutdown".into() };
        assert_eq!(close(0, CLOSE), Ok(vec![Heard::Ended(end)]));
        assert!(close(1, CHANNEL_CLOSE).is_err());
    }

    #[test]
    fn a_cancel_ends_the_consumer_and_its_answer_does_not() {
        let cancel = |method| hear(|out| put_method(out, 1, method, |out| put_short(out, "tag")));
        assert_eq!(cancel(CANCEL), Ok(vec![Heard::Ended(ConnectionEnd::ConsumerCancelled)]));
        assert_eq!(cancel(answer_to(CANCEL)), Ok(vec![Heard::Answered((60, 31), b"\x03tag".to_vec())]));
    }

    #[test]
    fn what_the_broker_would_never_say_is_an_error_and_no_panic() {
        assert!(hear(|out| put_body(out, b"abc")).is_err(), "a body of nothing");
        assert!(hear(|out| put_header(out, 1)).is_err(), "a header of nothing");
        for begin in [put_return, |out: &mut BytesMut| put_deliver(out, 1)] {
            let after = |more: &dyn Fn(&mut BytesMut)| {
                hear(|out| {
                    begin(out);
                    more(out);
                })
            };
            assert!(after(&|out| put_body(out, b"abc")).is_err(), "a body before its header");
            assert!(after(&|out| put_header(out, u64::MAX)).is_err(), "a body without end");
            assert!(after(&begin).is_err(), "one in the middle of another");
            let long = |out: &mut BytesMut| {
                put_header(out, 2);
                put_body(out, b"abc");
            };
            assert!(after(&long).is_err(), "a body that is too long");
            let mut whole = BytesMut::new();
            put_header(&mut whole, 1);
            for cut in 7..whole.len() - 1 {
                let short = |out: &mut BytesMut| put_frame(out, HEADER, 1, |out| out.put_slice(&whole[7..cut]));
                assert!(after(&short).is_err(), "a header of {} bytes", cut - 7);
            }
        }
        assert!(hear(|out| put_method(out, 1, (60, 71), |_| {})).is_err(), "an answer to what nobody asks for");
        for method in [ACK, NACK, RETURN, DELIVER, CLOSE, CHANNEL_CLOSE] {
            for cut in 0..3 {
                let short = |out: &mut BytesMut| put_method(out, 1, method, |out| out.put_slice(&[1, 1, 9][..cut]));
                assert!(hear(short).is_err(), "{method:?} of {cut} bytes");
            }
        }
    }
}
