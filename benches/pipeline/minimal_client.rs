//! A minimal AMQP 0-9-1 client for the ceiling. It encodes frames directly into one buffer and decodes them from another, so
//! that it costs little and the measurement shows the broker.
//!
//! It never recovers: any unexpected frame is an error.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use orderd::topology::{Argument, Declaration};

/// The timestamp of all messages; its value does not matter.
const TIMESTAMP: u64 = 1_795_334_400;

/// Class id and method id.
type Method = (u16, u16);

const METHOD_FRAME: u8 = 1;
const HEADER_FRAME: u8 = 2;
const BODY_FRAME: u8 = 3;
const FRAME_END: u8 = 0xCE;
const FRAME_MAX: u32 = 131_072;
const CHANNEL: u16 = 1;
const READ_BYTES: usize = 256 * 1024;
/// How long the broker may be silent while the client waits for a frame.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

const START: Method = (10, 10);
const TUNE: Method = (10, 30);
const OPEN_OK: Method = (10, 41);
const CHANNEL_OPEN_OK: Method = (20, 11);
const EXCHANGE_DECLARE_OK: Method = (40, 11);
const QUEUE_DECLARE_OK: Method = (50, 11);
const QUEUE_BIND_OK: Method = (50, 21);
const QOS_OK: Method = (60, 11);
const CONSUME_OK: Method = (60, 21);
const RETURN: Method = (60, 50);
const DELIVER: Method = (60, 60);
const ACK: Method = (60, 80);
const NACK: Method = (60, 120);
const CONFIRM_SELECT_OK: Method = (85, 11);

fn protocol_error(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_string())
}

/// The sending half of a connection: buffers frames until they are flushed.
pub struct Writer {
    stream: TcpStream,
    pub out: Vec<u8>,
}

impl Writer {
    /// Sends all buffered frames.
    pub fn flush(&mut self) -> io::Result<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    fn frame(&mut self, kind: u8, channel: u16, fill: impl FnOnce(&mut Vec<u8>)) {
        self.out.push(kind);
        self.out.extend_from_slice(&channel.to_be_bytes());
        let size_at = self.out.len();
        self.out.extend_from_slice(&[0; 4]);
        fill(&mut self.out);
        let size = (self.out.len() - size_at - 4) as u32;
        self.out[size_at..size_at + 4].copy_from_slice(&size.to_be_bytes());
        self.out.push(FRAME_END);
    }

    fn method(&mut self, channel: u16, (class, number): Method, fill: impl FnOnce(&mut Vec<u8>)) {
        self.frame(METHOD_FRAME, channel, |out| {
            out.extend_from_slice(&class.to_be_bytes());
            out.extend_from_slice(&number.to_be_bytes());
            fill(out);
        });
    }

    /// Buffers a persistent, mandatory JSON message with the properties that orderd sends. The body must fit in one frame.
    pub fn publish(&mut self, exchange: &str, routing_key: &str, message_id: &str, order_id: &str, body: &[u8]) {
        const MANDATORY: u8 = 0b01;
        self.method(CHANNEL, (60, 40), |out| {
            out.extend_from_slice(&[0, 0]);
            short(out, exchange);
            short(out, routing_key);
            out.push(MANDATORY);
        });
        self.frame(HEADER_FRAME, CHANNEL, |out| {
            out.extend_from_slice(&[0, 60, 0, 0]);
            out.extend_from_slice(&(body.len() as u64).to_be_bytes());
            // Content type, delivery mode, correlation id, message id, timestamp.
            out.extend_from_slice(&0x94C0_u16.to_be_bytes());
            short(out, "application/json");
            out.push(2);
            short(out, order_id);
            short(out, message_id);
            out.extend_from_slice(&TIMESTAMP.to_be_bytes());
        });
        self.frame(BODY_FRAME, CHANNEL, |out| out.extend_from_slice(body));
    }

    /// Acknowledges every delivery up to this tag.
    pub fn ack_up_to(&mut self, tag: u64) {
        self.method(CHANNEL, ACK, |out| {
            out.extend_from_slice(&tag.to_be_bytes());
            out.push(1);
        });
    }
}

/// The receiving half of a connection.
pub struct Reader {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// A frame in the reader's buffer.
struct Frame {
    kind: u8,
    payload: std::ops::Range<usize>,
}

impl Reader {
    /// The length of the next frame, if it has arrived completely.
    fn buffered_frame_length(&self) -> Option<usize> {
        let head = self.buffer.get(self.start..self.end)?.get(3..7)?;
        let length = 8 + u32::from_be_bytes(head.try_into().ok()?) as usize;
        (self.end - self.start >= length).then_some(length)
    }

    /// Whether the next frame has arrived completely.
    pub fn has_frame(&self) -> bool {
        self.buffered_frame_length().is_some()
    }

    fn frame(&mut self) -> io::Result<Frame> {
        let length = loop {
            if let Some(length) = self.buffered_frame_length() {
                break length;
            }
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
            let read = self.stream.read(&mut self.buffer[self.end..])?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.end += read;
        };
        let frame = Frame { kind: self.buffer[self.start], payload: self.start + 7..self.start + length - 1 };
        self.start += length;
        Ok(frame)
    }

    /// Reads the next method and its arguments.
    fn method(&mut self) -> io::Result<(Method, &[u8])> {
        let frame = self.frame()?;
        let payload = &self.buffer[frame.payload];
        if frame.kind != METHOD_FRAME || payload.len() < 4 {
            return Err(protocol_error(format_args!("a frame of kind {} where a method was expected", frame.kind)));
        }
        let (id, arguments) = payload.split_at(4);
        Ok(((u16::from_be_bytes([id[0], id[1]]), u16::from_be_bytes([id[2], id[3]])), arguments))
    }

    fn expect(&mut self, wanted: Method) -> io::Result<&[u8]> {
        let (method, arguments) = self.method()?;
        if method == wanted {
            return Ok(arguments);
        }
        Err(protocol_error(format_args!("{method:?} instead of {wanted:?}: {}", String::from_utf8_lossy(arguments))))
    }

    /// Reads the next confirm. Returns the delivery tag, and whether it covers all earlier ones too.
    pub fn confirm(&mut self) -> io::Result<(u64, bool)> {
        match self.method()? {
            (ACK, arguments) => Ok((read_u64(arguments)?, arguments.get(8).is_some_and(|bits| bits & 1 == 1))),
            (NACK, _) => Err(protocol_error("the broker rejected a publication")),
            (RETURN, _) => Err(protocol_error("the broker returned a publication")),
            (method, arguments) => {
                Err(protocol_error(format_args!("{method:?} among confirms: {}", String::from_utf8_lossy(arguments))))
            }
        }
    }

    /// Reads the next delivery into `body`. Returns the delivery tag.
    pub fn delivery(&mut self, body: &mut Vec<u8>) -> io::Result<u64> {
        let arguments = self.expect(DELIVER)?;
        let tag = read_u64(arguments.get(1 + usize::from(arguments[0])..).unwrap_or_default())?;
        let header = self.frame()?;
        let payload = &self.buffer[header.payload];
        let size = read_u64(payload.get(4..).unwrap_or_default())? as usize;
        body.clear();
        while body.len() < size {
            let frame = self.frame()?;
            if frame.kind != BODY_FRAME {
                return Err(protocol_error(format_args!("a frame of kind {} where a body was expected", frame.kind)));
            }
            body.extend_from_slice(&self.buffer[frame.payload]);
        }
        Ok(tag)
    }
}

fn read_u64(bytes: &[u8]) -> io::Result<u64> {
    let bytes = bytes.get(..8).ok_or_else(|| protocol_error("a frame ends before an expected 64-bit number"))?;
    Ok(bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Appends an AMQP short string. `text` must be shorter than 256 bytes.
fn short(out: &mut Vec<u8>, text: &str) {
    out.push(text.len() as u8);
    out.extend_from_slice(text.as_bytes());
}

fn long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// A connection with one channel. The halves can be used by different threads.
pub struct Connection {
    pub writer: Writer,
    pub reader: Reader,
}

impl Connection {
    /// Connects to 127.0.0.1 as the default user, and opens the channel.
    pub fn open(port: u16) -> io::Result<Connection> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        let reader = Reader { stream: stream.try_clone()?, buffer: vec![0; READ_BYTES], start: 0, end: 0 };
        let mut connection = Connection { writer: Writer { stream, out: Vec::with_capacity(READ_BYTES) }, reader };
        connection.writer.out.extend_from_slice(b"AMQP\x00\x00\x09\x01");
        connection.writer.flush()?;
        connection.reader.expect(START)?;
        connection.writer.method(0, (10, 11), |out| {
            long(out, &[]);
            short(out, "PLAIN");
            long(out, b"\0guest\0guest");
            short(out, "en_US");
        });
        connection.writer.flush()?;
        connection.reader.expect(TUNE)?;
        connection.writer.method(0, (10, 31), |out| {
            out.extend_from_slice(&CHANNEL.to_be_bytes());
            out.extend_from_slice(&FRAME_MAX.to_be_bytes());
            out.extend_from_slice(&0_u16.to_be_bytes());
        });
        connection.writer.method(0, (10, 40), |out| {
            short(out, "/");
            out.extend_from_slice(&[0, 0]);
        });
        connection.writer.flush()?;
        connection.reader.expect(OPEN_OK)?;
        connection.call((20, 10), CHANNEL_OPEN_OK, |out| short(out, ""))?;
        Ok(connection)
    }

    fn call(&mut self, method: Method, answer: Method, fill: impl FnOnce(&mut Vec<u8>)) -> io::Result<&[u8]> {
        self.writer.method(CHANNEL, method, fill);
        self.writer.flush()?;
        self.reader.expect(answer)
    }

    /// Declares one object of orderd's topology.
    pub fn declare(&mut self, declaration: &Declaration) -> io::Result<()> {
        const DURABLE: u8 = 0b10;
        match declaration {
            Declaration::Exchange(exchange) => self.call((40, 10), EXCHANGE_DECLARE_OK, |out| {
                out.extend_from_slice(&[0, 0]);
                short(out, &exchange.name);
                short(out, exchange.kind.as_str());
                out.push(DURABLE);
                table(out, exchange.arguments.iter());
            }),
            Declaration::Queue(queue) => self.call((50, 10), QUEUE_DECLARE_OK, |out| {
                out.extend_from_slice(&[0, 0]);
                short(out, &queue.name);
                out.push(DURABLE);
                table(out, queue.arguments.iter());
            }),
            Declaration::Binding(binding) => self.call((50, 20), QUEUE_BIND_OK, |out| {
                out.extend_from_slice(&[0, 0]);
                short(out, &binding.queue);
                short(out, &binding.exchange);
                short(out, &binding.routing_key);
                out.push(0);
                long(out, &[]);
            }),
        }
        .map(drop)
    }

    /// The number of ready messages and of consumers. When it returns, the broker has processed everything sent before on
    /// this channel.
    pub fn inspect(&mut self, queue: &str) -> io::Result<(u32, u32)> {
        const PASSIVE: u8 = 0b01;
        let arguments = self.call((50, 10), QUEUE_DECLARE_OK, |out| {
            out.extend_from_slice(&[0, 0]);
            short(out, queue);
            out.push(PASSIVE);
            long(out, &[]);
        })?;
        let counts = arguments.get(1 + queue.len()..).unwrap_or_default();
        let both = read_u64(counts)?;
        Ok(((both >> 32) as u32, both as u32))
    }

    /// Puts the channel into confirm mode.
    pub fn confirm_select(&mut self) -> io::Result<()> {
        self.call((85, 10), CONFIRM_SELECT_OK, |out| out.push(0)).map(drop)
    }

    /// Starts to consume a queue.
    pub fn consume(&mut self, queue: &str, prefetch: u16) -> io::Result<()> {
        self.call((60, 10), QOS_OK, |out| {
            out.extend_from_slice(&0_u32.to_be_bytes());
            out.extend_from_slice(&prefetch.to_be_bytes());
            out.push(0);
        })?;
        self.call((60, 20), CONSUME_OK, |out| {
            out.extend_from_slice(&[0, 0]);
            short(out, queue);
            short(out, "ceiling");
            out.push(0);
            long(out, &[]);
        })
        .map(drop)
    }
}

/// Appends a field table.
fn table<'a>(out: &mut Vec<u8>, arguments: impl Iterator<Item = (&'a &'static str, &'a Argument)>) {
    let mut fields = Vec::new();
    for (name, value) in arguments {
        short(&mut fields, name);
        match value {
            Argument::Text(text) => {
                fields.push(b'S');
                long(&mut fields, text.as_bytes());
            }
            Argument::Number(number) => {
                fields.push(b'l');
                fields.extend_from_slice(&number.to_be_bytes());
            }
        }
    }
    long(out, &fields);
}
