//! Connection errors by cause, and the names under which the broker lists connections.

use std::error::Error;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use orderd::amqp::{ConnectError, ConnectionEnd, Connector};
use orderd::config::{Address, Broker, Secret};
use orderd::message::{Consumer, SubscribeError};

use crate::support::{Node, eventually, with_deadline};

async fn subscribe_error(broker: Broker) -> ConnectError {
    let error: SubscribeError = with_deadline("subscribe", Connector::new(broker).subscribe("q", 1)).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot consume from queue \"q\"");
    *error.source.downcast::<ConnectError>().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_distinguished_from_a_broken_network() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut broker = vhost.broker();
    broker.password = Secret::new("wrong");
    let error = subscribe_error(broker).await;
    assert!(matches!(&error, ConnectError::Credentials { who, .. } if who == "user \"guest\""), "{error:?}");
    assert!(error.is_permanent());
    assert!(!format!("{error} {error:?}").contains("wrong"), "the error shows the password");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_virtual_host_is_named() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut broker = vhost.broker();
    broker.virtual_host = "no-such-vhost".into();
    let error = subscribe_error(broker).await;
    assert!(
        matches!(&error, ConnectError::VirtualHost { virtual_host, .. } if virtual_host == "no-such-vhost"),
        "{error:?}"
    );
    assert!(error.is_permanent());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_does_not_run_is_unreachable() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut broker = vhost.broker();
    broker.addresses[0].port = 1;
    let error = subscribe_error(broker).await;
    assert!(matches!(&error, ConnectError::Unreachable { .. }), "{error:?}");
    assert!(error.source().is_some_and(|cause| cause.to_string().contains("refused")), "{error:?}");
    assert!(!error.is_permanent());
}

#[tokio::test(flavor = "multi_thread")]
async fn connecting_to_a_silent_peer_ends_at_the_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = Node::shared();
    let vhost = node.vhost();
    let mut broker = vhost.broker();
    broker.addresses[0].port = silent.local_addr().unwrap().port();
    broker.connect_timeout = Duration::from_secs(1);
    let start = Instant::now();
    let error = subscribe_error(broker).await;
    assert!(matches!(&error, ConnectError::TimedOut { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn unreachable_addresses_leave_time_for_reachable_ones() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = Node::shared();
    let vhost = node.vhost();
    vhost.raw().declare_quorum("q", &[]);
    let mut broker = vhost.broker();
    broker.connect_timeout = Duration::from_secs(3);
    let dead = |port| Address { host: "127.0.0.1".into(), port };
    broker.addresses.extend([dead(1), dead(silent.local_addr().unwrap().port())]);
    // The order of addresses is random: six times are enough to begin with each of them.
    for _ in 0..6 {
        with_deadline("subscribe", Connector::new(broker.clone()).subscribe("q", 1)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn subscribing_to_a_missing_queue_reports_the_brokers_error() {
    let node = Node::shared();
    let vhost = node.vhost();
    let error = subscribe_error(vhost.broker()).await;
    assert!(
        matches!(&error, ConnectError::Lost(ConnectionEnd::ChannelClosed { code: 404, text }) if text.contains("'q'")),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn names_over_255_bytes_are_errors_when_connecting_too() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut broker = vhost.broker();
    let error =
        with_deadline("subscribe", Connector::new(broker.clone()).subscribe(&"q".repeat(256), 1)).await.unwrap_err();
    assert!(matches!(error.source.downcast_ref(), Some(ConnectError::Invalid { .. })), "{error:?}");
    broker.virtual_host = "v".repeat(256);
    assert!(matches!(subscribe_error(broker).await, ConnectError::Invalid { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_have_recognizable_names() {
    let node = Node::shared();
    let vhost = node.vhost();
    vhost.raw().declare_quorum("q", &[]);
    let connector = Connector::new(vhost.broker());
    let _subscription = with_deadline("subscribe", connector.subscribe("q", 1)).await.unwrap();
    let _publisher = connector.publisher();
    eventually("both are listed", async || {
        let (_, connections) = node.management("GET", &format!("/vhosts/{}/connections", vhost.name), "");
        let listed = connections.to_string();
        ["consume q", "publish"].iter().all(|purpose| listed.contains(&orderd::instance::connection_name(purpose)))
    })
    .await;
}
