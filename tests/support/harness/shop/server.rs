//! An HTTP server of the shop's services, which can go away and come back at the same address.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::Value;

use super::books::{Action, Books};

/// Longest body of a request, in bytes.
const MAX_BODY: u64 = 1024 * 1024;
/// Longest head of a request, in bytes.
const MAX_HEAD: u64 = 64 * 1024;
/// How long a server that goes away still acts on calls without answering them.
const SILENCE: Duration = Duration::from_millis(50);

/// The server; it answers while it is started.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    books: Arc<Mutex<Books>>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    stop: Arc<AtomicBool>,
    /// Returns the connections that are open at its end.
    accepting: JoinHandle<HashMap<u64, TcpStream>>,
}

impl Server {
    /// A server that does not answer yet.
    pub fn new(address: SocketAddr, books: Arc<Mutex<Books>>) -> Server {
        Server { address, books, running: None }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts to accept connections.
    pub fn start(&mut self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address).map_err(|error| {
            io::Error::new(error.kind(), format!("cannot listen on {} for the shop's services: {error}", self.address))
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let (books, stopping) = (Arc::clone(&self.books), Arc::clone(&stop));
        let accepting = thread::spawn(move || accept(&listener, &books, stopping));
        self.running = Some(Running { stop, accepting });
        Ok(())
    }

    /// Refuses connections from now on, and closes those that are open. Just before, calls are acted on and not answered, as by a
    /// server that is killed.
    pub fn stop(&mut self) {
        let Some(Running { stop, accepting }) = self.running.take() else { return };
        stop.store(true, Ordering::SeqCst);
        thread::sleep(SILENCE);
        // Wakes the thread that accepts. An error means that it has ended.
        let _ = TcpStream::connect(self.address);
        for connection in accepting.join().unwrap_or_default().into_values() {
            // An error means that it is closed already.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

fn accept(listener: &TcpListener, books: &Arc<Mutex<Books>>, stop: Arc<AtomicBool>) -> HashMap<u64, TcpStream> {
    let open = Arc::new(Mutex::new(HashMap::new()));
    for (number, connection) in (0_u64..).zip(listener.incoming()) {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let Some((connection, clone)) = connection.and_then(|it| Ok((it.try_clone()?, it))).ok() else { continue };
        lock(&open).insert(number, clone);
        let (books, open, stop) = (Arc::clone(books), Arc::clone(&open), Arc::clone(&stop));
        thread::spawn(move || {
            let _ = serve(&connection, &books, &stop);
            lock(&open).remove(&number);
        });
    }
    let mut open = lock(&open);
    std::mem::take(&mut open)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers the requests of one connection until it is closed or the server goes away.
fn serve(connection: &TcpStream, books: &Mutex<Books>, stop: &AtomicBool) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection);
    let mut writer = connection;
    while let Some(request) = Request::read(&mut reader)? {
        let (status, body) = match Action::of_path(&request.path) {
            Some(action) => lock(books).call(action, &request.key, &request.order),
            None => ("404 Not Found", format!("there is no {}", request.path)),
        };
        if stop.load(Ordering::SeqCst) {
            return Ok(());
        }
        write!(writer, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    }
    Ok(())
}

/// A call of a step.
struct Request {
    path: String,
    /// `Idempotency-Key`
    key: String,
    /// The order's id.
    order: String,
}

impl Request {
    /// Reads one; `None` at the end of the connection.
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
        let mut head = reader.by_ref().take(MAX_HEAD);
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            head.read_line(&mut line)?;
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let length = headers.get("content-length").and_then(|length| length.parse::<u64>().ok());
        let length = length.filter(|length| *length <= MAX_BODY).ok_or_else(|| invalid("no usable content-length"))?;
        let mut body = Vec::new();
        reader.by_ref().take(length).read_to_end(&mut body)?;
        let body: Value = serde_json::from_slice(&body)?;
        let order = body["order"]["id"].as_str().ok_or_else(|| invalid("no order"))?.to_owned();
        let key = headers.remove("idempotency-key").ok_or_else(|| invalid("no idempotency key"))?;
        Ok(Some(Request { path, key, order }))
    }
}
