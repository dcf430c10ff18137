//! Asks a broker why it does not let us in.
//!
//! The client library cannot tell wrong credentials from a broken network: it does not announce that it
//! understands `authentication_failure_close`, so the broker hangs up without a word. This file speaks just
//! enough AMQP 0-9-1 to hear the reason. It never logs what it sends and keeps no connection open.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;

use super::connect::{Credentials, server_name};
use crate::config::{Address, Broker, Mechanism};
use crate::tls::TlsFault;

/// Methods of class 10, connection.
const START: u16 = 10;
const START_OK: u16 = 11;
const TUNE: u16 = 30;
const TUNE_OK: u16 = 31;
const OPEN: u16 = 40;
const OPEN_OK: u16 = 41;
const CLOSE: u16 = 50;

/// What a server that speaks TLS begins its complaint with.
const TLS_ALERT: u8 = 21;
/// How long a broker may take, at most, to say that it does not accept our certificate. Under TLS 1.3 it does so after the
/// handshake, and what is sent to it meanwhile may make its word get lost.
const SECOND_THOUGHTS: Duration = Duration::from_millis(500);

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
    /// It knows no mechanism of ours.
    NotOffered { wanted: &'static str, offered: String },
}

/// Why there is no verdict.
#[derive(Debug)]
pub(super) enum Puzzle {
    /// Nothing answers, or not in AMQP.
    Io(io::Error),
    /// TLS failed.
    Tls(TlsFault),
    /// It speaks TLS, and we do not.
    WantsTls,
}

/// Goes through the handshake and hangs up. Safe to drop at any time, as it will be after `left`.
pub(super) async fn inquire(
    broker: &Broker,
    address: &Address,
    credentials: &Credentials,
    left: Duration,
) -> Result<Verdict, Puzzle> {
    let mut stream = TcpStream::connect((address.host.as_str(), address.port)).await.map_err(Puzzle::Io)?;
    let Some(connector) = &credentials.connector else {
        return converse(&mut stream, broker, None).await.map_err(|error| match error.kind() {
            io::ErrorKind::Unsupported => Puzzle::WantsTls,
            _ => Puzzle::Io(error),
        });
    };
    let puzzle = |error: io::Error| match TlsFault::of(&error, credentials.identity.is_some()) {
        Some(fault) => Puzzle::Tls(fault),
        None => Puzzle::Io(error),
    };
    let name = ServerName::try_from(server_name(broker, address).to_owned());
    let name = name.map_err(|_| Puzzle::Io(invalid("the host is no name that a certificate could have")))?;
    let mut stream = connector.connect(name, stream).await.map_err(puzzle)?;
    // A broker never speaks first, unless to complain.
    let first = match timeout(SECOND_THOUGHTS.min(left / 4), stream.read_u8()).await {
        Ok(first) => Some(first.map_err(puzzle)?),
        Err(_) => None,
    };
    converse(&mut stream, broker, first).await.map_err(puzzle)
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// The conversation; `unasked` is a byte that came before anything was said.
async fn converse(stream: &mut impl Stream, broker: &Broker, unasked: Option<u8>) -> io::Result<Verdict> {
    if unasked.is_some() {
        return Err(invalid("a server that speaks first"));
    }
    stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
    loop {
        let (method, arguments) = read_method(stream).await?;
        match method {
            START => {
                let offered = mechanisms(&arguments).ok_or_else(|| invalid("a truncated connection.start"))?;
                let wanted = mechanism(broker);
                if !offered.split(' ').any(|offered| offered == wanted) {
                    return Ok(Verdict::NotOffered { wanted, offered });
                }
                write_method(stream, START_OK, &start_ok(broker)).await?;
            }
            // Whatever limits the broker proposes will do: `tune-ok` has the same fields.
            TUNE => {
                write_method(stream, TUNE_OK, &arguments).await?;
                write_method(stream, OPEN, &open(broker)).await?;
            }
            OPEN_OK => {
                write_method(stream, CLOSE, &[0, 200, 0, 0, 0, 0, 0]).await?;
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

fn mechanism(broker: &Broker) -> &'static str {
    match broker.mechanism {
        Mechanism::Plain => "PLAIN",
        Mechanism::External => "EXTERNAL",
    }
}

/// The mechanisms in `connection.start`, behind two octets of version and a table.
fn mechanisms(arguments: &[u8]) -> Option<String> {
    let (length, rest) = arguments.get(2..)?.split_first_chunk::<4>()?;
    let (length, rest) = rest.get(u32::from_be_bytes(*length) as usize..)?.split_first_chunk::<4>()?;
    Some(String::from_utf8_lossy(rest.get(..u32::from_be_bytes(*length) as usize)?).into_owned())
}

fn start_ok(broker: &Broker) -> Vec<u8> {
    let mut capabilities = short_string("authentication_failure_close");
    capabilities.extend(b"t\x01");
    let mut properties = short_string("capabilities");
    properties.push(b'F');
    properties.extend(long_string(&capabilities));
    let response = match broker.mechanism {
        Mechanism::Plain => format!("\0{}\0{}", broker.username, broker.password.expose()),
        Mechanism::External => String::new(),
    };
    let mechanism = short_string(mechanism(broker));
    [long_string(&properties), mechanism, long_string(response.as_bytes()), short_string("en_US")].concat()
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

async fn write_method(stream: &mut impl Stream, method: u16, arguments: &[u8]) -> io::Result<()> {
    let mut frame = vec![1, 0, 0];
    frame.extend((arguments.len() as u32 + 4).to_be_bytes());
    frame.extend(10_u16.to_be_bytes());
    frame.extend(method.to_be_bytes());
    frame.extend(arguments);
    frame.push(FRAME_END);
    stream.write_all(&frame).await
}

/// The next method on channel 0 and its arguments; heartbeats are passed over.
async fn read_method(stream: &mut impl Stream) -> io::Result<(u16, Vec<u8>)> {
    loop {
        let kind = stream.read_u8().await?;
        if kind == TLS_ALERT {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "an alert of TLS"));
        }
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
