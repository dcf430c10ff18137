//! Stopping: nothing lost, nothing done twice, no attempt used up, and always an end.

use std::time::{Duration, Instant};

use crate::support::Node;
use crate::support::raw::properties::Properties;
use crate::support::shop::{Book, Shop, order, until};

const ORDERS: u64 = 2000;

fn assert_no_attempt_used_up(shop: &Shop<'_>, book: &Book) {
    assert_eq!(book.rows("SELECT * FROM attempts"), [""; 0]);
    for queue in ["failed_order_queue", "order_queue.retry.300ms", "dead_letter_queue"] {
        assert_eq!(shop.raw().depth(queue), 0, "{queue}");
    }
}

#[test]
fn a_drain_under_load_loses_nothing_and_does_nothing_twice() {
    let node = Node::shared();
    let shop = Shop::new(&node);
    let mut orderd = shop.open();
    // Held until all are published, so that they cannot be done before.
    orderd.signal("STOP");
    let ids = (0..ORDERS).map(|n| ("order.normal.created".to_owned(), order(&format!("ord-{n}"))));
    shop.raw().flood("orders", ids);
    orderd.signal("CONT");
    let book = shop.book();
    until("some are processed", || book.processed() >= 50);
    let begun = Instant::now();
    assert_eq!(orderd.stop(), 0);
    assert!(begun.elapsed() < Duration::from_secs(30), "longer than drain_timeout");

    let (processed, left) = (book.processed(), u64::from(shop.raw().depth("order_queue")));
    assert!(processed < ORDERS, "all were done before the signal came: no test of draining");
    assert_eq!(processed + left, ORDERS);
    assert_eq!(book.number("SELECT count(*) FROM orders"), processed, "none is half done");
    let told = u64::from(shop.raw().depth("notification_queue")) + orderd.counts("notification", "completed");
    assert_eq!(told, processed);
    assert_no_attempt_used_up(&shop, &book);

    let mut again = shop.open();
    book.await_settled(ORDERS);
    assert_eq!(again.stop(), 0);
    for run in [&orderd, &again] {
        for consumer in ["order", "notification", "analytics"] {
            assert_eq!(run.counts(consumer, "duplicates"), 0, "{consumer}");
        }
    }
    assert_no_attempt_used_up(&shop, &book);
}

#[test]
fn handlers_that_hang_hold_up_neither_a_second_signal_nor_the_end_of_the_drain() {
    let node = Node::shared();
    let shop = Shop::new(&node).set("consumers.order.faults.hang", "1.0").set("consumers.order.timeout", "10min");
    let mut orderd = shop.open();
    let mut raw = shop.raw();
    for n in 0..20 {
        raw.send_to("orders", "order.normal.created", &Properties::persistent(), &order(&format!("ord-{n}")));
    }
    until("they hang", || orderd.lines("Processing Order").len() == 20);
    orderd.signal("TERM");
    until("it drains", || orderd.says("draining; a second signal aborts"));
    let begun = Instant::now();
    orderd.signal("INT");
    assert_eq!(orderd.exit(), 0);
    assert!(begun.elapsed() < Duration::from_secs(15), "drain_timeout is 30 s");
    assert_eq!(raw.depth("order_queue"), 20);

    let shop = shop.set("shutdown.drain_timeout", "1s");
    let mut orderd = shop.open();
    until("they hang again", || orderd.lines("Processing Order").len() == 20);
    assert_eq!(orderd.stop(), 0);
    assert!(orderd.says("the drain took too long; aborting"));
    assert_eq!(raw.depth("order_queue"), 20);
    let book = shop.book();
    assert_eq!(book.number("SELECT count(*) FROM orders"), 0);
    assert_no_attempt_used_up(&shop, &book);
}
