//! The first conversation with a broker, spoken by orderd itself: to open a connection for publishing or consuming, and to
//! hear why any connection does not come about.
//!
//! The client library cannot tell wrong credentials from a broken network: it does not announce that it understands
//! `authentication_failure_close`, so the broker hangs up on it without a word. This file never logs what it sends.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::pki_types::ServerName;

use super::connect::{Credentials, server_name};
use super::frame::{Frame, Malformed, Method, PROTOCOL, get_long, put_long, put_method, put_short, put_sized, reason};
use crate::config::{Address, Broker, Mechanism};
use crate::tls::TlsError;

const START: Method = (10, 10);
const START_OK: Method = (10, 11);
const TUNE: Method = (10, 30);
const TUNE_OK: Method = (10, 31);
const OPEN: Method = (10, 40);
const OPEN_OK: Method = (10, 41);
/// Ends a connection, from either side.
pub(super) const CLOSE: Method = (10, 50);
/// Its answer.
pub(super) const CLOSE_OK: Method = (10, 51);

/// What a server that speaks TLS begins its complaint with.
const TLS_ALERT: u8 = 21;
/// How long a broker may take, at most, to say that it does not accept our certificate. Under TLS 1.3 it does so after the
/// handshake, and what is sent to it meanwhile may make its word get lost.
const SECOND_THOUGHTS: Duration = Duration::from_millis(500);
/// RabbitMQ's default for the largest frame, and the largest we take, in bytes.
const MAX_FRAME: usize = 128 * 1024;
/// AMQP 0-9-1, 4.2.3: every peer takes frames of this many bytes.
const LEAST_FRAME: u32 = 4096;

/// Why there is no session.
#[derive(Debug)]
pub(super) enum Refusal {
    /// The broker will not let us in: AMQP reply code and text.
    Refused { code: u16, text: String },
    /// It knows no mechanism of ours.
    NotOffered { wanted: &'static str, offered: String },
    /// Nothing answers, or not in AMQP.
    Io(io::Error),
    /// TLS failed.
    Tls(TlsError),
    /// It speaks TLS, and we do not.
    WantsTls,
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Io(error)
    }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Self {
        Refusal::Io(io::Error::new(io::ErrorKind::InvalidData, malformed))
    }
}

/// A connection's bytes, in TLS or not.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An open connection that has no channels yet. Dropping it hangs up.
pub(super) struct Session {
    pub stream: Box<dyn Stream>,
    /// What has come and is not taken yet.
    pub incoming: BytesMut,
    /// The largest frame that either side sends, in bytes.
    pub max_frame: usize,
    /// Each side sends something at least this often, or is taken for dead after twice of it. Zero: neither is.
    pub heartbeat: Duration,
}

/// Opens a connection under this name. Safe to drop at any time.
///
/// A broker that speaks TLS 1.3 is listened to for `left / 4` first, so that its word against our certificate is heard;
/// it takes its time, so this is for finding out what is wrong. Zero listens to nothing.
pub(super) async fn open(
    broker: &Broker,
    address: &Address,
    credentials: &Credentials,
    name: &str,
    left: Duration,
) -> Result<Session, Refusal> {
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    // What is sent is collected before.
    stream.set_nodelay(true)?;
    let Some(connector) = &credentials.connector else { return Session::begin(Box::new(stream), broker, name).await };
    let named = |refusal| match refusal {
        Refusal::Io(error) => match TlsError::of(&error, credentials.identity.is_some()) {
            Some(fault) => Refusal::Tls(fault),
            None => Refusal::Io(error),
        },
        other => other,
    };
    let server = ServerName::try_from(server_name(broker, address).to_owned());
    let server = server.map_err(|_| Malformed("the host is no name that a certificate could have"))?;
    let mut stream = connector.connect(server, stream).await.map_err(|error| named(error.into()))?;
    // A broker never speaks first, unless to complain.
    if !left.is_zero()
        && let Ok(first) = timeout(SECOND_THOUGHTS.min(left / 4), stream.read_u8()).await
    {
        first.map_err(|error| named(error.into()))?;
        return Err(Malformed("a server that speaks first").into());
    }
    Session::begin(Box::new(stream), broker, name).await.map_err(named)
}

impl Session {
    async fn begin(stream: Box<dyn Stream>, broker: &Broker, name: &str) -> Result<Session, Refusal> {
        let (incoming, heartbeat) = (BytesMut::new(), Duration::ZERO);
        let mut session = Session { stream, incoming, max_frame: MAX_FRAME, heartbeat };
        session.stream.write_all(PROTOCOL).await?;
        session.stream.flush().await?;
        let start = session.hear(START).await?;
        let offered = mechanisms(&start)?;
        let wanted = mechanism(broker);
        if !offered.split(' ').any(|offered| offered == wanted) {
            return Err(Refusal::NotOffered { wanted, offered });
        }
        session.say(START_OK, |out| start_ok(out, broker, name)).await?;
        let tune = session.hear(TUNE).await?;
        let channels = session.tune(&tune, broker.heartbeat)?;
        let (max_frame, heartbeat) = (session.max_frame as u32, session.heartbeat.as_secs() as u16);
        session
            .say(TUNE_OK, |out| {
                out.put_u16(channels);
                out.put_u32(max_frame);
                out.put_u16(heartbeat);
            })
            .await?;
        // Two reserved fields follow the virtual host.
        session
            .say(OPEN, |out| {
                put_short(out, &broker.virtual_host);
                out.put_u16(0);
            })
            .await?;
        session.hear(OPEN_OK).await?;
        Ok(session)
    }

    /// Takes the broker's limits where they are lower than ours; 0 stands for none. Returns how many channels it allows.
    fn tune(&mut self, mut tune: &[u8], heartbeat: Duration) -> Result<u16, Malformed> {
        let (channels, max_frame, theirs) = (tune.try_get_u16()?, tune.try_get_u32()?, tune.try_get_u16()?);
        if (1..LEAST_FRAME).contains(&max_frame) {
            return Err(Malformed("frames smaller than 4096 bytes"));
        }
        if max_frame > 0 {
            self.max_frame = self.max_frame.min(max_frame as usize);
        }
        let ours = u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX);
        let lower = if ours == 0 || theirs == 0 { ours.max(theirs) } else { ours.min(theirs) };
        self.heartbeat = Duration::from_secs(lower.into());
        Ok(channels)
    }

    async fn say(&mut self, method: Method, fill: impl FnOnce(&mut BytesMut)) -> io::Result<()> {
        let mut out = BytesMut::new();
        put_method(&mut out, 0, method, fill);
        self.stream.write_all(&out).await?;
        self.stream.flush().await
    }

    /// The arguments of this method, which must be the next to come; heartbeats are passed over.
    async fn hear(&mut self, wanted: Method) -> Result<Vec<u8>, Refusal> {
        loop {
            if self.incoming.first() == Some(&TLS_ALERT) {
                return Err(Refusal::WantsTls);
            }
            let Some(frame) = Frame::first(&self.incoming, self.max_frame)? else {
                if self.stream.read_buf(&mut self.incoming).await? == 0 {
                    return Err(Refusal::Io(io::ErrorKind::UnexpectedEof.into()));
                }
                continue;
            };
            let (method, length) =
                (frame.method()?.map(|(method, arguments)| (method, arguments.to_vec())), frame.len());
            self.incoming.advance(length);
            match method {
                None => {}
                Some((method, arguments)) if method == wanted => return Ok(arguments),
                Some((CLOSE, arguments)) => {
                    let (code, text) = reason(&arguments)?;
                    return Err(Refusal::Refused { code, text });
                }
                Some(_) => return Err(Malformed("an unexpected method").into()),
            }
        }
    }

    /// Says goodbye and hangs up. The broker's answer would tell nothing new.
    pub async fn hang_up(mut self) {
        let _ = self.say(CLOSE, put_goodbye).await;
    }
}

/// The arguments of a `connection.close` that complains of nothing.
pub(super) fn put_goodbye(out: &mut BytesMut) {
    out.put_u16(200);
    put_short(out, "");
    // No method to blame.
    out.put_u32(0);
}

fn mechanism(broker: &Broker) -> &'static str {
    match broker.mechanism {
        Mechanism::Plain => "PLAIN",
        Mechanism::External => "EXTERNAL",
    }
}

/// The mechanisms in `connection.start`, behind two octets of version and a table.
fn mechanisms(mut start: &[u8]) -> Result<String, Malformed> {
    start.try_get_u16()?;
    get_long(&mut start)?;
    Ok(String::from_utf8_lossy(get_long(&mut start)?).into_owned())
}

fn start_ok(out: &mut BytesMut, broker: &Broker, name: &str) {
    put_sized(out, |out| {
        for (key, value) in [("product", "orderd"), ("version", env!("CARGO_PKG_VERSION")), ("connection_name", name)] {
            put_short(out, key);
            out.put_u8(b'S');
            put_long(out, value.as_bytes());
        }
        put_short(out, "capabilities");
        out.put_u8(b'F');
        put_sized(out, |out| {
            for capability in
                ["authentication_failure_close", "consumer_cancel_notify", "publisher_confirms", "basic.nack"]
            {
                put_short(out, capability);
                out.put_slice(b"t\x01");
            }
        });
    });
    put_short(out, mechanism(broker));
    put_sized(out, |out| match broker.mechanism {
        Mechanism::Plain => {
            for part in [&broker.username, broker.password.expose()] {
                out.put_u8(0);
                out.put_slice(part.as_bytes());
            }
        }
        Mechanism::External => {}
    });
    put_short(out, "en_US");
}
