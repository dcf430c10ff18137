//! Limits of the broker that are lower than its defaults: acknowledgement timeout, channels, connections, message size, frames.

use crate::support::Node;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{OrderdProcess, TestEnv, order, wait_until};

/// One node for all: starting a node takes longer than each of them.
#[test]
fn low_limits_of_the_broker_are_kept_to_or_named_with_their_numbers() {
    let node = Node::own("limits");
    let set =
        |name: &str, value: &str| drop(node.ctl(&["eval", &format!("application:set_env(rabbit, {name}, {value}).")]));
    set("channel_max", "1");
    set("heartbeat", "0");
    // RabbitMQ 4.1 and later refuse every connection with less.
    let frame_max = if node.version() < (4, 1) { 4_096 } else { 8_192 };
    set("frame_max", &frame_max.to_string());
    one_channel_for_each_connection_and_tiny_frames_are_enough(&node, frame_max);
    if node.version() >= (4, 1) {
        set("frame_max", "4096");
        a_frame_max_with_which_the_broker_refuses_everybody_is_named(&node);
    }
    set("channel_max", "2047");
    set("frame_max", "131072");
    a_connection_limit_is_named(&node);
    limits_that_keep_orderd_from_declaring_or_checking_are_named(&node);
    a_copy_that_is_too_large_for_the_broker_is_dead_lettered_and_disturbs_no_other(&node);
    set("consumer_timeout", "2000");
    set("channel_tick_interval", "500");
    a_passed_consumer_timeout_is_named(&node);
}

fn one_channel_for_each_connection_and_tiny_frames_are_enough(node: &Node, frame_max: usize) {
    let env = TestEnv::new(node);
    let mut orderd = env.start();
    publish(&env, "ord-1", &"x".repeat(frame_max - 1_000));
    env.ledger().await_settled(1);
    let mut check = env.command(&["check", "--connect"]);
    assert_eq!(check.wait_for_exit(), 0, "{}", check.output());
    assert_eq!(orderd.stop(), 0);
}

fn a_frame_max_with_which_the_broker_refuses_everybody_is_named(node: &Node) {
    let env = TestEnv::new(node);
    let mut check = env.command(&["check", "--connect"]);
    assert_eq!(check.wait_for_exit(), 69, "{}", check.output());
    assert!(check.output().contains("frame_max 4096") && check.output().contains("8192"), "{}", check.output());
}

fn a_connection_limit_is_named(node: &Node) {
    let env = TestEnv::new(node);
    let limit = |limits: &str| drop(node.ctl(&["set_vhost_limits", "--vhost", &env.vhost.name, limits]));
    limit(r#"{"max-connections": 2}"#);
    let mut orderd = env.start();
    wait_until("the limit and what to do are shown", || {
        let failing = failing_checks(&orderd);
        !failing.is_empty()
            && failing.iter().all(|detail| detail.contains("limit 2") && detail.contains("for each consumer"))
    });
    limit("{}");
    wait_until("orderd is ready", || failing_checks(&orderd).is_empty());
    assert_eq!(orderd.stop(), 0);
    instances_that_share_a_connection_limit_need_the_number_that_the_documentation_says(node);
}

fn instances_that_share_a_connection_limit_need_the_number_that_the_documentation_says(node: &Node) {
    const INSTANCES: usize = 2;
    let env = TestEnv::new(node).set("dead_letters.collect", "true");
    let have_all = |orderd: &OrderdProcess| {
        let collectors = orderd.status()["dead_letters"]["collectors"].clone();
        let subscribed = collectors.as_object().unwrap().values().all(|collector| collector["subscribed"] == true);
        failing_checks(orderd).is_empty() && subscribed
    };
    let mut first = env.start();
    wait_until("it has all connections", || have_all(&first));
    let consumers = first.status()["consumers"].as_object().unwrap().len();
    assert_eq!(first.status()["daemon"]["connections"], consumers + 3);
    assert_eq!(first.stop(), 0);
    let limit = format!(r#"{{"max-connections": {}}}"#, INSTANCES * (consumers + 4));
    node.ctl(&["set_vhost_limits", "--vhost", &env.vhost.name, &limit]);
    let mut instances: Vec<OrderdProcess> = (0..INSTANCES).map(|_| env.start()).collect();
    wait_until("each has all connections", || instances.iter().all(have_all));
    for orderd in &mut instances {
        assert_eq!(orderd.stop(), 0);
    }
}

fn limits_that_keep_orderd_from_declaring_or_checking_are_named(node: &Node) {
    let env = TestEnv::new(node).set("management.poll_every", "200ms");
    let of_user = |limits: &str| drop(node.ctl(&["set_user_limits", "guest", limits]));
    let of_vhost = |limits: &str| drop(node.ctl(&["set_vhost_limits", "--vhost", &env.vhost.name, limits]));
    let checked = || {
        let mut check = env.command(&["check", "--connect"]);
        assert_eq!(check.wait_for_exit(), 69, "{}", check.output());
        without_parentheses(&check.output())
    };
    of_vhost(r#"{"max-queues": 3}"#);
    let error = env.spawn().startup_error();
    assert!(error.contains("queue limit") && error.contains('3') && !error.contains("other properties"), "{error}");
    of_vhost("{}");
    let mut orderd = env.start();
    of_user(r#"{"max-channels": 8}"#);
    let output = checked();
    assert!(output.contains("530") && output.contains("user limit of 8"), "{output}");
    // The broker cancels the consumer of a deleted queue, so orderd declares at once.
    assert_eq!(node.management("DELETE", &format!("/queues/{}/order_queue", env.vhost.name), "").0, 204);
    wait_until("the limit is shown", || failing_checks(&orderd).iter().any(|detail| detail.contains("limit of 8")));
    drop(node.ctl(&["clear_user_limits", "guest", "all"]));
    wait_until("orderd is ready", || failing_checks(&orderd).is_empty());
    of_user(r#"{"max-connections": 6}"#);
    let output = checked();
    assert!(output.contains("user connection limit 6"), "{output}");
    drop(node.ctl(&["clear_user_limits", "guest", "all"]));
    of_vhost(r#"{"max-connections": 6}"#);
    let output = checked();
    assert!(output.contains("connection limit 6"), "{output}");
    assert_eq!(orderd.stop(), 0);
}

fn a_copy_that_is_too_large_for_the_broker_is_dead_lettered_and_disturbs_no_other(node: &Node) {
    let env = TestEnv::new(node);
    let mut orderd = env.start();
    let max_size = |bytes: &str| drop(node.ctl(&["eval", &format!("persistent_term:put(max_message_size, {bytes}).")]));
    // The limit is lowered while the order is in its queue, so that no copy is accepted.
    orderd.signal("STOP");
    let mut raw = env.raw();
    let mut large = br#"{"id":"large","product":"P","quantity":-1,"price":"1.00","note":""#.to_vec();
    large.resize(99_998, b'x');
    large.extend(b"\"}");
    raw.publish_to("orders", "order.normal.created", &Properties::persistent(), &large);
    max_size("50000");
    publish(&env, "ord-1", "fine");
    orderd.signal("CONT");
    env.ledger().await_settled(1);
    wait_until("the large one is dead-lettered with its reason", || {
        env.ledger().rows("SELECT reason FROM dead_letters").len() == 1
    });
    assert_eq!(orderd.status()["daemon"]["publisher"]["connections"], 1, "the connection was never lost");
    assert_eq!(orderd.stop(), 0);
}

fn a_passed_consumer_timeout_is_named(node: &Node) {
    let env = TestEnv::new(node)
        .set("consumers.priority.faults.hang", "1")
        .set("consumers.priority.timeout", "60s")
        .set("shutdown.drain_timeout", "1s");
    let mut orderd = env.start();
    let mut raw = env.raw();
    raw.publish_to("orders", "order.priority.created", &Properties::persistent(), &order("slow"));
    let consumer = |orderd: &OrderdProcess, name: &str, key: &str| orderd.status()["consumers"][name][key].clone();
    wait_until("the cause is named", || consumer(&orderd, "priority", "ack_timeouts").as_u64() > Some(0));
    let problem = consumer(&orderd, "priority", "ack_timeout");
    let problem = problem.as_str().unwrap();
    // RabbitMQ 4.3 does not state its timeout.
    let states = node.version() < (4, 3);
    assert!(!states || problem.contains("consumer_timeout of 2s"), "{problem}");
    assert!(problem.contains("consumer_timeout") && problem.contains("60s"), "{problem}");
    assert!(problem.contains("priority_order_queue"), "{problem}");
    let failing = failing_checks(&orderd);
    assert!(failing.len() == 1 && failing[0].ends_with(&without_parentheses(problem)), "{failing:?}");
    // The order is neither lost nor dead-lettered: once its handler is fast enough, it is processed.
    assert_eq!(orderd.stop(), 0);
    let env = env.set("consumers.priority.faults.hang", "0");
    let mut orderd = env.start();
    env.ledger().await_settled(1);
    assert_eq!(env.ledger().processed(), 1);
    assert_eq!(orderd.stop(), 0);
}

fn publish(env: &TestEnv<'_>, id: &str, note: &str) {
    let body = format!(r#"{{"id":"{id}","product":"P","quantity":1,"price":"1.00","note":"{note}"}}"#);
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), body.as_bytes());
}

/// RabbitMQ before 4.3 writes numbers in parentheses.
fn without_parentheses(text: &str) -> String {
    text.replace(['(', ')'], "")
}

/// The details of the readiness checks that fail.
fn failing_checks(orderd: &OrderdProcess) -> Vec<String> {
    let status = orderd.status();
    let checks = status["checks"].as_array().unwrap().iter().filter(|check| check["ok"] == false);
    checks.map(|check| without_parentheses(check["detail"].as_str().unwrap_or_default())).collect()
}
