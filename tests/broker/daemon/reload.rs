//! Reloads while orders are processed: none is lost, processed twice, failed or redelivered because of one.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::Node;
use crate::support::http::Scrape;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{OrderdProcess, TestEnv, order, wait_until};

const NORMAL: &str = "order.normal.created";

pub(super) fn flood(env: &TestEnv<'_>, key: &str, name: &str, orders: u64) {
    let orders = (0..orders).map(|n| (key.to_owned(), order(&format!("{name}-{n}"))));
    env.raw().publish_all("orders", orders);
}

/// Scrapes the metrics until `stop` is set, and checks that each scrape adds up. Returns the number of scrapes.
fn watch(orderd: &OrderdProcess, stop: &AtomicBool) -> u64 {
    let admin = orderd.admin_address();
    let mut scrapes = 0;
    while !stop.load(Ordering::Relaxed) {
        let scrape = Scrape::of(admin);
        for (sample, value) in &scrape.0 {
            if sample.starts_with("orderd_conservation") {
                assert_eq!(*value, 0.0, "{sample}");
            }
        }
        scrapes += 1;
    }
    scrapes
}

/// The broker's counts of a queue: messages acked and messages redelivered.
pub(super) fn counted(env: &TestEnv<'_>, queue: &str) -> (u64, u64) {
    let (status, counts) = env.vhost.node.management("GET", &format!("/queues/{}/{queue}", env.vhost.name), "");
    assert_eq!(status, 200, "{counts}");
    let count = |name: &str| counts["message_stats"][name].as_u64().unwrap_or(0);
    (count("ack"), count("redeliver"))
}

/// Checks that all orders were delivered, processed and acked once, and that nothing in flight was redelivered.
pub(super) fn assert_once(env: &TestEnv<'_>, orderd: &OrderdProcess, orders: u64) {
    let ledger = env.ledger();
    assert_eq!(ledger.rows("SELECT * FROM attempts"), [""; 0]);
    wait_until("everything is settled", || Scrape::of(orderd.admin_address()).sum("orderd_in_flight", &[]) == 0.0);
    let scrape = Scrape::of(orderd.admin_address());
    for consumer in ["order", "notification", "analytics"] {
        assert_eq!(scrape.of_consumer("orderd_deliveries_total", consumer), orders as f64, "{consumer}");
        for (outcome, count) in [("completed", orders), ("duplicate", 0), ("forwarded", 0), ("released", 0)] {
            let settled = scrape.sum("orderd_settled_total", &[("consumer", consumer), ("outcome", outcome)]);
            assert_eq!(settled, count as f64, "{consumer}: {outcome}");
        }
    }
    // The broker's statistics lag by some seconds; once it has counted all acks, it has counted all deliveries. It loses no
    // counts of channels that have ended: see `core_metrics_gc_interval` in `node.sh`.
    wait_until("the broker has counted all acks", || counted(env, "order_queue").0 == orders);
    // Deliveries that are on their way inside the broker when a consumer is cancelled are requeued, although nobody received
    // them: some fifty each time, unless orderd waits for a quiet moment. On a slow machine it may miss that moment.
    let taken_back = counted(env, "order_queue").1;
    assert!(taken_back < 10, "the broker took {taken_back} messages back");
    assert_eq!(env.raw().depth("dead_letter_queue"), 0);
    assert!(!orderd.has_logged("deliveries do not add up: report this with the log"));
}

fn effects(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let changes = report["changes"].as_array().unwrap().iter();
    changes.map(|change| (text(&change["key"]), text(&change["effect"]))).collect()
}

fn live(keys: &[&str]) -> Vec<(String, String)> {
    keys.iter().map(|key| ((*key).to_owned(), "live".to_owned())).collect()
}

#[test]
fn scaling_under_load_loses_fails_and_redelivers_no_order() {
    const ORDERS: u64 = 100_000;
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).set("log.level", "info").with_file();
    let mut orderd = env.start();
    let (ledger, stop) = (env.ledger(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&orderd, &stop));
        let feeding = scope.spawn(|| flood(&env, NORMAL, "ord", ORDERS));
        wait_until("orders flow", || ledger.processed() > 100);
        for (generation, (workers, prefetch)) in
            [("64", "50"), ("2", "250"), ("64", "10"), ("2", "250")].iter().enumerate()
        {
            for consumer in ["order", "notification", "analytics"] {
                file.set(&format!("consumers.{consumer}.workers"), workers);
                file.set(&format!("consumers.{consumer}.prefetch"), prefetch);
            }
            file.save();
            let report = orderd.reload();
            assert_eq!((&report["outcome"], &report["generation"]), (&json!("applied"), &json!(generation + 2)));
            let status = orderd.status();
            assert_eq!(status["consumers"]["order"]["workers_configured"], workers.parse::<u64>().unwrap());
            assert_eq!(status["daemon"]["config_generation"], generation + 2);
            assert!(ledger.processed() < ORDERS, "all were processed before the change, so nothing was scaled");
        }
        feeding.join().unwrap();
        ledger.await_settled(ORDERS);
        wait_until("former pools have finished", || orderd.status()["daemon"]["connections"] == 6);
        stop.store(true, Ordering::Relaxed);
        assert!(watching.join().unwrap() > 5);
    });
    assert_once(&env, &orderd, ORDERS);
    let status = orderd.status();
    assert_eq!(
        (&status["consumers"]["order"]["workers_running"], &status["conservation_ok"]),
        (&json!(2), &json!(true))
    );
    assert_eq!(status["consumers"]["priority"]["subscriptions"], 1, "it has not changed, and its connection stays");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn every_consumer_is_subscribed_when_a_reload_or_a_resume_returns() {
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).with_file();
    let mut orderd = env.start();
    let subscribed = || {
        let status = orderd.status();
        let consumers = status["consumers"].as_object().unwrap();
        consumers.iter().filter(|(_, one)| one["subscribed"] == true).map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let all = ["analytics", "failed", "notification", "order", "priority"];
    for workers in ["3", "5", "2"] {
        for consumer in all {
            file.set(&format!("consumers.{consumer}.workers"), workers);
        }
        file.save();
        assert_eq!(orderd.reload()["outcome"], "applied");
        assert_eq!(subscribed(), all);
    }
    for verb in ["pause", "resume"] {
        assert_eq!(super::pause::send_command(&orderd, verb, "order").0, 200);
    }
    assert_eq!(subscribed(), all);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn deliveries_in_flight_finish_under_the_settings_they_started_with() {
    let node = Node::shared();
    let (env, mut file) =
        TestEnv::new(&node).set("consumers.order.faults.hang", "1.0").set("consumers.order.timeout", "12s").with_file();
    let mut orderd = env.start();
    flood(&env, NORMAL, "slow", 3);
    wait_until("they hang", || orderd.log_lines("Processing Order").len() == 3);
    file.set("consumers.order.timeout", "1s").set("consumers.order.faults.hang", "0.0").save();
    let report = orderd.reload();
    assert_eq!(effects(&report), live(&["consumers.order.faults.hang", "consumers.order.timeout"]));
    flood(&env, NORMAL, "quick", 3);
    let ledger = env.ledger();
    wait_until("the new pool works", || ledger.processed() >= 3);
    let status = orderd.status();
    let of = &status["consumers"]["order"];
    assert_eq!((&of["subscribed"], &of["draining"], &of["in_flight"]), (&json!(true), &json!(1), &json!(3)), "{of}");
    // They fail at the old deadline, and are retried and processed with the new settings.
    ledger.await_settled(6);
    let failed = orderd.log_lines("Order Failed");
    assert_eq!(failed.len(), 3, "{failed:?}");
    assert!(failed.iter().all(|line| line["reason"] == "no result within 12s"), "{failed:?}");
    wait_until("the former pool is done", || orderd.status()["consumers"]["order"]["draining"] == 0);
    assert_eq!(counted(&env, "order_queue").1, 0);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn changed_delays_create_new_retry_queues_and_the_old_ones_drain() {
    const ORDERS: u64 = 20;
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node)
        .set("consumers.order.faults.transient", "1.0")
        .set("consumers.order.retry.immediate", "0")
        .set("consumers.order.retry.delays", "15s")
        .with_file();
    let mut orderd = env.start();
    flood(&env, NORMAL, "ord", ORDERS);
    let mut raw = env.raw();
    wait_until("all wait for their retry", || raw.depth("order_queue.retry.15s") == ORDERS as u32);
    file.set("consumers.order.retry.delays", "400ms,2s").set("consumers.order.faults.transient", "0.0").save();
    let report = orderd.reload();
    assert_eq!(report["outcome"], "applied", "{report}");
    assert_eq!(effects(&report), live(&["consumers.order.faults.transient", "consumers.order.retry.delays"]));
    let notes = report["notes"].to_string();
    assert!(notes.contains("order_queue.retry.15s"), "{notes}");
    assert_eq!((raw.depth("order_queue.retry.400ms"), raw.depth("order_queue.retry.2s")), (0, 0));
    env.ledger().await_settled(ORDERS);
    assert_eq!(raw.depth("order_queue.retry.15s"), 0);
    // The failed-order consumer uses the new delays, too.
    file.set("consumers.order.faults.transient", "1.0").save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    raw.publish_to("orders", NORMAL, &Properties::persistent(), &order("late"));
    // An injected failure only affects the first attempt.
    env.ledger().await_settled(ORDERS + 1);
    let delays = || env.ledger().rows("SELECT delay FROM attempts WHERE identity = 'late'");
    wait_until("its failure is recorded", || delays() == ["400ms"]);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn consumers_and_queues_are_added_and_removed_while_others_work() {
    const ORDERS: u64 = 8_000;
    let node = Node::shared();
    let (env, file) = TestEnv::new(&node).set("log.level", "info").with_file();
    let mut with_bulk = file.clone();
    with_bulk
        .set("queues.bulk_queue.bindings", "order.bulk.*")
        .set("consumers.bulk.queue", "bulk_queue")
        .set("consumers.bulk.handler", "order")
        .set("consumers.bulk.retry.delays", "300ms");
    let mut orderd = env.start();
    let ledger = env.ledger();
    let of_bulk = || ledger.number("SELECT count(*) FROM orders WHERE consumer = 'bulk' AND status = 'processed'");
    std::thread::scope(|scope| {
        let feeding = scope.spawn(|| flood(&env, NORMAL, "ord", ORDERS));
        with_bulk.save();
        let report = orderd.reload();
        assert_eq!((&report["outcome"], &report["notes"]), (&json!("applied"), &json!([])), "{report}");
        flood(&env, "order.bulk.created", "bulk", 500);
        wait_until("the new consumer works", || of_bulk() > 0);
        file.save();
        let report = orderd.reload();
        assert_eq!(report["outcome"], "applied", "{report}");
        let notes = report["notes"].to_string();
        assert!(notes.contains("bulk_queue") && notes.contains("order.bulk.%2A"), "{notes}");
        feeding.join().unwrap();
    });
    wait_until("it is gone", || orderd.status()["consumers"].get("bulk").is_none());
    wait_until("all others are processed", || {
        ledger.number("SELECT count(*) FROM orders WHERE consumer = 'order' AND status = 'processed'") == ORDERS
    });
    let (done, left) = (of_bulk(), u64::from(env.raw().depth("bulk_queue")));
    assert_eq!(done + left, 500);
    assert_eq!(counted(&env, "bulk_queue").1, 0, "redelivered");

    // It is added again: the remaining orders are processed, and its counters continue.
    with_bulk.save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    ledger.await_settled(ORDERS + 500);
    let counted = || Scrape::of(orderd.admin_address()).of_consumer("orderd_deliveries_total", "bulk");
    wait_until("all are counted", || counted() == 500.0);

    // The command in the note removes the binding and nothing else.
    file.save();
    let notes = orderd.reload()["notes"].to_string();
    let path = notes.split("/api").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
    assert_eq!(node.management("DELETE", path, "").0, 204, "{notes}");
    let bound = node.management("GET", &format!("/queues/{}/bulk_queue/bindings", env.vhost.name), "").1;
    let keys: BTreeSet<_> = bound.as_array().unwrap().iter().map(|one| one["routing_key"].to_string()).collect();
    assert_eq!(keys, [r#""bulk_queue""#.to_owned()].into(), "{bound}");
    assert_eq!(ledger.rows("SELECT * FROM attempts"), [""; 0]);
    assert_eq!(orderd.stop(), 0);
    assert_eq!(orderd.final_count("bulk", "deliveries"), 500);
}

#[test]
fn a_failure_right_after_its_consumer_was_added_is_retried_and_keeps_its_origin() {
    const ORDERS: u32 = 300;
    let node = Node::shared();
    let (env, file) = TestEnv::new(&node).with_file();
    let bulk = [
        ("queues.bulk_queue.bindings", "order.bulk.*"),
        ("consumers.bulk.queue", "bulk_queue"),
        ("consumers.bulk.handler", "order"),
        ("consumers.bulk.retry.immediate", "0"),
        ("consumers.bulk.retry.delays", "1h"),
        ("consumers.bulk.faults.transient", "1.0"),
    ];
    let mut with_bulk = file.clone();
    for (key, value) in bulk {
        with_bulk.set(key, value);
    }
    // Its queue exists before the consumer does.
    with_bulk.save();
    assert_eq!(env.start().stop(), 0);
    file.save();
    let mut orderd = env.start();
    flood(&env, "order.bulk.created", "ord", ORDERS.into());
    with_bulk.save();
    assert_eq!(orderd.reload()["outcome"], "applied");
    wait_until("all are retried or dead-lettered", || {
        env.raw().depth("bulk_queue.retry.1h") + env.raw().depth("dead_letter_queue") == ORDERS
    });
    assert_eq!(env.raw().depth("dead_letter_queue"), 0);
    assert_eq!(orderd.status()["consumers"]["failed"]["subscriptions"], 1, "it has not changed, and its pool stays");
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn an_invalid_file_changes_nothing() {
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).with_file();
    let mut orderd = env.start();
    let before = orderd.status()["consumers"].clone();
    file.set("consumers.order.workers", "9").set("consumers.order.prefetch", "0").set("log.colour", "red").save();
    let report = orderd.reload();
    assert_eq!((&report["outcome"], &report["generation"]), (&json!("rejected"), &json!(1)));
    let problems = report["problems"].to_string();
    assert!(problems.contains("consumers.order.prefetch") && problems.contains("log.colour"), "{problems}");
    let wanted = |status: &Value| status["order"]["workers_configured"].clone();
    assert_eq!(wanted(&orderd.status()["consumers"]), wanted(&before));
    assert!(orderd.has_logged("reload rejected, configuration unchanged"));

    file.write("[consumers.order\n");
    assert_eq!(orderd.reload()["outcome"], "rejected");
    file.set("consumers.order.prefetch", "10").remove("log.colour").save();
    let report = orderd.reload();
    assert_eq!((&report["outcome"], &report["generation"]), (&json!("applied"), &json!(2)));
    assert_eq!(orderd.reload()["outcome"], "unchanged");
    assert_eq!(orderd.status()["daemon"]["config_generation"], 2);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_reload_that_the_broker_contradicts_is_rejected_as_a_whole() {
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).with_file();
    let mut orderd = env.start();
    let mut raw = env.raw();
    raw.declare("bulk_queue", &[]);
    file.set("consumers.order.workers", "9")
        .set("queues.bulk_queue.bindings", "order.bulk.*")
        .set("consumers.bulk.queue", "bulk_queue")
        .set("consumers.bulk.handler", "order")
        .set("consumers.bulk.retry.delays", "300ms")
        .save();
    let report = orderd.reload();
    assert_eq!((&report["outcome"], &report["temporary"]), (&json!("rejected"), &json!(false)));
    assert!(report["problems"].to_string().contains("x-queue-type"), "{report}");
    assert_eq!(orderd.status()["consumers"]["order"]["workers_configured"], 4);
    assert!(raw.queue_counts("bulk_queue.retry.300ms").is_none(), "something was declared");

    // A policy that would delete orders is found before any order can get into the new queue.
    let mut raw = env.raw();
    raw.delete("bulk_queue");
    let policy = r#"{"pattern":"^bulk","definition":{"overflow":"drop-head"},"apply-to":"queues"}"#;
    assert_eq!(node.management("PUT", &format!("/policies/{}/bulk", env.vhost.name), policy).0, 201);
    let report = orderd.reload();
    assert_eq!(report["outcome"], "rejected");
    assert!(report["problems"].to_string().contains("overflow"), "{report}");
    raw.publish_to("orders", "order.bulk.created", &Properties::persistent(), &order("ord-1"));
    assert_eq!((raw.depth("unrouted_queue"), raw.depth("bulk_queue")), (1, 0));

    assert_eq!(node.management("DELETE", &format!("/policies/{}/bulk", env.vhost.name), "").0, 204);
    wait_until("the policy is gone", || orderd.reload()["outcome"] == "applied");
    raw.publish_to("orders", "order.bulk.created", &Properties::persistent(), &order("ord-2"));
    env.ledger().await_settled(1);
    assert_eq!(orderd.status()["consumers"]["order"]["workers_configured"], 9);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn changes_that_need_a_restart_or_an_operator_are_named_and_the_rest_is_applied() {
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node)
        .set("log.level", "info")
        .set("queues.order_queue.bindings", "order.normal.*,order.bulk.*")
        .with_file();
    let mut orderd = env.start();
    file.set("broker.heartbeat", "7s").set("ledger.retention", "90d").set("log.level", "debug");
    file.set("queues.order_queue.bindings", "order.normal.*").set("shutdown.drain_timeout", "7s").save();
    let report = orderd.reload();
    assert_eq!((&report["outcome"], &report["generation"]), (&json!("partly_applied"), &json!(2)), "{report}");
    let expected = [
        ("broker.heartbeat", "restart"),
        ("ledger.retention", "live"),
        ("log.level", "live"),
        ("queues.order_queue.bindings", "broker"),
        ("shutdown.drain_timeout", "live"),
    ];
    assert_eq!(effects(&report), expected.map(|(key, effect)| (key.to_owned(), effect.to_owned())));
    assert!(report["notes"].to_string().contains("/e/orders/q/order_queue/order.bulk.%2A"), "{report}");
    assert_eq!(orderd.log_lines("changes with a restart")[0]["key"], "broker.heartbeat");
    // The binding still routes.
    let mut raw = env.raw();
    raw.publish_to("orders", "order.bulk.created", &Properties::persistent(), &order("ord-1"));
    env.ledger().await_settled(1);
    assert!(orderd.log().iter().any(|line| line["level"] == "DEBUG"), "the new log level is not active");
    // The next reload still reports the restart, and only that.
    let report = orderd.reload();
    assert_eq!((&report["outcome"], &report["generation"]), (&json!("partly_applied"), &json!(2)));
    assert_eq!(effects(&report), [("broker.heartbeat".to_owned(), "restart".to_owned())]);
    assert_eq!(orderd.stop(), 0);
    assert_eq!(orderd.log_lines("draining; a second signal aborts")[0]["drain_timeout"], "7s");
}

#[test]
fn many_reloads_end_with_the_last_configuration_and_every_order_processed_once() {
    const ORDERS: u64 = 4_000;
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).set("log.level", "info").with_file();
    let mut orderd = env.start();
    std::thread::scope(|scope| {
        let feeding = scope.spawn(|| flood(&env, NORMAL, "ord", ORDERS));
        for workers in 1..=100_u32 {
            file.set("consumers.order.workers", &(workers % 9 + 1).to_string()).save();
            orderd.signal("HUP");
        }
        feeding.join().unwrap();
    });
    let reloads = || orderd.log_lines("reloaded: all changes are active").len();
    wait_until("the last configuration is active", || {
        orderd.status()["consumers"]["order"]["workers_configured"] == 100 % 9 + 1
    });
    env.ledger().await_settled(ORDERS);
    wait_until("former pools have finished", || orderd.status()["daemon"]["connections"] == 6);
    assert!(reloads() < 50, "each signal was a reload: {}", reloads());
    assert_once(&env, &orderd, ORDERS);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_shutdown_interrupts_a_reload_and_a_reload_during_the_start_is_deferred() {
    let node = Node::shared();
    let (env, mut file) = TestEnv::new(&node).with_file();
    let (address, wrong) = (format!("127.0.0.1:{}", node.amqp_port), "127.0.0.1:1");
    file.set("broker.addresses", wrong).save();
    let mut orderd = env.spawn();
    wait_until("it waits for the broker", || orderd.has_logged("waiting for the broker"));
    orderd.signal("HUP");
    wait_until("it says so", || orderd.has_logged("still starting; the configuration will be reloaded afterwards"));
    assert_eq!(orderd.stop(), 0);

    file.set("broker.addresses", &address).save();
    let mut orderd = env.spawn();
    wait_until("it starts", || orderd.has_logged("starting"));
    orderd.signal("HUP");
    wait_until("it has reloaded", || orderd.has_logged("reloaded: no changes"));

    // Declaring a queue takes more than two seconds.
    file.set("consumers.order.retry.delays", "400ms").save();
    orderd.signal("HUP");
    wait_until("it reads", || orderd.log_lines("reloading the configuration").len() == 2);
    wait_until("it declares", || orderd.log_lines("queues created; waiting until they are safe to use").len() == 2);
    assert_eq!(orderd.stop(), 0);
    assert_eq!(orderd.log_lines("reloaded: all changes are active").len(), 0);
    assert!(orderd.has_logged("stopped") && orderd.logged_errors().is_empty(), "{:?}", orderd.logged_errors());
}
