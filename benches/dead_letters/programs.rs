//! Runs orderd: its commands, and a daemon that is asked by HTTP.

use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::daemon::{CONFIG, Daemon};
use super::node::Node;

const ORDERD: &str = env!("CARGO_BIN_EXE_orderd");
/// Time between two looks at a command's memory, which only grows.
const SAMPLED: Duration = Duration::from_millis(2);
/// How long the daemon may take to start.
const START: Duration = Duration::from_secs(60);

/// Where orderd's ledger is, as a setting.
fn ledger(directory: &Path) -> (&'static str, String) {
    ("ORDERD_LEDGER__DIRECTORY", directory.join("ledger").display().to_string())
}

/// Commands that read the ledger.
pub struct Commands {
    directory: PathBuf,
}

/// What a command has printed, and its resident memory at its peak, in bytes.
pub struct Output {
    pub text: Vec<u8>,
    pub memory: u64,
}

impl Commands {
    pub fn new(directory: &Path) -> Self {
        Commands { directory: directory.to_owned() }
    }

    /// `orderd dead-letters …`, which must succeed.
    pub fn run(&self, arguments: &[&str]) -> Result<Output, Box<dyn Error>> {
        let mut command = Command::new(ORDERD);
        command.arg("dead-letters").args(arguments).args(["--config", CONFIG]).envs([ledger(&self.directory)]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let (mut stdout, status) = (child.stdout.take().expect("it is a pipe"), format!("/proc/{}/status", child.id()));
        let (ended, mut text) = (AtomicBool::new(false), Vec::new());
        let memory = thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                let mut peak = 0;
                while !ended.load(Ordering::Relaxed) {
                    peak = peak_memory(&status).unwrap_or(0).max(peak);
                    thread::sleep(SAMPLED);
                }
                peak
            });
            let read = stdout.read_to_end(&mut text);
            ended.store(true, Ordering::Relaxed);
            read.map(|_| sampler.join().expect("it does not panic"))
        })?;
        let status = child.wait()?;
        if status.success() { Ok(Output { text, memory }) } else { Err(format!("{arguments:?}: {status}").into()) }
    }
}

/// `None` once the process has ended.
fn peak_memory(status: &str) -> Option<u64> {
    let status = fs::read_to_string(status).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Starts a daemon on this ledger that takes no dead letters out of queues, and waits until it carries out requests.
pub fn start_daemon(directory: &Path, node: &Node) -> Result<(Daemon, Api), Box<dyn Error>> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let settings = [
        ledger(directory),
        ("ORDERD_BROKER__ADDRESSES", format!("127.0.0.1:{}", node.amqp_port)),
        ("ORDERD_MANAGEMENT__URL", format!("http://127.0.0.1:{}", node.management_port)),
        ("ORDERD_ADMIN__LISTEN", format!("127.0.0.1:{port}")),
        ("ORDERD_DEAD_LETTERS__COLLECT", "false".to_owned()),
    ];
    let mut daemon = Daemon::start(Path::new(ORDERD), Path::new(CONFIG), &settings, &directory.join("orderd.log"))?;
    let (begun, token) = (Instant::now(), directory.join("ledger/admin-token"));
    loop {
        daemon.check_alive()?;
        if let Ok(token) = fs::read_to_string(&token) {
            let api = Api { port, token: token.trim().to_owned() };
            let request = json!({"selection": {"ids": [1]}, "dry_run": true});
            if api.post("dead-letters/hold", &request).is_ok() {
                return Ok((daemon, api));
            }
        }
        if begun.elapsed() > START {
            return Err(format!("orderd does not answer:\n{}", daemon.log_tail()).into());
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// The daemon's HTTP API.
pub struct Api {
    port: u16,
    token: String,
}

impl Api {
    /// The body of the answer.
    pub fn get(&self, path: &str, parameters: &[(&str, &str)]) -> io::Result<Vec<u8>> {
        let escaped = |value: &str| value.replace(' ', "%20").replace('\n', "%0A").replace('@', "%40");
        let query: Vec<String> = parameters.iter().map(|(name, value)| format!("{name}={}", escaped(value))).collect();
        self.send(&format!("GET /api/v1/{path}?{} HTTP/1.1\r\n", query.join("&")), "")
    }

    /// The same.
    pub fn post(&self, path: &str, body: &Value) -> io::Result<Vec<u8>> {
        let body = body.to_string();
        let head = format!(
            "POST /api/v1/{path} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n",
            body.len()
        );
        self.send(&head, &body)
    }

    fn send(&self, head: &str, body: &str) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        let Api { port, token } = self;
        let rest =
            format!("Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\nConnection: close\r\n\r\n{body}");
        stream.write_all(format!("{head}{rest}").as_bytes())?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
        let body = end.map_or(Vec::new(), |end| answer.split_off(end + 4));
        if answer.starts_with(b"HTTP/1.1 200 ") {
            Ok(body)
        } else {
            Err(io::Error::other(format!(
                "{head}: {}{}",
                String::from_utf8_lossy(&answer),
                String::from_utf8_lossy(&body)
            )))
        }
    }
}
