//! Starting: when orderd refuses to start, what it waits for, and that a refusal changes nothing on the broker.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::thread;

use crate::support::raw_client::number;
use crate::support::raw_client::properties::Properties;
use crate::support::test_env::{TestEnv, order, wait_until};
use crate::support::{Node, free_address};

const CONFIG: i32 = 78;

fn exchanges(env: &TestEnv<'_>) -> Vec<String> {
    let (_, found) = env.vhost.node.management("GET", &format!("/exchanges/{}", env.vhost.name), "");
    let names = found.as_array().unwrap().iter().map(|exchange| exchange["name"].as_str().unwrap().to_owned());
    names.filter(|name| name.starts_with("orders")).collect()
}

fn queues(env: &TestEnv<'_>) -> Vec<String> {
    let (_, found) = env.vhost.node.management("GET", &format!("/queues/{}", env.vhost.name), "");
    found.as_array().unwrap().iter().map(|queue| queue["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_invalid_configuration_is_refused_with_every_problem_before_connecting() {
    let node = Node::shared();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let env = TestEnv::new(&node)
        .set("broker.addresses", &address)
        .set("management.url", &format!("http://{address}"))
        .set("consumers.order.workers", "0")
        .set("consumers.priority.timeout", "16min")
        .set("consumers.order.colour", "red");
    let mut orderd = env.spawn();
    assert_eq!(orderd.wait_for_exit(), CONFIG);
    let output = orderd.output();
    for fault in ["consumers.order.workers", "consumers.priority.timeout", "consumers.order.colour"] {
        assert!(output.contains(fault), "no {fault}: {output}");
    }
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "it has connected");
    assert!(!env.ledger_directory().exists(), "it has created a ledger");
}

#[test]
fn a_wrong_password_is_one_clear_error() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("broker.password", "not-it");
    let error = env.spawn().startup_error();
    assert!(error.contains("guest") && !error.contains("not-it"), "{error}");
    assert!(queues(&env).is_empty());
}

#[test]
fn it_waits_for_a_broker_that_starts_later() {
    let node = Node::shared();
    let later = free_address();
    let env = TestEnv::new(&node).set("broker.addresses", &later.to_string());
    let mut orderd = env.spawn();
    wait_until("it waits", || orderd.log_lines("waiting for the broker").len() >= 2);
    assert_eq!(orderd.exit_status(), None);
    forward(TcpListener::bind(later).unwrap(), node.amqp_port);
    wait_until("it has started", || orderd.has_logged("started"));
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    env.ledger().await_settled(1);
    assert_eq!(orderd.stop(), 0);
}

/// Forwards every connection to the broker, as long as the test runs.
fn forward(listener: TcpListener, port: u16) {
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let broker = TcpStream::connect(("127.0.0.1", port)).unwrap();
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), broker.try_clone().unwrap()),
                (broker.try_clone().unwrap(), client.try_clone().unwrap()),
            ] {
                thread::spawn(move || {
                    // Either side may reset the connection; the other side is closed then.
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
            }
        }
    });
}

#[test]
fn a_queue_with_another_argument_is_named_with_both_values_and_nothing_is_changed() {
    let node = Node::shared();
    let env = TestEnv::new(&node);
    env.raw().declare_quorum("analytics_queue", &[number("x-delivery-limit", 5)]);
    let error = env.spawn().startup_error();
    for part in ["analytics_queue", "x-delivery-limit", "expected 20", "is 5"] {
        assert!(error.contains(part), "no {part:?}: {error}");
    }
    assert_eq!(queues(&env), ["analytics_queue"]);
    assert_eq!(exchanges(&env), [""; 0]);
}

#[test]
fn without_a_management_api_the_broker_itself_refuses_a_queue_with_another_argument() {
    let node = Node::shared();
    let env = TestEnv::new(&node).set("management.url", "http://127.0.0.1:1");
    env.raw().declare_quorum("analytics_queue", &[number("x-delivery-limit", 5)]);
    let error = env.spawn().startup_error();
    assert!(error.contains("analytics_queue") && error.contains("inequivalent arg"), "{error}");
    assert_eq!(env.raw().queue_counts("analytics_queue"), Some((0, 0)));
}

#[test]
fn a_policy_that_would_drop_messages_is_refused() {
    let node = Node::shared();
    // The policy exists before the queue, which is only just declared when orderd checks policies.
    let env = TestEnv::new(&node);
    let policy = r#"{"pattern":"^order_queue$","definition":{"overflow":"drop-head"},"apply-to":"queues"}"#;
    let (status, _) = node.management("PUT", &format!("/policies/{}/drop", env.vhost.name), policy);
    assert_eq!(status, 201);
    let error = env.spawn().startup_error();
    for part in ["order_queue", "overflow", "drop-head"] {
        assert!(error.contains(part), "no {part:?}: {error}");
    }
    // RabbitMQ before 4.3 still reports it for some seconds.
    let (status, _) = node.management("DELETE", &format!("/policies/{}/drop", env.vhost.name), "");
    assert_eq!(status, 204);
    assert_eq!(env.start().stop(), 0);
}

#[test]
fn without_declare_missing_objects_are_named_and_orderd_runs_once_they_exist() {
    let node = Node::shared();
    let bare = TestEnv::new(&node).set("topology.declare", "false");
    let error = bare.spawn().startup_error();
    for part in ["exchange \"orders\"", "order_queue", "dead_letter_queue", "order_queue.retry.300ms"] {
        assert!(error.contains(part), "no {part:?}: {error}");
    }
    assert_eq!((queues(&bare), exchanges(&bare)), (vec![], vec![]));

    let declared = TestEnv::new(&node);
    assert_eq!(declared.start().stop(), 0);
    let declared = declared.set("topology.declare", "false");
    let mut orderd = declared.start();
    declared.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    declared.ledger().await_settled(1);
    assert_eq!(orderd.stop(), 0);
}

#[test]
fn a_dead_an_unresolvable_and_a_repeated_address_do_not_keep_it_from_starting() {
    let node = Node::shared();
    let real = format!("127.0.0.1:{}", node.amqp_port);
    let addresses = format!("127.0.0.1:1,no-such-host.invalid:5672,{real},{real}");
    let env = TestEnv::new(&node).set("broker.addresses", &addresses).set("broker.rebalance_after", "1s");
    let mut orderd = env.start();
    env.raw().publish_to("orders", "order.normal.created", &Properties::persistent(), &order("one"));
    env.ledger().await_settled(1);
    let status = crate::support::http::json(orderd.admin_address(), "/api/v1/status");
    assert_eq!(
        (&status["daemon"]["publisher"]["address"], &status["consumers"]["order"]["address"]),
        (&real.as_str().into(), &real.as_str().into())
    );
    assert_eq!(orderd.stop(), 0);
}
