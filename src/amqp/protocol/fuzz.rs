//! The entry point to the decoder for the fuzz target in `tests/fuzz` and for the test that decodes its seed inputs.
//!
//! Pure. Not part of orderd's public interface.

use bytes::BytesMut;

use super::assembler::{ContentAssembler, ServerEvent};
use super::content_header::{get_content_header, put_content_header};
use super::encoding::ProtocolError;
use super::frame::Frame;
use super::limits::check_size;
use crate::message::{Message, Publication};

/// The largest frame that is decoded, in bytes.
const MAX_FRAME: usize = 64 * 1024;

/// Decodes what a broker sent, as a connection does, and returns the `Debug` form of each event in it. Stops at the first
/// incomplete frame.
///
/// # Errors
/// If something in it is not AMQP.
///
/// # Panics
/// If a message that was decoded and fits AMQP's limits is encoded, decoded and encoded again to something else.
#[doc(hidden)]
pub fn decode_stream(mut bytes: &[u8]) -> Result<Vec<String>, String> {
    let (mut assembler, mut events) = (ContentAssembler::new(MAX_FRAME), Vec::new());
    let text = |error: ProtocolError| error.to_string();
    while let Some(frame) = Frame::parse(bytes, MAX_FRAME).map_err(text)? {
        if let Some(event) = assembler.accept(&frame).map_err(text)? {
            events.push(format!("{event:?}"));
            match event {
                ServerEvent::Delivered(delivered) => assert_survives_encoding(delivered.message),
                ServerEvent::Returned(returned) => assert_survives_encoding(returned.message),
                ServerEvent::Confirmed { .. }
                | ServerEvent::Reply(_)
                | ServerEvent::Ended(_)
                | ServerEvent::Blocked(_)
                | ServerEvent::Unblocked
                | ServerEvent::ConnectionCloseOk => {}
            }
        }
        bytes = &bytes[frame.len()..];
    }
    Ok(events)
}

fn assert_survives_encoding(message: Message) {
    let publication = Publication { exchange: "".into(), routing_key: String::new(), message };
    // Invalid UTF-8 in names is escaped, which may take more room than there is.
    if check_size(&publication).is_err() {
        return;
    }
    let encode = |message: &Message| {
        let mut out = BytesMut::new();
        put_content_header(&mut out, 1, message, message.properties.user_id.as_deref());
        out
    };
    let message = publication.message;
    let encoded = encode(&message);
    let frame = Frame::parse(&encoded, encoded.len()).expect("orderd writes valid frames").expect("a complete frame");
    let decoded = get_content_header(frame.payload).expect("orderd writes valid content headers");
    let again =
        Message { properties: decoded.properties, headers: decoded.headers, body: message.body, missing_bytes: 0 };
    assert_eq!(encode(&again), encoded, "encoding and decoding changed the message");
}
