//! Relays between the client library and the broker, so that the library never reads what a broker chooses to send.
//!
//! The library limits neither the size of a frame nor the depth of a table: before the login, a broker could exhaust the memory
//! or the stack. So orderd does the handshake with the broker itself, TLS included, and the library connects to this relay over
//! loopback, with a password of its own. What the broker sends is passed on only if it is a reply that the library can have
//! asked for, and none of these contains a table. Never keeps a connection open that either side has closed.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use amqprs::connection::{Connection, OpenConnectionArguments};
use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tracing::warn;

use crate::amqp::lifetime::{ConnectionEnd, ConnectionLifetime, EndOnDrop, REPLY_TIMEOUT};
use crate::amqp::protocol::{
    self, Frame, FrameType, Method, MethodId, PROTOCOL_HEADER, ProtocolError, SaslResponse, put_method,
};
use crate::random::random_hex;

/// The largest frame that the broker may send, in bytes. The replies consist of a few numbers and short strings.
const MAX_REPLY: usize = 4096;
/// Most frames that the broker may send on one connection. The largest plan has some thousand requests.
const MAX_REPLIES: usize = 1 << 20;
/// Read at a time, in bytes.
const READ_SIZE: usize = 16 * 1024;
/// How long a client of the relay may take for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the library may take to close its side once the broker has closed the connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// Random bytes of the password.
const PASSWORD_BYTES: usize = 16;
const USER: &str = "orderd";

/// The replies to the library's requests, and the broker's own closes. None contains a table.
const REPLIES: [MethodId; 12] = [
    MethodId::CONNECTION_CLOSE,
    MethodId::CONNECTION_CLOSE_OK,
    MethodId::CHANNEL_OPEN_OK,
    MethodId::CHANNEL_CLOSE,
    MethodId::CHANNEL_CLOSE_OK,
    MethodId::EXCHANGE_DECLARE_OK,
    MethodId::QUEUE_DECLARE_OK,
    MethodId::QUEUE_BIND_OK,
    MethodId::QUEUE_UNBIND_OK,
    MethodId::BASIC_CONSUME_OK,
    MethodId::TX_SELECT_OK,
    MethodId::TX_ROLLBACK_OK,
];
/// What a broker with an alarm sends at any time, about the whole connection.
const UNASKED: [MethodId; 2] = [MethodId::CONNECTION_BLOCKED, MethodId::CONNECTION_UNBLOCKED];

/// Opens a connection of the client library over an open connection to the broker. Its lifetime ends with either side, and has the
/// broker's own reason before the library can notice.
///
/// # Errors
/// If loopback cannot be used, or the library does not connect.
pub async fn open(broker: protocol::Connection) -> io::Result<(Connection, Arc<ConnectionLifetime>)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    // Another program on this machine could connect to the relay before the library does.
    let (port, password) = (listener.local_addr()?.port(), random_hex(PASSWORD_BYTES)?);
    let mut arguments = OpenConnectionArguments::new("127.0.0.1", port, USER, &password);
    let heartbeat = u16::try_from(broker.heartbeat.as_secs()).unwrap_or(u16::MAX);
    arguments.heartbeat(heartbeat);
    let (channel_max, frame_max) = (broker.channel_max, broker.max_frame as u32);
    let limits = Method::ConnectionTune { channel_max, frame_max, heartbeat };
    let opening = async { Connection::open(&arguments).await.map_err(io::Error::other) };
    let (library, connection) = tokio::try_join!(accept(listener, &password, &limits), opening)?;
    // Ends when either side closes its connection. The library closes its side when the last handle is dropped.
    let lifetime = ConnectionLifetime::begin();
    tokio::spawn(relay(library, broker, Arc::clone(&lifetime)));
    Ok((connection, lifetime))
}

/// The library's side of a relayed connection.
struct LibrarySide {
    stream: TcpStream,
    /// Received and not relayed yet.
    incoming: BytesMut,
}

/// Waits for the library. Other programs that connect do not know the password and are disconnected.
async fn accept(listener: TcpListener, password: &str, limits: &Method<'_>) -> io::Result<LibrarySide> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let mut library = LibrarySide { stream, incoming: BytesMut::new() };
        // A program that sends one byte after the other must not keep the library out.
        if let Ok(Ok(())) = timeout(HANDSHAKE_TIMEOUT, library.handshake(password, limits)).await {
            return Ok(library);
        }
    }
}

impl LibrarySide {
    /// The broker's side of a handshake, with the limits that were agreed with the real broker.
    async fn handshake(&mut self, password: &str, limits: &Method<'_>) -> io::Result<()> {
        while self.incoming.len() < PROTOCOL_HEADER.len() {
            self.read().await?;
        }
        self.incoming.advance(PROTOCOL_HEADER.len());
        self.send(&Method::ConnectionStart { server_properties: &[], mechanisms: "PLAIN".into() }).await?;
        let expected = format!("\0{USER}\0{password}");
        let is_library = |method: &Method<'_>| match method {
            Method::ConnectionStartOk { response: SaslResponse(response), .. } => *response == expected.as_bytes(),
            _ => false,
        };
        self.expect(is_library).await?;
        self.send(limits).await?;
        self.expect(|method| matches!(method, Method::ConnectionTuneOk { .. })).await?;
        self.expect(|method| matches!(method, Method::ConnectionOpen { .. })).await?;
        self.send(&Method::ConnectionOpenOk).await
    }

    async fn send(&mut self, method: &Method<'_>) -> io::Result<()> {
        let mut out = BytesMut::new();
        put_method(&mut out, 0, method);
        self.stream.write_all(&out).await
    }

    async fn expect(&mut self, is_expected: impl Fn(&Method<'_>) -> bool) -> io::Result<()> {
        loop {
            let Some(frame) = Frame::parse(&self.incoming, MAX_REPLY).map_err(invalid)? else {
                self.read().await?;
                continue;
            };
            let (length, method) = (frame.len(), Method::parse(&frame).map_err(invalid)?);
            if !method.is_some_and(|method| is_expected(&method)) {
                return Err(invalid(ProtocolError("not the client library")));
            }
            self.incoming.advance(length);
            return Ok(());
        }
    }

    async fn read(&mut self) -> io::Result<()> {
        self.incoming.reserve(READ_SIZE);
        match self.stream.read_buf(&mut self.incoming).await {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            read => read.map(drop),
        }
    }
}

fn invalid(error: ProtocolError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

async fn relay(library: LibrarySide, broker: protocol::Connection, lifetime: Arc<ConnectionLifetime>) {
    let lifetime = EndOnDrop(lifetime);
    let LibrarySide { stream, incoming } = library;
    let (mut from_library, mut to_library) = stream.into_split();
    let (mut from_broker, mut to_broker) = tokio::io::split(broker.stream);
    let ended = tokio::select! {
        // Cancel-safe: the connections are closed after either direction has ended.
        _ = forward_requests(incoming, &mut from_library, &mut to_broker) => None,
        ended = forward_replies(broker.incoming, &mut from_broker, &mut to_library, &lifetime.0) => Some(ended),
    };
    lifetime.0.end(ConnectionEnd::Broken);
    let _ = timeout(CLOSE_TIMEOUT, to_broker.shutdown()).await;
    match ended {
        None => {}
        // Data of the library's that is never read would reset its connection, with the broker's last words on it.
        Some(Ok(())) => {
            let _ = to_library.shutdown().await;
            let _ = timeout(CLOSE_TIMEOUT, tokio::io::copy(&mut from_library, &mut tokio::io::sink())).await;
        }
        Some(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
            warn!(%error, "the broker violated the protocol on a connection that declares or checks");
        }
        Some(Err(_)) => {}
    }
}

/// Passes on what the library sends, until it closes its side.
async fn forward_requests(
    mut bytes: BytesMut,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    loop {
        send_all(to, &bytes).await?;
        bytes.clear();
        bytes.reserve(READ_SIZE);
        if from.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
}

/// Passes on what the broker sends, until it closes its side or sends anything but a reply. If it closes or blocks the connection,
/// the lifetime ends with its reason.
async fn forward_replies(
    mut bytes: BytesMut,
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    lifetime: &ConnectionLifetime,
) -> io::Result<()> {
    let mut replies = 0;
    loop {
        let mut checked = 0;
        while let Some(frame) = Frame::parse(&bytes[checked..], MAX_REPLY).map_err(invalid)? {
            check_reply(&frame).map_err(invalid)?;
            if let Some(end) = end_of_connection(&frame).map_err(invalid)? {
                lifetime.end(end);
            }
            checked += frame.len();
            replies += 1;
        }
        if replies > MAX_REPLIES {
            return Err(invalid(ProtocolError("more replies than requests")));
        }
        send_all(to, &bytes[..checked]).await?;
        bytes.advance(checked);
        bytes.reserve(READ_SIZE);
        if from.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
    }
}

fn check_reply(frame: &Frame<'_>) -> Result<(), ProtocolError> {
    let is_allowed = |id: MethodId| REPLIES.contains(&id) || (frame.channel == 0 && UNASKED.contains(&id));
    match frame.kind {
        FrameType::Heartbeat => Ok(()),
        FrameType::Method if MethodId::get(&mut { frame.payload }).is_ok_and(is_allowed) => Ok(()),
        FrameType::Method | FrameType::Header | FrameType::Body => Err(ProtocolError("not a reply")),
    }
}

/// The broker's reason, if it closes the connection or has blocked it: once it has something to refuse because of an alarm, it
/// answers no further request.
fn end_of_connection(frame: &Frame<'_>) -> Result<Option<ConnectionEnd>, ProtocolError> {
    const ENDS: [MethodId; 2] = [MethodId::CONNECTION_CLOSE, MethodId::CONNECTION_BLOCKED];
    if frame.kind != FrameType::Method || !ENDS.contains(&MethodId::get(&mut { frame.payload })?) {
        return Ok(None);
    }
    Ok(match Method::parse(frame)? {
        Some(Method::ConnectionClose { code, text }) => {
            Some(ConnectionEnd::ConnectionClosed { code, text: text.into_owned() })
        }
        Some(Method::ConnectionBlocked { reason }) => Some(ConnectionEnd::Blocked(reason.into_owned())),
        _ => None,
    })
}

async fn send_all(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    timeout(REPLY_TIMEOUT, async {
        to.write_all(bytes).await?;
        to.flush().await
    })
    .await?
}

#[cfg(test)]
mod tests {
    use bytes::{BufMut, BytesMut};

    use super::*;
    use crate::amqp::fake_broker::{DEADLINE, FakeBroker};
    use crate::amqp::protocol::put_frame;
    use crate::amqp::{ConnectError, Connector, DeclareError};
    use crate::topology::{Declaration, Object, Queue};

    fn plan() -> Vec<Declaration> {
        vec![Declaration::Queue(Queue { name: "q".into(), arguments: Default::default() })]
    }

    async fn check(connector: Connector) -> Result<Vec<Object>, DeclareError> {
        timeout(DEADLINE, connector.missing_objects(&plan())).await.expect("an answer in time")
    }

    fn put_declare_ok(out: &mut BytesMut, channel: u16) {
        put_method(out, channel, &Method::QueueDeclareOk { message_count: 0, consumer_count: 0 });
    }

    /// Tables nested this deep, each the only field of the one around it.
    fn nested_tables(depth: usize) -> Vec<u8> {
        let mut table = Vec::new();
        for _ in 0..depth {
            let mut outer = vec![1, b'a', b'F'];
            outer.extend((table.len() as u32).to_be_bytes());
            outer.append(&mut table);
            table = outer;
        }
        table
    }

    #[tokio::test]
    async fn tables_nested_9000_deep_before_the_login_do_not_overflow_the_stack() {
        let mut broker = FakeBroker::new(&[]).await;
        broker.server_properties = nested_tables(9000);
        let checking = tokio::spawn(check(broker.connector()));
        let mut connection = broker.accept(|_| {}).await;
        connection.expect_method(MethodId::CHANNEL_OPEN).await;
        connection.send_method(Method::ChannelOpenOk).await;
        connection.expect_method(MethodId::QUEUE_DECLARE).await;
        connection.send(|out| put_declare_ok(out, 1)).await;
        connection.expect_one_of(&[MethodId::CHANNEL_CLOSE, MethodId::CONNECTION_CLOSE]).await;
        drop(connection);
        assert_eq!(checking.await.unwrap().unwrap(), []);
    }

    #[tokio::test]
    async fn a_broker_that_sends_anything_but_replies_is_disconnected() {
        let frame = |kind: u8, channel: u16, size: u32, payload: &[u8]| {
            let mut out = BytesMut::new();
            out.put_u8(kind);
            out.put_u16(channel);
            out.put_u32(size);
            out.put_slice(payload);
            out.put_u8(0xce);
            out
        };
        let method = |class: u16, method: u16, arguments: &[u8]| {
            let mut out = BytesMut::new();
            put_frame(&mut out, FrameType::Method, 1, |out| {
                out.put_u16(class);
                out.put_u16(method);
                out.put_slice(arguments);
            });
            out
        };
        let nested = [&[0; 3][..], &nested_tables(9000)].concat();
        for sent in [
            frame(1, 1, u32::MAX, b""),
            frame(1, 1, 5000, &[0; 5000]),
            frame(3, 1, 3, b"abc"),
            frame(1, 1, 1, b"a"),
            BytesMut::from("HTTP/1.1 400 Bad Request"),
            method(60, 60, &[0; 20]),
            method(10, 10, &nested[..4000]),
            method(10, 60, b"\x03low"),
            method(50, 12, b""),
        ] {
            let broker = FakeBroker::new(&[]).await;
            let checking = tokio::spawn(check(broker.connector()));
            let mut connection = broker.accept(|_| {}).await;
            connection.expect_method(MethodId::CHANNEL_OPEN).await;
            connection.send(|out| out.put_slice(&sent)).await;
            assert!(checking.await.unwrap().is_err(), "{sent:?}");
            connection.expect_disconnect().await;
        }
    }

    #[tokio::test]
    async fn replies_on_channels_that_are_not_open_and_closes_that_were_not_asked_for_end_the_connection_at_most() {
        for channel in [0, 2, u16::MAX] {
            let broker = FakeBroker::new(&[]).await;
            let checking = tokio::spawn(check(broker.connector()));
            let mut connection = broker.accept(|_| {}).await;
            connection.expect_method(MethodId::CHANNEL_OPEN).await;
            connection
                .send(|out| {
                    put_declare_ok(out, channel);
                    put_method(out, channel, &Method::ChannelCloseOk);
                    put_method(out, channel, &Method::ChannelClose { code: 404, text: "x".repeat(255).into() });
                    put_method(out, 0, &Method::ConnectionClose { code: 320, text: "CONNECTION_FORCED".into() });
                })
                .await;
            assert!(checking.await.unwrap().is_err(), "{channel}");
        }
    }

    #[tokio::test]
    async fn a_broker_that_closes_the_connection_instead_of_opening_a_channel_is_quoted() {
        let broker = FakeBroker::new(&[]).await;
        let checking = tokio::spawn(check(broker.connector()));
        let mut connection = broker.accept(|_| {}).await;
        connection.expect_method(MethodId::CHANNEL_OPEN).await;
        let text = "NOT_ALLOWED - number of channels opened has reached the limit of (1)";
        connection.send_connection_method(Method::ConnectionClose { code: 530, text: text.into() }).await;
        let DeclareError::Connect(ConnectError::Lost(end)) = checking.await.unwrap().unwrap_err() else { panic!() };
        assert_eq!(end, ConnectionEnd::ConnectionClosed { code: 530, text: text.into() });
    }

    #[tokio::test]
    async fn a_program_that_connects_before_the_library_is_turned_away() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = Method::ConnectionTune { channel_max: 0, frame_max: 0, heartbeat: 0 };
        let accepting = accept(listener, "right", &limits);
        let connect = async |password: &str| {
            let mut arguments = OpenConnectionArguments::new("127.0.0.1", address.port(), USER, password);
            Connection::open(arguments.heartbeat(0)).await
        };
        let connecting = async {
            let mut silent = TcpStream::connect(address).await.unwrap();
            silent.write_all(PROTOCOL_HEADER).await.unwrap();
            assert!(connect("wrong").await.is_err());
            connect("right").await
        };
        let (accepted, connected) = timeout(DEADLINE, async { tokio::join!(accepting, connecting) }).await.unwrap();
        assert!(accepted.is_ok() && connected.is_ok());
    }
}
