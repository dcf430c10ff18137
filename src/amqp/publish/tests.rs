//! What a real broker cannot be made to do when a test wants it: a peer that says what the test lets it say.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::amqp::decode::CHANNEL_CLOSE;
use crate::amqp::frame::{Frame, HEARTBEAT, METHOD, Method, put_frame, put_long, put_method, put_short};
use crate::amqp::handshake::{CLOSE, CLOSE_OK};
use crate::config::{Address, Broker, Mechanism, Secret};
use crate::message::Message;

const PUBLISH: Method = (60, 40);
const ACK: Method = (60, 80);
/// Ends a test that would wait for ever.
const DEADLINE: Duration = Duration::from_secs(20);

/// Where connections come to that a test answers.
struct Peer {
    listener: TcpListener,
    broker: Broker,
}

/// One of them.
struct Guest {
    stream: TcpStream,
    incoming: BytesMut,
}

impl Peer {
    async fn new() -> Peer {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let broker = Broker {
            addresses: vec![Address { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() }],
            virtual_host: "/".into(),
            username: "guest".into(),
            password: Secret::new("guest"),
            mechanism: Mechanism::Plain,
            tls: None,
            heartbeat: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(300),
            max_unconfirmed: 64,
            max_unconfirmed_bytes: 64 << 20,
            reconnect_max: Duration::from_millis(10),
        };
        Peer { listener, broker }
    }

    fn publisher(&self) -> ConfirmingPublisher {
        Link::new(self.broker.clone()).publisher()
    }

    /// Lets the next one in, says `more` in the same breath, and has heard all that the other said meanwhile.
    async fn welcome(&self, more: impl FnOnce(&mut BytesMut)) -> Guest {
        let stream = timeout(DEADLINE, self.listener.accept()).await.expect("nobody comes").unwrap().0;
        let mut guest = Guest { stream, incoming: BytesMut::new() };
        guest
            .say(|out| {
                put_method(out, 0, (10, 10), |out| {
                    out.put_u16(9);
                    // What it says of itself, as much as a real one.
                    put_long(out, &[0; 2000]);
                    put_long(out, b"PLAIN");
                    put_long(out, b"en_US");
                });
                put_method(out, 0, (10, 30), |out| {
                    out.put_u16(10);
                    out.put_u32(4096);
                    out.put_u16(0);
                });
                put_method(out, 0, (10, 41), |out| out.put_u8(0));
                put_method(out, 1, (20, 11), |out| out.put_u32(0));
                put_method(out, 1, (85, 11), |_| {});
                more(out);
            })
            .await;
        while guest.incoming.len() < 8 {
            guest.read().await;
        }
        guest.incoming.advance(8);
        guest.hears((85, 10)).await;
        guest
    }
}

impl Guest {
    async fn say(&mut self, fill: impl FnOnce(&mut BytesMut)) {
        let mut out = BytesMut::new();
        fill(&mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    async fn read(&mut self) {
        let read = timeout(DEADLINE, self.stream.read_buf(&mut self.incoming)).await.expect("nothing comes");
        assert_ne!(read.unwrap(), 0, "it has hung up");
    }

    /// Waits for a frame; all before it is dropped.
    async fn sees(&mut self, wanted: impl Fn(&Frame<'_>) -> bool) {
        loop {
            let Some(frame) = Frame::first(&self.incoming, 4096).unwrap() else {
                self.read().await;
                continue;
            };
            let (found, length) = (wanted(&frame), frame.len());
            self.incoming.advance(length);
            if found {
                return;
            }
        }
    }

    async fn hears(&mut self, wanted: Method) {
        self.sees(|frame| frame.kind == METHOD && frame.method().unwrap().unwrap().0 == wanted).await;
    }

    /// Waits until the other hangs up.
    async fn hangs_up(mut self) {
        let gone = async { while self.stream.read_buf(&mut self.incoming).await.is_ok_and(|read| read > 0) {} };
        timeout(DEADLINE, gone).await.expect("it does not hang up");
    }

    async fn confirm(&mut self, tag: u64, multiple: bool) {
        self.say(|out| {
            put_method(out, 1, ACK, |out| {
                out.put_u64(tag);
                out.put_u8(multiple.into());
            });
        })
        .await;
    }
}

fn put_close(out: &mut BytesMut, (channel, method): (u16, Method), code: u16, text: &str) {
    put_method(out, channel, method, |out| {
        out.put_u16(code);
        put_short(out, text);
        out.put_u32(0);
    });
}

fn publication(size: usize) -> Arc<[Publication]> {
    let message = Message { body: Bytes::from(vec![b'x'; size]), ..Message::default() };
    [Publication { exchange: "orders".into(), routing_key: "order.normal.new".into(), message }].into()
}

#[tokio::test]
async fn what_the_broker_said_before_it_hung_up_is_heard_though_nothing_can_be_sent_any_more() {
    let peer = Peer::new().await;
    let publisher = peer.publisher();
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
    let peer = Peer::new().await;
    let publisher = peer.publisher();
    let mut guest = peer.welcome(|out| put_close(out, (0, CLOSE), 320, "CONNECTION_FORCED")).await;
    guest.hears(CLOSE_OK).await;
    drop(guest);
    let _next = peer.welcome(|_| {}).await;
    assert_eq!(publisher.state().unconfirmed, 0);
}

#[tokio::test]
async fn a_broker_that_ends_the_connection_and_does_not_hang_up_keeps_nobody_from_the_next() {
    let peer = Peer::new().await;
    let publisher = peer.publisher();
    for (method, answer) in [((0, CLOSE), CLOSE_OK), ((1, CHANNEL_CLOSE), CLOSE)] {
        let mut guest = peer.welcome(|_| {}).await;
        guest.say(|out| put_close(out, method, 320, "CONNECTION_FORCED")).await;
        guest.hears(answer).await;
        guest.hangs_up().await;
    }
    let mut guest = peer.welcome(|_| {}).await;
    let answer = tokio::spawn(publisher.publish(publication(10)));
    guest.hears(PUBLISH).await;
    guest.confirm(1, false).await;
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
}

#[tokio::test]
async fn a_confirm_of_what_was_never_sent_confirms_nothing() {
    for (tag, multiple) in [(2, true), (u64::MAX, true), (2, false)] {
        let peer = Peer::new().await;
        let publisher = peer.publisher();
        let mut guest = peer.welcome(|_| {}).await;
        let answer = tokio::spawn(publisher.publish(publication(10)));
        guest.hears(PUBLISH).await;
        guest.confirm(tag, multiple).await;
        let mut next = peer.welcome(|_| {}).await;
        next.hears(PUBLISH).await;
        assert!(!answer.is_finished(), "confirmed by {tag}, {multiple}");
        next.confirm(1, false).await;
        assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
    }
}

#[tokio::test]
async fn a_publisher_with_everything_confirmed_closes_well_though_the_broker_says_no_goodbye() {
    let peer = Peer::new().await;
    let publisher = peer.publisher();
    let mut guest = peer.welcome(|_| {}).await;
    let answer = tokio::spawn(publisher.publish(publication(10)));
    guest.hears(PUBLISH).await;
    guest.confirm(1, false).await;
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
    assert_eq!(publisher.close(Duration::from_millis(200)).await, Ok(()));
    guest.hears(CLOSE).await;
}

#[tokio::test]
async fn garbage_ends_the_connection_and_costs_no_publication() {
    let peer = Peer::new().await;
    let publisher = peer.publisher();
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
    guest.confirm(1, true).await;
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
}

#[tokio::test]
async fn an_idle_connection_is_kept_by_heartbeats_and_given_up_without() {
    let mut peer = Peer::new().await;
    peer.broker.heartbeat = Duration::from_secs(6);
    let publisher = peer.publisher();
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
    let peer = Peer::new().await;
    let publisher = peer.publisher();
    let mut guest = peer.welcome(|_| {}).await;
    let answer = tokio::spawn(publisher.publish(publication(10)));
    guest.hears(PUBLISH).await;
    guest.confirm(1, false).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(3600)).await;
    tokio::time::resume();
    assert_eq!(timeout(DEADLINE, answer).await.unwrap().unwrap(), Ok(()));
    assert_eq!(publisher.state().connections, 1);
}
