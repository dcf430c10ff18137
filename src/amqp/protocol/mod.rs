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
pub use encoding::MAX_SHORT_STRING;
pub use fuzz::decode_stream;
pub use handshake::{Connection, Credentials, HandshakeError, connect, server_name};
pub use limits::check_size;
pub use method::Method;

#[cfg(test)]
pub use {
    content_header::put_content_header,
    frame::{Frame, FrameType, put_frame},
    method::put_method,
    method_id::MethodId,
};
