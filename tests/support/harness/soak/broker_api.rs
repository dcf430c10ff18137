//! The few HTTP requests that the faults need: to RabbitMQ's management API, and to orderd's readiness check.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// `guest:guest`
const CREDENTIALS: &str = "Z3Vlc3Q6Z3Vlc3Q=";
const TIMEOUT: Duration = Duration::from_secs(10);

/// The virtual host of a run, as it appears in paths.
const VIRTUAL_HOST: &str = "%2F";

/// The management API on this port of 127.0.0.1.
#[derive(Debug, Clone, Copy)]
pub struct BrokerApi(pub u16);

impl BrokerApi {
    /// Sends a request with a JSON body, which may be empty. Returns the status and the body of the answer.
    fn request(self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        let head = format!("{method} /api{path} HTTP/1.0\r\nAuthorization: Basic {CREDENTIALS}");
        let head = format!("{head}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        exchange(&format!("127.0.0.1:{}", self.0), &head)
    }

    /// Deletes an object of the virtual host. Returns whether it existed and the broker has deleted it.
    pub fn delete(self, kind: &str, object: &str) -> io::Result<bool> {
        Ok(is_success(self.request("DELETE", &format!("/{kind}/{VIRTUAL_HOST}/{object}"), "")?.0))
    }

    /// Creates or changes something: a user, a permission, a policy. `path` contains `{vhost}` for the virtual host.
    ///
    /// # Errors
    /// The broker refuses it.
    pub fn put(self, path: &str, body: &Value) -> io::Result<()> {
        let (status, answer) = self.request("PUT", &path.replace("{vhost}", VIRTUAL_HOST), &body.to_string())?;
        if is_success(status) { Ok(()) } else { Err(io::Error::other(format!("PUT {path}: {status} {answer}"))) }
    }

    /// Whether a queue is bound to an exchange with this routing key.
    pub fn has_binding(self, exchange: &str, queue: &str, key: &str) -> io::Result<bool> {
        let bindings = self.request("GET", &format!("/bindings/{VIRTUAL_HOST}/e/{exchange}/q/{queue}/{key}"), "")?;
        Ok(is_success(bindings.0))
    }

    /// Deletes the virtual host with everything in it.
    pub fn delete_virtual_host(self) -> io::Result<bool> {
        Ok(is_success(self.request("DELETE", &format!("/vhosts/{VIRTUAL_HOST}"), "")?.0))
    }

    /// Closes all connections. Returns their number.
    pub fn close_connections(self) -> io::Result<usize> {
        let connections: Value = serde_json::from_str(&self.request("GET", "/connections", "")?.1)?;
        let names = connections.as_array().into_iter().flatten().filter_map(|connection| connection["name"].as_str());
        let mut closed = 0;
        for name in names.map(|name| name.replace(' ', "%20").replace('>', "%3E")) {
            closed += usize::from(is_success(self.request("DELETE", &format!("/connections/{name}"), "")?.0));
        }
        Ok(closed)
    }
}

/// Whether `http://address/readyz` answers that orderd is ready.
pub fn is_ready(address: &str) -> bool {
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    exchange(address, &request).is_ok_and(|(status, _)| status == 200)
}

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

/// Sends a request after which the server closes the connection. The answer must not come in chunks, as with HTTP 1.0.
fn exchange(address: &str, request: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| io::Error::other(format!("{address} did not answer in HTTP")))?;
    Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}
