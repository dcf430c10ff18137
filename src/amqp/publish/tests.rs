//! What a real broker cannot be made to do when a test wants it: a peer that says what the test lets it say.

use std::time::Duration;

use bytes::{BufMut, Bytes};
use tokio::time::timeout;

use super::*;
use crate::amqp::decode::{ACK, CHANNEL_CLOSE, CHANNEL_OPEN, CONFIRM_SELECT};
use crate::amqp::fake_broker::{DEADLINE, Guest, Peer, put_close};
use crate::amqp::frame::{HEARTBEAT, Method, put_frame, put_method};
use crate::amqp::handshake::{CLOSE, CLOSE_OK};
use crate::message::Message;

const PUBLISH: Method = (60, 40);
const OPENING: &[Method] = &[CHANNEL_OPEN, CONFIRM_SELECT];

async fn confirm(guest: &mut Guest, tag: u64, multiple: bool) {
    guest
        .say(|out| {
            put_method(out, 1, ACK, |out| {
                out.put_u64(tag);
                out.put_u8(multiple.into());
            });
        })
        .await;
}

fn publication(size: usize) -> Arc<[Publication]> {
    let message = Message { body: Bytes::from(vec![b'x'; size]), ..Message::default() };
    [Publication { exchange: "orders".into(), routing_key: "order.normal.new".into(), message }].into()
}

#[tokio::test]
async fn what_the_broker_said_before_it_hung_up_is_heard_though_nothing_can_be_sent_any_more() {
    let peer = Peer::new(OPENING).await;
    let publisher = peer.link().publisher();
    let mut guest = peer.welcome(|_| {}).await;
    // More than the network holds, so that it is being sent when the end comes.
    let answer = tokio::spawn(publisher.publish(publication(32 << 20)));
    guest.hears(PUBLISH).await;
    guest.say(|out| put_close(out, (0, CLOSE), 501, "FRAME_ERROR")).await;
    drop(guest);
    let answer = timeout(DEADLINE, answer).await.expect("nobody blames the message").unwrap();
    assert!(
        matches!(&answer, Err(PublishError::Invalid { problem, .. }) if problem == "501 FRAME_ERROR"),
        "{answer:?}"
    );
}

#[tokio::test]
async fn what_the_broker_says_along_with_the_welcome_is_heard_at_once() {
    let peer = Peer::new(OPENING).await;
    let publisher = peer.link().publisher();
    let mut guest = peer.welcome(|out| put_close(out, (0, CLOSE), 320, "CONNECTION_FORCED")).await;
    guest.hears(CLOSE_OK).await;
    drop(guest);
    let _next = peer.welcome(|_| {}).await;
    assert_eq!(publisher.state().unconfirmed, 0);
}

#[tokio::test]
async fn a_broker_that_ends_the_connection_and_does_not_hang_up_keeps_nobody_from_the_next() {
    let peer = Peer::new(OPENING).await;
    let publisher = peer.link().publisher();
    for (method, answer) in [((0, CLOSE), CLOSE_OK), ((1, CHANNEL_CLOSE), CLOSE)] {
        let mut guest = peer.welcome(|_| {}).await;
        guest.say(|out| put_close(out, method, 320, "CONNECTION_FORCED")).await;
        guest.hears(answer).await;
        guest.hangs_up().await;
    }
    let mut guest = peer.welcome(|_| {}).await;
    let answer = tokio::spawn(publisher.publish(publication(10)));
    guest.hears(PUBLISH).await;
    confirm(&mut guest, 1, false).await;
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
}

#[tokio::test]
async fn a_confirm_of_what_was_never_sent_confirms_nothing() {
    for (tag, multiple) in [(2, true), (u64::MAX, true), (2, false)] {
        let peer = Peer::new(OPENING).await;
        let publisher = peer.link().publisher();
        let mut guest = peer.welcome(|_| {}).await;
        let answer = tokio::spawn(publisher.publish(publication(10)));
        guest.hears(PUBLISH).await;
        confirm(&mut guest, tag, multiple).await;
        let mut next = peer.welcome(|_| {}).await;
        next.hears(PUBLISH).await;
        assert!(!answer.is_finished(), "confirmed by {tag}, {multiple}");
        confirm(&mut next, 1, false).await;
        assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
    }
}

#[tokio::test]
async fn a_publisher_with_everything_confirmed_closes_well_though_the_broker_says_no_goodbye() {
    let peer = Peer::new(OPENING).await;
    let publisher = peer.link().publisher();
    let mut guest = peer.welcome(|_| {}).await;
    let answer = tokio::spawn(publisher.publish(publication(10)));
    guest.hears(PUBLISH).await;
    confirm(&mut guest, 1, false).await;
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
    assert_eq!(publisher.close(Duration::from_millis(200)).await, Ok(()));
    guest.hears(CLOSE).await;
}

#[tokio::test]
async fn garbage_ends_the_connection_and_costs_no_publication() {
    let peer = Peer::new(OPENING).await;
    let publisher = peer.link().publisher();
    let answer = tokio::spawn(publisher.publish(publication(10)));
    for garbage in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"\x01\x00\x01\xff\xff\xff\xff\x00",
        b"\x01\x00\x01\x00\x00\x00\x01x\xce",
        b"\x07\x00\x00\x00\x00\x00\x00\xce",
        b"\x03\x00\x01\x00\x00\x00\x01x\xce",
    ] {
        let mut guest = peer.welcome(|_| {}).await;
        guest.hears(PUBLISH).await;
        guest.say(|out| out.put_slice(garbage)).await;
        guest.hangs_up().await;
    }
    let mut guest = peer.welcome(|_| {}).await;
    guest.hears(PUBLISH).await;
    assert!(!answer.is_finished());
    confirm(&mut guest, 1, true).await;
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
}

#[tokio::test]
async fn an_idle_connection_is_kept_by_heartbeats_and_given_up_without() {
    let mut peer = Peer::new(OPENING).await;
    peer.broker.heartbeat = Duration::from_secs(6);
    let publisher = peer.link().publisher();
    let mut guest = peer.welcome(|_| {}).await;
    // Now it leaps from one look to the next whenever everybody waits.
    tokio::time::pause();
    for _ in 0..5 {
        guest.sees(|frame| frame.kind == HEARTBEAT).await;
        guest.say(|out| put_frame(out, HEARTBEAT, 0, |_| {})).await;
    }
    assert_eq!(publisher.state().connections, 1);
    guest.hangs_up().await;
    tokio::time::resume();
    drop(peer.welcome(|_| {}).await);
}

#[tokio::test]
async fn a_confirm_that_came_while_everything_stood_still_counts() {
    let peer = Peer::new(OPENING).await;
    let publisher = peer.link().publisher();
    let mut guest = peer.welcome(|_| {}).await;
    let answer = tokio::spawn(publisher.publish(publication(10)));
    guest.hears(PUBLISH).await;
    confirm(&mut guest, 1, false).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3600)).await;
    tokio::time::resume();
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
    assert_eq!(publisher.state().connections, 1);
}
