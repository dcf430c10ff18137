//! Requests to a daemon's admin listener, byte for byte, and what its answers say.
//!
//! Knows nothing of how they are made.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Asks as a well-behaved client on this machine would.
pub fn get(address: SocketAddr, path: &str) -> Answer {
    ask(address, &format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"))
}

/// The JSON at a path.
pub fn json(address: SocketAddr, path: &str) -> Value {
    let answer = get(address, path);
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    serde_json::from_str(&answer.body).unwrap()
}

/// Sends a request as it is, and reads until the connection is closed.
pub fn ask(address: SocketAddr, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    // It may be refused before all of it is read.
    let _ = stream.write_all(request.as_bytes());
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response);
    let response = String::from_utf8_lossy(&response).into_owned();
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// The samples of a scrape, by name and labels as they are written.
pub struct Scrape(pub BTreeMap<String, f64>);

impl Scrape {
    /// Scrapes a daemon. Every line must be a comment or a sample.
    pub fn of(address: SocketAddr) -> Self {
        let answer = get(address, "/metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body.ends_with("# EOF\n"));
        let samples = answer.body.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
        };
        Scrape(samples.map(sample).collect())
    }

    /// The sum of a metric's samples that have all these labels; panics if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let of_name = self.0.iter().filter(|(sample, _)| sample.split('{').next() == Some(name));
        let labelled = of_name.filter(|(sample, _)| {
            labels.iter().all(|(label, value)| {
                sample.contains(&format!("{{{label}=\"{value}\"")) || sample.contains(&format!(",{label}=\"{value}\""))
            })
        });
        let values: Vec<f64> = labelled.map(|(_, value)| *value).collect();
        assert!(!values.is_empty(), "no {name} with {labels:?}");
        values.iter().sum()
    }

    /// The same of one consumer.
    pub fn of_consumer(&self, name: &str, consumer: &str) -> f64 {
        self.sum(name, &[("consumer", consumer)])
    }
}
