//! Real RabbitMQ nodes for tests: started by `node.sh`, told apart by name, with a virtual host for each test.
//!
//! Owns brokers and what can be done to them from outside. Knows nothing of the code under test but its
//! configuration types, so that it can be the judge.

// Each test binary uses its part of this.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod amqp_proxy;
pub mod certificates;
pub mod http;
pub mod raw_client;
pub mod test_env;

use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use orderd::config::{Address, Broker, Mechanism, Secret};
use raw_client::RawClient;
use serde_json::Value;

/// An address on this machine that nobody listens at, nor will by chance: whoever takes any free port, clients included,
/// is on 127.0.0.1.
pub fn free_address() -> SocketAddr {
    static LAST: AtomicU16 = AtomicU16::new(20_000);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    ([127, 64 + a, b, c], LAST.fetch_add(1, Ordering::Relaxed)).into()
}

/// A running RabbitMQ node, on 127.0.0.1 with ports and data of its own.
pub struct Node {
    name: String,
    pub amqp_port: u16,
    pub management_port: u16,
    pub amqps_port: u16,
    pub management_tls_port: u16,
    pid: AtomicU32,
    /// Whether this test started it for itself, and ends it.
    own: bool,
}

impl Node {
    /// The node that tests share. It is left running: `make test` or `node.sh stop shared` stops it. Never
    /// kill, freeze or alarm it.
    pub fn shared() -> Node {
        Node::started("shared", false, None)
    }

    /// A node for this test alone, with nothing in it, deleted at the end. Takes about ten seconds.
    pub fn own(name: &str) -> Node {
        let _ = script(&["wipe", name]);
        Node::started(name, true, None)
    }

    /// One that also speaks TLS, as the `rabbitmq.conf` in a directory says, which is read at every start.
    pub fn own_with_tls(name: &str, directory: &Path) -> Node {
        let _ = script(&["wipe", name]);
        Node::started(name, true, Some(directory))
    }

    fn started(name: &str, own: bool, tls: Option<&Path>) -> Node {
        let text = script_with(&["start", name], tls).unwrap_or_else(|error| panic!("{error}"));
        Node {
            name: name.to_owned(),
            amqp_port: told(&text, "AMQP_PORT"),
            management_port: told(&text, "MANAGEMENT_PORT"),
            amqps_port: told(&text, "AMQPS_PORT"),
            management_tls_port: told(&text, "MANAGEMENT_TLS_PORT"),
            pid: AtomicU32::new(told(&text, "PID")),
            own,
        }
    }

    /// Starts it (again) on the ports and data it had before.
    pub fn start(&mut self) {
        (self.amqp_port, self.management_port) = self.restart();
    }

    /// Starts it again while something refers to it: its ports stay.
    pub fn restart(&self) -> (u16, u16) {
        let output = script(&["start", &self.name]).unwrap_or_else(|error| panic!("{error}"));
        self.pid.store(told(&output, "PID"), Ordering::Relaxed);
        (told(&output, "AMQP_PORT"), told(&output, "MANAGEMENT_PORT"))
    }

    /// SIGKILL, as in a power cut.
    pub fn kill(&self) {
        script(&["kill", &self.name]).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Stops the whole VM: connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets a frozen VM go on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        assert!(signal_process(signal, self.pid.load(Ordering::Relaxed)), "cannot signal node {}", self.name);
    }

    /// A memory alarm: connections that publish are not read from any more.
    pub fn set_alarm(&self) {
        self.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
    }

    /// Ends the alarm.
    pub fn clear_alarm(&self) {
        self.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    }

    /// rabbitmqctl; takes a second or two.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let arguments = [&["ctl", &self.name], arguments].concat();
        script(&arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A request to the management API: status and body.
    pub fn management(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        // guest:guest
        let request = format!(
            "{method} /api{path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic Z3Vlc3Q6Z3Vlc3Q=\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let mut stream = TcpStream::connect(("127.0.0.1", self.management_port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).unwrap();
        let response = String::from_utf8_lossy(&response);
        let status = response.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let json = body.find(['{', '[']).zip(body.rfind(['}', ']'])).map(|(from, to)| &body[from..=to]);
        (status, json.and_then(|json| serde_json::from_str(json).ok()).unwrap_or(Value::Null))
    }

    /// Major and minor version of RabbitMQ.
    pub fn version(&self) -> (u32, u32) {
        let overview = self.management("GET", "/overview", "").1;
        let mut numbers = overview["rabbitmq_version"].as_str().unwrap().split('.').map(|it| it.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    /// A new virtual host in which no name is taken.
    pub fn vhost(&self) -> Vhost<'_> {
        let name = format!("t{:016x}", fastrand::u64(..));
        let (status, _) = self.management("PUT", &format!("/vhosts/{name}"), "");
        assert_eq!(status, 201, "cannot create a virtual host on node {}", self.name);
        let everything = r#"{"configure":".*","write":".*","read":".*"}"#;
        let (status, _) = self.management("PUT", &format!("/permissions/{name}/guest"), everything);
        assert!([201, 204].contains(&status), "cannot grant permissions: {status}");
        Vhost { node: self, name }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.own {
            // A frozen VM would not hear of its end.
            signal_process("-CONT", self.pid.load(Ordering::Relaxed));
            let _ = script(&["kill", &self.name]);
            let _ = script(&["wipe", &self.name]);
        }
    }
}

/// A virtual host of a test's own, deleted at its end.
pub struct Vhost<'a> {
    pub node: &'a Node,
    pub name: String,
}

impl Vhost<'_> {
    /// The configuration for connecting here: quick to notice, quick to come back.
    pub fn broker(&self) -> Broker {
        Broker {
            addresses: vec![Address { host: "127.0.0.1".into(), port: self.node.amqp_port }],
            virtual_host: self.name.clone(),
            username: "guest".into(),
            password: Secret::new("guest"),
            mechanism: Mechanism::Plain,
            tls: None,
            heartbeat: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(20),
            max_unconfirmed: 4096,
            max_unconfirmed_bytes: 16 * 1024 * 1024,
            reconnect_max: Duration::from_millis(400),
        }
    }

    /// A plain AMQP connection that judges.
    pub fn raw(&self) -> RawClient {
        RawClient::connect(self.node.amqp_port, &self.name)
    }

    /// Closes every connection to this virtual host from the broker's side.
    pub fn close_connections(&self) {
        self.node.ctl(&["close_all_connections", "--vhost", &self.name, "closed by the test"]);
    }
}

impl Drop for Vhost<'_> {
    fn drop(&mut self) {
        // An own node goes away with all it has, and may be dead or frozen by now.
        if !self.node.own {
            self.node.management("DELETE", &format!("/vhosts/{}", self.name), "");
        }
    }
}

/// Polls a condition until it holds or 30 s have passed.
pub async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    within(Duration::from_secs(30), what, condition).await;
}

/// Polls a condition until it holds or the deadline has passed.
pub async fn within(deadline: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Awaits a future that must complete in time.
pub async fn with_deadline<T>(what: &str, future: impl Future<Output = T>) -> T {
    let deadline = Duration::from_secs(30);
    tokio::time::timeout(deadline, future).await.unwrap_or_else(|_| panic!("not within {deadline:?}: {what}"))
}

/// The shell's own `kill`: a bare machine need not have another.
fn signal_process(signal: &str, pid: u32) -> bool {
    let mut shell = Command::new("sh");
    shell.args(["-c", "kill \"$0\" \"$1\"", signal, &pid.to_string()]).stderr(Stdio::null());
    shell.status().is_ok_and(|status| status.success())
}

/// A number that `node.sh start` has printed.
fn told<N: std::str::FromStr>(output: &str, key: &str) -> N {
    let line = output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let number = line.and_then(|text| text.trim().parse().ok());
    number.unwrap_or_else(|| panic!("node.sh start printed no {key}: {output}"))
}

fn script(arguments: &[&str]) -> Result<String, String> {
    script_with(arguments, None)
}

fn script_with(arguments: &[&str], tls: Option<&Path>) -> Result<String, String> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/node.sh");
    let mut bash = Command::new("bash");
    if let Some(directory) = tls {
        bash.env("NODE_TLS", directory);
    }
    let output = bash.arg(&path).args(arguments).output().unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    Err(format!(
        "node.sh {}: {}\n{stdout}{}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}
