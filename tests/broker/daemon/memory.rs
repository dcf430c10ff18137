//! Memory: what others send is bounded in bytes, not in numbers.

use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{TestEnv, order, wait_until};

/// Far above what orderd needs, and far below the sum of the bodies.
const MAX_MIB: u64 = 200;

/// An object without fields that expands to this many bytes.
fn gzip_of_spaces(bytes: u64) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let spaces = std::io::Read::take(std::io::repeat(b' '), bytes - 2);
    let mut object = std::io::Read::chain(std::io::Read::chain(&b"{"[..], spaces), &b"}"[..]);
    std::io::copy(&mut object, &mut encoder).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn neither_long_names_nor_huge_or_compressed_bodies_take_more_memory_than_configured() {
    let node = Node::shared();
    // RabbitMQ 4 takes no message above 16 MiB.
    let env = TestEnv::new(&node).set("log.level", "info").set("broker.max_body", "8388608");
    let mut orderd = env.start();
    let named = |id: usize| format!(r#"{{"id":{id},"product":"{}","quantity":1,"price":1}}"#, "x".repeat(1 << 20));
    env.raw().publish_all("orders", (0..250).map(|id| ("order.normal.new".to_owned(), named(id).into_bytes())));
    let large = format!(r#"{{"id":"large","product":"p","quantity":1,"price":1,"note":"{}"}}"#, "x".repeat(12 << 20));
    env.raw().publish_all("orders", [("order.normal.new".to_owned(), large.into_bytes())]);
    let compressed = Properties::persistent().text("content_encoding", "gzip");
    env.raw().publish_to("orders", "order.normal.new", &compressed, &gzip_of_spaces(200 << 20));
    // Together they expand to 290 MB, each to less than broker.max_body.
    let (mut raw, event) = (env.raw(), gzip_of_spaces(7 << 20));
    (0..40).for_each(|_| raw.publish_to("orders", "order.analytics.view", &compressed, &event));
    env.raw().publish_to("orders", "order.normal.new", &Properties::persistent(), &order("last"));

    let ledger = env.ledger();
    let dead = |code: &str| ledger.number(&format!("SELECT count(*) FROM dead_letters WHERE failure_code = '{code}'"));
    let expected = [("invalid_product", 250), ("body_too_large", 1), ("decompressed_too_large", 1)];
    wait_until("all are dead-lettered with their codes", || expected.iter().all(|(code, count)| dead(code) == *count));
    wait_until("the last order is processed", || ledger.processed() == 1);
    wait_until("all events are recorded", || ledger.number("SELECT count(*) FROM events WHERE name = 'view'") == 40);
    let peak = orderd.peak_memory_mib();
    assert!(peak < MAX_MIB, "{peak} MiB");
    assert_eq!(orderd.stop(), 0);
}
