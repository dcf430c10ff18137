//! Publishing to a fake broker, in situations that a real one cannot be brought into.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use tokio::time::timeout;

use super::*;
use crate::amqp::fake_broker::{DEADLINE, FakeBroker, FakeConnection, put_heartbeat};
use crate::amqp::protocol::{Method, MethodId, put_method};
use crate::message::Message;

/// What a publisher requests when it connects.
const OPENING: &[MethodId] = &[MethodId::CHANNEL_OPEN, MethodId::CONFIRM_SELECT];

async fn confirm(connection: &mut FakeConnection, delivery_tag: u64, multiple: bool) {
    connection.send_method(Method::BasicAck { delivery_tag, multiple }).await;
}

fn close(code: u16, text: &'static str) -> Method<'static> {
    Method::ConnectionClose { code, text: text.into() }
}

fn publication(size: usize) -> Arc<[Publication]> {
    let message = Message { body: Bytes::from(vec![b'x'; size]), ..Message::default() };
    [Publication { exchange: "orders".into(), routing_key: "order.normal.new".into(), message }].into()
}

#[tokio::test]
async fn what_the_broker_sent_before_it_closed_the_socket_is_received_although_nothing_more_can_be_sent() {
    let broker = FakeBroker::new(OPENING).await;
    let publisher = broker.connector().publisher();
    let mut connection = broker.accept(|_| {}).await;
    // More than the socket buffers hold, so that it is still being sent when the close arrives.
    let answer = tokio::spawn(publisher.publish(publication(32 << 20)));
    connection.expect_method(MethodId::BASIC_PUBLISH).await;
    connection.send_connection_method(close(501, "FRAME_ERROR")).await;
    drop(connection);
    let answer = timeout(DEADLINE, answer).await.expect("the message is not rejected").unwrap();
    assert!(
        matches!(&answer, Err(Unpublished { failures }) if matches!(&failures[..], [(0, PublishError::Invalid { problem, .. })] if problem == "501 FRAME_ERROR")),
        "{answer:?}"
    );
}

#[tokio::test]
async fn all_publications_that_cannot_be_encoded_are_named_and_none_is_published() {
    let broker = FakeBroker::new(OPENING).await;
    let publisher = broker.connector().publisher();
    let publication = |routing_key: String| Publication { routing_key, ..publication(1)[0].clone() };
    let too_long = || publication("k".repeat(256));
    let all = [publication("k".to_owned()), too_long(), publication("k".to_owned()), too_long()];
    let Err(Unpublished { failures }) = publisher.publish(all.into()).await else { panic!("two are too long") };
    let invalid = failures.iter().filter(|(_, error)| matches!(error, PublishError::Invalid { .. }));
    assert_eq!(invalid.map(|(index, _)| *index).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(publisher.state().unconfirmed, 0);
}

#[tokio::test]
async fn what_the_broker_sends_with_the_handshake_is_handled_at_once() {
    let broker = FakeBroker::new(OPENING).await;
    let publisher = broker.connector().publisher();
    let mut connection = broker.accept(|out| put_method(out, 0, &close(320, "CONNECTION_FORCED"))).await;
    connection.expect_method(MethodId::CONNECTION_CLOSE_OK).await;
    drop(connection);
    let _next = broker.accept(|_| {}).await;
    assert_eq!(publisher.state().unconfirmed, 0);
}

#[tokio::test]
async fn a_broker_that_closes_the_connection_but_not_the_socket_does_not_delay_the_next_connection() {
    let broker = FakeBroker::new(OPENING).await;
    let publisher = broker.connector().publisher();
    let forced = close(320, "CONNECTION_FORCED");
    let channel_closed = Method::ChannelClose { code: 320, text: "CONNECTION_FORCED".into() };
    for (channel, method, answer) in
        [(0, forced, MethodId::CONNECTION_CLOSE_OK), (1, channel_closed, MethodId::CONNECTION_CLOSE)]
    {
        let mut connection = broker.accept(|_| {}).await;
        connection.send(|out| put_method(out, channel, &method)).await;
        connection.expect_method(answer).await;
        connection.expect_disconnect().await;
    }
    let mut connection = broker.accept(|_| {}).await;
    let answer = tokio::spawn(publisher.publish(publication(10)));
    connection.expect_method(MethodId::BASIC_PUBLISH).await;
    confirm(&mut connection, 1, false).await;
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
}

#[tokio::test]
async fn a_confirm_of_an_unused_tag_confirms_nothing() {
    for (tag, multiple) in [(2, true), (u64::MAX, true), (2, false)] {
        let broker = FakeBroker::new(OPENING).await;
        let publisher = broker.connector().publisher();
        let mut connection = broker.accept(|_| {}).await;
        let answer = tokio::spawn(publisher.publish(publication(10)));
        connection.expect_method(MethodId::BASIC_PUBLISH).await;
        confirm(&mut connection, tag, multiple).await;
        let mut next = broker.accept(|_| {}).await;
        next.expect_method(MethodId::BASIC_PUBLISH).await;
        assert!(!answer.is_finished(), "confirmed by {tag}, {multiple}");
        confirm(&mut next, 1, false).await;
        assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
    }
}

#[tokio::test]
async fn a_publisher_with_everything_confirmed_closes_cleanly_without_a_close_ok() {
    let broker = FakeBroker::new(OPENING).await;
    let publisher = broker.connector().publisher();
    let mut connection = broker.accept(|_| {}).await;
    let answer = tokio::spawn(publisher.publish(publication(10)));
    connection.expect_method(MethodId::BASIC_PUBLISH).await;
    confirm(&mut connection, 1, false).await;
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
    assert_eq!(publisher.close(Duration::from_millis(200)).await, Ok(()));
    connection.expect_method(MethodId::CONNECTION_CLOSE).await;
}

#[tokio::test]
async fn garbage_ends_the_connection_and_loses_no_publication() {
    let broker = FakeBroker::new(OPENING).await;
    let publisher = broker.connector().publisher();
    let answer = tokio::spawn(publisher.publish(publication(10)));
    for garbage in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"\x01\x00\x01\xff\xff\xff\xff\x00",
        b"\x01\x00\x01\x00\x00\x00\x01x\xce",
        b"\x07\x00\x00\x00\x00\x00\x00\xce",
        b"\x03\x00\x01\x00\x00\x00\x01x\xce",
    ] {
        let mut connection = broker.accept(|_| {}).await;
        connection.expect_method(MethodId::BASIC_PUBLISH).await;
        connection.send(|out| out.put_slice(garbage)).await;
        connection.expect_disconnect().await;
    }
    let mut connection = broker.accept(|_| {}).await;
    connection.expect_method(MethodId::BASIC_PUBLISH).await;
    assert!(!answer.is_finished());
    confirm(&mut connection, 1, true).await;
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
}

#[tokio::test]
async fn an_idle_connection_lives_on_heartbeats_and_ends_without_them() {
    let mut broker = FakeBroker::new(OPENING).await;
    broker.config.heartbeat = Duration::from_secs(6);
    let publisher = broker.connector().publisher();
    let mut connection = broker.accept(|_| {}).await;
    // From now on, time advances to the next check whenever all tasks wait.
    tokio::time::pause();
    for _ in 0..5 {
        connection.expect_heartbeat().await;
        connection.send(put_heartbeat).await;
    }
    assert_eq!(publisher.state().connections, 1);
    connection.expect_disconnect().await;
    tokio::time::resume();
    drop(broker.accept(|_| {}).await);
}

#[tokio::test]
async fn a_confirm_that_arrived_while_the_task_did_not_run_counts() {
    let broker = FakeBroker::new(OPENING).await;
    let publisher = broker.connector().publisher();
    let mut connection = broker.accept(|_| {}).await;
    let answer = tokio::spawn(publisher.publish(publication(10)));
    connection.expect_method(MethodId::BASIC_PUBLISH).await;
    confirm(&mut connection, 1, false).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3600)).await;
    tokio::time::resume();
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
    assert_eq!(publisher.state().connections, 1);
}

#[tokio::test]
async fn a_connection_that_loses_what_is_sent_over_it_is_noticed_in_seconds() {
    let mut broker = FakeBroker::new(OPENING).await;
    broker.config.confirm_timeout = Duration::from_secs(30);
    broker.config.heartbeat = Duration::ZERO;
    let publisher = broker.connector().publisher();
    let mut connection = broker.accept(|_| {}).await;
    let answer = tokio::spawn(publisher.publish(publication(10)));
    connection.expect_method(MethodId::BASIC_PUBLISH).await;
    // From now on, time advances to the next check whenever all tasks wait.
    tokio::time::pause();
    while publisher.state().waiting < crate::message::CONFIRMS_OVERDUE {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!((publisher.state().connections, publisher.state().unconfirmed), (1, 1));
    tokio::time::resume();
    confirm(&mut connection, 1, false).await;
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
}

#[tokio::test]
async fn the_wait_for_confirms_is_counted_while_there_is_no_connection() {
    let broker = FakeBroker::new(OPENING).await;
    let publisher = broker.connector().publisher();
    let mut connection = broker.accept(|_| {}).await;
    let _answer = tokio::spawn(publisher.publish(publication(10)));
    connection.expect_method(MethodId::BASIC_PUBLISH).await;
    drop(connection);
    while publisher.state().connected {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::pause();
    tokio::time::advance(crate::message::CONFIRMS_OVERDUE).await;
    assert!(publisher.state().waiting >= crate::message::CONFIRMS_OVERDUE);
}

#[tokio::test]
async fn a_broker_that_blocks_publishing_says_why() {
    let broker = FakeBroker::new(OPENING).await;
    let publisher = broker.connector().publisher();
    let mut connection = broker.accept(|_| {}).await;
    let wait_for = async |expected: Option<&str>| {
        let reached = async {
            while publisher.blocked().as_deref() != expected {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(DEADLINE, reached).await.expect("not reached");
    };
    let blocked = || Method::ConnectionBlocked { reason: "low on disk".into() };
    connection.send_connection_method(blocked()).await;
    wait_for(Some("low on disk")).await;
    connection.send_connection_method(Method::ConnectionUnblocked).await;
    wait_for(None).await;
    connection.send_connection_method(blocked()).await;
    wait_for(Some("low on disk")).await;
    drop(connection);
    wait_for(None).await;
}
