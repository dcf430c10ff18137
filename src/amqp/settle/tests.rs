//! Subscriptions to a peer that does what a real broker cannot be made to do when a test wants it.

use std::cell::Cell;

use bytes::BytesMut;
use futures_util::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use super::*;
use crate::amqp::decode::{CHANNEL_CLOSE, CHANNEL_OPEN, CONSUME, QOS, answer_to};
use crate::amqp::fake_broker::{DEADLINE, Guest, Peer, put_close, put_deliver};
use crate::amqp::frame::{BODY, HEADER, HEARTBEAT, put_frame, put_method};
use crate::amqp::handshake::{CLOSE, CLOSE_OK};
use crate::chain::chain;
use crate::message::{Consumer, Subscription};

const SUBSCRIBING: &[Method] = &[CHANNEL_OPEN, QOS, CONSUME];

/// A subscription to this peer, and the peer's side of it. The peer says `more` along with its last answer.
async fn subscribed(peer: &Peer, more: impl FnOnce(&mut BytesMut)) -> (Subscription, Guest) {
    let link = peer.link();
    let (subscription, guest) = tokio::join!(link.subscribe("q", 10), peer.welcome(more));
    (subscription.unwrap(), guest)
}

fn put_delivery(out: &mut BytesMut, tag: u64, body: &[u8]) {
    put_deliver(out, tag);
    put_frame(out, HEADER, 1, |out| {
        out.put_u32(60 << 16);
        out.put_u64(body.len() as u64);
        // No properties.
        out.put_u16(0);
    });
    put_frame(out, BODY, 1, |out| out.put_slice(body));
}

fn put_answer(out: &mut BytesMut, request: Method) {
    put_method(out, 1, answer_to(request), |out| put_short(out, "orderd-1"));
}

/// To a passive `queue.declare`.
fn put_counts(out: &mut BytesMut, ready: u32, consumers: u32) {
    put_method(out, 1, answer_to(QUEUE_DECLARE), |out| {
        put_short(out, "q");
        out.put_u32(ready);
        out.put_u32(consumers);
    });
}

async fn next(subscription: &mut Subscription) -> Option<Delivery> {
    timeout(DEADLINE, subscription.deliveries.next()).await.expect("neither a delivery nor the end")
}

/// Runs to its end what a settler is asked.
async fn done<T>(asked: tokio::task::JoinHandle<T>) -> T {
    timeout(DEADLINE, asked).await.expect("nobody answers").unwrap()
}

#[tokio::test]
async fn what_is_handed_out_before_the_broker_agrees_to_cancel_is_worked_on_and_settled() {
    let peer = Peer::new(SUBSCRIBING).await;
    let (mut subscription, mut guest) = subscribed(&peer, |out| put_delivery(out, 1, b"one")).await;
    let cancelling = tokio::spawn(subscription.settler.cancel());
    guest.hears(CANCEL).await;
    guest.say(|out| put_delivery(out, 2, b"two")).await;
    guest
        .say(|out| {
            put_delivery(out, 3, b"three");
            put_answer(out, CANCEL);
        })
        .await;
    done(cancelling).await;
    let mut held = Vec::new();
    while let Some(delivery) = next(&mut subscription).await {
        held.push(delivery);
    }
    let bodies: Vec<_> = held.iter().map(|delivery| &delivery.message.body[..]).collect();
    assert_eq!(bodies, [&b"one"[..], b"two", b"three"]);
    held.iter().for_each(|delivery| subscription.settler.settle(delivery.id, Settlement::Ack));
    let closing = tokio::spawn(subscription.settler.close());
    guest.sees(|frame| frame.payload == b"\0\x3c\0\x50\0\0\0\0\0\0\0\x03\x01").await;
    guest.hears(NACK).await;
    // The queue has all only when its count of consumers falls.
    for consumers in [1, 1, 0] {
        guest.hears(QUEUE_DECLARE).await;
        assert!(!closing.is_finished());
        guest.say(|out| put_counts(out, 0, consumers)).await;
    }
    guest.hears(CLOSE).await;
    guest.say(|out| put_method(out, 0, CLOSE_OK, |_| {})).await;
    assert_eq!(done(closing).await, Ok(()));
    guest.hangs_up().await;
}

/// The next of what is said of settling, cancelling and looking.
async fn step(guest: &mut Guest) -> Method {
    let said = Cell::new(None);
    guest
        .sees(|frame| {
            said.set(frame.method().unwrap().map(|(method, _)| method));
            said.get().is_some_and(|method| [ACK, CANCEL, QUEUE_DECLARE].contains(&method))
        })
        .await;
    said.get().unwrap()
}

#[tokio::test]
async fn winding_down_works_on_what_is_on_its_way_and_holds_acks_back_until_the_broker_is_asked_to_stop() {
    let peer = Peer::new(SUBSCRIBING).await;
    let (mut subscription, mut guest) = subscribed(&peer, |out| put_delivery(out, 1, b"one")).await;
    let held = next(&mut subscription).await.unwrap();
    let winding = tokio::spawn(subscription.settler.wind_down());
    subscription.settler.settle(held.id, Settlement::Ack);
    assert_eq!(step(&mut guest).await, QUEUE_DECLARE, "nothing has come for a while");
    guest.say(|out| put_counts(out, 1, 1)).await;
    assert_eq!(step(&mut guest).await, QUEUE_DECLARE, "one was to come");
    guest.say(|out| put_delivery(out, 2, b"two")).await;
    guest.say(|out| put_counts(out, 0, 1)).await;
    assert_eq!(step(&mut guest).await, CANCEL);
    guest.say(|out| put_answer(out, CANCEL)).await;
    done(winding).await;
    assert_eq!(step(&mut guest).await, ACK);
    assert_eq!(next(&mut subscription).await.unwrap().message.body, b"two"[..]);
    assert!(next(&mut subscription).await.is_none());
}

#[tokio::test]
async fn winding_down_asks_nothing_where_the_prefetch_is_handed_out() {
    let peer = Peer::new(SUBSCRIBING).await;
    let (subscription, mut guest) =
        subscribed(&peer, |out| (1..=10).for_each(|tag| put_delivery(out, tag, b"x"))).await;
    let winding = tokio::spawn(subscription.settler.wind_down());
    assert_eq!(step(&mut guest).await, CANCEL);
    guest.say(|out| put_answer(out, CANCEL)).await;
    done(winding).await;
}

#[tokio::test]
async fn a_subscription_closes_well_though_the_broker_says_no_goodbye_and_a_second_time_not() {
    let peer = Peer::new(SUBSCRIBING).await;
    let (subscription, mut guest) = subscribed(&peer, |_| {}).await;
    let [first, second] = [(); 2].map(|()| tokio::spawn(subscription.settler.close()));
    guest.hears(CANCEL).await;
    guest.say(|out| put_answer(out, CANCEL)).await;
    guest.hears(QUEUE_DECLARE).await;
    guest.say(|out| put_counts(out, 0, 0)).await;
    guest.hears(CLOSE).await;
    assert_eq!(done(second).await, Err(SettleError));
    assert_eq!(done(first).await, Ok(()));
    done(tokio::spawn(subscription.settler.cancel())).await;
    done(tokio::spawn(subscription.settler.wind_down())).await;
    guest.hangs_up().await;
}

#[tokio::test]
async fn a_broker_that_hangs_up_in_the_middle_of_a_delivery_has_handed_out_nothing_of_it() {
    let peer = Peer::new(SUBSCRIBING).await;
    let mut whole = BytesMut::new();
    put_delivery(&mut whole, 2, b"two");
    for cut in [8, 50, 70, whole.len() - 1] {
        let (mut subscription, mut guest) = subscribed(&peer, |out| put_delivery(out, 1, b"one")).await;
        assert_eq!(next(&mut subscription).await.unwrap().message.body, b"one"[..]);
        guest.say(|out| out.put_slice(&whole[..cut])).await;
        drop(guest);
        assert!(next(&mut subscription).await.is_none(), "{cut} bytes");
        assert_eq!(subscription.settler.close().await, Err(SettleError));
    }
}

#[tokio::test]
async fn a_consumer_that_the_broker_cancels_is_over_and_says_goodbye() {
    let peer = Peer::new(SUBSCRIBING).await;
    for asked_too in [false, true] {
        let (mut subscription, mut guest) = subscribed(&peer, |_| {}).await;
        let cancelling = tokio::spawn(subscription.settler.cancel());
        let no_wait = |out: &mut BytesMut| {
            put_short(out, "orderd-1");
            out.put_u8(1);
        };
        if asked_too {
            guest.hears(CANCEL).await;
        }
        guest.say(|out| put_method(out, 1, CANCEL, no_wait)).await;
        done(cancelling).await;
        assert!(next(&mut subscription).await.is_none());
        guest.hears(CLOSE).await;
        guest.say(|out| put_method(out, 0, CLOSE_OK, |_| {})).await;
        guest.hangs_up().await;
        assert_eq!(subscription.settler.close().await, Err(SettleError));
    }
}

#[tokio::test]
async fn why_the_broker_hangs_up_is_heard_though_it_comes_along_with_an_answer() {
    let peer = Peer::new(SUBSCRIBING).await;
    for (ending, agreeing) in [((0, CLOSE), CLOSE_OK), ((1, CHANNEL_CLOSE), answer_to(CHANNEL_CLOSE))] {
        let (subscription, mut guest) = subscribed(&peer, |_| {}).await;
        let cancelling = tokio::spawn(subscription.settler.cancel());
        guest.hears(CANCEL).await;
        guest
            .say(|out| {
                put_answer(out, CANCEL);
                put_close(out, ending, 320, "CONNECTION_FORCED");
            })
            .await;
        guest.stream.shutdown().await.unwrap();
        done(cancelling).await;
        guest.hears(agreeing).await;
    }
}

#[tokio::test]
async fn a_broker_that_ends_the_connection_while_we_subscribe_is_agreed_with_and_quoted() {
    for answered in [&[], &SUBSCRIBING[..1], &SUBSCRIBING[..2]] {
        let peer = Peer::new(answered).await;
        let link = peer.link();
        let subscribing = tokio::spawn(async move { link.subscribe("q", 10).await });
        let mut guest = peer.welcome(|out| put_close(out, (0, CLOSE), 320, "CONNECTION_FORCED")).await;
        guest.hears(CLOSE_OK).await;
        drop(guest);
        let error = done(subscribing).await.unwrap_err();
        assert!(chain(&error).ends_with("320 CONNECTION_FORCED"), "{error:?}");
    }
}

#[tokio::test]
async fn a_delivery_numbered_out_of_turn_is_not_worked_on() {
    let peer = Peer::new(SUBSCRIBING).await;
    for tag in [0, 1, 3, u64::MAX] {
        let (mut subscription, mut guest) = subscribed(&peer, |out| put_delivery(out, 1, b"one")).await;
        let held = next(&mut subscription).await.unwrap();
        guest.say(|out| put_delivery(out, tag, b"odd")).await;
        assert!(next(&mut subscription).await.is_none(), "{tag}");
        subscription.settler.settle(held.id, Settlement::Ack);
        guest.hangs_up().await;
    }
}

#[tokio::test]
async fn an_idle_subscription_is_kept_by_heartbeats_and_given_up_without() {
    let mut peer = Peer::new(SUBSCRIBING).await;
    peer.broker.heartbeat = Duration::from_secs(6);
    let (mut subscription, mut guest) = subscribed(&peer, |_| {}).await;
    // Now it leaps from one look to the next whenever everybody waits.
    tokio::time::pause();
    for _ in 0..5 {
        guest.sees(|frame| frame.kind == HEARTBEAT).await;
        guest.say(|out| put_frame(out, HEARTBEAT, 0, |_| {})).await;
    }
    assert!(futures_util::poll!(subscription.deliveries.next()).is_pending());
    guest.hangs_up().await;
    assert!(next(&mut subscription).await.is_none());
}

#[tokio::test]
async fn a_broker_that_does_not_answer_a_cancel_keeps_nobody_waiting_and_gets_heartbeats_meanwhile() {
    let mut peer = Peer::new(SUBSCRIBING).await;
    peer.broker.heartbeat = Duration::from_secs(6);
    let (mut subscription, mut guest) = subscribed(&peer, |_| {}).await;
    let (cancelling, closing) =
        (tokio::spawn(subscription.settler.cancel()), tokio::spawn(subscription.settler.close()));
    guest.hears(CANCEL).await;
    tokio::time::pause();
    guest.sees(|frame| frame.kind == HEARTBEAT).await;
    done(cancelling).await;
    assert!(next(&mut subscription).await.is_none());
    assert_eq!(done(closing).await, Err(SettleError));
    guest.hangs_up().await;
}
