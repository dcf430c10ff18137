//! Decodes the seeds of the fuzz target: recordings of RabbitMQ 3.10, and every input that has found a defect.

use std::fs;
use std::path::Path;

/// Each file in `tests/fuzz/seeds/decode`, with the kinds of the decoded events or the error.
const SEEDS: &[(&str, Result<&str, &str>)] = &[
    ("cancel_by_the_broker", Ok("Ended")),
    ("cancel_ok", Ok("Confirmed Reply")),
    ("channel_close", Ok("Ended")),
    (
        "confirms_between_deliveries",
        Ok("Delivered Confirmed Delivered Delivered Delivered Delivered Delivered Confirmed Confirmed Confirmed"),
    ),
    ("connection_close", Ok("Ended")),
    ("connection_close_ok", Ok("ConnectionCloseOk")),
    ("delivery_after_dead_lettering", Ok("Confirmed Confirmed Delivered")),
    ("delivery_in_several_frames", Ok("Confirmed Delivered")),
    ("delivery_with_all_properties", Ok("Confirmed Delivered")),
    ("delivery_with_nested_headers", Ok("Delivered")),
    ("delivery_without_body", Ok("Delivered")),
    // Decodable, but these methods are expected only during the handshake.
    ("handshake", Err("not valid AMQP 0-9-1: unexpected method")),
    ("replies", Ok("Reply Reply Reply Reply Reply Reply Reply")),
    ("return_and_confirm", Ok("Returned Confirmed")),
];

#[test]
fn the_seeds_of_the_fuzz_target_are_decoded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/decode");
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, SEEDS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    for (name, expected) in SEEDS {
        let decoded = orderd::amqp::decode_stream(&fs::read(folder.join(name)).unwrap());
        let kinds = decoded.map(|events| events.iter().map(|event| kind(event)).collect::<Vec<_>>().join(" "));
        assert_eq!(kinds, expected.map(str::to_owned).map_err(str::to_owned), "{name}");
    }
}

/// The variant name in the `Debug` output of an event.
fn kind(event: &str) -> &str {
    event.split([' ', '(']).next().unwrap_or_default()
}
