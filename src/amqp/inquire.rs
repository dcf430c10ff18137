//! Asks a broker why it does not let us in.
//!
//! The client library cannot tell wrong credentials from a broken network: it does not announce that it
//! understands `authentication_failure_close`, so the broker hangs up without a word. This file speaks just
//! enough AMQP 0-9-1 to hear the reason. It never logs what it sends and keeps no connection open.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::{Address, Broker};

/// Methods of class 10, connection.
const START: u16 = 10;
const START_OK: u16 = 11;
const TUNE: u16 = 30;
const TUNE_OK: u16 = 31;
const OPEN: u16 = 40;
const OPEN_OK: u16 = 41;
const CLOSE: u16 = 50;

const FRAME_END: u8 = 0xCE;
/// Handshake frames are small; whatever claims to be larger is not a broker.
const MAX_FRAME: u32 = 128 * 1024;

/// A broker's word on letting us in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It would, by now.
    Welcome,
    /// It will not: AMQP reply code and text.
    Refused { code: u16, text: String },
}

/// Goes through the handshake and hangs up. Safe to drop at any time.
pub(super) async fn inquire(broker: &Broker, address: &Address) -> io::Result<Verdict> {
    let mut stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    loop {
        let (method, arguments) = read_method(&mut stream).await?;
        match method {
            START => write_method(&mut stream, START_OK, &start_ok(broker)).await?,
            // Whatever limits the broker proposes will do: `tune-ok` has the same fields.
            TUNE => {
                write_method(&mut stream, TUNE_OK, &arguments).await?;
                write_method(&mut stream, OPEN, &open(broker)).await?;
            }
            OPEN_OK => {
                write_method(&mut stream, CLOSE, &[0, 200, 0, 0, 0, 0, 0]).await?;
                return Ok(Verdict::Welcome);
            }
            CLOSE => return refusal(&arguments).ok_or_else(|| invalid("a truncated connection.close")),
            _ => return Err(invalid("an unexpected method")),
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn start_ok(broker: &Broker) -> Vec<u8> {
    let mut capabilities = short_string("authentication_failure_close");
    capabilities.extend(b"t\x01");
    let mut properties = short_string("capabilities");
    properties.push(b'F');
    properties.extend(long_string(&capabilities));
    let response = format!("\0{}\0{}", broker.username, broker.password.expose());
    [long_string(&properties), short_string("PLAIN"), long_string(response.as_bytes()), short_string("en_US")].concat()
}

fn open(broker: &Broker) -> Vec<u8> {
    // Two reserved fields follow the virtual host.
    [short_string(&broker.virtual_host), vec![0, 0]].concat()
}

fn short_string(text: &str) -> Vec<u8> {
    // Names were checked to fit 255 bytes before any connection is tried.
    let mut bytes = vec![text.len() as u8];
    bytes.extend(text.as_bytes());
    bytes
}

fn long_string(content: &[u8]) -> Vec<u8> {
    let mut bytes = (content.len() as u32).to_be_bytes().to_vec();
    bytes.extend(content);
    bytes
}

fn refusal(arguments: &[u8]) -> Option<Verdict> {
    let (code, rest) = arguments.split_first_chunk::<2>()?;
    let (length, rest) = rest.split_first()?;
    let text = rest.get(..usize::from(*length))?;
    Some(Verdict::Refused { code: u16::from_be_bytes(*code), text: String::from_utf8_lossy(text).into_owned() })
}

async fn write_method(stream: &mut TcpStream, method: u16, arguments: &[u8]) -> io::Result<()> {
    let mut frame = vec![1, 0, 0];
    frame.extend((arguments.len() as u32 + 4).to_be_bytes());
    frame.extend(10_u16.to_be_bytes());
    frame.extend(method.to_be_bytes());
    frame.extend(arguments);
    frame.push(FRAME_END);
    stream.write_all(&frame).await
}

/// The next method on channel 0 and its arguments; heartbeats are passed over.
async fn read_method(stream: &mut TcpStream) -> io::Result<(u16, Vec<u8>)> {
    loop {
        let kind = stream.read_u8().await?;
        let _channel = stream.read_u16().await?;
        let size = stream.read_u32().await?;
        if size > MAX_FRAME {
            return Err(invalid("an oversized frame"));
        }
        let mut payload = vec![0; size as usize + 1];
        stream.read_exact(&mut payload).await?;
        if payload.pop() != Some(FRAME_END) {
            return Err(invalid("a frame without its end"));
        }
        if kind == 1 {
            return match payload.split_first_chunk::<4>() {
                Some(([0, 10, high, low], arguments)) => Ok((u16::from_be_bytes([*high, *low]), arguments.to_vec())),
                _ => Err(invalid("a method of another class")),
            };
        }
    }
}
