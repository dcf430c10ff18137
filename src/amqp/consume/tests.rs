//! Subscriptions to a fake broker, in situations that a real one cannot be brought into.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use futures_util::{FutureExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::amqp::ConnectionEnd;
use crate::amqp::fake_broker::{DEADLINE, FakeBroker, FakeConnection, put_delivery, put_heartbeat};
use crate::amqp::protocol::{FrameType, Method, MethodId, put_frame, put_method};
use crate::chain::chain;
use crate::message::{ANSWERS_OVERDUE, Consumer, Delivery, LossCause, SettleError, Settlement, Subscription};

/// What a subscription requests when it connects.
const OPENING: &[MethodId] = &[MethodId::CHANNEL_OPEN, MethodId::BASIC_QOS, MethodId::BASIC_CONSUME];

/// A subscription to this broker, and the broker's side of its connection. The broker sends `more` with its last reply.
async fn subscribed(broker: &FakeBroker, more: impl FnOnce(&mut BytesMut)) -> (Subscription, FakeConnection) {
    let connector = broker.connector();
    let (subscription, connection) = tokio::join!(connector.subscribe("q", 10), broker.accept(more));
    (subscription.unwrap(), connection)
}

/// The reply to a passive `queue.declare`.
fn counts(message_count: u32, consumer_count: u32) -> Method<'static> {
    Method::QueueDeclareOk { message_count, consumer_count }
}

fn close(text: &'static str) -> Method<'static> {
    Method::ConnectionClose { code: 320, text: text.into() }
}

async fn next(subscription: &mut Subscription) -> Option<Delivery> {
    timeout(DEADLINE, subscription.deliveries.next()).await.expect("neither a delivery nor the end")
}

async fn done<T>(task: tokio::task::JoinHandle<T>) -> T {
    timeout(DEADLINE, task).await.expect("no answer").unwrap()
}

#[tokio::test]
async fn a_broker_that_delivers_more_than_the_prefetch_is_disconnected() {
    let broker = FakeBroker::new(OPENING).await;
    let deliver = |out: &mut BytesMut| (1..=10).for_each(|n| put_delivery(out, n, b"x"));
    let (mut subscription, mut connection) = subscribed(&broker, deliver).await;
    let first = next(&mut subscription).await.unwrap();
    subscription.settler.settle(first.id, Settlement::Ack);
    connection.expect_method(MethodId::BASIC_ACK).await;
    connection.send(|out| put_delivery(out, 11, b"x")).await;
    for tag in 2..=11 {
        assert_eq!(next(&mut subscription).await.unwrap().id.tag, tag, "one was settled");
    }
    connection.send(|out| put_delivery(out, 12, b"x")).await;
    timeout(DEADLINE, subscription.settler.ended()).await.expect("still connected");
}

#[tokio::test]
async fn a_broker_that_uses_channels_which_are_not_open_or_sends_what_was_not_asked_for_is_disconnected() {
    let broker = FakeBroker::new(OPENING).await;
    let (exchange, routing_key) = ("orders".into(), "order.normal.new".into());
    let deliver = Method::BasicDeliver { delivery_tag: 1, redelivered: false, exchange, routing_key };
    let (exchange, routing_key) = ("orders".into(), "order.normal.new".into());
    let returned = Method::BasicReturn { code: 312, text: "NO_ROUTE".into(), exchange, routing_key };
    let put_content = |out: &mut BytesMut, channel, method: &Method<'_>, size: u64| {
        put_method(out, 1, method);
        put_frame(out, FrameType::Header, channel, |out| {
            out.put_slice(&[0, 60, 0, 0]);
            out.put_u64(size);
            out.put_u16(0);
        });
    };
    let sent: [&dyn Fn(&mut BytesMut); 8] = [
        &|out| put_method(out, 2, &deliver),
        &|out| put_method(out, u16::MAX, &Method::ChannelClose { code: 404, text: "x".into() }),
        &|out| put_content(out, 0, &deliver, 0),
        &|out| put_content(out, 1, &deliver, 1 << 63),
        &|out| put_content(out, 1, &returned, 0),
        &|out| put_method(out, 1, &Method::BasicAck { delivery_tag: 1, multiple: true }),
        &|out| put_method(out, 1, &Method::BasicConsumeOk),
        &|out| put_frame(out, FrameType::Method, 1, |out| out.put_slice(&[0, 99, 0, 99])),
    ];
    for send in sent {
        let (mut subscription, mut connection) = subscribed(&broker, |_| {}).await;
        connection.send(send).await;
        assert!(next(&mut subscription).await.is_none());
        connection.expect_disconnect().await;
    }
}

#[tokio::test]
async fn deliveries_beyond_the_byte_limit_are_received_once_others_are_settled() {
    let mut broker = FakeBroker::new(OPENING).await;
    broker.config.max_unsettled_bytes = 1000;
    let deliver = |out: &mut BytesMut| (1..=2).for_each(|n| put_delivery(out, n, &[b'x'; 600]));
    let (mut subscription, mut connection) = subscribed(&broker, deliver).await;
    let first = next(&mut subscription).await.unwrap();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(subscription.deliveries.next().now_or_never().is_none(), "it exceeds the limit");
    subscription.settler.settle(first.id, Settlement::Ack);
    connection.expect_method(MethodId::BASIC_ACK).await;
    assert_eq!(next(&mut subscription).await.unwrap().id.tag, 2);
}

#[tokio::test]
async fn deliveries_that_arrive_before_the_cancel_ok_are_processed_and_settled() {
    let broker = FakeBroker::new(OPENING).await;
    let (mut subscription, mut connection) = subscribed(&broker, |out| put_delivery(out, 1, b"one")).await;
    let cancelling = tokio::spawn(subscription.settler.cancel());
    connection.expect_method(MethodId::BASIC_CANCEL).await;
    connection.send(|out| put_delivery(out, 2, b"two")).await;
    connection
        .send(|out| {
            put_delivery(out, 3, b"three");
            put_method(out, 1, &Method::BasicCancelOk);
        })
        .await;
    done(cancelling).await;
    let mut received = Vec::new();
    while let Some(delivery) = next(&mut subscription).await {
        received.push(delivery);
    }
    let bodies: Vec<_> = received.iter().map(|delivery| &delivery.message.body[..]).collect();
    assert_eq!(bodies, [&b"one"[..], b"two", b"three"]);
    received.iter().for_each(|delivery| subscription.settler.settle(delivery.id, Settlement::Ack));
    let closing = tokio::spawn(subscription.settler.close());
    let ack = Method::BasicAck { delivery_tag: 3, multiple: true };
    connection.expect_frame(|frame| (Method::parse(frame).unwrap() == Some(ack.clone())).then_some(())).await;
    connection.expect_method(MethodId::BASIC_NACK).await;
    // The queue has applied everything only when its count of consumers falls.
    for consumers in [1, 1, 0] {
        connection.expect_method(MethodId::QUEUE_DECLARE).await;
        assert!(!closing.is_finished());
        connection.send_method(counts(0, consumers)).await;
    }
    connection.expect_method(MethodId::CONNECTION_CLOSE).await;
    connection.send_connection_method(Method::ConnectionCloseOk).await;
    assert_eq!(done(closing).await, Ok(()));
    connection.expect_disconnect().await;
}

/// The next ack, cancel or question about the queue.
async fn step(connection: &mut FakeConnection) -> MethodId {
    connection.expect_one_of(&[MethodId::BASIC_ACK, MethodId::BASIC_CANCEL, MethodId::QUEUE_DECLARE]).await
}

#[tokio::test]
async fn cancelling_when_idle_receives_what_is_on_its_way_and_holds_acks_back_until_then() {
    let broker = FakeBroker::new(OPENING).await;
    let (mut subscription, mut connection) = subscribed(&broker, |out| put_delivery(out, 1, b"one")).await;
    let held = next(&mut subscription).await.unwrap();
    let cancelling = tokio::spawn(subscription.settler.cancel_when_idle());
    subscription.settler.settle(held.id, Settlement::Ack);
    assert_eq!(step(&mut connection).await, MethodId::QUEUE_DECLARE, "nothing arrived for a while");
    connection.send_method(counts(1, 1)).await;
    assert_eq!(step(&mut connection).await, MethodId::QUEUE_DECLARE, "one was ready");
    connection.send(|out| put_delivery(out, 2, b"two")).await;
    connection.send_method(counts(0, 1)).await;
    assert_eq!(step(&mut connection).await, MethodId::BASIC_CANCEL);
    connection.send_method(Method::BasicCancelOk).await;
    done(cancelling).await;
    assert_eq!(step(&mut connection).await, MethodId::BASIC_ACK);
    assert_eq!(next(&mut subscription).await.unwrap().message.body, b"two"[..]);
    assert!(next(&mut subscription).await.is_none());
}

#[tokio::test]
async fn cancelling_when_idle_does_not_wait_when_the_prefetch_is_used_up() {
    let broker = FakeBroker::new(OPENING).await;
    let (subscription, mut connection) =
        subscribed(&broker, |out| (1..=10).for_each(|tag| put_delivery(out, tag, b"x"))).await;
    let cancelling = tokio::spawn(subscription.settler.cancel_when_idle());
    assert_eq!(step(&mut connection).await, MethodId::BASIC_CANCEL);
    connection.send_method(Method::BasicCancelOk).await;
    done(cancelling).await;
}

#[tokio::test]
async fn a_subscription_closes_cleanly_without_a_close_ok_and_only_once() {
    let broker = FakeBroker::new(OPENING).await;
    let (subscription, mut connection) = subscribed(&broker, |_| {}).await;
    let [first, second] = [(); 2].map(|()| tokio::spawn(subscription.settler.close()));
    connection.expect_method(MethodId::BASIC_CANCEL).await;
    connection.send_method(Method::BasicCancelOk).await;
    connection.expect_method(MethodId::QUEUE_DECLARE).await;
    connection.send_method(counts(0, 0)).await;
    connection.expect_method(MethodId::CONNECTION_CLOSE).await;
    assert_eq!(done(second).await, Err(SettleError));
    assert_eq!(done(first).await, Ok(()));
    done(tokio::spawn(subscription.settler.cancel())).await;
    done(tokio::spawn(subscription.settler.cancel_when_idle())).await;
    connection.expect_disconnect().await;
}

#[tokio::test]
async fn a_delivery_cut_off_by_the_end_of_the_connection_is_not_received() {
    let broker = FakeBroker::new(OPENING).await;
    let mut whole = BytesMut::new();
    put_delivery(&mut whole, 2, b"two");
    for cut in [8, 50, 70, whole.len() - 1] {
        let (mut subscription, mut connection) = subscribed(&broker, |out| put_delivery(out, 1, b"one")).await;
        assert_eq!(next(&mut subscription).await.unwrap().message.body, b"one"[..]);
        connection.send(|out| out.put_slice(&whole[..cut])).await;
        drop(connection);
        assert!(next(&mut subscription).await.is_none(), "{cut} bytes");
        assert_eq!(subscription.settler.close().await, Err(SettleError));
    }
}

#[tokio::test]
async fn a_consumer_that_the_broker_cancels_ends_and_closes_its_connection() {
    let broker = FakeBroker::new(OPENING).await;
    for cancelled_too in [false, true] {
        let (mut subscription, mut connection) = subscribed(&broker, |_| {}).await;
        let cancelling = tokio::spawn(subscription.settler.cancel());
        if cancelled_too {
            connection.expect_method(MethodId::BASIC_CANCEL).await;
        }
        connection.send_method(Method::BasicCancel { consumer_tag: "orderd-1".into() }).await;
        done(cancelling).await;
        assert!(next(&mut subscription).await.is_none());
        connection.expect_method(MethodId::CONNECTION_CLOSE).await;
        connection.send_connection_method(Method::ConnectionCloseOk).await;
        connection.expect_disconnect().await;
        assert_eq!(subscription.settler.close().await, Err(SettleError));
    }
}

#[tokio::test]
async fn a_close_that_arrives_together_with_a_reply_is_answered() {
    let broker = FakeBroker::new(OPENING).await;
    let channel_closed = Method::ChannelClose { code: 320, text: "CONNECTION_FORCED".into() };
    for (channel, closed, answer) in [
        (0, close("CONNECTION_FORCED"), MethodId::CONNECTION_CLOSE_OK),
        (1, channel_closed, MethodId::CHANNEL_CLOSE.reply()),
    ] {
        let (subscription, mut connection) = subscribed(&broker, |_| {}).await;
        let cancelling = tokio::spawn(subscription.settler.cancel());
        connection.expect_method(MethodId::BASIC_CANCEL).await;
        connection
            .send(|out| {
                put_method(out, 1, &Method::BasicCancelOk);
                put_method(out, channel, &closed);
            })
            .await;
        connection.stream.shutdown().await.unwrap();
        done(cancelling).await;
        connection.expect_method(answer).await;
    }
}

#[tokio::test]
async fn a_close_while_subscribing_is_answered_and_quoted_in_the_error() {
    for answered in [&[], &OPENING[..1], &OPENING[..2]] {
        let broker = FakeBroker::new(answered).await;
        let connector = broker.connector();
        let subscribing = tokio::spawn(async move { connector.subscribe("q", 10).await });
        let mut connection = broker.accept(|out| put_method(out, 0, &close("CONNECTION_FORCED"))).await;
        connection.expect_method(MethodId::CONNECTION_CLOSE_OK).await;
        drop(connection);
        let error = done(subscribing).await.unwrap_err();
        assert!(chain(&error).ends_with("320 CONNECTION_FORCED"), "{error:?}");
    }
}

#[tokio::test]
async fn a_delivery_with_a_tag_out_of_sequence_is_not_processed() {
    let broker = FakeBroker::new(OPENING).await;
    for tag in [0, 1, 3, u64::MAX] {
        let (mut subscription, mut connection) = subscribed(&broker, |out| put_delivery(out, 1, b"one")).await;
        let held = next(&mut subscription).await.unwrap();
        connection.send(|out| put_delivery(out, tag, b"odd")).await;
        assert!(next(&mut subscription).await.is_none(), "{tag}");
        subscription.settler.settle(held.id, Settlement::Ack);
        connection.expect_disconnect().await;
    }
}

#[tokio::test]
async fn an_idle_subscription_lives_on_heartbeats_and_ends_without_them() {
    let mut broker = FakeBroker::new(OPENING).await;
    broker.config.heartbeat = Duration::from_secs(6);
    let (mut subscription, mut connection) = subscribed(&broker, |_| {}).await;
    // From now on, time advances to the next check whenever all tasks wait.
    tokio::time::pause();
    for _ in 0..5 {
        connection.expect_heartbeat().await;
        connection.send(put_heartbeat).await;
    }
    assert!(futures_util::poll!(subscription.deliveries.next()).is_pending());
    connection.expect_disconnect().await;
    assert!(next(&mut subscription).await.is_none());
}

#[tokio::test]
async fn a_cancel_without_a_reply_times_out_and_heartbeats_go_on_meanwhile() {
    let mut broker = FakeBroker::new(OPENING).await;
    broker.config.heartbeat = Duration::from_secs(6);
    let (mut subscription, mut connection) = subscribed(&broker, |_| {}).await;
    let (cancelling, closing) =
        (tokio::spawn(subscription.settler.cancel()), tokio::spawn(subscription.settler.close()));
    connection.expect_method(MethodId::BASIC_CANCEL).await;
    tokio::time::pause();
    connection.expect_heartbeat().await;
    done(cancelling).await;
    assert!(next(&mut subscription).await.is_none());
    assert_eq!(done(closing).await, Err(SettleError));
    connection.expect_disconnect().await;
}

#[tokio::test]
async fn a_node_that_sends_nothing_is_noticed_before_its_connection_is_lost() {
    let mut broker = FakeBroker::new(OPENING).await;
    broker.config.heartbeat = Duration::from_secs(10);
    let (subscription, mut connection) = subscribed(&broker, |_| {}).await;
    let is_silent = || subscription.silent.load(std::sync::atomic::Ordering::Relaxed);
    // From now on, time advances to the next check whenever all tasks wait.
    tokio::time::pause();
    for _ in 0..5 {
        connection.expect_heartbeat().await;
        connection.send(put_heartbeat).await;
        assert!(!is_silent());
    }
    while !is_silent() {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(subscription.settler.ended().now_or_never().is_none(), "lost only after two intervals");
    assert!(!subscription.settler.was_ended_by_broker());
    subscription.settler.ended().await;
}

#[tokio::test]
async fn a_consuming_connection_that_loses_acks_is_noticed_in_seconds_and_given_up() {
    let mut broker = FakeBroker::new(OPENING).await;
    broker.config.heartbeat = Duration::ZERO;
    let deliver = |out: &mut BytesMut| (1..=2).for_each(|n| put_delivery(out, n, b"x"));
    let (mut subscription, mut connection) = subscribed(&broker, deliver).await;
    let (one, two) = (next(&mut subscription).await.unwrap(), next(&mut subscription).await.unwrap());
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(subscription.settler.unanswered(), Duration::ZERO, "nothing to answer");
    subscription.settler.settle(one.id, Settlement::Ack);
    connection.expect_method(MethodId::BASIC_QOS).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(subscription.settler.unanswered() >= ANSWERS_OVERDUE);
    connection.send_method(Method::BasicQosOk).await;
    while !subscription.settler.unanswered().is_zero() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    subscription.settler.settle(two.id, Settlement::Ack);
    connection.expect_method(MethodId::BASIC_QOS).await;
    let cause = subscription.settler.ended().await;
    assert!(matches!(&cause, LossCause::Other(reason) if reason.contains("20s")), "{cause:?}");
    connection.expect_disconnect().await;
}

#[tokio::test]
async fn a_passed_consumer_timeout_is_the_cause_of_a_lost_subscription() {
    let broker = FakeBroker::new(OPENING).await;
    let (subscription, mut connection) = subscribed(&broker, |_| {}).await;
    let text = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 10000 ms.";
    connection.send_method(Method::ChannelClose { code: 406, text: text.into() }).await;
    let cause = timeout(DEADLINE, subscription.settler.ended()).await.unwrap();
    assert_eq!(cause, LossCause::AckTimeout(Duration::from_secs(10)));
    connection.expect_method(MethodId::CHANNEL_CLOSE_OK).await;
}

#[tokio::test]
async fn a_cancel_without_a_reason_is_a_passed_consumer_timeout_if_the_queue_exists_and_a_delivery_was_held() {
    for (held, exists, expected) in [
        (Duration::from_secs(9), true, Some(LossCause::AckTimeout(Duration::from_secs(9)))),
        (Duration::from_secs(9), false, None),
        (Duration::from_millis(200), true, None),
    ] {
        let mut broker = FakeBroker::new(OPENING).await;
        broker.config.heartbeat = Duration::ZERO;
        let (mut subscription, mut connection) = subscribed(&broker, |out| put_delivery(out, 1, b"x")).await;
        next(&mut subscription).await.unwrap();
        tokio::time::pause();
        tokio::time::sleep(held).await;
        tokio::time::resume();
        connection.send_method(Method::BasicCancel { consumer_tag: "orderd".into() }).await;
        if held > Duration::from_secs(1) {
            connection.expect_method(MethodId::QUEUE_DECLARE).await;
            connection
                .send_method(match exists {
                    true => Method::QueueDeclareOk { message_count: 0, consumer_count: 0 },
                    false => Method::ChannelClose { code: 404, text: "NOT_FOUND".into() },
                })
                .await;
        }
        let cause = timeout(DEADLINE, subscription.settler.ended()).await.unwrap();
        let cancelled = || LossCause::Other(ConnectionEnd::ConsumerCancelled.to_string());
        assert_eq!(cause, expected.unwrap_or_else(cancelled), "held for {held:?}, exists: {exists}");
    }
}
