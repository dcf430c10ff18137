//! Several instances on the same queues: with one ledger and with one each, restarted and killed in turn under load.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use rusqlite::Connection;

use crate::soak::harness::amqp_proxy::AmqpProxy;
use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{LedgerReader, OrderdProcess, TestEnv, order, wait_until};

const INSTANCES: usize = 3;
/// The most orders that wait while publishing continues.
const BACKLOG: u64 = 600;
/// Every tenth order is a priority order.
const PRIORITY_EVERY: u64 = 10;

fn consumes(orderd: &OrderdProcess, queue: &str) -> bool {
    orderd.log_lines("consuming").iter().any(|line| line["queue"] == queue)
}

/// Publishes orders until `go_on` returns. Returns how many; all are confirmed.
fn while_publishing(env: &TestEnv<'_>, name: &str, go_on: impl FnOnce(&AtomicU64)) -> u64 {
    let (published, over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let ledger = env.ledger();
            let before = ledger.processed();
            while !over.load(Ordering::SeqCst) {
                let first = published.load(Ordering::SeqCst);
                env.raw().publish_all("orders", (first..first + 100).map(|n| placed(name, n)));
                published.store(first + 100, Ordering::SeqCst);
                wait_until("the backlog is being processed", || {
                    over.load(Ordering::SeqCst) || ledger.processed() + BACKLOG > before + first
                });
            }
        });
        // Stops the publisher, even when `go_on` panics.
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
    let kind = if n.is_multiple_of(PRIORITY_EVERY) { "priority" } else { "normal" };
    (format!("order.{kind}.created"), order(&format!("{name}-{n}")))
}

fn assert_each_counted_once(ledger: &LedgerReader, orders: u64) {
    ledger.await_settled(orders);
    assert_eq!(
        ledger.rows("SELECT sum(orders), sum(quantity) FROM sales WHERE granularity = 'day'"),
        [format!("{orders}|{}", 3 * orders)]
    );
    assert_eq!(
        ledger.rows("SELECT sum(accepted), sum(processed) FROM order_sums WHERE granularity = 'hour'"),
        [format!("{orders}|{orders}")]
    );
}

fn assert_queues_are_empty(env: &TestEnv<'_>, more: &[&str]) {
    let queues = ["order_queue", "priority_order_queue", "notification_queue", "analytics_queue", "failed_order_queue"];
    for queue in queues.iter().chain(&["dead_letter_queue", "unrouted_queue"]).chain(more) {
        let mut raw = env.raw();
        wait_until(&format!("{queue} is empty"), || raw.depth(queue) == 0);
    }
}

/// Waits until the instance processes an order that is not a priority order.
fn await_participation(instance: &OrderdProcess) {
    wait_until("it processes orders", || {
        instance.log_lines("Processing Order").iter().any(|line| line["consumer"] == "order")
    });
}

/// Waits until this many more orders are processed, including some priority orders.
fn await_progress(ledger: &LedgerReader, orders: u64) {
    let urgent = || ledger.number("SELECT count(*) FROM orders WHERE consumer = 'priority' AND status = 'processed'");
    let (before, urgent_before) = (ledger.processed(), urgent());
    wait_until("orders and priority orders are processed in the meantime", || {
        ledger.processed() >= before + orders && urgent() > urgent_before
    });
}

#[test]
fn a_rolling_restart_under_load_loses_nothing_duplicates_nothing_and_uses_up_no_attempt() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut instances: Vec<OrderdProcess> = (0..INSTANCES).map(|_| env.start()).collect();
    let ledger = env.ledger();
    let mut stopped = Vec::new();
    let orders = while_publishing(&env, "ord", |_| {
        for instance in &mut instances {
            await_progress(&ledger, 100);
            await_participation(instance);
            assert_eq!(instance.stop(), 0);
            stopped.push(std::mem::replace(instance, env.start()));
        }
        await_progress(&ledger, 100);
        instances.iter().for_each(await_participation);
    });
    assert_each_counted_once(&ledger, orders);
    assert_eq!(ledger.rows("SELECT * FROM attempts"), [""; 0]);
    for mut instance in instances {
        assert_eq!(instance.stop(), 0);
        stopped.push(instance);
    }
    for instance in &stopped {
        assert!(instance.final_count("order", "completed") > 0, "an instance has done nothing");
        assert_eq!(instance.logged_errors(), [""; 0]);
        for consumer in ["order", "priority", "notification", "analytics"] {
            assert_eq!(instance.final_count(consumer, "duplicates"), 0, "{consumer}");
        }
    }
    assert_queues_are_empty(&env, &["order_queue.retry.300ms"]);
    assert_lines_are_whole(&env.ledger_directory(), orders);
}

/// All instances append to the same event files.
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
    let env = TestEnv::new(&node);
    let mut instances: Vec<OrderdProcess> = (0..INSTANCES).map(|_| env.start()).collect();
    let ledger = env.ledger();
    let orders = while_publishing(&env, "ord", |_| {
        for instance in &mut instances {
            await_progress(&ledger, 100);
            instance.kill();
            await_progress(&ledger, 100);
            *instance = env.start();
        }
    });
    assert_each_counted_once(&ledger, orders);
    assert_eq!(ledger.rows("SELECT * FROM attempts"), [""; 0], "a crash is no attempt");
    let path = format!("/queues/{}/order_queue", env.vhost.name);
    wait_until("the broker has redelivered orders, or none was in flight at any kill", || {
        node.management("GET", &path, "").1["message_stats"]["redeliver"].as_u64() > Some(0)
    });
    assert_queues_are_empty(&env, &["order_queue.retry.300ms"]);
    for mut instance in instances {
        assert_eq!(instance.stop(), 0);
    }
}

#[test]
fn a_rolling_change_of_delays_leaves_no_retry_behind() {
    const NEW: &[(&str, &str)] = &[("consumers.order.retry.delays", "700ms")];
    let node = Node::shared();
    let env =
        TestEnv::new(&node).set("consumers.order.faults.transient", "0.3").set("consumers.order.retry.immediate", "0");
    let (mut one, mut two) = (env.start(), env.start());
    let ledger = env.ledger();
    let orders = while_publishing(&env, "ord", |_| {
        await_progress(&ledger, 200);
        assert_eq!(one.stop(), 0);
        one = env.start_with(NEW);
        // Each instance decides on failures of the other one, too.
        await_progress(&ledger, 300);
        assert_eq!(two.stop(), 0);
        two = env.start_with(NEW);
        await_progress(&ledger, 200);
    });
    assert_each_counted_once(&ledger, orders);
    let retried = |delay: &str| ledger.number(&format!("SELECT count(*) FROM attempts WHERE delay = '{delay}'"));
    assert!(retried("300ms") > 0 && retried("700ms") > 0, "{} and {}", retried("300ms"), retried("700ms"));
    assert_eq!(ledger.rows("SELECT * FROM attempts WHERE retry_count > 0"), [""; 0], "each was retried once");
    assert_queues_are_empty(&env, &["order_queue.retry.300ms", "order_queue.retry.700ms"]);
    assert_eq!((one.stop(), two.stop()), (0, 0));
}

/// One instance commits and is killed before its ack reaches the broker; the other one receives the order again.
fn an_ack_is_lost_with_its_instance(env: &TestEnv<'_>, others_ledger: &Path) -> (OrderdProcess, LedgerReader) {
    let proxy = AmqpProxy::start(env.vhost.node.amqp_port).unwrap();
    let mut one = env.start_with(&[("broker.addresses", &proxy.address)]);
    wait_until("it consumes", || consumes(&one, "order_queue"));
    proxy.block("orderd consume order_queue");
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    env.ledger().await_settled(1);
    let mut two = env.start_with(&[("ledger.directory", others_ledger.to_str().unwrap())]);
    wait_until("the other consumes too", || consumes(&two, "order_queue"));
    assert!(!two.has_logged("Processing Order"), "the broker has the ack, or never delivered the order");
    one.kill();
    wait_until("the other gets it", || two.has_logged("Processing Order"));
    let ledger = LedgerReader::open(others_ledger);
    ledger.await_settled(1);
    assert_queues_are_empty(env, &[]);
    assert_eq!(two.stop(), 0);
    (two, ledger)
}

#[test]
fn an_order_whose_ack_was_lost_is_recorded_once_in_a_shared_ledger() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let (two, ledger) = an_ack_is_lost_with_its_instance(&env, &env.ledger_directory());
    assert_eq!(two.final_count("order", "duplicates"), 1);
    assert_each_counted_once(&ledger, 1);
}

#[test]
fn an_order_whose_ack_was_lost_is_recorded_once_in_each_of_two_ledgers_and_twice_in_their_sum() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let (two, ledger) = an_ack_is_lost_with_its_instance(&env, &env.directory.path().join("other"));
    assert_eq!(two.final_count("order", "duplicates"), 0);
    // Exactly once in each: deduplication does not reach beyond one ledger.
    assert_each_counted_once(&env.ledger(), 1);
    assert_each_counted_once(&ledger, 1);
    // Whoever merges the two ledgers can recognise the order and both events by their ids.
    for ids in ["SELECT id FROM orders", "SELECT kind, id FROM events ORDER BY kind"] {
        assert_eq!(env.ledger().rows(ids), ledger.rows(ids));
    }
}

#[test]
fn instances_that_start_at_the_same_time_on_an_empty_broker_all_start() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut instances: Vec<OrderdProcess> = (0..INSTANCES).map(|_| env.spawn()).collect();
    for instance in &mut instances {
        wait_until("it has started", || {
            assert_eq!(instance.exit_status(), None, "it ended instead");
            consumes(instance, "order_queue")
        });
    }
    env.raw().publish_all("orders", (0..50).map(|n| placed("ord", n)));
    assert_each_counted_once(&env.ledger(), 50);
    for mut instance in instances {
        assert_eq!(instance.stop(), 0);
        assert_eq!(instance.logged_errors(), [""; 0]);
    }
}

#[test]
fn an_instance_waits_while_another_migrates_their_ledger() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    assert_eq!(env.start().stop(), 0);
    let mut migration = Connection::open(env.ledger_directory().join("orderd.db")).unwrap();
    let migration = migration.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    let mut orderd = env.spawn();
    wait_until("it waits", || orderd.has_logged("cannot open the ledger; retrying"));
    migration.commit().unwrap();
    wait_until("it continues", || consumes(&orderd, "order_queue"));
    assert_eq!(orderd.stop(), 0);
}

/// RabbitMQ before 4.3 counts deliveries that are requeued at a restart toward the delivery limit.
#[test]
fn an_order_survives_twenty_restarts_that_requeue_it() {
    const TRIES: u32 = 50;
    let node = Node::shared();
    let env = TestEnv::new(&node);
    assert_eq!(env.start().stop(), 0);
    let mut raw = env.raw();
    raw.publish_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    let mut requeued = 0;
    while requeued < TRIES
        && let Some((tag, _)) = raw.get_unacked("order_queue")
    {
        raw.nack_requeue(tag);
        requeued += 1;
    }
    let counts = node.version() < (4, 3);
    assert_eq!(requeued, if counts { 21 } else { TRIES }, "on RabbitMQ {:?}", node.version());
    // The broker then dead-letters it to the failed-order queue, and it is not lost.
    let mut orderd = env.start();
    let ledger = env.ledger();
    if counts {
        wait_until("it is a failure", || {
            ledger.number("SELECT count(*) FROM attempts WHERE failure_kind = 'delivery_limit'") == 1
        });
    }
    ledger.await_settled(1);
    assert_eq!(orderd.stop(), 0);
}

/// Deliveries to an instance that cannot record any more fail at once, and would finally be dead-lettered.
#[test]
fn an_instance_exits_before_it_dead_letters_orders_once_a_newer_version_has_migrated_the_ledger() {
    const INTERNAL: i32 = 70;
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let mut old = env.start();
    env.raw().publish_all("orders", [placed("ord", 0)]);
    env.ledger().await_settled(1);
    let later = Connection::open(env.ledger_directory().join("orderd.db")).unwrap();
    let version: i32 = later.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    later.pragma_update(None, "user_version", version + 1).unwrap();
    env.raw().publish_all("orders", (1..50).map(|n| placed("ord", n)));
    assert_eq!(
        old.wait_for_exit(),
        INTERNAL,
        "a service manager restarts it, as the newer version that is installed by then"
    );
    let errors = old.logged_errors();
    assert!(errors.len() == 1 && errors[0].contains("the ledger was migrated by a newer orderd"), "{errors:#?}");
    let mut again = env.spawn();
    assert_eq!(again.wait_for_exit(), 78, "{}", again.output());

    // Stands for the newer version, which does not exist yet.
    later.pragma_update(None, "user_version", version).unwrap();
    let mut new = env.start();
    assert_each_counted_once(&env.ledger(), 50);
    assert_queues_are_empty(&env, &["order_queue.retry.300ms"]);
    assert_eq!(new.stop(), 0);
}

#[test]
fn a_consuming_connection_that_loses_acks_is_not_ready_within_seconds_and_is_opened_again() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    let proxy = AmqpProxy::start(env.vhost.node.amqp_port).unwrap();
    let mut orderd = env.start_with(&[("broker.addresses", &proxy.address), ("broker.heartbeat", "60s")]);
    wait_until("it consumes", || consumes(&orderd, "order_queue"));
    proxy.block("orderd consume order_queue");
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    env.ledger().await_settled(1);
    wait_until("readiness names the cause and its number", || {
        let consumer = &orderd.status()["consumers"]["order"];
        consumer["subscribed"] == true && consumer["unanswered_seconds"].as_u64() >= Some(5)
    });
    assert!(orderd.status()["checks"].to_string().contains("since acks were sent"));
    wait_until("the connection is given up", || orderd.has_logged("lost the subscription"));
    orderd.kill();
}
