//! A trivial step service: an HTTP/1.1 server that reads each request and answers it at once, with kept connections.
//!
//! It runs on one thread of the benchmark, parses no more than it needs, and so uses as little of the machine as possible.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use memchr::memmem;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"payment\":7}";
const CONTENT_LENGTH: &[u8] = b"\r\ncontent-length: ";
const BUFFER_BYTES: usize = 16 * 1024;

/// The running service; it ends with the process.
pub struct StepService {
    port: u16,
    calls: Arc<AtomicU64>,
}

impl StepService {
    pub fn start() -> io::Result<StepService> {
        let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let port = listener.local_addr()?.port();
        let calls = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&calls);
        thread::Builder::new().name("service".to_owned()).spawn(move || {
            runtime.block_on(async {
                loop {
                    // An error is that of one connection.
                    let Ok((stream, _)) = listener.accept().await else { continue };
                    let counter = Arc::clone(&counter);
                    tokio::spawn(async move { serve(stream, &counter).await });
                }
            })
        })?;
        Ok(StepService { port, calls })
    }

    /// The value of `consumers.<name>.steps` with one step.
    pub fn steps(&self) -> String {
        format!("[{{ name = \"charge\", http = {{ url = \"http://127.0.0.1:{}/charge\" }} }}]", self.port)
    }

    /// The calls so far.
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

/// Answers the requests of one connection until it is closed.
async fn serve(mut stream: TcpStream, calls: &AtomicU64) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(BUFFER_BYTES);
    loop {
        let Some(length) = request_length(&buffer)? else {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            continue;
        };
        buffer.drain(..length);
        calls.fetch_add(1, Ordering::Relaxed);
        stream.write_all(ANSWER).await?;
    }
}

/// How many bytes the first request has; `None` if it is not complete.
fn request_length(buffer: &[u8]) -> io::Result<Option<usize>> {
    let Some(head) = memmem::find(buffer, b"\r\n\r\n") else { return Ok(None) };
    let no_length = || io::Error::other("a request has no content-length");
    let start = memmem::find(&buffer[..head], CONTENT_LENGTH).ok_or_else(no_length)? + CONTENT_LENGTH.len();
    let digits = buffer[start..].iter().take_while(|byte| byte.is_ascii_digit());
    let body = digits.fold(0_usize, |length, digit| length * 10 + usize::from(digit - b'0'));
    let length = head + 4 + body;
    Ok((buffer.len() >= length).then_some(length))
}
