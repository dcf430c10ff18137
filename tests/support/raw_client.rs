//! A minimal AMQP 0-9-1 client that sends one request at a time, and can also send what well-behaved clients do not.
//!
//! Owns one connection with one channel. It shares no code with orderd.

pub mod properties;
mod traffic;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// A connection with channel 1 open and in confirm mode.
pub struct RawClient {
    stream: TcpStream,
    /// Messages published on the channel, which is also the delivery tag of the last one in confirms.
    sent: u64,
}

/// A message from `basic.get`.
#[derive(Debug, Clone, PartialEq)]
pub struct ReceivedMessage {
    pub redelivered: bool,
    pub exchange: String,
    pub routing_key: String,
    /// Property flags, properties and headers, still encoded.
    pub properties: Vec<u8>,
    pub body: Vec<u8>,
}

impl ReceivedMessage {
    /// Whether these bytes occur in the encoded properties.
    pub fn has(&self, bytes: &[u8]) -> bool {
        self.properties.windows(bytes.len()).any(|window| window == bytes)
    }
}

/// Why the broker closed the channel: AMQP reply code and text.
pub type ChannelException = (u16, String);

/// Class id and method id.
type Method = (u16, u16);

/// An encoded argument or header of any type.
pub fn field(name: &str, kind: u8, value: &[u8]) -> Vec<u8> {
    [short(name), vec![kind], value.to_vec()].concat()
}

/// An encoded argument or header of type `S`, which need not be UTF-8.
pub fn text(name: &str, value: impl AsRef<[u8]>) -> Vec<u8> {
    field(name, b'S', &long(value.as_ref()))
}

/// An encoded argument or header of type `l`.
pub fn number(name: &str, value: i64) -> Vec<u8> {
    field(name, b'l', &value.to_be_bytes())
}

/// Encoded properties with delivery mode 2 and these headers.
pub fn with_headers(headers: &[Vec<u8>]) -> Vec<u8> {
    [vec![0b0011_0000, 0], long(&headers.concat()), vec![2]].concat()
}

/// Encoded properties with delivery mode 2 and nothing else.
pub fn persistent() -> Vec<u8> {
    vec![0b0001_0000, 0, 2]
}

impl RawClient {
    /// Connects as guest.
    pub fn connect(port: u16, virtual_host: &str) -> RawClient {
        RawClient::connect_as("guest", port, virtual_host)
    }

    /// Connects as a user whose password is its name.
    pub fn connect_as(user: &str, port: u16, virtual_host: &str) -> RawClient {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut raw = RawClient { stream, sent: 0 };
        raw.stream.write_all(b"AMQP\x00\x00\x09\x01").unwrap();
        raw.expect((10, 10));
        raw.send(
            0,
            (10, 11),
            &[long(b""), short("PLAIN"), long(format!("\0{user}\0{user}").as_bytes()), short("en_US")].concat(),
        );
        let mut tune = raw.expect((10, 30));
        // No heartbeats: a test may leave the connection idle for any time.
        tune[6..8].fill(0);
        raw.send(0, (10, 31), &tune);
        raw.send(0, (10, 40), &[short(virtual_host), vec![0, 0]].concat());
        raw.expect((10, 41));
        raw.open_channel();
        raw
    }

    fn open_channel(&mut self) {
        self.sent = 0;
        self.send(1, (20, 10), &[0]);
        self.expect((20, 11));
        self.send(1, (85, 10), &[0]);
        self.expect((85, 11));
    }

    /// Declares a durable queue with these arguments.
    pub fn declare(&mut self, queue: &str, arguments: &[Vec<u8>]) {
        self.declare_queue(queue, 0b0000_0010, arguments).unwrap();
    }

    /// Declares a durable quorum queue with further arguments.
    pub fn declare_quorum(&mut self, queue: &str, arguments: &[Vec<u8>]) {
        self.declare(queue, &[&[text("x-queue-type", "quorum")], arguments].concat());
    }

    /// The number of ready messages and of consumers, or `None` if there is no such queue.
    pub fn queue_counts(&mut self, queue: &str) -> Option<(u32, u32)> {
        self.declare_queue(queue, 0b0000_0001, &[]).ok()
    }

    /// The number of ready messages.
    pub fn depth(&mut self, queue: &str) -> u32 {
        self.queue_counts(queue).unwrap_or_else(|| panic!("there is no queue {queue:?}")).0
    }

    fn declare_queue(&mut self, queue: &str, bits: u8, arguments: &[Vec<u8>]) -> Result<(u32, u32), ChannelException> {
        let arguments = [vec![0, 0], short(queue), vec![bits], long(&arguments.concat())].concat();
        let answer = self.call((50, 10), &arguments, (50, 11))?;
        let counts = &answer[1 + usize::from(answer[0])..];
        let count = |at: usize| u32::from_be_bytes(counts[at..at + 4].try_into().unwrap());
        Ok((count(0), count(4)))
    }

    /// Declares a durable exchange.
    pub fn declare_exchange(&mut self, exchange: &str, kind: &str, arguments: &[Vec<u8>]) {
        let arguments =
            [vec![0, 0], short(exchange), short(kind), vec![0b0000_0010], long(&arguments.concat())].concat();
        self.call((40, 10), &arguments, (40, 11)).unwrap();
    }

    /// Binds a queue.
    pub fn bind(&mut self, queue: &str, exchange: &str, key: &str) {
        let arguments = [vec![0, 0], short(queue), short(exchange), short(key), vec![0], long(b"")].concat();
        self.call((50, 20), &arguments, (50, 21)).unwrap();
    }

    /// Deletes a queue, even if it is not empty.
    pub fn delete(&mut self, queue: &str) {
        self.call((50, 40), &[vec![0, 0], short(queue), vec![0]].concat(), (50, 41)).unwrap();
    }

    /// Publishes to a queue and waits for the confirm.
    pub fn publish(&mut self, queue: &str, properties: &[u8], body: &[u8]) {
        self.send_message(queue, properties, body);
        let (method, _) = self.read_method();
        assert_eq!(method, (60, 80), "the broker did not confirm a message to queue {queue:?}");
    }

    /// Publishes many persistent messages to a queue, then waits for all confirms.
    pub fn publish_many(&mut self, queue: &str, bodies: impl IntoIterator<Item = Vec<u8>>) {
        let mut unconfirmed = std::collections::BTreeSet::new();
        for body in bodies {
            self.send_message(queue, &persistent(), &body);
            unconfirmed.insert(self.sent);
        }
        while !unconfirmed.is_empty() {
            let (method, arguments) = self.read_method();
            assert_eq!(method, (60, 80), "the broker did not confirm a message to queue {queue:?}");
            let tag = u64::from_be_bytes(arguments[..8].try_into().unwrap());
            match arguments[8] {
                0 => drop(unconfirmed.remove(&tag)),
                _multiple => unconfirmed = unconfirmed.split_off(&(tag + 1)),
            }
        }
    }

    fn send_message(&mut self, queue: &str, properties: &[u8], body: &[u8]) {
        self.write_message("", queue, properties, body);
    }

    /// Takes one message from a queue and acknowledges it.
    pub fn get(&mut self, queue: &str) -> Option<ReceivedMessage> {
        self.send(1, (60, 70), &[vec![0, 0], short(queue), vec![1]].concat());
        let (method, arguments) = self.read_method();
        if method == (60, 72) {
            return None;
        }
        assert_eq!(method, (60, 71));
        let redelivered = arguments[8] != 0;
        let (exchange, rest) = take_short(&arguments[9..]);
        let (routing_key, _) = take_short(rest);
        let (_, header) = self.read_frame();
        let size = u64::from_be_bytes(header[4..12].try_into().unwrap()) as usize;
        let mut body = Vec::new();
        while body.len() < size {
            body.extend(self.read_frame().1);
        }
        Some(ReceivedMessage { redelivered, exchange, routing_key, properties: header[12..].to_vec(), body })
    }

    /// Takes all messages from a queue and acknowledges them.
    pub fn drain(&mut self, queue: &str) -> Vec<ReceivedMessage> {
        std::iter::from_fn(|| self.get(queue)).collect()
    }

    fn call(&mut self, method: Method, arguments: &[u8], answer: Method) -> Result<Vec<u8>, ChannelException> {
        self.send(1, method, arguments);
        let (got, arguments) = self.read_method();
        if got == (20, 40) {
            self.send(1, (20, 41), &[]);
            self.open_channel();
            let (text, _) = take_short(&arguments[2..]);
            return Err((u16::from_be_bytes([arguments[0], arguments[1]]), text));
        }
        assert_eq!(got, answer, "{}", String::from_utf8_lossy(&arguments));
        Ok(arguments)
    }

    fn send(&mut self, channel: u16, method: Method, arguments: &[u8]) {
        self.stream.write_all(&method_frame(channel, method, arguments)).unwrap();
    }

    fn expect(&mut self, method: Method) -> Vec<u8> {
        let (got, arguments) = self.read_method();
        assert_eq!(got, method, "{}", String::from_utf8_lossy(&arguments));
        arguments
    }

    fn read_method(&mut self) -> (Method, Vec<u8>) {
        let (kind, payload) = self.read_frame();
        assert_eq!(kind, 1, "expected a method frame");
        let number = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
        ((number(0), number(2)), payload[4..].to_vec())
    }

    fn read_frame(&mut self) -> (u8, Vec<u8>) {
        loop {
            let mut head = [0; 7];
            self.stream.read_exact(&mut head).unwrap();
            let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
            let mut payload = vec![0; size + 1];
            self.stream.read_exact(&mut payload).unwrap();
            assert_eq!(payload.pop(), Some(0xCE));
            if head[0] != 8 {
                return (head[0], payload);
            }
        }
    }
}

fn method_frame(channel: u16, (class, method): Method, arguments: &[u8]) -> Vec<u8> {
    frame(1, channel, &[&class.to_be_bytes()[..], &method.to_be_bytes(), arguments].concat())
}

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = (payload.len() as u32).to_be_bytes();
    [&[kind][..], &channel.to_be_bytes(), &size, payload, &[0xCE]].concat()
}

fn short(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
}

fn take_short(bytes: &[u8]) -> (String, &[u8]) {
    let (length, rest) = bytes.split_first().unwrap();
    let (text, rest) = rest.split_at(usize::from(*length));
    (String::from_utf8_lossy(text).into_owned(), rest)
}
