//! The connection below SMTP: TCP, or TLS from the beginning or after `STARTTLS`, with a limit on what a server may send.
//!
//! TLS is that of the rest of orderd (`tls`), so the exchange before `STARTTLS` is here. It never sends a command of an e-mail.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use lettre::transport::smtp::client::AsyncTokioStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::escape::escaped;

/// The most bytes that a server may send over one connection.
const MAX_RECEIVED_BYTES: usize = 1 << 20;
/// Read at once, in bytes.
const READ_BYTES: usize = 2048;
/// The longest reply before TLS, in bytes.
const MAX_REPLY_BYTES: usize = 4096;
/// What stands for the greeting once TLS is established: the server sends none then, and the client expects one.
const GREETING: &[u8] = b"220 TLS established\r\n";

/// A connection.
#[derive(Debug)]
pub(super) struct SmtpStream {
    transport: Transport,
    /// Whole lines that were not read yet.
    ready: Vec<u8>,
    /// The beginning of a line.
    line: Vec<u8>,
    /// The server has ended the connection.
    is_ended: bool,
    received: usize,
}

#[derive(Debug)]
enum Transport {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Why the server does not begin TLS.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartTlsError {
    /// The connection.
    #[error("the connection was lost")]
    Io(#[from] io::Error),
    /// The server accepts nobody, or not the greeting, with this code and text.
    #[error("{0} {1}")]
    NotGreeted(u16, String),
    /// The server refuses to begin TLS, with this code and text.
    #[error("the server refuses STARTTLS: {0} {1}")]
    Refused(u16, String),
    /// The server does not offer it.
    #[error("the server does not offer STARTTLS; set tls = \"tls\", or \"none\" for a server on this machine")]
    NotOffered,
    /// More came with the reply, in plain text: someone may have inserted it.
    #[error("the server sent more than its reply to STARTTLS")]
    Injected,
}

impl SmtpStream {
    /// Without TLS.
    pub fn plain(stream: TcpStream) -> Self {
        Self::new(Transport::Plain(stream))
    }

    /// TLS from the beginning.
    pub async fn tls(stream: TcpStream, connector: &TlsConnector, name: ServerName<'static>) -> io::Result<Self> {
        let tls = connector.connect(name, stream).await?;
        Ok(Self::new(Transport::Tls(Box::new(tls))))
    }

    /// TLS after the greeting and `STARTTLS`, which [`start_tls`] has exchanged.
    pub async fn after_start_tls(
        stream: TcpStream,
        connector: &TlsConnector,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        Ok(SmtpStream { ready: GREETING.to_vec(), ..Self::tls(stream, connector, name).await? })
    }

    fn new(transport: Transport) -> Self {
        SmtpStream { transport, ready: Vec::new(), line: Vec::new(), is_ended: false, received: 0 }
    }

    /// Makes what the server has sent readable, line by line. Nothing means that it has ended the connection.
    fn receive(&mut self, received: &[u8]) -> io::Result<()> {
        self.received += received.len();
        if self.received > MAX_RECEIVED_BYTES {
            return Err(io::Error::other("the server has sent too much over one connection"));
        }
        self.is_ended = received.is_empty();
        if self.is_ended {
            self.ready.append(&mut self.line);
        }
        for part in received.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.ready.extend_from_slice(normalised(&line).as_bytes());
            }
        }
        Ok(())
    }
}

/// A line of a reply as the parser accepts it: it would take an acceptance that it cannot read for a lost connection, and the e-mail would
/// be sent again. Texts may have bytes that are not UTF-8, a code may be all there is (RFC 5321, 4.2.1), and only the first digit of a
/// code that is not a known one has a meaning (4.2).
fn normalised(line: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(line).into_owned();
    let code = text.bytes().take_while(u8::is_ascii_digit).count();
    if code == 3 {
        if matches!(text.as_bytes().get(1), Some(b'6'..=b'9')) {
            text.replace_range(1..2, "5");
        }
        if matches!(text.as_bytes().get(3), Some(b'\r' | b'\n')) {
            text.insert(3, ' ');
        }
    }
    text
}

/// The exchange in plain text: the greeting, `EHLO` and `STARTTLS`.
///
/// # Errors
/// Then no e-mail may be sent: never in plain text instead.
pub(super) async fn start_tls(stream: &mut TcpStream, name: &str) -> Result<(), StartTlsError> {
    match reply(stream).await? {
        (220, _) => {}
        (code, lines) => return Err(StartTlsError::NotGreeted(code, shown(&lines))),
    }
    stream.write_all(format!("EHLO {name}\r\n").as_bytes()).await?;
    let offered = match reply(stream).await? {
        (250, lines) => lines,
        (code, lines) => return Err(StartTlsError::NotGreeted(code, shown(&lines))),
    };
    let offers = |line: &str| line.get(4..).is_some_and(|keyword| keyword.trim().eq_ignore_ascii_case("STARTTLS"));
    if !offered.lines().any(offers) {
        return Err(StartTlsError::NotOffered);
    }
    stream.write_all(b"STARTTLS\r\n").await?;
    match reply(stream).await? {
        (220, _) => Ok(()),
        (code, lines) => Err(StartTlsError::Refused(code, shown(&lines))),
    }
}

/// The text of a reply without its codes.
fn shown(lines: &str) -> String {
    let texts = lines.lines().filter_map(|line| line.get(4..)).map(|text| escaped(text.trim()));
    texts.collect::<Vec<_>>().join(" ")
}

/// The code and the lines of one reply, and not a byte more.
async fn reply(stream: &mut TcpStream) -> Result<(u16, String), StartTlsError> {
    let mut text = Vec::new();
    loop {
        let mut buffer = [0; 1024];
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        text.extend_from_slice(&buffer[..count]);
        if text.len() > MAX_REPLY_BYTES {
            return Err(io::Error::other("the reply is too long").into());
        }
        if !text.iter().take(3).all(u8::is_ascii_digit) {
            return Err(io::Error::other("the server does not speak SMTP").into());
        }
        let shown = String::from_utf8_lossy(&text);
        // The last line has a space after the code.
        let mut lines = shown.split_inclusive('\n');
        let last = lines.position(|line| line.ends_with('\n') && line.as_bytes().get(3) != Some(&b'-'));
        match (last, lines.next()) {
            (Some(_), None) => {
                let code = shown.get(..3).and_then(|code| code.parse().ok());
                let code = code.ok_or_else(|| io::Error::other("the server does not speak SMTP"))?;
                return Ok((code, shown.into_owned()));
            }
            (Some(_), Some(_)) => return Err(StartTlsError::Injected),
            (None, _) => {}
        }
    }
}

impl AsyncRead for SmtpStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        while stream.ready.is_empty() && !stream.is_ended {
            let mut bytes = [0; READ_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            let polled = match &mut stream.transport {
                Transport::Plain(stream) => Pin::new(stream).poll_read(cx, &mut read),
                Transport::Tls(stream) => Pin::new(stream).poll_read(cx, &mut read),
            };
            match polled {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => stream.receive(read.filled())?,
            }
        }
        let count = stream.ready.len().min(buffer.remaining());
        buffer.put_slice(&stream.ready[..count]);
        stream.ready.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for SmtpStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl AsyncTokioStream for SmtpStream {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        match &self.transport {
            Transport::Plain(stream) => stream.peer_addr(),
            Transport::Tls(stream) => stream.get_ref().0.peer_addr(),
        }
    }
}
