//! The few requests to RabbitMQ's management API that the faults need.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// `guest:guest`
const CREDENTIALS: &str = "Z3Vlc3Q6Z3Vlc3Q=";
const TIMEOUT: Duration = Duration::from_secs(10);

/// The management API on this port of 127.0.0.1.
#[derive(Debug, Clone, Copy)]
pub struct BrokerApi(pub u16);

impl BrokerApi {
    /// Sends a request without a body. Returns the status and the body of the answer.
    pub fn request(self, method: &str, path: &str) -> io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.0))?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        // HTTP 1.0, so that the body ends with the connection and not in chunks.
        write!(stream, "{method} /api{path} HTTP/1.0\r\nAuthorization: Basic {CREDENTIALS}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split_whitespace().nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::other("the management API did not answer in HTTP"))?;
        Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
    }

    /// Deletes an object. Returns whether it existed and the broker has deleted it.
    pub fn delete(self, path: &str) -> io::Result<bool> {
        Ok((200..300).contains(&self.request("DELETE", path)?.0))
    }

    /// Whether the queue exists and was empty when the broker last counted.
    pub fn is_empty_queue(self, path: &str) -> io::Result<bool> {
        let queue: Value = serde_json::from_str(&self.request("GET", path)?.1)?;
        Ok(queue["messages"] == 0)
    }

    /// Closes all connections. Returns their number.
    pub fn close_connections(self) -> io::Result<usize> {
        let connections: Value = serde_json::from_str(&self.request("GET", "/connections")?.1)?;
        let names: Vec<String> = (connections.as_array().into_iter().flatten())
            .filter_map(|connection| {
                connection["name"].as_str().map(|name| name.replace(' ', "%20").replace('>', "%3E"))
            })
            .collect();
        names
            .iter()
            .map(|name| self.delete(&format!("/connections/{name}")))
            .filter(|closed| matches!(closed, Ok(true)))
            .map(|_| Ok(1))
            .sum()
    }
}
