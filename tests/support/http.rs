//! Requests to a daemon's admin listener over a plain TCP stream, so that a test can send any bytes.
//!
//! It shares no code with the admin listener.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// An HTTP response.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    pub body: String,
}

/// Sends a well-formed GET request.
pub fn get(address: SocketAddr, path: &str) -> Response {
    send(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"))
}

/// The JSON body of a successful GET request.
pub fn json(address: SocketAddr, path: &str) -> Value {
    let response = get(address, path);
    assert_eq!(response.status, 200, "{path}: {response:?}");
    serde_json::from_str(&response.body).unwrap()
}

/// Sends a request unchanged, and reads until the connection is closed.
pub fn send(address: SocketAddr, request: &str) -> Response {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // An error is expected here: the daemon may refuse the request before it has read all of it.
    let _ = stream.write_all(request.as_bytes());
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Response { status, head: head.to_owned(), body: body.to_owned() }
}

/// The samples of a scrape by name and labels, such as `orderd_paused{consumer="order"}`.
pub struct Scrape(pub BTreeMap<String, f64>);

impl Scrape {
    /// Scrapes a daemon. Panics if a line is neither a comment nor a sample.
    pub fn of(address: SocketAddr) -> Self {
        let response = get(address, "/metrics");
        assert_eq!(response.status, 200, "{response:?}");
        assert!(response.body.ends_with("# EOF\n"));
        let samples = response.body.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("not a number: {line}")))
        };
        Scrape(samples.map(sample).collect())
    }

    /// The sum of a metric's samples that have all these labels; panics if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let named = self.0.iter().filter(|(sample, _)| sample.split('{').next() == Some(name));
        let labelled = named.filter(|(sample, _)| {
            labels.iter().all(|(label, value)| {
                sample.contains(&format!("{{{label}=\"{value}\"")) || sample.contains(&format!(",{label}=\"{value}\""))
            })
        });
        let values: Vec<f64> = labelled.map(|(_, value)| *value).collect();
        assert!(!values.is_empty(), "no {name} with {labels:?}");
        values.iter().sum()
    }

    /// [`Scrape::sum`] for one consumer.
    pub fn of_consumer(&self, name: &str, consumer: &str) -> f64 {
        self.sum(name, &[("consumer", consumer)])
    }
}
