//! A broker for tests that sends exactly the bytes a test gives it, including what no real broker can be made to send.
//!
//! Speaks AMQP only. Never knows what the client does with what it receives.

use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::connect::Connector;
use super::protocol::{Frame, FrameType, Method, MethodId, put_content_header, put_frame, put_method};
use crate::config::{Address, Broker, Mechanism, Secret};
use crate::message::Message;

/// Ends a test that would otherwise wait forever.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);
const PROTOCOL_HEADER_LENGTH: usize = 8;
const FRAME_MAX: usize = 4096;
/// The largest frame that is read before [`FRAME_MAX`] is agreed, in bytes.
const MAX_HANDSHAKE_FRAME: usize = 64 * 1024;

/// A listening fake broker.
pub(super) struct FakeBroker {
    listener: TcpListener,
    pub config: Broker,
    /// The table in its first method. As large as a real broker's, unless a test changes it.
    pub server_properties: Vec<u8>,
    /// The requests after the handshake to which it replies by itself, in this order.
    expected: &'static [MethodId],
}

/// The broker's side of one connection.
pub(super) struct FakeConnection {
    pub stream: TcpStream,
    incoming: BytesMut,
}

impl FakeBroker {
    pub async fn new(expected: &'static [MethodId]) -> FakeBroker {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Broker {
            addresses: vec![Address { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() }],
            virtual_host: "/".into(),
            username: "guest".into(),
            password: Secret::new("guest"),
            mechanism: Mechanism::Plain,
            trusted_users: Vec::new(),
            tls: None,
            heartbeat: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(300),
            max_unconfirmed: 64,
            max_unconfirmed_bytes: 64 << 20,
            max_body: 64 << 20,
            max_unsettled_bytes: 64 << 20,
            reconnect_max: Duration::from_millis(10),
            rebalance_after: None,
        };
        FakeBroker { listener, config, server_properties: vec![0; 2000], expected }
    }

    pub fn connector(&self) -> Connector {
        Connector::new(self.config.clone())
    }

    /// Accepts the next connection, sends its side of the handshake and `more` in one write, and waits for the client's side.
    pub async fn accept(&self, more: impl FnOnce(&mut BytesMut)) -> FakeConnection {
        let stream = timeout(DEADLINE, self.listener.accept()).await.expect("no connection").unwrap().0;
        let mut connection = FakeConnection { stream, incoming: BytesMut::new() };
        connection
            .send(|out| {
                let server_properties = &self.server_properties;
                put_method(out, 0, &Method::ConnectionStart { server_properties, mechanisms: "PLAIN".into() });
                let frame_max = FRAME_MAX as u32;
                put_method(out, 0, &Method::ConnectionTune { channel_max: 10, frame_max, heartbeat: 0 });
                put_method(out, 0, &Method::ConnectionOpenOk);
                for request in self.expected {
                    put_method(out, 1, &reply_to(*request));
                }
                more(out);
            })
            .await;
        while connection.incoming.len() < PROTOCOL_HEADER_LENGTH {
            connection.read().await;
        }
        connection.incoming.advance(PROTOCOL_HEADER_LENGTH);
        for request in self.expected {
            connection.expect_method(*request).await;
        }
        connection
    }
}

impl FakeBroker {
    /// Accepts the next connection, sends it these methods, and drops it once it has replied to the last one.
    pub async fn drop_next(&self, methods: &[Method<'_>]) {
        let stream = timeout(DEADLINE, self.listener.accept()).await.expect("no connection").unwrap().0;
        let mut connection = FakeConnection { stream, incoming: BytesMut::new() };
        for method in methods {
            connection.send_connection_method(method.clone()).await;
        }
        let mut replies = 0;
        let mut read = PROTOCOL_HEADER_LENGTH;
        while replies < methods.len() {
            match connection.incoming.get(read..).map(|bytes| Frame::parse(bytes, MAX_HANDSHAKE_FRAME).unwrap()) {
                Some(Some(frame)) => (replies, read) = (replies + 1, read + frame.len()),
                Some(None) | None => connection.read().await,
            }
        }
    }
}

fn reply_to(request: MethodId) -> Method<'static> {
    match request {
        MethodId::CHANNEL_OPEN => Method::ChannelOpenOk,
        MethodId::CONFIRM_SELECT => Method::ConfirmSelectOk,
        MethodId::BASIC_QOS => Method::BasicQosOk,
        MethodId::BASIC_CONSUME => Method::BasicConsumeOk,
        other => panic!("no reply to {other:?}"),
    }
}

impl FakeConnection {
    pub async fn send(&mut self, fill: impl FnOnce(&mut BytesMut)) {
        let mut out = BytesMut::new();
        fill(&mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    /// Sends a method on the client's channel.
    pub async fn send_method(&mut self, method: Method<'_>) {
        self.send(|out| put_method(out, 1, &method)).await;
    }

    /// Sends a method on channel 0, which concerns the connection.
    pub async fn send_connection_method(&mut self, method: Method<'_>) {
        self.send(|out| put_method(out, 0, &method)).await;
    }

    async fn read(&mut self) {
        let read = timeout(DEADLINE, self.stream.read_buf(&mut self.incoming)).await.expect("nothing received");
        assert_ne!(read.unwrap(), 0, "the client closed the connection");
    }

    /// Waits for a frame from which `take` returns something. Drops all before it.
    pub async fn expect_frame<T>(&mut self, take: impl Fn(&Frame<'_>) -> Option<T>) -> T {
        loop {
            let Some(frame) = Frame::parse(&self.incoming, FRAME_MAX).unwrap() else {
                self.read().await;
                continue;
            };
            let (taken, length) = (take(&frame), frame.len());
            self.incoming.advance(length);
            if let Some(taken) = taken {
                return taken;
            }
        }
    }

    /// Waits for the first of these methods. Drops all frames before it.
    pub async fn expect_one_of(&mut self, wanted: &[MethodId]) -> MethodId {
        let id = |frame: &Frame<'_>| Method::parse(frame).unwrap().map(|method| method.id());
        self.expect_frame(|frame| id(frame).filter(|id| wanted.contains(id))).await
    }

    pub async fn expect_method(&mut self, wanted: MethodId) {
        self.expect_one_of(&[wanted]).await;
    }

    pub async fn expect_heartbeat(&mut self) {
        self.expect_frame(|frame| (frame.kind == FrameType::Heartbeat).then_some(())).await;
    }

    /// Waits until the client closes the socket.
    pub async fn expect_disconnect(mut self) {
        let gone = async { while self.stream.read_buf(&mut self.incoming).await.is_ok_and(|read| read > 0) {} };
        timeout(DEADLINE, gone).await.expect("the client does not close the socket");
    }
}

/// Appends a complete delivery, without properties.
pub(super) fn put_delivery(out: &mut BytesMut, delivery_tag: u64, body: &'static [u8]) {
    let (exchange, routing_key) = ("orders".into(), "order.normal.new".into());
    put_method(out, 1, &Method::BasicDeliver { delivery_tag, redelivered: true, exchange, routing_key });
    put_content_header(out, 1, &Message { body: body.into(), ..Message::default() }, None);
    put_frame(out, FrameType::Body, 1, |out| out.put_slice(body));
}

pub(super) fn put_heartbeat(out: &mut BytesMut) {
    put_frame(out, FrameType::Heartbeat, 0, |_| {});
}
