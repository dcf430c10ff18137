//! Prefetch, settlements, and the end of subscriptions.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use orderd::amqp::Connector;
use orderd::message::{Consumer, Delivery, DeliveryId, HeaderValue, SettleError, Settlement, Subscription};

use crate::support::raw_client::{RawClient, field, persistent, text, with_headers};
use crate::support::{Node, Vhost, eventually, with_deadline};

async fn subscribe(vhost: &Vhost<'_>, queue: &str, prefetch: u16) -> Subscription {
    with_deadline("subscribe", Connector::new(vhost.broker()).subscribe(queue, prefetch)).await.unwrap()
}

async fn take(subscription: &mut Subscription, count: usize) -> Vec<Delivery> {
    with_deadline("deliveries", (&mut subscription.deliveries).take(count).collect()).await
}

async fn await_end(subscription: &mut Subscription) {
    with_deadline("the end of the deliveries", async { while subscription.deliveries.next().await.is_some() {} }).await;
}

fn fill(raw: &mut RawClient, queue: &str, count: usize) {
    raw.publish_many(queue, (0..count).map(|n| format!("m{n}").into_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prefetch_limits_unacked_deliveries() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    fill(&mut raw, "q", 50);
    let mut subscription = subscribe(&vhost, "q", 5).await;
    let held = take(&mut subscription, 5).await;
    assert!(futures_util::poll!(subscription.deliveries.next()).is_pending());
    eventually("five are unacked", async || raw.depth("q") == 45).await;
    subscription.settler.settle(held[2].id, Settlement::Ack);
    take(&mut subscription, 1).await;
    eventually("one more is unacked", async || raw.depth("q") == 44).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefetch_of_0_does_not_become_unlimited() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    fill(&mut raw, "q", 10);
    let mut subscription = subscribe(&vhost, "q", 0).await;
    take(&mut subscription, 1).await;
    eventually("one is unacked", async || raw.depth("q") == 9).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_settled_delivery_is_acked_even_behind_a_slow_first_one() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    fill(&mut raw, "q", 300);
    let mut subscription = subscribe(&vhost, "q", 20).await;
    let first = take(&mut subscription, 1).await;
    // If acks waited for the first delivery, no more than the prefetch of 20 would arrive.
    for _ in 1..300 {
        let delivery = take(&mut subscription, 1).await;
        subscription.settler.settle(delivery[0].id, Settlement::Ack);
    }
    // Only the first delivery is unsettled, so only it is requeued.
    with_deadline("close", subscription.settler.close()).await.unwrap();
    eventually("the first is requeued", async || raw.depth("q") == 1).await;
    assert_eq!(raw.get("q").unwrap().body, first[0].message.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_deliveries_behind_a_slow_first_one_are_acked_without_further_traffic() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    fill(&mut raw, "q", 4);
    let mut subscription = subscribe(&vhost, "q", 100).await;
    let held = take(&mut subscription, 4).await;
    for delivery in &held[1..] {
        subscription.settler.settle(delivery.id, Settlement::Ack);
    }
    // No further deliveries follow, and the subscription is not closed.
    eventually("three are acked", async || unacked(&node, &vhost.name, "q") == 1).await;
}

/// Number of unacknowledged messages.
fn unacked(node: &Node, vhost: &str, queue: &str) -> u64 {
    let listed = node.ctl(&["-q", "list_queues", "--vhost", vhost, "name", "messages_unacknowledged"]);
    let line = listed.lines().find_map(|line| line.strip_prefix(queue)).unwrap_or_default();
    line.trim().parse().unwrap_or(u64::MAX)
}

#[tokio::test(flavor = "multi_thread")]
async fn settlements_from_many_threads_are_all_sent_before_closing() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    fill(&mut raw, "q", 400);
    let mut subscription = subscribe(&vhost, "q", 400).await;
    let mut held = take(&mut subscription, 400).await;
    fastrand::shuffle(&mut held);
    let settling: Vec<_> = held
        .chunks(100)
        .map(|part| {
            let (settler, ids): (_, Vec<_>) = (Arc::clone(&subscription.settler), part.iter().map(|d| d.id).collect());
            tokio::spawn(async move {
                for id in ids {
                    settler.settle(id, Settlement::Ack);
                }
            })
        })
        .collect();
    for task in settling {
        task.await.unwrap();
    }
    with_deadline("close", subscription.settler.close()).await.unwrap();
    eventually("the consumer is gone", async || raw.queue_counts("q").is_some_and(|(_, consumers)| consumers == 0))
        .await;
    assert_eq!(raw.depth("q"), 0);
    await_end(&mut subscription).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_that_the_broker_does_not_read_yet_are_not_lost_by_closing() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    for round in 0..10 {
        fill(&mut raw, "q", 200);
        let mut subscription = subscribe(&vhost, "q", 200).await;
        let held = take(&mut subscription, 200).await;
        // In reverse order, so that each ack is a frame of its own: RabbitMQ passes on no more than 32 at a time to a quorum
        // queue, and forgets the rest if the channel closes before it has passed them on.
        for delivery in held[1..].iter().rev() {
            subscription.settler.settle(delivery.id, Settlement::Ack);
        }
        with_deadline("close", subscription.settler.close()).await.unwrap();
        assert_eq!(raw.depth("q"), 1, "in round {round}: only the first is requeued");
        raw.get("q").unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_message_is_redelivered_and_its_neighbours_stay_acked() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    fill(&mut raw, "q", 5);
    let mut subscription = subscribe(&vhost, "q", 10).await;
    let held = take(&mut subscription, 5).await;
    for (n, delivery) in held.iter().enumerate() {
        let settlement = if n == 2 { Settlement::Release } else { Settlement::Ack };
        subscription.settler.settle(delivery.id, settlement);
    }
    let again = take(&mut subscription, 1).await.remove(0);
    assert_eq!((again.message.body.as_ref(), again.redelivered), (&b"m2"[..], true));
    // RabbitMQ 4.3 does not count requeued deliveries.
    assert_eq!(again.delivery_count(), u64::from(node.version() < (4, 3)));
    subscription.settler.settle(again.id, Settlement::Ack);
    with_deadline("close", subscription.settler.close()).await.unwrap();
    assert_eq!(raw.depth("q"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_settlement_of_an_earlier_connection_is_ignored() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    fill(&mut raw, "q", 1);
    let mut first = subscribe(&vhost, "q", 10).await;
    let stale = take(&mut first, 1).await.remove(0);
    tokio::task::block_in_place(|| vhost.close_connections());
    await_end(&mut first).await;
    first.settler.settle(stale.id, Settlement::Ack);
    assert_eq!(with_deadline("close", first.settler.close()).await, Err(SettleError));

    let mut raw = vhost.raw();
    let mut second = subscribe(&vhost, "q", 10).await;
    let again = take(&mut second, 1).await.remove(0);
    assert_eq!(again.id.tag, stale.id.tag, "the test needs the same tag on both connections");
    second.settler.settle(stale.id, Settlement::Ack);
    with_deadline("close", second.settler.close()).await.unwrap();
    eventually("the message, which nobody has acked, is requeued", async || raw.depth("q") == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_closed_by_the_broker_ends_the_subscription() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    fill(&mut raw, "q", 1);
    let mut subscription = subscribe(&vhost, "q", 10).await;
    let held = take(&mut subscription, 1).await.remove(0);
    // A delivery tag that does not exist: the broker closes the channel with 406, unknown delivery tag.
    subscription.settler.settle(DeliveryId { tag: 77, ..held.id }, Settlement::Ack);
    await_end(&mut subscription).await;
    assert_eq!(with_deadline("close", subscription.settler.close()).await, Err(SettleError));
    let mut again = subscribe(&vhost, "q", 10).await;
    assert!(take(&mut again, 1).await[0].redelivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_queue_ends_the_deliveries() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    fill(&mut raw, "q", 3);
    let mut subscription = subscribe(&vhost, "q", 10).await;
    take(&mut subscription, 1).await;
    raw.delete("q");
    await_end(&mut subscription).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_stops_intake_and_open_deliveries_can_still_be_settled() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    fill(&mut raw, "q", 30);
    let mut subscription = subscribe(&vhost, "q", 10).await;
    let first = take(&mut subscription, 1).await;
    with_deadline("cancel", subscription.settler.cancel()).await;
    let rest: Vec<_> = with_deadline("rest", (&mut subscription.deliveries).collect()).await;
    assert!(rest.len() <= 9, "{} deliveries exceed the prefetch", rest.len());
    for delivery in first.iter().chain(&rest) {
        subscription.settler.settle(delivery.id, Settlement::Ack);
    }
    with_deadline("close", subscription.settler.close()).await.unwrap();
    assert_eq!(raw.depth("q") as usize, 30 - 1 - rest.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_caller_during_a_cancel_leaves_the_subscription_usable() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    fill(&mut raw, "q", 3);
    let mut subscription = subscribe(&vhost, "q", 10).await;
    let held = take(&mut subscription, 3).await;
    for _ in 0..3 {
        let mut cancelling = subscription.settler.cancel();
        let _ = futures_util::poll!(&mut cancelling);
    }
    for delivery in &held {
        subscription.settler.settle(delivery.id, Settlement::Ack);
    }
    with_deadline("close", subscription.settler.close()).await.unwrap();
    assert_eq!(raw.depth("q"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_subscription_requeues_its_deliveries() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    fill(&mut raw, "q", 3);
    let mut subscription = subscribe(&vhost, "q", 10).await;
    let held = take(&mut subscription, 3).await;
    subscription.settler.settle(held[0].id, Settlement::Ack);
    drop(subscription);
    eventually("two are requeued", async || raw.queue_counts("q") == Some((2, 0))).await;
}

/// A header whose value is a table, nested to this depth.
fn nested(levels: usize) -> Vec<u8> {
    (0..levels)
        .fold(Vec::new(), |inner, _| field("n", b'F', &[&(inner.len() as u32).to_be_bytes()[..], &inner].concat()))
}

#[tokio::test(flavor = "multi_thread")]
async fn unusual_headers_close_no_connection_and_are_kept() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    let odd_name = [b"\x02\xC3\x28".to_vec(), b"V".to_vec()].concat();
    raw.publish("q", &with_headers(&[text("note", b"\xFF\xFE")]), b"text");
    raw.publish("q", &with_headers(&[odd_name]), b"name");
    raw.publish("q", &with_headers(&[nested(1000)]), b"deep");
    raw.publish("q", &persistent(), b"good");
    let mut subscription = subscribe(&vhost, "q", 10).await;
    let held = take(&mut subscription, 4).await;
    let bodies: Vec<_> = held.iter().map(|delivery| &delivery.message.body[..]).collect();
    assert_eq!(bodies, [&b"text"[..], b"name", b"deep", b"good"], "on one connection");
    assert_eq!(held[0].message.headers["note"], HeaderValue::Bytes(b"\xFF\xFE"[..].into()));
    assert_eq!(held[1].message.headers[r"\xc3("], HeaderValue::Void);
    assert!(matches!(&held[2].message.headers["n"], HeaderValue::Table(_)));
    held.iter().for_each(|delivery| subscription.settler.settle(delivery.id, Settlement::Ack));
    with_deadline("close", subscription.settler.close()).await.unwrap();
    assert_eq!(raw.queue_counts("q"), Some((0, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_larger_than_a_frame_are_read() {
    const FRAME: usize = 128 * 1024;
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    // Frame overhead, the content header before the properties, and the properties with an empty note.
    let rest = FRAME - 8 - 12 - with_headers(&[text("note", "")]).len();
    raw.publish("q", &with_headers(&[text("note", vec![b'x'; rest])]), b"full");
    let mut subscription = subscribe(&vhost, "q", 1).await;
    let first = take(&mut subscription, 1).await.remove(0);
    assert_eq!(first.message.headers.len(), 1);
    subscription.settler.settle(first.id, Settlement::Release);
    let again = take(&mut subscription, 1).await.remove(0);
    // `x-delivery-count`, and a second header from RabbitMQ 4.3 on.
    assert!(again.message.headers.len() > 1, "the broker has added no header");
    assert_eq!(again.message.headers["note"].as_text().map(str::len), Some(rest));
    subscription.settler.settle(again.id, Settlement::Ack);
    with_deadline("close", subscription.settler.close()).await.unwrap();
    assert_eq!(raw.queue_counts("q"), Some((0, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_ack_is_sent_without_delay() {
    let node = Node::shared();
    let vhost = node.vhost();
    let mut raw = vhost.raw();
    raw.declare_quorum("q", &[]);
    fill(&mut raw, "q", 40);
    // With a prefetch of 2, the broker sends the next delivery only after an earlier one is acked.
    let mut subscription = subscribe(&vhost, "q", 2).await;
    let start = std::time::Instant::now();
    for _ in 0..40 {
        let delivery = take(&mut subscription, 1).await.remove(0);
        subscription.settler.settle(delivery.id, Settlement::Ack);
    }
    assert!(start.elapsed() < Duration::from_secs(4), "{:?} for 40 acks", start.elapsed());
}
