//! Messages that no producer should send: with headers that are not UTF-8, or a body that is not an order.

use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::raw_client::{text, with_headers};
use crate::support::test_env::{TestEnv, order, wait_until};

#[test]
fn headers_that_are_not_utf8_close_no_connection_and_stay_with_their_message() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut orderd = env.start();
    let mut raw = env.raw();
    let odd = with_headers(&[text("note", b"\xff\xfe")]);
    let mut innocent = |n: u64| {
        env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order(&format!("ord-{n}")));
    };
    (0..10).for_each(&mut innocent);
    raw.publish("order_queue", &odd, b"poison");
    raw.publish("order_queue", &odd, &order("odd"));
    (10..20).for_each(&mut innocent);
    wait_until("the poison is dead-lettered", || raw.depth("dead_letter_queue") == 1);
    let ledger = env.ledger();
    ledger.await_settled(21);
    assert_eq!(ledger.number("SELECT count(*) FROM orders WHERE id = 'odd' AND status = 'processed'"), 1);
    let dead_lettered = raw.get("dead_letter_queue").unwrap();
    assert_eq!(dead_lettered.body, b"poison");
    assert!(dead_lettered.has(b"\x04notex\0\0\0\x02\xff\xfe"), "its header is kept, as bytes");
    assert_eq!(orderd.log_lines("lost the subscription"), Vec::<serde_json::Value>::new());
    assert_eq!(orderd.stop(), 0);
}
