//! A server for tests of the client and of commands: it answers as the test says, and does nothing else.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What becomes of a request.
#[derive(Debug, Clone)]
pub(in crate::cli) enum Answer {
    /// An answer with this status and body.
    Json(u16, String),
    /// These bytes, after which the connection is closed.
    Raw(&'static str),
    /// The connection is closed once the request has arrived.
    Lost,
    /// Nothing is answered.
    Silence,
}

/// Answers one request after the other; those beyond the last answer as the last one. Each answer ends its connection.
pub(in crate::cli) async fn serve(answers: Vec<Answer>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut silent, mut next) = (Vec::new(), 0);
        while let Ok((mut connection, _)) = listener.accept().await {
            read_request(&mut connection).await;
            let text = match &answers[next.min(answers.len() - 1)] {
                Answer::Json(status, body) => {
                    format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                }
                Answer::Raw(text) => (*text).to_owned(),
                Answer::Lost => String::new(),
                Answer::Silence => {
                    silent.push(connection);
                    continue;
                }
            };
            let _ = connection.write_all(text.as_bytes()).await;
            next += 1;
        }
    });
    address
}

/// Reads a request with its body.
async fn read_request(connection: &mut TcpStream) {
    let mut request = Vec::new();
    while connection.read_buf(&mut request).await.is_ok_and(|read| read > 0) {
        let text = String::from_utf8_lossy(&request).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        if body.len() >= length.map_or(0, |length| length.trim().parse().unwrap()) {
            return;
        }
    }
}
