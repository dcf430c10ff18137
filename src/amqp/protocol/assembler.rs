//! Turns the broker's frames, on a connection that publishes or consumes, into server events.
//!
//! Pure. Reassembles messages, each of which comes in several frames. Trusts nothing that came over the network: what it
//! cannot decode is an error.

use bytes::Bytes;

use super::content_header::{ContentHeader, get_content_header};
use super::encoding::ProtocolError;
use super::frame::{Frame, FrameType};
use super::method::Method;
use crate::amqp::lifetime::ConnectionEnd;
use crate::message::{Message, headers_memory};

/// How much is kept of a body that is not kept as a whole, in bytes.
const KEPT_PREFIX: usize = 4 * 1024;
/// The memory of a delivery besides its body and headers, in bytes, roughly.
const DELIVERY_BYTES: usize = 1024;

/// Whether the broker accepted a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirm {
    Ack,
    Nack,
}

/// A publication that the broker sent back because no queue is bound for it. Its confirm follows.
#[derive(Debug, Default, PartialEq)]
pub struct Returned {
    /// Such as `312 NO_ROUTE`.
    pub reply: String,
    pub exchange: String,
    pub routing_key: String,
    pub message: Message,
}

/// A message that the broker delivers to the consumer.
#[derive(Debug, Default, PartialEq)]
pub struct Delivered {
    pub tag: u64,
    pub redelivered: bool,
    pub exchange: String,
    pub routing_key: String,
    pub message: Message,
    /// The memory it takes, in bytes, roughly.
    pub memory: usize,
    /// There was no room for the body, so only its beginning is in `message`. The delivery is to be released.
    pub overflow: bool,
}

/// Something that the broker has sent completely.
#[derive(Debug, PartialEq)]
pub enum ServerEvent {
    /// The confirm of one publication, or of all up to it.
    Confirmed {
        tag: u64,
        multiple: bool,
        confirm: Confirm,
    },
    Returned(Returned),
    Delivered(Delivered),
    /// The reply to a request.
    Reply(Method<'static>),
    /// The broker ended the consumer, the channel or the connection. In the last two cases it waits for a close-ok.
    Ended(ConnectionEnd),
    /// The broker's `connection.close-ok`: the connection is closed.
    ConnectionCloseOk,
    /// The broker reads nothing more from this connection until [`ServerEvent::Unblocked`], for a reason such as `low on
    /// memory`: it has an alarm.
    Blocked(String),
    /// The broker reads from this connection again.
    Unblocked,
}

/// The method that a message's content belongs to, with the message as far as it has arrived.
enum ContentOwner {
    Returned(Returned),
    Delivered(Delivered),
}

impl ContentOwner {
    fn message(&mut self) -> &mut Message {
        match self {
            ContentOwner::Returned(returned) => &mut returned.message,
            ContentOwner::Delivered(delivered) => &mut delivered.message,
        }
    }

    fn into_event(self) -> ServerEvent {
        match self {
            ContentOwner::Returned(returned) => ServerEvent::Returned(returned),
            ContentOwner::Delivered(delivered) => ServerEvent::Delivered(delivered),
        }
    }
}

/// How much of a message's content has arrived.
#[derive(Default)]
enum PendingContent {
    /// No message has begun.
    #[default]
    None,
    /// The method has arrived; the content header comes next.
    Header(ContentOwner),
    /// The header and part of the body have arrived; `missing` bytes of the body have not.
    Body { owner: ContentOwner, missing: usize, body: Vec<u8>, kept: usize },
}

/// Turns the frames of one connection into events.
pub struct ContentAssembler {
    pending: PendingContent,
    /// A longer body is not kept as a whole.
    pub max_body: usize,
    /// How much may be kept of the next delivery's body; if that is less than the body has, it overflows.
    pub room: usize,
}

impl ContentAssembler {
    /// For a connection on which bodies of up to `max_body` bytes are kept.
    pub fn new(max_body: usize) -> Self {
        ContentAssembler { pending: PendingContent::None, max_body, room: usize::MAX }
    }

    /// The bytes that the body takes which is arriving.
    pub fn pending_bytes(&self) -> usize {
        match &self.pending {
            PendingContent::Body { kept, .. } => *kept,
            PendingContent::None | PendingContent::Header(_) => 0,
        }
    }

    /// The event that this frame completes; `None` if it completes none.
    pub fn accept(&mut self, frame: &Frame<'_>) -> Result<Option<ServerEvent>, ProtocolError> {
        match Method::parse(frame)? {
            // Methods on channel 0, which concern the connection, may come between any two frames.
            Some(_) if frame.channel != 0 && !matches!(self.pending, PendingContent::None) => {
                Err(ProtocolError("method inside a message's content"))
            }
            Some(method) => self.accept_method(method),
            None => self.accept_content(frame),
        }
    }

    fn accept_method(&mut self, method: Method<'_>) -> Result<Option<ServerEvent>, ProtocolError> {
        Ok(Some(match method {
            Method::BasicAck { delivery_tag: tag, multiple } => {
                ServerEvent::Confirmed { tag, multiple, confirm: Confirm::Ack }
            }
            Method::BasicNack { delivery_tag: tag, multiple, requeue: _ } => {
                ServerEvent::Confirmed { tag, multiple, confirm: Confirm::Nack }
            }
            Method::BasicReturn { code, text, exchange, routing_key } => {
                let reply = format!("{code} {text}");
                let (exchange, routing_key) = (exchange.into_owned(), routing_key.into_owned());
                let returned = Returned { reply, exchange, routing_key, message: Message::default() };
                self.pending = PendingContent::Header(ContentOwner::Returned(returned));
                return Ok(None);
            }
            Method::BasicDeliver { delivery_tag: tag, redelivered, exchange, routing_key } => {
                let (exchange, routing_key) = (exchange.into_owned(), routing_key.into_owned());
                let delivered = Delivered { tag, redelivered, exchange, routing_key, ..Delivered::default() };
                self.pending = PendingContent::Header(ContentOwner::Delivered(delivered));
                return Ok(None);
            }
            Method::BasicCancel { .. } => ServerEvent::Ended(ConnectionEnd::ConsumerCancelled),
            Method::ConnectionClose { code, text } => {
                ServerEvent::Ended(ConnectionEnd::ConnectionClosed { code, text: text.into_owned() })
            }
            Method::ChannelClose { code, text } => {
                ServerEvent::Ended(ConnectionEnd::channel_closed(code, text.into_owned()))
            }
            Method::ConnectionCloseOk => ServerEvent::ConnectionCloseOk,
            Method::ConnectionBlocked { reason } => ServerEvent::Blocked(reason.into_owned()),
            Method::ConnectionUnblocked => ServerEvent::Unblocked,
            Method::ChannelOpenOk => ServerEvent::Reply(Method::ChannelOpenOk),
            Method::ConfirmSelectOk => ServerEvent::Reply(Method::ConfirmSelectOk),
            Method::QueueDeclareOk { message_count, consumer_count } => {
                ServerEvent::Reply(Method::QueueDeclareOk { message_count, consumer_count })
            }
            Method::BasicQosOk => ServerEvent::Reply(Method::BasicQosOk),
            Method::BasicConsumeOk => ServerEvent::Reply(Method::BasicConsumeOk),
            Method::BasicCancelOk => ServerEvent::Reply(Method::BasicCancelOk),
            // Methods of the handshake, methods that only clients send, and replies to requests that orderd never makes here.
            Method::ConnectionStart { .. }
            | Method::ConnectionStartOk { .. }
            | Method::ConnectionTune { .. }
            | Method::ConnectionTuneOk { .. }
            | Method::ConnectionOpen { .. }
            | Method::ConnectionOpenOk
            | Method::ChannelOpen
            | Method::ChannelCloseOk
            | Method::QueueDeclare { .. }
            | Method::BasicQos { .. }
            | Method::BasicConsume { .. }
            | Method::BasicPublish { .. }
            | Method::ConfirmSelect => return Err(ProtocolError("unexpected method")),
        }))
    }

    /// How many bytes of a body are kept. `max_body` bounds it, so as much may be reserved at once.
    fn kept_bytes(&self, owner: &mut ContentOwner, body_size: usize) -> Result<usize, ProtocolError> {
        match owner {
            ContentOwner::Returned(_) if body_size > self.max_body => {
                Err(ProtocolError("a returned message is larger than any that was published"))
            }
            ContentOwner::Returned(_) => Ok(body_size),
            ContentOwner::Delivered(delivered) => {
                delivered.overflow = body_size > self.room;
                let whole = !delivered.overflow && body_size <= self.max_body;
                let kept = if whole { body_size } else { body_size.min(KEPT_PREFIX) };
                delivered.message.missing_bytes = body_size - kept;
                delivered.memory = DELIVERY_BYTES + kept + headers_memory(&delivered.message.headers);
                Ok(kept)
            }
        }
    }

    fn accept_content(&mut self, frame: &Frame<'_>) -> Result<Option<ServerEvent>, ProtocolError> {
        let (mut owner, missing, body, kept) = match (frame.kind, std::mem::take(&mut self.pending)) {
            (FrameType::Header, PendingContent::Header(mut owner)) => {
                let ContentHeader { body_size, properties, headers } = get_content_header(frame.payload)?;
                let message = owner.message();
                (message.properties, message.headers) = (properties, headers);
                let kept = self.kept_bytes(&mut owner, body_size)?;
                (owner, body_size, Vec::with_capacity(kept), kept)
            }
            (FrameType::Body, PendingContent::Body { owner, missing, mut body, kept }) => {
                let missing = missing.checked_sub(frame.payload.len());
                let missing = missing.ok_or(ProtocolError("body longer than announced"))?;
                body.extend_from_slice(&frame.payload[..frame.payload.len().min(kept - body.len())]);
                (owner, missing, body, kept)
            }
            (FrameType::Header | FrameType::Body, _) => return Err(ProtocolError("content without its method")),
            (FrameType::Heartbeat | FrameType::Method, pending) => {
                self.pending = pending;
                return Ok(None);
            }
        };
        if missing > 0 {
            self.pending = PendingContent::Body { owner, missing, body, kept };
            return Ok(None);
        }
        owner.message().body = Bytes::from(body);
        Ok(Some(owner.into_event()))
    }
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};

    use super::*;
    use crate::amqp::protocol::encoding::{put_long_string, put_short_string};
    use crate::amqp::protocol::frame::put_frame;
    use crate::amqp::protocol::method::put_method;
    use crate::message::{HeaderValue, Headers, Properties};

    /// The events of all these frames.
    fn events(fill: impl FnOnce(&mut BytesMut)) -> Result<Vec<ServerEvent>, ProtocolError> {
        let (mut bytes, mut assembler, mut events) = (BytesMut::new(), ContentAssembler::new(1000), Vec::new());
        fill(&mut bytes);
        while let Some(frame) = Frame::parse(&bytes, 4096)? {
            events.extend(assembler.accept(&frame)?);
            let _ = bytes.split_to(frame.len());
        }
        Ok(events)
    }

    fn put_return(out: &mut BytesMut) {
        let (text, exchange, routing_key) = ("NO_ROUTE".into(), "orders".into(), "order.odd".into());
        put_method(out, 1, &Method::BasicReturn { code: 312, text, exchange, routing_key });
    }

    fn put_deliver(out: &mut BytesMut, delivery_tag: u64) {
        let (exchange, routing_key) = ("orders".into(), "order.normal.new".into());
        put_method(out, 1, &Method::BasicDeliver { delivery_tag, redelivered: true, exchange, routing_key });
    }

    /// The content header of a message with an id and one header.
    fn put_header(out: &mut BytesMut, size: u64) {
        put_frame(out, FrameType::Header, 1, |out| {
            out.put_u32(60 << 16);
            out.put_u64(size);
            out.put_u16(0x2080);
            put_long_string(out, b"\x01xV");
            put_short_string(out, "ord-1");
        });
    }

    fn put_body(out: &mut BytesMut, body: &[u8]) {
        put_frame(out, FrameType::Body, 1, |out| out.put_slice(body));
    }

    fn message(body: &'static [u8]) -> Message {
        let properties = Properties { message_id: Some("ord-1".into()), ..Properties::default() };
        let headers = Headers::from([("x".to_owned(), HeaderValue::Void)]);
        Message { properties, headers, body: Bytes::from_static(body), missing_bytes: 0 }
    }

    #[test]
    fn a_return_is_an_event_once_it_is_complete() {
        let complete = events(|out| {
            put_return(out);
            put_header(out, 5);
            put_body(out, b"abc");
            put_frame(out, FrameType::Heartbeat, 0, |_| {});
            put_body(out, b"de");
            put_method(out, 1, &Method::BasicAck { delivery_tag: 7, multiple: false });
        });
        let returned = Returned {
            reply: "312 NO_ROUTE".into(),
            exchange: "orders".into(),
            routing_key: "order.odd".into(),
            message: message(b"abcde"),
        };
        let confirmed = ServerEvent::Confirmed { tag: 7, multiple: false, confirm: Confirm::Ack };
        assert_eq!(events(put_return), Ok(vec![]));
        assert_eq!(complete, Ok(vec![ServerEvent::Returned(returned), confirmed]));
    }

    #[test]
    fn a_delivery_is_an_event_once_it_is_complete() {
        let delivered = |tag, body| {
            let (exchange, routing_key) = ("orders".into(), "order.normal.new".into());
            let (message, redelivered) = (message(body), true);
            let memory = DELIVERY_BYTES + body.len() + headers_memory(&message.headers);
            ServerEvent::Delivered(Delivered {
                tag,
                redelivered,
                exchange,
                routing_key,
                message,
                memory,
                overflow: false,
            })
        };
        let complete = events(|out| {
            put_deliver(out, 1);
            put_header(out, 3);
            put_body(out, b"abc");
            put_deliver(out, 2);
            put_header(out, 0);
        });
        assert_eq!(complete, Ok(vec![delivered(1, b"abc"), delivered(2, b"")]));
    }

    #[test]
    fn a_body_above_the_maximum_is_not_kept() {
        let delivered = |size: usize| {
            let events = events(|out| {
                put_deliver(out, 1);
                put_header(out, size as u64);
                (0..size / 1000).for_each(|_| put_body(out, &[7; 1000]));
            });
            match events.unwrap().remove(0) {
                ServerEvent::Delivered(delivered) => delivered,
                other => panic!("{other:?}"),
            }
        };
        let whole = delivered(1000);
        assert_eq!((whole.message.body.len(), whole.message.missing_bytes), (1000, 0));
        let large = delivered(1_000_000);
        assert_eq!((large.message.body.len(), large.message.missing_bytes), (KEPT_PREFIX, 1_000_000 - KEPT_PREFIX));
        assert!(large.memory < 10_000);
        assert!(
            events(|out| {
                put_return(out);
                put_header(out, 1001)
            })
            .is_err(),
            "nothing as large was published"
        );
    }

    #[test]
    fn the_connection_may_be_closed_in_the_middle_of_a_message() {
        let close = |channel, method: Method<'_>| {
            events(|out| {
                put_deliver(out, 1);
                put_method(out, channel, &method);
            })
        };
        let end = ConnectionEnd::ConnectionClosed { code: 320, text: "shutdown".into() };
        let closed = close(0, Method::ConnectionClose { code: 320, text: "shutdown".into() });
        assert_eq!(closed, Ok(vec![ServerEvent::Ended(end)]));
        assert!(close(1, Method::ChannelClose { code: 320, text: "shutdown".into() }).is_err());
    }

    #[test]
    fn a_cancel_by_the_broker_ends_the_consumer_and_a_cancel_ok_does_not() {
        let event = |method| events(|out| put_method(out, 1, &method));
        let cancelled = ServerEvent::Ended(ConnectionEnd::ConsumerCancelled);
        assert_eq!(event(Method::BasicCancel { consumer_tag: "tag".into() }), Ok(vec![cancelled]));
        assert_eq!(event(Method::BasicCancelOk), Ok(vec![ServerEvent::Reply(Method::BasicCancelOk)]));
    }

    #[test]
    fn what_no_broker_sends_is_an_error_and_no_panic() {
        assert!(events(|out| put_body(out, b"abc")).is_err(), "a body without a method");
        assert!(events(|out| put_header(out, 1)).is_err(), "a header without a method");
        for begin in [put_return, |out: &mut BytesMut| put_deliver(out, 1)] {
            let after = |more: &dyn Fn(&mut BytesMut)| {
                events(|out| {
                    begin(out);
                    more(out);
                })
            };
            assert!(after(&|out| put_body(out, b"abc")).is_err(), "a body before its header");
            assert!(after(&|out| put_header(out, u64::MAX)).is_err(), "an endless body");
            assert!(after(&begin).is_err(), "one inside another");
            let long = |out: &mut BytesMut| {
                put_header(out, 2);
                put_body(out, b"abc");
            };
            assert!(after(&long).is_err(), "a body that is too long");
            let mut whole = BytesMut::new();
            put_header(&mut whole, 1);
            for cut in 7..whole.len() - 1 {
                let short =
                    |out: &mut BytesMut| put_frame(out, FrameType::Header, 1, |out| out.put_slice(&whole[7..cut]));
                assert!(after(&short).is_err(), "a header of {} bytes", cut - 7);
            }
        }
        let client_method = Method::ConfirmSelect;
        assert!(events(|out| put_method(out, 1, &client_method)).is_err(), "a method that only clients send");
    }
}
