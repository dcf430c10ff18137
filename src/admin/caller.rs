//! Whether the client of a connection still waits for its answer.
//!
//! A daemon that was stopped for a while finds requests of clients that no longer wait. Their connections look open until the end of
//! the stream is read, so the socket itself is asked. It never takes data out of a connection.
//! The socket also says whether the client has sent something that is still unread.

use std::io;
use std::net::TcpStream;
use std::sync::{Arc, Weak};

/// The client's end of a connection. Kept as long as the connection is served.
pub(super) struct Caller(Arc<TcpStream>);

/// Asks whether the client still waits; passed on with each request.
#[derive(Debug, Clone)]
pub(super) struct CallerHandle(Weak<TcpStream>);

impl Caller {
    /// Splits a connection into the part that is served and the part that is asked.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub(super) fn split(stream: tokio::net::TcpStream) -> io::Result<(tokio::net::TcpStream, Caller)> {
        let stream = stream.into_std()?;
        let caller = Caller(Arc::new(stream.try_clone()?));
        Ok((tokio::net::TcpStream::from_std(stream)?, caller))
    }

    pub(super) fn handle(&self) -> CallerHandle {
        CallerHandle(Arc::downgrade(&self.0))
    }
}

impl CallerHandle {
    /// Whether the client has sent something that was not read yet.
    pub(super) fn has_unread_data(&self) -> bool {
        self.0.upgrade().is_some_and(|stream| stream.peek(&mut [0]).is_ok_and(|bytes| bytes > 0))
    }

    /// `false` once the client has closed its end, or the connection is no longer served.
    pub(super) fn is_waiting(&self) -> bool {
        let Some(stream) = self.0.upgrade() else { return false };
        match stream.peek(&mut [0]) {
            Ok(bytes) => bytes > 0,
            Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }
}
