//! The handshake that opens a connection: protocol header, mechanism, credentials, limits, virtual host.
//!
//! orderd does the handshake itself for connections that publish or consume, and to find out why any connection failed: the
//! client library cannot distinguish wrong credentials from a broken network. It does not announce the capability
//! `authentication_failure_close`, so the broker closes the connection without giving a reason. Never logs what is sent.

use std::time::Duration;
use std::{fmt, io};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::encoding::ProtocolError;
use super::field_table::put_table;
use super::frame::Frame;
use super::method::{Method, SaslResponse, put_method};
use crate::config::{Address, Broker, Mechanism};
use crate::message::{HeaderValue, Headers};
use crate::tls::{Identity, TlsError};

/// What every AMQP 0-9-1 connection begins with.
pub const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// The first octet of an alert that a TLS server sends to a client that does not speak TLS.
const TLS_ALERT: u8 = 21;
/// How long a broker may take to reject our certificate. Under TLS 1.3 it does so after the handshake, and its alert may get
/// lost if something is sent to it in the meantime.
const CERTIFICATE_ALERT_WAIT: Duration = Duration::from_millis(500);
/// RabbitMQ's default for the largest frame, and the largest that orderd accepts, in bytes.
const MAX_FRAME: usize = 128 * 1024;
/// AMQP 0-9-1, 4.2.3: every peer accepts frames of this many bytes. Before the limits are agreed, RabbitMQ up to 4.0 accepts no
/// larger one.
const MIN_FRAME_MAX: u32 = 4096;
/// RabbitMQ 4.1 and later accept frames of this many bytes before the limits are agreed, and refuse a lower `frame_max`, even
/// their own.
const RABBITMQ_MIN_FRAME_MAX: u32 = 8192;
/// How much is kept of the mechanisms that a broker offers, in bytes. RabbitMQ's are about 30.
const MAX_SHOWN_MECHANISMS: usize = 255;
/// The reply code of a close without an error.
const REPLY_SUCCESS: u16 = 200;

/// How orderd identifies itself on one attempt to connect.
#[derive(Clone, Default)]
pub struct Credentials {
    /// How to speak TLS; `None` without TLS.
    pub connector: Option<TlsConnector>,
    /// The client certificate's identity, if there is one.
    pub identity: Option<Identity>,
}

/// Why the handshake failed.
#[derive(Debug)]
pub enum HandshakeError {
    /// The broker refuses the connection: AMQP reply code and text.
    Refused { code: u16, text: String },
    /// The broker does not offer the configured mechanism.
    MechanismNotOffered { wanted: &'static str, offered: String },
    /// The broker ended the connection without a reason. RabbitMQ gives none for what it refuses before `connection.open-ok`,
    /// other than credentials and the virtual host.
    Dropped { sent: LastSent, source: io::Error },
    /// Nothing answers, or what answers does not speak AMQP.
    Io(io::Error),
    /// TLS failed.
    Tls(TlsError),
    /// The broker expects TLS on this port, and orderd did not use it.
    ExpectsTls,
}

/// What a broker was sent before it ended the handshake without a reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LastSent {
    /// Its credentials, in a frame of this many bytes.
    Credentials { frame: usize },
    /// The limits that it had proposed.
    Limits { frame_max: u32, channel_max: u16, heartbeat: u16 },
}

impl fmt::Display for LastSent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LastSent::Credentials { frame } if *frame > MIN_FRAME_MAX as usize => write!(
                f,
                "the credentials in a frame of {frame} bytes: RabbitMQ before 4.1 accepts {MIN_FRAME_MAX}, and later versions \
                 {RABBITMQ_MIN_FRAME_MAX} unless initial_frame_max is set; use a shorter password or token"
            ),
            LastSent::Credentials { .. } => f.write_str("the credentials"),
            LastSent::Limits { frame_max, channel_max, heartbeat } => {
                write!(
                    f,
                    "the broker's own limits (frame_max {frame_max}, channel_max {channel_max}, heartbeat {heartbeat})"
                )?;
                if *frame_max < RABBITMQ_MIN_FRAME_MAX {
                    let least = RABBITMQ_MIN_FRAME_MAX;
                    write!(
                        f,
                        ": RabbitMQ 4.1 and later accept no frame_max below {least}; set frame_max = {least} or more on it"
                    )?;
                }
                Ok(())
            }
        }
    }
}

impl LastSent {
    /// Explains the end of a connection that came next.
    fn explain(self, error: HandshakeError) -> HandshakeError {
        let ends = [io::ErrorKind::UnexpectedEof, io::ErrorKind::ConnectionReset, io::ErrorKind::BrokenPipe];
        match error {
            HandshakeError::Io(source) if ends.contains(&source.kind()) => {
                HandshakeError::Dropped { sent: self, source }
            }
            other => other,
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        HandshakeError::Io(error)
    }
}

impl From<ProtocolError> for HandshakeError {
    fn from(error: ProtocolError) -> Self {
        HandshakeError::Io(io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// A connection's byte stream, with or without TLS.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// An open connection that has no channels yet. Dropping it closes the socket.
pub struct Connection {
    pub stream: Box<dyn ByteStream>,
    /// Bytes that were received and are not decoded yet.
    pub incoming: BytesMut,
    /// The largest frame that either side sends, in bytes.
    pub max_frame: usize,
    /// The most channels that may be open; 0: no limit.
    pub channel_max: u16,
    /// Each side sends something at least this often, and is considered dead after twice as long. Zero: no heartbeats.
    pub heartbeat: Duration,
}

/// The name that the broker's certificate must have.
fn server_name<'a>(broker: &'a Broker, address: &'a Address) -> &'a str {
    broker.tls.as_ref().and_then(|tls| tls.server_name.as_deref()).unwrap_or(&address.host)
}

/// Opens a connection that the broker shows under this name. Safe to drop at any time.
///
/// `time_left` is for finding out why connecting failed: under TLS, a quarter of it at most is spent waiting for the broker's
/// alert about our certificate before anything is sent. Zero: no wait.
pub async fn connect(
    broker: &Broker,
    address: &Address,
    credentials: &Credentials,
    name: &str,
    time_left: Duration,
) -> Result<Connection, HandshakeError> {
    let stream = TcpStream::connect((address.host.as_str(), address.port)).await?;
    // Writes are batched before they reach the socket.
    stream.set_nodelay(true)?;
    let Some(connector) = &credentials.connector else {
        return Connection::open(Box::new(stream), broker, name).await;
    };
    let classify = |error| match error {
        HandshakeError::Io(error) => match TlsError::find_in_io_error(&error, credentials.identity.is_some()) {
            Some(error) => HandshakeError::Tls(error),
            None => HandshakeError::Io(error),
        },
        other => other,
    };
    let server = ServerName::try_from(server_name(broker, address).to_owned());
    let server = server.map_err(|_| ProtocolError("the host is not a valid name for a certificate"))?;
    let mut stream = connector.connect(server, stream).await.map_err(|error| classify(error.into()))?;
    // Before the protocol header, an AMQP broker sends nothing but an alert.
    if !time_left.is_zero()
        && let Ok(first) = timeout(CERTIFICATE_ALERT_WAIT.min(time_left / 4), stream.read_u8()).await
    {
        first.map_err(|error| classify(error.into()))?;
        return Err(ProtocolError("the server sent data before the protocol header").into());
    }
    Connection::open(Box::new(stream), broker, name).await.map_err(classify)
}

impl Connection {
    async fn open(stream: Box<dyn ByteStream>, broker: &Broker, name: &str) -> Result<Connection, HandshakeError> {
        let (incoming, heartbeat) = (BytesMut::new(), Duration::ZERO);
        let mut connection = Connection { stream, incoming, max_frame: MAX_FRAME, channel_max: 0, heartbeat };
        connection.stream.write_all(PROTOCOL_HEADER).await?;
        connection.stream.flush().await?;
        let credentials = connection.authenticate(broker, name).await?;
        connection.tune(broker.heartbeat).await.map_err(|error| credentials.explain(error))?;
        let channel_max = connection.channel_max;
        let (frame_max, heartbeat) = (connection.max_frame as u32, connection.heartbeat.as_secs() as u16);
        let limits = LastSent::Limits { frame_max, channel_max, heartbeat };
        let opened = async {
            connection.send_method(&Method::ConnectionTuneOk { channel_max, frame_max, heartbeat }).await?;
            connection
                .send_method(&Method::ConnectionOpen { virtual_host: broker.virtual_host.as_str().into() })
                .await?;
            connection.receive(|method| matches!(method, Method::ConnectionOpenOk).then_some(())).await
        };
        opened.await.map_err(|error| limits.explain(error))?;
        Ok(connection)
    }

    async fn authenticate(&mut self, broker: &Broker, name: &str) -> Result<LastSent, HandshakeError> {
        let mechanisms = |method: Method<'_>| match method {
            Method::ConnectionStart { mechanisms, .. } => Some(mechanisms.into_owned()),
            _ => None,
        };
        let (wanted, mut offered) = (mechanism(broker), self.receive(mechanisms).await?);
        if !offered.split(' ').any(|offered| offered == wanted) {
            offered.truncate(offered.floor_char_boundary(MAX_SHOWN_MECHANISMS));
            return Err(HandshakeError::MechanismNotOffered { wanted, offered });
        }
        let mut response = BytesMut::new();
        match broker.mechanism {
            Mechanism::Plain => {
                for part in [&broker.username, broker.password.expose()] {
                    response.put_u8(0);
                    response.put_slice(part.as_bytes());
                }
            }
            Mechanism::External => {}
        }
        let mut properties = BytesMut::new();
        put_table(&mut properties, &client_properties(name));
        let start_ok = Method::ConnectionStartOk {
            // Without the table's size, which encoding the method adds.
            client_properties: &properties[4..],
            mechanism: wanted.into(),
            response: SaslResponse(&response),
        };
        let mut frame = BytesMut::new();
        put_method(&mut frame, 0, &start_ok);
        self.stream.write_all(&frame).await?;
        self.stream.flush().await?;
        Ok(LastSent::Credentials { frame: frame.len() })
    }

    /// Adopts the broker's limits where they are lower than ours; 0 means no limit.
    async fn tune(&mut self, heartbeat: Duration) -> Result<(), HandshakeError> {
        let limits = |method: Method<'_>| match method {
            Method::ConnectionTune { channel_max, frame_max, heartbeat } => Some((channel_max, frame_max, heartbeat)),
            _ => None,
        };
        let (channel_max, frame_max, theirs) = self.receive(limits).await?;
        if (1..MIN_FRAME_MAX).contains(&frame_max) {
            return Err(ProtocolError("maximum frame size below 4096 bytes").into());
        }
        if frame_max > 0 {
            self.max_frame = self.max_frame.min(frame_max as usize);
        }
        let ours = u16::try_from(heartbeat.as_secs()).unwrap_or(u16::MAX);
        let lower = if ours == 0 || theirs == 0 { ours.max(theirs) } else { ours.min(theirs) };
        self.heartbeat = Duration::from_secs(lower.into());
        self.channel_max = channel_max;
        Ok(())
    }

    async fn send_method(&mut self, method: &Method<'_>) -> io::Result<()> {
        let mut out = BytesMut::new();
        put_method(&mut out, 0, method);
        self.stream.write_all(&out).await?;
        self.stream.flush().await
    }

    /// Waits for the next method, which must be one from which `take` returns something. Skips heartbeats.
    async fn receive<T>(&mut self, take: impl Fn(Method<'_>) -> Option<T>) -> Result<T, HandshakeError> {
        loop {
            if self.incoming.first() == Some(&TLS_ALERT) {
                return Err(HandshakeError::ExpectsTls);
            }
            let Some(frame) = Frame::parse(&self.incoming, self.max_frame)? else {
                if self.stream.read_buf(&mut self.incoming).await? == 0 {
                    return Err(HandshakeError::Io(io::ErrorKind::UnexpectedEof.into()));
                }
                continue;
            };
            let length = frame.len();
            let taken = match Method::parse(&frame)? {
                None => None,
                Some(Method::ConnectionClose { code, text }) => {
                    return Err(HandshakeError::Refused { code, text: text.into_owned() });
                }
                Some(method) => Some(take(method).ok_or(ProtocolError("unexpected method"))?),
            };
            self.incoming.advance(length);
            if let Some(taken) = taken {
                return Ok(taken);
            }
        }
    }

    /// Sends a close and closes the socket, without waiting for the close-ok.
    pub async fn close(mut self) {
        let _ = self.send_method(&close_without_error()).await;
    }
}

/// The `connection.close` that reports no error.
pub fn close_without_error() -> Method<'static> {
    Method::ConnectionClose { code: REPLY_SUCCESS, text: "".into() }
}

fn mechanism(broker: &Broker) -> &'static str {
    match broker.mechanism {
        Mechanism::Plain => "PLAIN",
        Mechanism::External => "EXTERNAL",
    }
}

/// How orderd describes itself to the broker, whose management UI shows it.
fn client_properties(name: &str) -> Headers {
    let capabilities = [
        "authentication_failure_close",
        "basic.nack",
        "connection.blocked",
        "consumer_cancel_notify",
        "publisher_confirms",
    ];
    let capabilities = capabilities.map(|capability| (capability.to_owned(), HeaderValue::Bool(true)));
    Headers::from([
        ("product".to_owned(), "orderd".into()),
        ("version".to_owned(), env!("CARGO_PKG_VERSION").into()),
        ("connection_name".to_owned(), name.into()),
        ("capabilities".to_owned(), HeaderValue::Table(Headers::from(capabilities))),
    ])
}
