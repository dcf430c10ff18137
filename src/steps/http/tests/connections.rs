//! Connections that are kept between calls, and that the server closes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use super::*;

/// How a server ends a connection once it has answered.
#[derive(Debug, Clone, Copy)]
enum Close {
    /// It says so before, in its answer.
    Announced,
    Orderly,
    /// With a reset.
    Reset,
}

/// Starts a server that answers one request for each connection, and reports each connection that it has closed.
fn server(close: Close) -> (Url, Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
    let (closed, receiver) = sync_channel(0);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream, close);
            if closed.send(()).is_err() {
                return;
            }
        }
    });
    (url, receiver)
}

fn answer(mut stream: TcpStream, close: Close) {
    // What is not read when a connection is closed makes the kernel reset it.
    let unread = usize::from(matches!(close, Close::Reset));
    let expected = &BODY.as_bytes()[..BODY.len() - unread];
    let mut request = Vec::new();
    while !request.ends_with(expected) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        request.extend_from_slice(&byte);
    }
    let headers = if matches!(close, Close::Announced) { "connection: close\r\n" } else { "" };
    stream.write_all(&response("200 OK", headers, "1")).unwrap();
}

#[tokio::test]
async fn a_connection_that_the_server_has_closed_between_calls_costs_no_attempt() {
    for close in [Close::Announced, Close::Orderly, Close::Reset] {
        let (url, closed) = server(close);
        let service = service(settings(url));
        for number in 1..=50 {
            let answer = call_of(&service).await;
            assert_eq!(answer.map(|answer| answer.result.get().to_owned()).as_deref(), Ok("1"), "{close:?} {number}");
            // Blocks the only thread, which notices the end of the connection only in the next call.
            closed.recv().unwrap();
        }
    }
}
