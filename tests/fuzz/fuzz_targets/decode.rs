//! Feeds arbitrary bytes to the AMQP decoder, as if a broker had sent them. It must never panic, and encoding and decoding
//! must not change a message.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = orderd::amqp::decode_stream(bytes);
});
