//! Declaring a topology: new objects, mismatches and missing objects.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use orderd::amqp::{ConnectError, Connector, DeclareError};
use orderd::config::Secret;
use orderd::topology::{Argument, Binding, Declaration, Exchange, ExchangeKind, Object, Queue};

use crate::support::raw_client::{number, text};
use crate::support::{Node, eventually, with_deadline};

fn queue(name: &str, arguments: &[(&'static str, Argument)]) -> Declaration {
    let quorum = [("x-queue-type", Argument::Text("quorum".into()))];
    Declaration::Queue(Queue {
        name: name.into(),
        arguments: quorum.into_iter().chain(arguments.iter().cloned()).collect(),
    })
}

fn exchange(name: &str) -> Declaration {
    Declaration::Exchange(Exchange { name: name.into(), kind: ExchangeKind::Direct, arguments: BTreeMap::new() })
}

fn binding(exchange: &str, queue: &str) -> Declaration {
    Declaration::Binding(Binding { exchange: exchange.into(), queue: queue.into(), routing_key: queue.into() })
}

#[tokio::test(flavor = "multi_thread")]
async fn declaring_creates_everything_and_waits_until_new_queues_are_safe() {
    let node = Node::shared();
    let vhost = node.vhost();
    let connector = Connector::new(vhost.broker());
    let mut plan = vec![exchange("x")];
    for n in 0..20 {
        plan.push(queue(&format!("q{n}"), &[("x-message-ttl", Argument::Number(3_600_000))]));
        plan.push(binding("x", &format!("q{n}")));
    }
    vhost.raw().declare_quorum("q7", &[number("x-message-ttl", 3_600_000)]);
    let begun = Instant::now();
    let declared = with_deadline("declare", connector.declare(&plan)).await.unwrap();
    assert_eq!(declared.created_queues().len(), 19);
    assert!(!declared.created_queues().contains(&"q7"));
    assert!(begun.elapsed() >= Duration::from_secs(2), "a new queue is not safe to use yet");
    let begun = Instant::now();
    assert_eq!(with_deadline("declare again", connector.declare(&plan)).await.unwrap().created, []);
    assert!(begun.elapsed() < Duration::from_secs(2), "nothing was new");
    assert_eq!(with_deadline("check", connector.missing_objects(&plan)).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mismatch_names_the_declaration_and_leaves_no_connection() {
    let node = Node::shared();
    let vhost = node.vhost();
    vhost.raw().declare_quorum("q", &[number("x-message-ttl", 1000)]);
    let plan = [exchange("x"), queue("q", &[("x-message-ttl", Argument::Number(2000))]), queue("never", &[])];
    let error = with_deadline("declare", Connector::new(vhost.broker()).declare(&plan)).await.unwrap_err();
    let DeclareError::Mismatch { declaration, reply } = &error else { panic!("{error:?}") };
    assert_eq!(declaration, "queue \"q\"");
    assert!(reply.contains("x-message-ttl") && reply.contains("2000") && reply.contains("1000"), "{reply}");
    eventually("the connections are closed", async || {
        let listed = node.ctl(&["-q", "list_connections", "client_properties", "vhost"]);
        !listed.lines().any(|line| line.contains("orderd declare") && line.contains(&vhost.name))
    })
    .await;
    assert_eq!(vhost.raw().queue_counts("never"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_to_a_missing_exchange_is_not_found() {
    let node = Node::shared();
    let vhost = node.vhost();
    vhost.raw().declare_quorum("q", &[]);
    let error =
        with_deadline("declare", Connector::new(vhost.broker()).declare(&[binding("nowhere", "q")])).await.unwrap_err();
    assert!(
        matches!(&error, DeclareError::NotFound { declaration, .. } if declaration.contains("nowhere")),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_permission_is_access_refused() {
    let node = Node::shared();
    let vhost = node.vhost();
    let user = format!("reader-{}", vhost.name);
    node.management("PUT", &format!("/users/{user}"), r#"{"password":"secret","tags":""}"#);
    let permissions = r#"{"configure":"","write":".*","read":".*"}"#;
    node.management("PUT", &format!("/permissions/{}/{user}", vhost.name), permissions);
    let mut broker = vhost.broker();
    (broker.username, broker.password) = (user.clone(), Secret::new("secret"));
    let error = with_deadline("declare", Connector::new(broker).declare(&[queue("q", &[])])).await.unwrap_err();
    node.management("DELETE", &format!("/users/{user}"), "");
    assert!(
        matches!(&error, DeclareError::AccessRefused { declaration, .. } if declaration == "queue \"q\""),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_lists_every_missing_object_and_creates_nothing() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare("q1", &[text("x-queue-type", "classic")]);
    raw.declare_exchange("x1", "direct", &[]);
    let plan =
        [exchange("x1"), exchange("x2"), queue("q1", &[]), queue("q2", &[]), queue("q3", &[]), binding("x1", "q2")];
    let missing = with_deadline("check", Connector::new(vhost.broker()).missing_objects(&plan)).await.unwrap();
    let expected = [Object::Exchange("x2".into()), Object::Queue("q2".into()), Object::Queue("q3".into())];
    assert_eq!(missing, expected);
    assert_eq!(raw.queue_counts("q2"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_broker_and_an_overlong_name_are_errors() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut broker = vhost.broker();
    let long = with_deadline("declare", Connector::new(broker.clone()).declare(&[queue(&"q".repeat(256), &[])])).await;
    assert!(matches!(long, Err(DeclareError::TooLong { .. })), "{long:?}");
    broker.addresses[0].port = 1;
    let unreachable = with_deadline("declare", Connector::new(broker).declare(&[queue("q", &[])])).await;
    assert!(matches!(unreachable, Err(DeclareError::Connect(ConnectError::Unreachable { .. }))), "{unreachable:?}");
}
