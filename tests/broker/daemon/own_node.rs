//! A broker that raises an alarm, and a broker that is killed, while orders are in every state.

use std::fs;

use crate::support::Node;
use crate::support::test_env::{TestEnv, order, wait_until};

const ORDERS: u64 = 1000;

fn flood(env: &TestEnv<'_>, name: &str, orders: u64) {
    let orders = (0..orders).map(|n| ("order.normal.created".to_owned(), order(&format!("{name}-{n}"))));
    env.raw().publish_all("orders", orders);
}

/// One node for all three: starting a node takes longer than each of them.
#[test]
fn an_alarm_and_a_killed_broker_delay_orders_and_lose_none() {
    let node = Node::own("daemon");
    an_alarm_stops_publishing_and_neither_consuming_nor_acks(&node);
    a_killed_broker_loses_no_order_in_flight_or_waiting_for_its_retry(&node);
    an_unreachable_broker_rejects_only_reloads_that_need_it(&node);
}

fn an_alarm_stops_publishing_and_neither_consuming_nor_acks(node: &Node) {
    let env = TestEnv::new(node).set("broker.confirm_timeout", "2s");
    let mut orderd = env.start();
    let ledger = env.ledger();
    flood(&env, "old", 20);
    ledger.await_settled(20);

    // The daemon is stopped until the orders are published and the alarm is on, because a test cannot publish under it.
    orderd.signal("STOP");
    flood(&env, "old", 20);
    flood(&env, "new", 20);
    node.set_alarm();
    orderd.signal("CONT");
    wait_until("new orders are consumed", || ledger.number("SELECT count(*) FROM orders") == 40);
    // Repeated orders have nothing to publish, so that only their acks have to get through.
    wait_until("repeated orders are acked", || messages(node, &env, "order_queue") == 20);
    wait_until("the publisher has reconnected", || !orderd.log_lines("publishing connection lost").is_empty());
    assert!(ledger.processed() < 40, "the alarm has not stopped publishing");
    // An instance that starts under the alarm does not wait for answers that the broker does not send.
    let mut other = env.start();
    // The commands name the alarm, too. The order is a repeated one.
    let file = env.directory.path().join("orders.ndjson");
    fs::write(&file, order("old-1")).unwrap();
    let mut publish = env.command(&["publish", file.to_str().unwrap()]);
    wait_until("publish says what it waits for", || {
        publish.output().contains("has blocked publishing: it has an alarm")
    });
    publish.signal("TERM");
    wait_until("publish says what is awaited", || publish.output().contains("waiting for the broker to confirm 1"));
    let mut check = env.command(&["check", "--connect"]);
    assert_eq!(check.wait_for_exit(), 69, "{}", check.output());
    assert!(check.output().contains("it has an alarm") && !check.output().contains("lost"), "{}", check.output());

    node.clear_alarm();
    ledger.await_settled(40);
    assert_eq!(publish.wait_for_exit(), 0, "all was read before TERM: {}", publish.output());
    assert!(publish.stdout().starts_with("published 1,"), "{}", publish.output());
    assert_eq!(other.stop(), 0);
    wait_until("all is acked", || messages(node, &env, "order_queue") == 0);
    assert_eq!(ledger.rows("SELECT * FROM attempts"), [""; 0], "an alarm costs no attempt");
    assert_eq!(orderd.stop(), 0);
}

/// Messages in a queue, delivered ones included.
fn messages(node: &Node, env: &TestEnv<'_>, queue: &str) -> u64 {
    let listed = node.ctl(&["list_queues", "--quiet", "--vhost", &env.vhost.name, "name", "messages"]);
    let line = listed.lines().find_map(|line| line.strip_prefix(queue)?.strip_prefix('\t'));
    line.unwrap_or_else(|| panic!("no {queue:?}: {listed}")).trim().parse().unwrap()
}

fn a_killed_broker_loses_no_order_in_flight_or_waiting_for_its_retry(node: &Node) {
    let env =
        TestEnv::new(node).set("consumers.order.retry.delays", "2s").set("consumers.order.faults.transient", "0.3");
    let mut orderd = env.start();
    let (mut raw, ledger) = (env.raw(), env.ledger());
    flood(&env, "ord", ORDERS);
    wait_until("some are processed and some wait for their retry", || {
        ledger.processed() >= 50 && raw.depth("order_queue.retry.2s") >= 5
    });
    let before = ledger.processed();
    // The restart takes longer than the delay, so the retries become due while the broker is down.
    node.kill();
    assert!(before < ORDERS, "all were processed before the broker was killed");
    node.restart();
    ledger.await_settled(ORDERS);
    let retried = ledger.number("SELECT count(*) FROM attempts WHERE delay = '2s'");
    assert!((200..400).contains(&retried), "{retried} of {ORDERS} were to be retried");
    for queue in ["order_queue", "failed_order_queue", "order_queue.retry.2s", "dead_letter_queue"] {
        wait_until(&format!("{queue} is empty"), || messages(node, &env, queue) == 0);
    }
    assert_eq!(
        ledger.rows("SELECT sum(orders), sum(quantity) FROM sales WHERE granularity = 'day'"),
        [format!("{ORDERS}|{}", 3 * ORDERS)]
    );
    assert_eq!(orderd.stop(), 0);
}

fn an_unreachable_broker_rejects_only_reloads_that_need_it(node: &Node) {
    let (env, mut file) = TestEnv::new(node).set("reload.watch", "true").with_file();
    let mut orderd = env.start();
    node.kill();
    wait_until("it has noticed", || orderd.status()["consumers"]["order"]["subscribed"] == false);
    file.set("consumers.order.workers", "2").save();
    // What the change needs is active; whether the broker has the whole topology is unknown.
    let report = orderd.reload();
    assert_eq!((&report["outcome"], &report["generation"]), (&"partly_applied".into(), &2.into()), "{report}");
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(1), "{report}");
    file.set("consumers.order.workers", "3").set("consumers.order.retry.delays", "700ms").save();
    let report = orderd.reload();
    assert_eq!((&report["outcome"], &report["generation"]), (&"rejected".into(), &2.into()), "{report}");
    assert_eq!(report["temporary"], true, "{report}");
    let address = orderd.admin_address().to_string();
    let mut command = env.command(&["reload", "--address", &address]);
    assert_eq!(command.wait_for_exit(), 69);
    assert!(command.output().contains("the reason is temporary"), "{}", command.output());
    let last_reload = || orderd.status()["daemon"]["last_reload"].clone();
    wait_until("the file watcher has tried it too", || last_reload()["by"] == "file");
    assert_eq!(orderd.status()["consumers"]["order"]["workers_configured"], 2);
    node.restart();
    wait_until("the file is applied without a request once the broker is back", || {
        // Wakes the watcher, which otherwise looks once a minute.
        fs::write(env.directory.path().join("beside"), "").unwrap();
        last_reload()["report"]["generation"] == 3
    });
    assert_eq!(last_reload()["by"], "file");
    flood(&env, "ord", 10);
    env.ledger().await_settled(10);
    wait_until("the former pool has finished", || orderd.status()["consumers"]["order"]["workers_running"] == 3);
    assert_eq!(orderd.stop(), 0);
}
