//! Real RabbitMQ nodes for tests: started by `node.sh`, identified by name, with a virtual host for each test.
//!
//! Owns broker nodes, virtual hosts and the clients that inspect them. Of the code under test it uses only the
//! configuration types, so that its results are independent.

#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod certificates;
pub mod http;
pub mod raw_client;
pub mod smtp_server;
pub mod step_server;
pub mod terminal;
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

/// An unused loopback address. No other program takes it by chance: the kernel assigns ports, including those of clients,
/// on 127.0.0.1, and this address is another one.
pub fn free_address() -> SocketAddr {
    static LAST: AtomicU16 = AtomicU16::new(20_000);
    let [_, a, b, c] = std::process::id().to_be_bytes();
    ([127, 64 + a, b, c], LAST.fetch_add(1, Ordering::Relaxed)).into()
}

/// A running RabbitMQ node on 127.0.0.1, with its own ports and data.
pub struct Node {
    name: String,
    pub amqp_port: u16,
    pub management_port: u16,
    pub amqps_port: u16,
    pub management_tls_port: u16,
    pid: AtomicU32,
    /// Whether the node belongs to one test, and is deleted on drop.
    own: bool,
}

impl Node {
    /// The node that tests share. It stays running until `make test` or `node.sh stop shared` stops it. Tests must not
    /// kill or freeze it, nor raise an alarm on it.
    pub fn shared() -> Node {
        Node::started("shared", false, None)
    }

    /// A new, empty node for one test, deleted on drop. Starting it takes about ten seconds.
    pub fn own(name: &str) -> Node {
        let _ = script(&["wipe", name]);
        Node::started(name, true, None)
    }

    /// Like [`Node::own`], but also listens for TLS, with the settings in `<directory>/rabbitmq.conf`, which is read at every
    /// start.
    pub fn own_with_tls(name: &str, directory: &Path) -> Node {
        let _ = script(&["wipe", name]);
        Node::started(name, true, Some(directory))
    }

    fn started(name: &str, own: bool, tls: Option<&Path>) -> Node {
        let text = script_with(&["start", name], tls).unwrap_or_else(|error| panic!("{error}"));
        Node {
            name: name.to_owned(),
            amqp_port: parse_number(&text, "AMQP_PORT"),
            management_port: parse_number(&text, "MANAGEMENT_PORT"),
            amqps_port: parse_number(&text, "AMQPS_PORT"),
            management_tls_port: parse_number(&text, "MANAGEMENT_TLS_PORT"),
            pid: AtomicU32::new(parse_number(&text, "PID")),
            own,
        }
    }

    /// Starts the node again after a kill, with the same ports and data.
    pub fn start(&mut self) {
        (self.amqp_port, self.management_port) = self.restart();
    }

    /// [`Node::start`] through a shared reference. Returns the AMQP and management ports, which are the same as before.
    pub fn restart(&self) -> (u16, u16) {
        let output = script(&["start", &self.name]).unwrap_or_else(|error| panic!("{error}"));
        self.pid.store(parse_number(&output, "PID"), Ordering::Relaxed);
        (parse_number(&output, "AMQP_PORT"), parse_number(&output, "MANAGEMENT_PORT"))
    }

    /// Kills the VM with SIGKILL, as a power cut would.
    pub fn kill(&self) {
        script(&["kill", &self.name]).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Freezes the VM with SIGSTOP: connections stay open, and the broker does not answer.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Resumes a frozen VM.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        assert!(signal_process(signal, self.pid.load(Ordering::Relaxed)), "cannot signal node {}", self.name);
    }

    /// Raises a memory alarm: the broker blocks connections that publish.
    pub fn set_alarm(&self) {
        self.ctl(&["set_vm_memory_high_watermark", "0.00001"]);
    }

    /// Clears the memory alarm.
    pub fn clear_alarm(&self) {
        self.ctl(&["set_vm_memory_high_watermark", "0.6"]);
    }

    /// Runs `rabbitmqctl`, which takes a second or two, and returns its output.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let arguments = [&["ctl", &self.name], arguments].concat();
        script(&arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Sends a request to the management API. Returns the HTTP status and the JSON body.
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

    /// The major and minor version of RabbitMQ.
    pub fn version(&self) -> (u32, u32) {
        let overview = self.management("GET", "/overview", "").1;
        let mut numbers = overview["rabbitmq_version"].as_str().unwrap().split('.').map(|it| it.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    /// Creates an empty virtual host.
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
            // A frozen VM reacts to no signal but SIGCONT and SIGKILL.
            signal_process("-CONT", self.pid.load(Ordering::Relaxed));
            let _ = script(&["kill", &self.name]);
            let _ = script(&["wipe", &self.name]);
        }
    }
}

/// A virtual host for one test, deleted on drop.
pub struct Vhost<'a> {
    pub node: &'a Node,
    pub name: String,
}

impl Vhost<'_> {
    /// A broker configuration for this virtual host, with short heartbeat and reconnect times.
    pub fn broker(&self) -> Broker {
        Broker {
            addresses: vec![Address { host: "127.0.0.1".into(), port: self.node.amqp_port }],
            virtual_host: self.name.clone(),
            username: "guest".into(),
            password: Secret::new("guest"),
            mechanism: Mechanism::Plain,
            trusted_users: Vec::new(),
            tls: None,
            heartbeat: Duration::from_secs(2),
            connect_timeout: Duration::from_secs(10),
            confirm_timeout: Duration::from_secs(20),
            max_unconfirmed: 4096,
            max_unconfirmed_bytes: 16 * 1024 * 1024,
            max_body: 16 * 1024 * 1024,
            max_unsettled_bytes: 32 * 1024 * 1024,
            reconnect_max: Duration::from_millis(400),
            rebalance_after: None,
        }
    }

    /// Opens an AMQP connection that is independent of the code under test.
    pub fn raw(&self) -> RawClient {
        RawClient::connect(self.node.amqp_port, &self.name)
    }

    /// Makes the broker close every connection to this virtual host.
    pub fn close_connections(&self) {
        self.node.ctl(&["close_all_connections", "--vhost", &self.name, "closed by the test"]);
    }
}

impl Drop for Vhost<'_> {
    fn drop(&mut self) {
        // A node of one test is deleted as a whole, and may be dead or frozen by now.
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
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Awaits a future that must complete within 30 s.
pub async fn with_deadline<T>(what: &str, future: impl Future<Output = T>) -> T {
    let deadline = Duration::from_secs(30);
    tokio::time::timeout(deadline, future).await.unwrap_or_else(|_| panic!("not within {deadline:?}: {what}"))
}

/// Sends a signal with the shell's built-in `kill`: a minimal system may have no `kill` program.
fn signal_process(signal: &str, pid: u32) -> bool {
    let mut shell = Command::new("sh");
    shell.args(["-c", "kill \"$0\" \"$1\"", signal, &pid.to_string()]).stderr(Stdio::null());
    shell.status().is_ok_and(|status| status.success())
}

/// Reads a number from the output of `node.sh start`.
fn parse_number<N: std::str::FromStr>(output: &str, key: &str) -> N {
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
