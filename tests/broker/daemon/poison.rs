//! A message that kills every connection it is delivered on.

use crate::support::Node;
use crate::support::raw::properties::Properties;
use crate::support::raw::{text, with_headers};
use crate::support::shop::{Shop, order, until};

#[test]
fn poison_ends_in_the_dead_letter_queue_by_itself_and_harms_no_other_order() {
    let node = Node::shared();
    let shop = Shop::new(&node);
    let mut orderd = shop.open();
    let mut raw = shop.raw();
    let mut innocent = |n: u64| {
        shop.raw().send_to("orders", "order.normal.created", &Properties::persistent(), &order(&format!("ord-{n}")));
    };
    (0..10).for_each(&mut innocent);
    raw.publish("order_queue", &with_headers(&[text("note", b"\xff\xfe")]), b"poison");
    (10..20).for_each(&mut innocent);
    until("it strikes", || !orderd.lines("lost the subscription").is_empty());
    raw.send_to("orders", "order.priority.created", &Properties::persistent(), &order("urgent"));
    let book = shop.book();
    until("the priority order is processed", || {
        book.number("SELECT count(*) FROM orders WHERE id = 'urgent' AND status = 'processed'") == 1
    });
    assert_eq!(raw.depth("dead_letter_queue"), 0, "the poison was gone before the priority order was sent");
    until("the poison is out of the way", || raw.depth("dead_letter_queue") == 1);
    book.await_settled(21);
    assert_eq!(raw.get("dead_letter_queue").unwrap().body, b"poison");
    for queue in ["failed_order_queue", "dead_letter_queue"] {
        assert_eq!(raw.depth(queue), 0, "{queue}");
    }
    assert_eq!(orderd.stop(), 0);
}
