//! Brokers that are killed, freeze or raise an alarm. Each test has its own node.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use orderd::amqp::Connector;
use orderd::message::{Consumer, Publisher, SettleError, Settlement};
use orderd::topology::{Argument, Declaration, Queue};

use super::to_queue;
use crate::support::{Node, eventually, with_deadline, within};

const MINUTE: Duration = Duration::from_secs(60);

/// Declares quorum queues, and waits until confirmed messages in them survive a kill of the broker.
async fn declare(connector: &Connector, queues: &[&str]) {
    let plan: Vec<_> = queues
        .iter()
        .map(|name| {
            let arguments = [("x-queue-type", Argument::Text("quorum".into()))].into();
            Declaration::Queue(Queue { name: (*name).into(), arguments })
        })
        .collect();
    connector.declare(&plan).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_costs_no_publication_and_ends_the_deliveries() {
    let mut node = Node::own("killed");
    let broker = node.vhost().broker();
    let connector = Connector::new(broker.clone());
    declare(&connector, &["q", "idle"]).await;
    let publisher = connector.publisher();
    let mut subscription = connector.subscribe("idle", 10).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let publishing: Vec<_> = (0..20)
        .map(|caller| {
            let (publisher, stop) = (publisher.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut published = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let body = format!("{caller}-{}", published.len());
                    publisher.publish([to_queue("q", body.clone())].into()).await.unwrap();
                    published.push(body);
                }
                published
            })
        })
        .collect();
    eventually("publishing is under way", async || publisher.state().unconfirmed == 20).await;
    let before = publisher.state().connection;
    tokio::task::block_in_place(|| node.kill());
    with_deadline("the end of the deliveries", async { while subscription.deliveries.next().await.is_some() {} }).await;
    assert_eq!(with_deadline("close", subscription.settler.close()).await, Err(SettleError));
    // Immediately, not after the confirm timeout.
    within(Duration::from_secs(5), "the loss is noticed", async || !publisher.state().connected).await;
    assert_eq!(publisher.state().unconfirmed, 20, "unconfirmed publications are kept");
    tokio::task::block_in_place(|| node.start());
    within(MINUTE, "the publisher has reconnected", async || {
        publisher.state().connected && publisher.state().connection > before
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let mut expected = BTreeSet::new();
    for caller in publishing {
        expected.extend(with_deadline("callers", caller).await.unwrap());
    }
    let mut raw = crate::support::raw_client::RawClient::connect(node.amqp_port, &broker.virtual_host);
    let found: BTreeSet<_> = raw.drain("q").into_iter().map(|got| String::from_utf8(got.body).unwrap()).collect();
    let lost: Vec<_> = expected.difference(&found).collect();
    assert!(lost.is_empty(), "{} of {} confirmed messages are lost: {lost:?}", lost.len(), expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_broker_is_noticed_and_nothing_counts_as_published_until_it_confirms() {
    let node = Node::own("frozen");
    let vhost = node.vhost();
    let mut broker = vhost.broker();
    (broker.confirm_timeout, broker.connect_timeout) = (Duration::from_secs(2), Duration::from_secs(2));
    let connector = Connector::new(broker);
    declare(&connector, &["q"]).await;
    let publisher = connector.publisher();
    publisher.publish([to_queue("q", "before")].into()).await.unwrap();
    let mut subscription = connector.subscribe("q", 10).await.unwrap();
    let held = with_deadline("delivery", subscription.deliveries.next()).await.unwrap();
    node.freeze();
    let publishing = tokio::spawn(publisher.publish([to_queue("q", "during")].into()));
    // The publisher notices by the confirm timeout, the subscription by missed heartbeats.
    within(MINUTE, "the publisher notices", async || !publisher.state().connected).await;
    subscription.settler.settle(held.id, Settlement::Ack);
    let ended = async { while subscription.deliveries.next().await.is_some() {} };
    tokio::time::timeout(MINUTE, ended).await.expect("the subscription notices");
    assert!(!publishing.is_finished(), "a publication was reported as confirmed by a frozen broker");
    assert_eq!(publisher.state().unconfirmed, 1);
    node.thaw();
    tokio::time::timeout(MINUTE, publishing).await.expect("it is confirmed").unwrap().unwrap();
    let mut raw = vhost.raw();
    let bodies: BTreeSet<_> = raw.drain("q").into_iter().map(|got| got.body).collect();
    assert!(bodies.contains(&b"during"[..]), "{bodies:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_an_alarm_publications_are_held_and_acks_still_go_through() {
    let node = Node::own("alarm");
    let vhost = node.vhost();
    let mut broker = vhost.broker();
    broker.confirm_timeout = Duration::from_secs(1);
    let connector = Connector::new(broker);
    declare(&connector, &["in", "out"]).await;
    vhost.raw().publish_many("in", (0..10).map(|n| format!("m{n}").into_bytes()));
    let publisher = connector.publisher();
    publisher.publish([to_queue("out", "before")].into()).await.unwrap();
    let mut subscription = connector.subscribe("in", 10).await.unwrap();
    let held: Vec<_> = with_deadline("deliveries", (&mut subscription.deliveries).take(10).collect()).await;
    tokio::task::block_in_place(|| node.set_alarm());
    let begun = Instant::now();
    let before = publisher.state().connection;
    let publishing: Vec<_> =
        (0..100).map(|n| tokio::spawn(publisher.publish([to_queue("out", format!("m{n}"))].into()))).collect();
    eventually("all publications wait", async || publisher.state().unconfirmed == 100).await;
    // The broker blocks only connections that publish, so the consumer's is not blocked.
    for delivery in &held {
        subscription.settler.settle(delivery.id, Settlement::Ack);
    }
    with_deadline("close", subscription.settler.close()).await.unwrap();
    assert_eq!(vhost.raw().depth("in"), 0);
    eventually("the publisher has reconnected three times", async || publisher.state().connection >= before + 3).await;
    assert_eq!(publisher.state().unconfirmed, 100, "the alarm did not block publishing");
    let (tries, seconds) = (publisher.state().connection - before, begun.elapsed().as_secs_f64());
    assert!(tries as f64 <= 1.0 + seconds, "{tries} connections in {seconds} s");
    tokio::task::block_in_place(|| node.clear_alarm());
    for publication in publishing {
        tokio::time::timeout(MINUTE, publication).await.expect("it is confirmed").unwrap().unwrap();
    }
    let bodies: BTreeSet<_> = vhost.raw().drain("out").into_iter().map(|got| got.body).collect();
    assert_eq!(bodies.len(), 101, "100 publications and the one before the alarm");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_negotiated_frame_size_splits_bodies_and_drops_large_headers() {
    let node = Node::own("frames");
    let vhost = node.vhost();
    let connector = Connector::new(vhost.broker());
    declare(&connector, &["q"]).await;
    // The AMQP minimum is 4096, but RabbitMQ 4.1 and newer reject clients with less than 8192.
    tokio::task::block_in_place(|| node.ctl(&["eval", "application:set_env(rabbit, frame_max, 8192)."]));
    let publisher = connector.publisher();
    let mut headers = to_queue("q", "large headers");
    headers.message.headers.insert("note".into(), "x".repeat(12_000).as_str().into());
    let answers = [to_queue("q", vec![b'x'; 1_000_000]), headers, to_queue("q", "after")]
        .map(|publication| publisher.publish([publication].into()));
    let answers = tokio::time::timeout(MINUTE, futures_util::future::join_all(answers)).await.expect("answers");
    assert_eq!(answers, [Ok(()), Ok(()), Ok(())]);
    let received = vhost.raw().drain("q");
    let bodies: BTreeSet<_> = received.iter().map(|got| got.body.len()).collect();
    assert_eq!(bodies, [1_000_000, "large headers".len(), "after".len()].into());
    let cut: Vec<_> = received.iter().filter(|got| got.has(b"x-headers-dropped")).map(|got| &*got.body).collect();
    assert_eq!(cut, [b"large headers"]);
}
