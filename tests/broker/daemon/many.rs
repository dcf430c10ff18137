//! Several instances on the same queues: with one ledger and with one each, restarted and killed in turn under load.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rusqlite::Connection;

use crate::support::Node;
use crate::support::gate::Gate;
use crate::support::raw::properties::Properties;
use crate::support::shop::{Book, Orderd, Shop, order, until};

const INSTANCES: usize = 3;
/// Orders that wait at most while publishing goes on.
const BACKLOG: u64 = 600;
/// Every so many-th order is a priority order.
const URGENT: u64 = 10;

fn consumes(orderd: &Orderd, queue: &str) -> bool {
    orderd.lines("consuming").iter().any(|line| line["queue"] == queue)
}

/// Publishes orders for as long as something goes on, and tells how many; all are confirmed.
fn while_publishing(shop: &Shop<'_>, name: &str, go_on: impl FnOnce(&AtomicU64)) -> u64 {
    let (published, over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let book = shop.book();
            let before = book.processed();
            while !over.load(Ordering::SeqCst) {
                let first = published.load(Ordering::SeqCst);
                shop.raw().flood("orders", (first..first + 100).map(|n| placed(name, n)));
                published.store(first + 100, Ordering::SeqCst);
                until("the backlog is worked on", || {
                    over.load(Ordering::SeqCst) || book.processed() + BACKLOG > before + first
                });
            }
        });
        // Ends the publisher also when this panics.
        let _end = End(&over);
        go_on(&published);
    });
    published.into_inner()
}

struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn placed(name: &str, n: u64) -> (String, Vec<u8>) {
    let kind = if n.is_multiple_of(URGENT) { "priority" } else { "normal" };
    (format!("order.{kind}.created"), order(&format!("{name}-{n}")))
}

fn assert_each_counted_once(book: &Book, orders: u64) {
    book.await_settled(orders);
    assert_eq!(
        book.rows("SELECT sum(orders), sum(quantity) FROM sales WHERE granularity = 'day'"),
        [format!("{orders}|{}", 3 * orders)]
    );
    assert_eq!(
        book.rows("SELECT sum(accepted), sum(processed) FROM order_sums WHERE granularity = 'hour'"),
        [format!("{orders}|{orders}")]
    );
}

fn assert_queues_are_empty(shop: &Shop<'_>, more: &[&str]) {
    let queues = ["order_queue", "priority_order_queue", "notification_queue", "analytics_queue", "failed_order_queue"];
    for queue in queues.iter().chain(&["dead_letter_queue", "unrouted_queue"]).chain(more) {
        let mut raw = shop.raw();
        until(&format!("{queue} is empty"), || raw.depth(queue) == 0);
    }
}

/// Waits until an instance works on an order that is none of the priority ones.
fn takes_part(instance: &Orderd) {
    until("it takes part", || instance.lines("Processing Order").iter().any(|line| line["consumer"] == "order"));
}

/// Waits until so many more orders have been processed and some priority orders among them.
fn await_progress(book: &Book, orders: u64) {
    let urgent = || book.number("SELECT count(*) FROM orders WHERE consumer = 'priority' AND status = 'processed'");
    let (before, urgent_before) = (book.processed(), urgent());
    until("orders and priority orders are processed meanwhile", || {
        book.processed() >= before + orders && urgent() > urgent_before
    });
}

#[test]
fn a_rolling_restart_under_load_loses_nothing_doubles_nothing_and_uses_up_no_attempt() {
    let node = Node::shared();
    let shop = Shop::new(&node);
    let mut instances: Vec<Orderd> = (0..INSTANCES).map(|_| shop.open()).collect();
    let book = shop.book();
    let mut stopped = Vec::new();
    let orders = while_publishing(&shop, "ord", |_| {
        for instance in &mut instances {
            await_progress(&book, 100);
            takes_part(instance);
            assert_eq!(instance.stop(), 0);
            stopped.push(std::mem::replace(instance, shop.open()));
        }
        await_progress(&book, 100);
        instances.iter().for_each(takes_part);
    });
    assert_each_counted_once(&book, orders);
    assert_eq!(book.rows("SELECT * FROM attempts"), [""; 0]);
    for mut instance in instances {
        assert_eq!(instance.stop(), 0);
        stopped.push(instance);
    }
    for instance in &stopped {
        assert!(instance.counts("order", "completed") > 0, "an instance has done nothing");
        assert_eq!(instance.errors(), [""; 0]);
        for consumer in ["order", "priority", "notification", "analytics"] {
            assert_eq!(instance.counts(consumer, "duplicates"), 0, "{consumer}");
        }
    }
    assert_queues_are_empty(&shop, &["order_queue.retry.300ms"]);
    assert_lines_are_whole(&shop.ledger(), orders);
}

/// All instances write to the same files of events.
fn assert_lines_are_whole(ledger: &Path, orders: u64) {
    for name in ["analytics", "notifications"] {
        let files = std::fs::read_dir(ledger).unwrap().map(|entry| entry.unwrap().path());
        let theirs = files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(name));
        let text: String = theirs.map(|path| std::fs::read_to_string(path).unwrap()).collect();
        let ids = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].to_string());
        let ids: std::collections::BTreeSet<_> = ids.collect();
        assert_eq!((ids.len() as u64, text.lines().count() as u64), (orders, orders), "{name}");
    }
}

#[test]
fn instances_killed_in_turn_under_load_lose_nothing_and_count_nothing_twice_in_their_ledger() {
    let node = Node::shared();
    let shop = Shop::new(&node);
    let mut instances: Vec<Orderd> = (0..INSTANCES).map(|_| shop.open()).collect();
    let book = shop.book();
    let orders = while_publishing(&shop, "ord", |_| {
        for instance in &mut instances {
            await_progress(&book, 100);
            instance.kill();
            await_progress(&book, 100);
            *instance = shop.open();
        }
    });
    assert_each_counted_once(&book, orders);
    assert_eq!(book.rows("SELECT * FROM attempts"), [""; 0], "a crash is no attempt");
    let path = format!("/queues/{}/order_queue", shop.vhost.name);
    until("the broker tells of orders handed out again: else none was in hand at any kill", || {
        node.management("GET", &path, "").1["message_stats"]["redeliver"].as_u64() > Some(0)
    });
    assert_queues_are_empty(&shop, &["order_queue.retry.300ms"]);
    for mut instance in instances {
        assert_eq!(instance.stop(), 0);
    }
}

#[test]
fn a_rolling_change_of_delays_leaves_no_retry_behind() {
    const NEW: &[(&str, &str)] = &[("consumers.order.retry.delays", "700ms")];
    let node = Node::shared();
    let shop =
        Shop::new(&node).set("consumers.order.faults.transient", "0.3").set("consumers.order.retry.immediate", "0");
    let (mut one, mut two) = (shop.open(), shop.open());
    let book = shop.book();
    let orders = while_publishing(&shop, "ord", |_| {
        await_progress(&book, 200);
        assert_eq!(one.stop(), 0);
        one = shop.open_with(NEW);
        // Either decides on whatever failed in the other.
        await_progress(&book, 300);
        assert_eq!(two.stop(), 0);
        two = shop.open_with(NEW);
        await_progress(&book, 200);
    });
    assert_each_counted_once(&book, orders);
    let retried = |delay: &str| book.number(&format!("SELECT count(*) FROM attempts WHERE delay = '{delay}'"));
    assert!(retried("300ms") > 0 && retried("700ms") > 0, "{} and {}", retried("300ms"), retried("700ms"));
    assert_eq!(book.rows("SELECT * FROM attempts WHERE retry_count > 0"), [""; 0], "each was retried once");
    assert_queues_are_empty(&shop, &["order_queue.retry.300ms", "order_queue.retry.700ms"]);
    assert_eq!((one.stop(), two.stop()), (0, 0));
}

/// One instance commits and dies before its ack reaches the broker; the other gets the order again.
fn an_ack_is_lost_with_its_instance(shop: &Shop<'_>, others_ledger: &Path) -> (Orderd, Book) {
    let gate = Gate::to(shop.vhost.node.amqp_port);
    let mut one = shop.open_with(&[("broker.addresses", &gate.address)]);
    until("it consumes", || consumes(&one, "order_queue"));
    gate.mute("orderd consume order_queue");
    shop.raw().send_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    shop.book().await_settled(1);
    let mut two = shop.open_with(&[("ledger.directory", others_ledger.to_str().unwrap())]);
    until("the other consumes too", || consumes(&two, "order_queue"));
    assert!(!two.says("Processing Order"), "the broker has the ack, or never gave the order out");
    one.kill();
    until("the other gets it", || two.says("Processing Order"));
    let book = Book::open(others_ledger);
    book.await_settled(1);
    assert_queues_are_empty(shop, &[]);
    assert_eq!(two.stop(), 0);
    (two, book)
}

#[test]
fn an_order_whose_ack_was_lost_is_recorded_once_in_a_shared_ledger() {
    let node = Node::shared();
    let shop = Shop::new(&node);
    let (two, book) = an_ack_is_lost_with_its_instance(&shop, &shop.ledger());
    assert_eq!(two.counts("order", "duplicates"), 1);
    assert_each_counted_once(&book, 1);
}

#[test]
fn an_order_whose_ack_was_lost_is_recorded_once_in_each_of_two_ledgers_and_twice_in_their_sum() {
    let node = Node::shared();
    let shop = Shop::new(&node);
    let (two, book) = an_ack_is_lost_with_its_instance(&shop, &shop.directory.path().join("other"));
    assert_eq!(two.counts("order", "duplicates"), 0);
    // Exactly once in each: the limit is what they do not know of each other.
    assert_each_counted_once(&shop.book(), 1);
    assert_each_counted_once(&book, 1);
    // Whoever joins them recognises the order and both events by their ids.
    for ids in ["SELECT id FROM orders", "SELECT kind, id FROM events ORDER BY kind"] {
        assert_eq!(shop.book().rows(ids), book.rows(ids));
    }
}

#[test]
fn instances_that_start_at_once_on_nothing_all_come_up() {
    let node = Node::shared();
    let shop = Shop::new(&node);
    let mut instances: Vec<Orderd> = (0..INSTANCES).map(|_| shop.run()).collect();
    for instance in &mut instances {
        until("it has started", || {
            assert_eq!(instance.ended(), None, "it ended instead");
            consumes(instance, "order_queue")
        });
    }
    shop.raw().flood("orders", (0..50).map(|n| placed("ord", n)));
    assert_each_counted_once(&shop.book(), 50);
    for mut instance in instances {
        assert_eq!(instance.stop(), 0);
        assert_eq!(instance.errors(), [""; 0]);
    }
}

#[test]
fn an_instance_waits_for_another_that_makes_their_ledger_new() {
    let node = Node::shared();
    let shop = Shop::new(&node);
    assert_eq!(shop.open().stop(), 0);
    let mut migration = Connection::open(shop.ledger().join("orderd.db")).unwrap();
    let migration = migration.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    let mut orderd = shop.run();
    until("it waits", || orderd.says("waiting for the ledger"));
    migration.commit().unwrap();
    until("it goes on", || consumes(&orderd, "order_queue"));
    assert_eq!(orderd.stop(), 0);
}

/// RabbitMQ before 4.3 counts what is given back at a restart toward the delivery limit.
#[test]
fn an_order_outlasts_twenty_restarts_that_give_it_back() {
    const TRIES: u32 = 50;
    let node = Node::shared();
    let shop = Shop::new(&node);
    assert_eq!(shop.open().stop(), 0);
    let mut raw = shop.raw();
    raw.send_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    let mut given_back = 0;
    while given_back < TRIES
        && let Some((tag, _)) = raw.hold("order_queue")
    {
        raw.give_back(tag);
        given_back += 1;
    }
    let counts = node.version() < (4, 3);
    assert_eq!(given_back, if counts { 21 } else { TRIES }, "on RabbitMQ {:?}", node.version());
    // Then it is dead-lettered by way of the failures, and not lost.
    let mut orderd = shop.open();
    let book = shop.book();
    if counts {
        until("it is a failure", || {
            book.number("SELECT count(*) FROM attempts WHERE failure_kind = 'delivery_limit'") == 1
        });
    }
    book.await_settled(1);
    assert_eq!(orderd.stop(), 0);
}

/// What is handed out to an instance that cannot record any more fails there at once, and would be dead-lettered in the end.
#[test]
fn an_instance_ends_before_it_parks_orders_once_a_later_version_has_made_the_ledger_new() {
    const INTERNAL: i32 = 70;
    let node = Node::shared();
    let shop = Shop::new(&node);
    let mut old = shop.open();
    shop.raw().flood("orders", [placed("ord", 0)]);
    shop.book().await_settled(1);
    let later = Connection::open(shop.ledger().join("orderd.db")).unwrap();
    later.pragma_update(None, "user_version", 3).unwrap();
    shop.raw().flood("orders", (1..50).map(|n| placed("ord", n)));
    assert_eq!(old.exit(), INTERNAL, "it is restarted, by now as the later version");
    let told = old.errors();
    assert!(told.len() == 1 && told[0].contains("a later orderd that shares the ledger"), "{told:#?}");
    let mut again = shop.run();
    assert_eq!(again.exit(), 78, "{}", again.output());

    // Stands for the later version, which this one cannot be.
    later.pragma_update(None, "user_version", 2).unwrap();
    let mut new = shop.open();
    assert_each_counted_once(&shop.book(), 50);
    assert_queues_are_empty(&shop, &["order_queue.retry.300ms"]);
    assert_eq!(new.stop(), 0);
}
