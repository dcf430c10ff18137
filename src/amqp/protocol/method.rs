//! Encodes and decodes the AMQP 0-9-1 methods that orderd sends and receives.
//!
//! Pure. The order of arguments is that of the specification (`amqp0-9-1.xml`). Arguments that orderd neither sets nor reads
//! have no field: they are sent as zero or empty, and skipped on receipt.

use std::borrow::Cow;
use std::fmt;

use bytes::{Buf, BufMut, BytesMut};

use super::encoding::{ProtocolError, get_long_string, get_short_string, get_text, put_long_string, put_short_string};
use super::frame::{Frame, FrameType, put_frame};
use super::method_id::MethodId;

/// An argument that is reserved, deprecated or not used.
const UNUSED: u16 = 0;
const UNUSED_TEXT: &str = "";
const EMPTY_TABLE: u32 = 0;
const LOCALE: &str = "en_US";

/// A SASL response, which holds the password. `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SaslResponse<'a>(pub &'a [u8]);

impl fmt::Debug for SaslResponse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// A method with its arguments, borrowed from the receive buffer or from the caller.
#[derive(Debug, Clone, PartialEq)]
#[rustfmt::skip]
pub enum Method<'a> {
    /// `server_properties` is an encoded table that is not decoded; `mechanisms` are separated by spaces.
    ConnectionStart { server_properties: &'a [u8], mechanisms: Cow<'a, str> },
    /// `client_properties` is an encoded table, without its size.
    ConnectionStartOk { client_properties: &'a [u8], mechanism: Cow<'a, str>, response: SaslResponse<'a> },
    /// 0 means no limit, and no heartbeats. `frame_max` in bytes, `heartbeat` in seconds.
    ConnectionTune { channel_max: u16, frame_max: u32, heartbeat: u16 },
    ConnectionTuneOk { channel_max: u16, frame_max: u32, heartbeat: u16 },
    ConnectionOpen { virtual_host: Cow<'a, str> },
    ConnectionOpenOk,
    /// Sent by either side.
    ConnectionClose { code: u16, text: Cow<'a, str> },
    ConnectionCloseOk,
    /// The broker reads nothing more from this connection.
    ConnectionBlocked { reason: Cow<'a, str> },
    ConnectionUnblocked,
    ChannelOpen,
    ChannelOpenOk,
    ChannelClose { code: u16, text: Cow<'a, str> },
    ChannelCloseOk,
    /// `passive`: creates nothing, and only checks that the queue exists.
    QueueDeclare { queue: Cow<'a, str>, passive: bool },
    /// `message_count`: messages that are ready to be delivered.
    QueueDeclareOk { message_count: u32, consumer_count: u32 },
    /// Applies to each consumer that is started on the channel afterwards.
    BasicQos { prefetch_count: u16 },
    BasicQosOk,
    /// With acknowledgements, not exclusive.
    BasicConsume { queue: Cow<'a, str>, consumer_tag: Cow<'a, str> },
    BasicConsumeOk,
    /// Sent by either side: by the broker when the consumer's queue is gone.
    BasicCancel { consumer_tag: Cow<'a, str> },
    BasicCancelOk,
    BasicPublish { exchange: Cow<'a, str>, routing_key: Cow<'a, str>, mandatory: bool },
    BasicReturn { code: u16, text: Cow<'a, str>, exchange: Cow<'a, str>, routing_key: Cow<'a, str> },
    BasicDeliver { delivery_tag: u64, redelivered: bool, exchange: Cow<'a, str>, routing_key: Cow<'a, str> },
    /// Settles a delivery, or confirms a publication. `multiple`: also all before it.
    BasicAck { delivery_tag: u64, multiple: bool },
    BasicNack { delivery_tag: u64, multiple: bool, requeue: bool },
    ConfirmSelect,
    ConfirmSelectOk,
}

impl<'a> Method<'a> {
    pub fn id(&self) -> MethodId {
        match self {
            Method::ConnectionStart { .. } => MethodId::CONNECTION_START,
            Method::ConnectionStartOk { .. } => MethodId::CONNECTION_START_OK,
            Method::ConnectionTune { .. } => MethodId::CONNECTION_TUNE,
            Method::ConnectionTuneOk { .. } => MethodId::CONNECTION_TUNE_OK,
            Method::ConnectionOpen { .. } => MethodId::CONNECTION_OPEN,
            Method::ConnectionOpenOk => MethodId::CONNECTION_OPEN_OK,
            Method::ConnectionClose { .. } => MethodId::CONNECTION_CLOSE,
            Method::ConnectionCloseOk => MethodId::CONNECTION_CLOSE_OK,
            Method::ConnectionBlocked { .. } => MethodId::CONNECTION_BLOCKED,
            Method::ConnectionUnblocked => MethodId::CONNECTION_UNBLOCKED,
            Method::ChannelOpen => MethodId::CHANNEL_OPEN,
            Method::ChannelOpenOk => MethodId::CHANNEL_OPEN_OK,
            Method::ChannelClose { .. } => MethodId::CHANNEL_CLOSE,
            Method::ChannelCloseOk => MethodId::CHANNEL_CLOSE_OK,
            Method::QueueDeclare { .. } => MethodId::QUEUE_DECLARE,
            Method::QueueDeclareOk { .. } => MethodId::QUEUE_DECLARE_OK,
            Method::BasicQos { .. } => MethodId::BASIC_QOS,
            Method::BasicQosOk => MethodId::BASIC_QOS_OK,
            Method::BasicConsume { .. } => MethodId::BASIC_CONSUME,
            Method::BasicConsumeOk => MethodId::BASIC_CONSUME_OK,
            Method::BasicCancel { .. } => MethodId::BASIC_CANCEL,
            Method::BasicCancelOk => MethodId::BASIC_CANCEL_OK,
            Method::BasicPublish { .. } => MethodId::BASIC_PUBLISH,
            Method::BasicReturn { .. } => MethodId::BASIC_RETURN,
            Method::BasicDeliver { .. } => MethodId::BASIC_DELIVER,
            Method::BasicAck { .. } => MethodId::BASIC_ACK,
            Method::BasicNack { .. } => MethodId::BASIC_NACK,
            Method::ConfirmSelect => MethodId::CONFIRM_SELECT,
            Method::ConfirmSelectOk => MethodId::CONFIRM_SELECT_OK,
        }
    }

    /// The method in this frame; `None` if the frame carries none.
    ///
    /// # Errors
    /// If the method is unknown to orderd or truncated.
    pub fn parse(frame: &Frame<'a>) -> Result<Option<Self>, ProtocolError> {
        if frame.kind != FrameType::Method {
            return Ok(None);
        }
        let bytes = &mut { frame.payload };
        let id = MethodId::get(bytes)?;
        Self::get_arguments(id, bytes).map(Some)
    }

    /// Arguments that follow the last one of interest are not read.
    fn get_arguments(id: MethodId, bytes: &mut &'a [u8]) -> Result<Self, ProtocolError> {
        Ok(match id {
            MethodId::CONNECTION_START => {
                let _version = bytes.try_get_u16()?;
                let server_properties = get_long_string(bytes)?;
                Method::ConnectionStart {
                    server_properties,
                    mechanisms: String::from_utf8_lossy(get_long_string(bytes)?),
                }
            }
            MethodId::CONNECTION_START_OK => Method::ConnectionStartOk {
                client_properties: get_long_string(bytes)?,
                mechanism: get_text(bytes)?,
                response: SaslResponse(get_long_string(bytes)?),
            },
            MethodId::CONNECTION_TUNE => {
                let (channel_max, frame_max, heartbeat) = get_limits(bytes)?;
                Method::ConnectionTune { channel_max, frame_max, heartbeat }
            }
            MethodId::CONNECTION_TUNE_OK => {
                let (channel_max, frame_max, heartbeat) = get_limits(bytes)?;
                Method::ConnectionTuneOk { channel_max, frame_max, heartbeat }
            }
            MethodId::CONNECTION_OPEN => Method::ConnectionOpen { virtual_host: get_text(bytes)? },
            MethodId::CONNECTION_OPEN_OK => Method::ConnectionOpenOk,
            MethodId::CONNECTION_CLOSE => {
                let (code, text) = get_reason(bytes)?;
                Method::ConnectionClose { code, text }
            }
            MethodId::CONNECTION_CLOSE_OK => Method::ConnectionCloseOk,
            MethodId::CONNECTION_BLOCKED => Method::ConnectionBlocked { reason: get_text(bytes)? },
            MethodId::CONNECTION_UNBLOCKED => Method::ConnectionUnblocked,
            MethodId::CHANNEL_OPEN => Method::ChannelOpen,
            MethodId::CHANNEL_OPEN_OK => Method::ChannelOpenOk,
            MethodId::CHANNEL_CLOSE => {
                let (code, text) = get_reason(bytes)?;
                Method::ChannelClose { code, text }
            }
            MethodId::CHANNEL_CLOSE_OK => Method::ChannelCloseOk,
            MethodId::QUEUE_DECLARE => {
                let _reserved = bytes.try_get_u16()?;
                Method::QueueDeclare { queue: get_text(bytes)?, passive: get_bits(bytes)?[0] }
            }
            MethodId::QUEUE_DECLARE_OK => {
                let _queue = get_short_string(bytes)?;
                Method::QueueDeclareOk { message_count: bytes.try_get_u32()?, consumer_count: bytes.try_get_u32()? }
            }
            MethodId::BASIC_QOS => {
                let _prefetch_size = bytes.try_get_u32()?;
                Method::BasicQos { prefetch_count: bytes.try_get_u16()? }
            }
            MethodId::BASIC_QOS_OK => Method::BasicQosOk,
            MethodId::BASIC_CONSUME => {
                let _reserved = bytes.try_get_u16()?;
                Method::BasicConsume { queue: get_text(bytes)?, consumer_tag: get_text(bytes)? }
            }
            MethodId::BASIC_CONSUME_OK => Method::BasicConsumeOk,
            MethodId::BASIC_CANCEL => Method::BasicCancel { consumer_tag: get_text(bytes)? },
            MethodId::BASIC_CANCEL_OK => Method::BasicCancelOk,
            MethodId::BASIC_PUBLISH => {
                let _reserved = bytes.try_get_u16()?;
                let (exchange, routing_key) = (get_text(bytes)?, get_text(bytes)?);
                Method::BasicPublish { exchange, routing_key, mandatory: get_bits(bytes)?[0] }
            }
            MethodId::BASIC_RETURN => {
                let (code, text) = (bytes.try_get_u16()?, get_text(bytes)?);
                Method::BasicReturn { code, text, exchange: get_text(bytes)?, routing_key: get_text(bytes)? }
            }
            MethodId::BASIC_DELIVER => {
                let _consumer_tag = get_short_string(bytes)?;
                let (delivery_tag, redelivered) = (bytes.try_get_u64()?, get_bits(bytes)?[0]);
                let (exchange, routing_key) = (get_text(bytes)?, get_text(bytes)?);
                Method::BasicDeliver { delivery_tag, redelivered, exchange, routing_key }
            }
            MethodId::BASIC_ACK => {
                Method::BasicAck { delivery_tag: bytes.try_get_u64()?, multiple: get_bits(bytes)?[0] }
            }
            MethodId::BASIC_NACK => {
                let (delivery_tag, [multiple, requeue]) = (bytes.try_get_u64()?, get_bits(bytes)?);
                Method::BasicNack { delivery_tag, multiple, requeue }
            }
            MethodId::CONFIRM_SELECT => Method::ConfirmSelect,
            MethodId::CONFIRM_SELECT_OK => Method::ConfirmSelectOk,
            _ => return Err(ProtocolError("unknown method")),
        })
    }

    fn put_arguments(&self, out: &mut BytesMut) {
        match self {
            Method::ConnectionStart { server_properties, mechanisms } => {
                // The protocol's version, 0-9.
                out.put_slice(&[0, 9]);
                put_long_string(out, server_properties);
                put_long_string(out, mechanisms.as_bytes());
                put_long_string(out, LOCALE.as_bytes());
            }
            Method::ConnectionStartOk { client_properties, mechanism, response } => {
                put_long_string(out, client_properties);
                put_short_string(out, mechanism);
                put_long_string(out, response.0);
                put_short_string(out, LOCALE);
            }
            Method::ConnectionTune { channel_max, frame_max, heartbeat }
            | Method::ConnectionTuneOk { channel_max, frame_max, heartbeat } => {
                out.put_u16(*channel_max);
                out.put_u32(*frame_max);
                out.put_u16(*heartbeat);
            }
            Method::ConnectionOpen { virtual_host } => {
                put_short_string(out, virtual_host);
                put_short_string(out, UNUSED_TEXT);
                put_bits(out, []);
            }
            Method::ConnectionClose { code, text } | Method::ChannelClose { code, text } => {
                out.put_u16(*code);
                put_short_string(out, text);
                // The id of the method that caused the close: none.
                out.put_u16(UNUSED);
                out.put_u16(UNUSED);
            }
            Method::ConnectionBlocked { reason } => put_short_string(out, reason),
            Method::ChannelOpen | Method::ConnectionOpenOk => put_short_string(out, UNUSED_TEXT),
            Method::ChannelOpenOk => put_long_string(out, UNUSED_TEXT.as_bytes()),
            Method::QueueDeclare { queue, passive } => {
                out.put_u16(UNUSED);
                put_short_string(out, queue);
                put_bits(out, [*passive]);
                out.put_u32(EMPTY_TABLE);
            }
            Method::QueueDeclareOk { message_count, consumer_count } => {
                put_short_string(out, UNUSED_TEXT);
                out.put_u32(*message_count);
                out.put_u32(*consumer_count);
            }
            Method::BasicQos { prefetch_count } => {
                // No limit in bytes, which RabbitMQ does not support.
                out.put_u32(0);
                out.put_u16(*prefetch_count);
                put_bits(out, []);
            }
            Method::BasicConsume { queue, consumer_tag } => {
                out.put_u16(UNUSED);
                put_short_string(out, queue);
                put_short_string(out, consumer_tag);
                put_bits(out, []);
                out.put_u32(EMPTY_TABLE);
            }
            Method::BasicCancel { consumer_tag } => {
                put_short_string(out, consumer_tag);
                put_bits(out, []);
            }
            Method::BasicConsumeOk | Method::BasicCancelOk => put_short_string(out, UNUSED_TEXT),
            Method::BasicPublish { exchange, routing_key, mandatory } => {
                out.put_u16(UNUSED);
                put_short_string(out, exchange);
                put_short_string(out, routing_key);
                put_bits(out, [*mandatory]);
            }
            Method::BasicReturn { code, text, exchange, routing_key } => {
                out.put_u16(*code);
                put_short_string(out, text);
                put_short_string(out, exchange);
                put_short_string(out, routing_key);
            }
            Method::BasicDeliver { delivery_tag, redelivered, exchange, routing_key } => {
                put_short_string(out, UNUSED_TEXT);
                out.put_u64(*delivery_tag);
                put_bits(out, [*redelivered]);
                put_short_string(out, exchange);
                put_short_string(out, routing_key);
            }
            Method::BasicAck { delivery_tag, multiple } => {
                out.put_u64(*delivery_tag);
                put_bits(out, [*multiple]);
            }
            Method::BasicNack { delivery_tag, multiple, requeue } => {
                out.put_u64(*delivery_tag);
                put_bits(out, [*multiple, *requeue]);
            }
            Method::ConfirmSelect => put_bits(out, []),
            Method::ConnectionCloseOk
            | Method::ConnectionUnblocked
            | Method::ChannelCloseOk
            | Method::BasicQosOk
            | Method::ConfirmSelectOk => {}
        }
    }
}

/// Appends consecutive bit arguments, which share one octet from its lowest bit on; those left out are zero.
fn put_bits<const N: usize>(out: &mut BytesMut, bits: [bool; N]) {
    out.put_u8(bits.iter().rev().fold(0, |octet, bit| octet << 1 | u8::from(*bit)));
}

/// Takes an octet of bit arguments off the front and returns the first two.
fn get_bits(bytes: &mut &[u8]) -> Result<[bool; 2], ProtocolError> {
    let octet = bytes.try_get_u8()?;
    Ok([octet & 1 != 0, octet & 2 != 0])
}

fn get_limits(bytes: &mut &[u8]) -> Result<(u16, u32, u16), ProtocolError> {
    Ok((bytes.try_get_u16()?, bytes.try_get_u32()?, bytes.try_get_u16()?))
}

/// The reply code and text of a close.
fn get_reason<'a>(bytes: &mut &'a [u8]) -> Result<(u16, Cow<'a, str>), ProtocolError> {
    Ok((bytes.try_get_u16()?, String::from_utf8_lossy(get_short_string(bytes)?)))
}

/// Appends a method frame.
pub fn put_method(out: &mut BytesMut, channel: u16, method: &Method<'_>) {
    put_frame(out, FrameType::Method, channel, |out| {
        let id = method.id();
        out.put_u16(id.class);
        out.put_u16(id.method);
        method.put_arguments(out);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Method<'static>> {
        let (exchange, routing_key) = (Cow::Borrowed("orders"), Cow::Borrowed("order.normal.new"));
        let [mechanism, queue, consumer_tag] = ["PLAIN", "order_queue", "orderd-1"].map(Cow::Borrowed);
        let response = SaslResponse(b"\0guest\0guest");
        vec![
            Method::ConnectionStart { server_properties: b"\x01nV", mechanisms: "PLAIN EXTERNAL".into() },
            Method::ConnectionStartOk { client_properties: b"\x01nV", mechanism, response },
            Method::ConnectionTune { channel_max: 2047, frame_max: 131_072, heartbeat: 60 },
            Method::ConnectionTuneOk { channel_max: 2047, frame_max: 4096, heartbeat: 0 },
            Method::ConnectionOpen { virtual_host: "/".into() },
            Method::ConnectionOpenOk,
            Method::ConnectionClose { code: 320, text: "CONNECTION_FORCED".into() },
            Method::ConnectionCloseOk,
            Method::ConnectionBlocked { reason: "low on memory".into() },
            Method::ConnectionUnblocked,
            Method::ChannelOpen,
            Method::ChannelOpenOk,
            Method::ChannelClose { code: 404, text: "NOT_FOUND".into() },
            Method::ChannelCloseOk,
            Method::QueueDeclare { queue: queue.clone(), passive: true },
            Method::QueueDeclareOk { message_count: 7, consumer_count: 1 },
            Method::BasicQos { prefetch_count: 250 },
            Method::BasicQosOk,
            Method::BasicConsume { queue, consumer_tag: consumer_tag.clone() },
            Method::BasicConsumeOk,
            Method::BasicCancel { consumer_tag },
            Method::BasicCancelOk,
            Method::BasicPublish { exchange: exchange.clone(), routing_key: routing_key.clone(), mandatory: true },
            Method::BasicReturn {
                code: 312,
                text: "NO_ROUTE".into(),
                exchange: exchange.clone(),
                routing_key: routing_key.clone(),
            },
            Method::BasicDeliver { delivery_tag: u64::MAX, redelivered: true, exchange, routing_key },
            Method::BasicAck { delivery_tag: 3, multiple: true },
            Method::BasicNack { delivery_tag: 3, multiple: false, requeue: true },
            Method::ConfirmSelect,
            Method::ConfirmSelectOk,
        ]
    }

    #[test]
    fn every_method_is_read_as_it_was_written() {
        for method in all() {
            let mut out = BytesMut::new();
            put_method(&mut out, 1, &method);
            let frame = Frame::parse(&out, 4096).unwrap().unwrap();
            assert_eq!(frame.len(), out.len());
            assert_eq!(Method::parse(&frame), Ok(Some(method)));
        }
    }

    #[test]
    fn a_truncated_method_is_an_error_and_no_panic() {
        for method in all() {
            let mut out = BytesMut::new();
            put_method(&mut out, 1, &method);
            let whole = Frame::parse(&out, 4096).unwrap().unwrap();
            for cut in 0..whole.payload.len() {
                let frame = Frame { payload: &whole.payload[..cut], ..whole };
                // What follows the last argument of interest may be missing.
                let parsed = Method::parse(&frame);
                assert!(parsed.is_err() || parsed == Ok(Some(method.clone())), "{method:?} cut to {cut} bytes");
                assert!(parsed.is_err() || cut >= 4, "{method:?} cut to {cut} bytes");
            }
        }
    }

    #[test]
    fn methods_are_written_as_the_specification_lays_them_out() {
        let payload = |method: &Method<'_>| {
            let mut out = BytesMut::new();
            put_method(&mut out, 1, method);
            Frame::parse(&out, 4096).unwrap().unwrap().payload.to_vec()
        };
        let consume = Method::BasicConsume { queue: "q".into(), consumer_tag: "tag".into() };
        assert_eq!(payload(&consume), b"\0\x3c\0\x14\0\0\x01q\x03tag\0\0\0\0\0");
        let declare = Method::QueueDeclare { queue: "q".into(), passive: true };
        assert_eq!(payload(&declare), b"\0\x32\0\x0a\0\0\x01q\x01\0\0\0\0");
        let nack = Method::BasicNack { delivery_tag: 0, multiple: true, requeue: true };
        assert_eq!(payload(&nack), b"\0\x3c\0\x78\0\0\0\0\0\0\0\0\x03");
        let qos = Method::BasicQos { prefetch_count: 250 };
        assert_eq!(payload(&qos), b"\0\x3c\0\x0a\0\0\0\0\0\xfa\0");
    }

    #[test]
    fn an_unknown_method_is_an_error() {
        // basic.get-ok
        let frame = Frame { kind: FrameType::Method, channel: 1, payload: &[0, 60, 0, 71] };
        assert_eq!(Method::parse(&frame), Err(ProtocolError("unknown method")));
    }

    #[test]
    fn a_password_is_not_shown() {
        let shown = format!("{:?}", all()[1]);
        assert!(shown.contains("[redacted]") && !shown.contains("103, 117"), "{shown}");
    }
}
