//! Starting: what makes orderd refuse, what it waits for, and that a refusal changes nothing.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::thread;

use crate::support::raw::number;
use crate::support::raw::properties::Properties;
use crate::support::shop::{Shop, order, until};
use crate::support::{Node, free_address};

const CONFIG: i32 = 78;

fn exchanges(shop: &Shop<'_>) -> Vec<String> {
    let (_, found) = shop.vhost.node.management("GET", &format!("/exchanges/{}", shop.vhost.name), "");
    let names = found.as_array().unwrap().iter().map(|exchange| exchange["name"].as_str().unwrap().to_owned());
    names.filter(|name| name.starts_with("orders")).collect()
}

fn queues(shop: &Shop<'_>) -> Vec<String> {
    let (_, found) = shop.vhost.node.management("GET", &format!("/queues/{}", shop.vhost.name), "");
    found.as_array().unwrap().iter().map(|queue| queue["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_bad_configuration_is_refused_with_all_its_faults_before_the_broker_is_asked() {
    let node = Node::shared();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let shop = Shop::new(&node)
        .set("broker.addresses", &address)
        .set("management.url", &format!("http://{address}"))
        .set("consumers.order.workers", "0")
        .set("consumers.priority.timeout", "16min")
        .set("consumers.order.colour", "red");
    let mut orderd = shop.run();
    assert_eq!(orderd.exit(), CONFIG);
    let output = orderd.output();
    for fault in ["consumers.order.workers", "consumers.priority.timeout", "consumers.order.colour"] {
        assert!(output.contains(fault), "no word of {fault}: {output}");
    }
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "it has connected");
    assert!(!shop.ledger().exists(), "it has made a ledger");
}

#[test]
fn a_wrong_password_is_one_clear_error() {
    let node = Node::shared();
    let shop = Shop::new(&node).set("broker.password", "not-it");
    let error = shop.run().refusal();
    assert!(error.contains("guest") && !error.contains("not-it"), "{error}");
    assert!(queues(&shop).is_empty());
}

#[test]
fn it_waits_for_a_broker_that_is_not_there_yet() {
    let node = Node::shared();
    let later = free_address();
    let shop = Shop::new(&node).set("broker.addresses", &later.to_string());
    let mut orderd = shop.run();
    until("it waits", || orderd.lines("waiting for the broker").len() >= 2);
    assert_eq!(orderd.ended(), None);
    forward(TcpListener::bind(later).unwrap(), node.amqp_port);
    until("it has started", || orderd.says("started"));
    shop.raw().send_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    shop.book().await_settled(1);
    assert_eq!(orderd.stop(), 0);
}

/// Hands every connection on to the broker, for as long as the test runs.
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
                    // Either side may reset the connection; the other is told.
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
    let shop = Shop::new(&node);
    shop.raw().declare_quorum("analytics_queue", &[number("x-delivery-limit", 5)]);
    let error = shop.run().refusal();
    for part in ["analytics_queue", "x-delivery-limit", "expected 20", "is 5"] {
        assert!(error.contains(part), "no {part:?}: {error}");
    }
    assert_eq!(queues(&shop), ["analytics_queue"]);
    assert_eq!(exchanges(&shop), [""; 0]);
}

#[test]
fn without_a_management_api_the_broker_itself_refuses_a_queue_with_another_argument() {
    let node = Node::shared();
    let shop = Shop::new(&node).set("management.url", "http://127.0.0.1:1");
    shop.raw().declare_quorum("analytics_queue", &[number("x-delivery-limit", 5)]);
    let error = shop.run().refusal();
    assert!(error.contains("analytics_queue") && error.contains("inequivalent arg"), "{error}");
    assert_eq!(shop.raw().queue("analytics_queue"), Some((0, 0)));
}

#[test]
fn a_policy_that_would_drop_messages_is_refused() {
    let node = Node::shared();
    // The policy is there first: the queue it rules is only just declared when orderd looks.
    let shop = Shop::new(&node);
    let policy = r#"{"pattern":"^order_queue$","definition":{"overflow":"drop-head"},"apply-to":"queues"}"#;
    let (status, _) = node.management("PUT", &format!("/policies/{}/drop", shop.vhost.name), policy);
    assert_eq!(status, 201);
    let error = shop.run().refusal();
    for part in ["order_queue", "overflow", "drop-head"] {
        assert!(error.contains(part), "no {part:?}: {error}");
    }
}

#[test]
fn where_an_administrator_declares_orderd_names_what_is_missing_and_runs_once_it_is_there() {
    let node = Node::shared();
    let bare = Shop::new(&node).set("topology.declare", "false");
    let error = bare.run().refusal();
    for part in ["exchange \"orders\"", "order_queue", "dead_letter_queue", "order_queue.retry.300ms"] {
        assert!(error.contains(part), "no {part:?}: {error}");
    }
    assert_eq!((queues(&bare), exchanges(&bare)), (vec![], vec![]));

    let declared = Shop::new(&node);
    assert_eq!(declared.open().stop(), 0);
    let declared = declared.set("topology.declare", "false");
    let mut orderd = declared.open();
    declared.raw().send_to("orders", "order.normal.created", &Properties::persistent(), &order("ord-1"));
    declared.book().await_settled(1);
    assert_eq!(orderd.stop(), 0);
}
