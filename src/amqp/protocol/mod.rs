//! AMQP 0-9-1 as far as orderd uses it: frames, typed methods, message contents, the handshake, and a connection's one channel.
//!
//! Owns every byte that consuming and publishing send and receive. Never decides what is consumed or published, and never
//! panics on what the network sends.

mod assembler;
mod channel;
mod content_header;
mod encoding;
mod field_table;
mod frame;
mod fuzz;
mod handshake;
mod limits;
mod method;
mod method_id;

pub use assembler::{Confirm, Delivered, Returned, ServerEvent};
pub use channel::{Channel, ReceiveLimits, broken, reject_unexpected};
pub use encoding::{MAX_SHORT_STRING, ProtocolError};
pub use frame::{Frame, FrameType};
pub use fuzz::decode_stream;
pub use handshake::{Connection, Credentials, HandshakeError, LastSent, PROTOCOL_HEADER, connect};
pub use limits::check_size;
pub use method::{Method, SaslResponse, put_method};
pub use method_id::MethodId;

#[cfg(test)]
pub use {content_header::put_content_header, frame::put_frame};
