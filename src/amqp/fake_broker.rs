//! A peer for tests: it says what a test lets it say, and hears what it is told. No real broker can be made to do that.
//!
//! It knows nothing of what orderd does with it.

use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::connect::Connector;
use super::decode::answer_to;
use super::frame::{Frame, METHOD, Method, put_long, put_method, put_short};
use crate::config::{Address, Broker, Mechanism, Secret};

/// Ends a test that would wait for ever.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// Where connections come to that a test answers.
pub(super) struct Peer {
    listener: TcpListener,
    pub broker: Broker,
    /// What it answers to by itself, in this order.
    answered: &'static [Method],
}

/// One of them.
pub(super) struct Guest {
    pub stream: TcpStream,
    incoming: BytesMut,
}

impl Peer {
    pub async fn new(answered: &'static [Method]) -> Peer {
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
        Peer { listener, broker, answered }
    }

    pub fn link(&self) -> Connector {
        Connector::new(self.broker.clone())
    }

    /// Lets the next one in, says `more` in the same breath, and has heard all that the other said meanwhile.
    pub async fn welcome(&self, more: impl FnOnce(&mut BytesMut)) -> Guest {
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
                for request in self.answered {
                    put_method(out, 1, answer_to(*request), |_| {});
                }
                more(out);
            })
            .await;
        while guest.incoming.len() < 8 {
            guest.read().await;
        }
        guest.incoming.advance(8);
        for request in self.answered {
            guest.hears(*request).await;
        }
        guest
    }
}

impl Guest {
    pub async fn say(&mut self, fill: impl FnOnce(&mut BytesMut)) {
        let mut out = BytesMut::new();
        fill(&mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    async fn read(&mut self) {
        let read = timeout(DEADLINE, self.stream.read_buf(&mut self.incoming)).await.expect("nothing comes");
        assert_ne!(read.unwrap(), 0, "it has hung up");
    }

    /// Waits for a frame; all before it is dropped.
    pub async fn sees(&mut self, wanted: impl Fn(&Frame<'_>) -> bool) {
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

    pub async fn hears(&mut self, wanted: Method) {
        self.sees(|frame| frame.kind == METHOD && frame.method().unwrap().unwrap().0 == wanted).await;
    }

    /// Waits until the other hangs up.
    pub async fn hangs_up(mut self) {
        let gone = async { while self.stream.read_buf(&mut self.incoming).await.is_ok_and(|read| read > 0) {} };
        timeout(DEADLINE, gone).await.expect("it does not hang up");
    }
}

pub(super) fn put_close(out: &mut BytesMut, (channel, method): (u16, Method), code: u16, text: &str) {
    put_method(out, channel, method, |out| {
        out.put_u16(code);
        put_short(out, text);
        out.put_u32(0);
    });
}

/// The beginning of a delivery.
pub(super) fn put_deliver(out: &mut BytesMut, tag: u64) {
    put_method(out, 1, (60, 60), |out| {
        put_short(out, "orderd-1");
        out.put_u64(tag);
        out.put_u8(1);
        put_short(out, "orders");
        put_short(out, "order.normal.new");
    });
}
