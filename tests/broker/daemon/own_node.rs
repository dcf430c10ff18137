//! A broker that raises an alarm, and one that is killed, while orders are on every part of their way.

use std::fs;

use crate::support::Node;
use crate::support::shop::{Shop, order, until};

const ORDERS: u64 = 1000;

fn flood(shop: &Shop<'_>, name: &str, orders: u64) {
    let orders = (0..orders).map(|n| ("order.normal.created".to_owned(), order(&format!("{name}-{n}"))));
    shop.raw().flood("orders", orders);
}

/// One node for both: starting one takes longer than either.
#[test]
fn an_alarm_and_a_killed_broker_delay_orders_and_lose_none() {
    let node = Node::own("daemon");
    an_alarm_stops_publishing_and_neither_consuming_nor_acks(&node);
    a_killed_broker_loses_no_order_in_flight_or_waiting_for_its_retry(&node);
    a_broker_that_is_away_rejects_only_reloads_that_need_it(&node);
}

fn an_alarm_stops_publishing_and_neither_consuming_nor_acks(node: &Node) {
    let shop = Shop::new(node).set("broker.confirm_timeout", "2s");
    let mut orderd = shop.open();
    let book = shop.book();
    flood(&shop, "old", 20);
    book.await_settled(20);

    // The daemon waits until all is published and the alarm is on, for a test could not publish then.
    orderd.signal("STOP");
    flood(&shop, "old", 20);
    flood(&shop, "new", 20);
    node.set_alarm();
    orderd.signal("CONT");
    until("new orders are consumed", || book.number("SELECT count(*) FROM orders") == 40);
    // Repeated orders have nothing to publish, so that only their acks have to get through.
    until("repeated orders are acked", || held(node, &shop, "order_queue") == 20);
    until("publishing is given up and begun again", || !orderd.lines("publishing connection lost").is_empty());
    assert!(book.processed() < 40, "the alarm has stopped nothing");
    // One that starts meanwhile does not wait in vain for an answer to each of its questions.
    let mut other = shop.open();

    node.clear_alarm();
    book.await_settled(40);
    assert_eq!(other.stop(), 0);
    until("all is acked", || held(node, &shop, "order_queue") == 0);
    assert_eq!(book.rows("SELECT * FROM attempts"), [""; 0], "an alarm costs no attempt");
    assert_eq!(orderd.stop(), 0);
}

/// Messages in a queue, delivered ones included.
fn held(node: &Node, shop: &Shop<'_>, queue: &str) -> u64 {
    let listed = node.ctl(&["list_queues", "--quiet", "--vhost", &shop.vhost.name, "name", "messages"]);
    let line = listed.lines().find_map(|line| line.strip_prefix(queue)?.strip_prefix('\t'));
    line.unwrap_or_else(|| panic!("no {queue:?}: {listed}")).trim().parse().unwrap()
}

fn a_killed_broker_loses_no_order_in_flight_or_waiting_for_its_retry(node: &Node) {
    let shop = Shop::new(node).set("consumers.order.retry.delays", "2s").set("consumers.order.faults.transient", "0.3");
    let mut orderd = shop.open();
    let (mut raw, book) = (shop.raw(), shop.book());
    flood(&shop, "ord", ORDERS);
    until("some are processed and some wait for their retry", || {
        book.processed() >= 50 && raw.depth("order_queue.retry.2s") >= 5
    });
    let before = book.processed();
    // It takes longer to come back than the delay, so that the retries fall due while it is away.
    node.kill();
    assert!(before < ORDERS, "all were done before the broker was killed");
    node.restart();
    book.await_settled(ORDERS);
    let retried = book.number("SELECT count(*) FROM attempts WHERE delay = '2s'");
    assert!((200..400).contains(&retried), "{retried} of {ORDERS} were to be retried");
    for queue in ["order_queue", "failed_order_queue", "order_queue.retry.2s", "dead_letter_queue"] {
        until(&format!("{queue} is empty"), || held(node, &shop, queue) == 0);
    }
    assert_eq!(
        book.rows("SELECT sum(orders), sum(quantity) FROM sales WHERE granularity = 'day'"),
        [format!("{ORDERS}|{}", 3 * ORDERS)]
    );
    assert_eq!(orderd.stop(), 0);
}

fn a_broker_that_is_away_rejects_only_reloads_that_need_it(node: &Node) {
    let (shop, mut file) = Shop::new(node).set("reload.watch", "true").with_file();
    let mut orderd = shop.open();
    node.kill();
    until("it has noticed", || orderd.status()["consumers"]["order"]["subscribed"] == false);
    file.set("consumers.order.workers", "2").save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    file.set("consumers.order.workers", "3").set("consumers.order.retry.delays", "700ms").save();
    let verdict = orderd.reload();
    assert_eq!((&verdict["outcome"], &verdict["generation"]), (&"rejected".into(), &2.into()), "{verdict}");
    assert_eq!(verdict["temporary"], true, "{verdict}");
    let address = orderd.admin().to_string();
    let mut command = shop.command(&["reload", "--address", &address]);
    assert_eq!(command.exit(), 69);
    assert!(command.output().contains("that passes by itself"), "{}", command.output());
    let last_reload = || orderd.status()["daemon"]["last_reload"].clone();
    until("who follows the file has tried it too", || last_reload()["by"] == "file");
    assert_eq!(orderd.status()["consumers"]["order"]["workers_wanted"], 2);
    node.restart();
    until("the file is put in force by itself once the broker is back", || {
        // Otherwise it is looked at once a minute.
        fs::write(shop.directory.path().join("beside"), "").unwrap();
        last_reload()["report"]["generation"] == 3
    });
    assert_eq!(last_reload()["by"], "file");
    flood(&shop, "ord", 10);
    shop.book().await_settled(10);
    until("the former pool has finished", || orderd.status()["consumers"]["order"]["workers_up"] == 3);
    assert_eq!(orderd.stop(), 0);
}
