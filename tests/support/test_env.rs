//! A test's own environment: a virtual host, a ledger directory, settings, and `orderd` processes that use them.
//!
//! It observes what other programs can see: exit codes, logs, queues and the ledger's file.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};
use serde_json::Value;
use tempfile::TempDir;

use super::raw_client::RawClient;
use super::{Node, Vhost};

const PROGRAM: &str = env!("CARGO_BIN_EXE_orderd");
const CONFIG: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/orderd.toml");
/// Deadline for a single condition, on a machine that may be building at the same time.
pub const PATIENCE: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);

/// Polls a condition until it holds or [`PATIENCE`] has passed.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// An order for three laptops at 400.00 EUR.
pub fn order(id: &str) -> Vec<u8> {
    format!(r#"{{"id":"{id}","product":"Laptop","quantity":3,"price":"400.00","currency":"EUR"}}"#).into_bytes()
}

/// A virtual host, a directory and settings.
pub struct TestEnv<'a> {
    pub vhost: Vhost<'a>,
    pub directory: TempDir,
    settings: BTreeMap<String, String>,
    /// Further environment variables of its processes.
    environment: BTreeMap<String, String>,
    config: PathBuf,
    runs: AtomicU32,
}

impl<'a> TestEnv<'a> {
    /// On a virtual host of its own, with one short retry delay everywhere, quick to reconnect.
    pub fn new(node: &'a Node) -> Self {
        let vhost = node.vhost();
        // Not in /tmp, which may be in memory.
        let directory = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let env = TestEnv {
            settings: BTreeMap::new(),
            environment: BTreeMap::new(),
            vhost,
            directory,
            config: CONFIG.into(),
            runs: AtomicU32::new(0),
        };
        let (port, vhost) = (node.amqp_port, env.vhost.name.clone());
        let ledger = env.ledger_directory().to_str().unwrap().to_owned();
        let mut env = env
            .set("broker.addresses", &format!("127.0.0.1:{port}"))
            .set("broker.virtual_host", &vhost)
            .set("broker.reconnect_max", "200ms")
            .set("management.url", &format!("http://127.0.0.1:{}", node.management_port))
            .set("ledger.directory", &ledger)
            .set("log.format", "json")
            .set("log.level", "debug")
            .set("admin.listen", "127.0.0.1:0");
        for consumer in ["order", "priority", "notification", "analytics"] {
            env = env.set(&format!("consumers.{consumer}.retry.delays"), "300ms");
        }
        env
    }

    /// With a setting such as `consumers.order.workers`.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.change(key, value);
        self
    }

    /// Changes a setting for processes started from now on.
    pub fn change(&mut self, key: &str, value: &str) {
        self.settings.insert(variable(key), value.to_owned());
    }

    /// With a variable of its environment.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Moves the settings into a configuration file, which can be edited while orderd runs.
    pub fn with_file(mut self) -> (Self, ConfigFile) {
        self.config = self.directory.path().join("orderd.toml");
        let mut file =
            ConfigFile { table: fs::read_to_string(CONFIG).unwrap().parse().unwrap(), path: self.config.clone() };
        for (name, value) in std::mem::take(&mut self.settings) {
            let key = name.trim_start_matches("ORDERD_").to_lowercase().replace("__", ".");
            file.set(&key, &value);
        }
        file.save();
        (self, file)
    }

    /// Where the ledger is.
    pub fn ledger_directory(&self) -> PathBuf {
        self.directory.path().join("ledger")
    }

    /// A reader of the ledger, which must exist.
    pub fn ledger(&self) -> LedgerReader {
        LedgerReader::open(&self.ledger_directory())
    }

    /// An AMQP connection independent of orderd, to publish and to inspect queues.
    pub fn raw(&self) -> RawClient {
        self.vhost.raw()
    }

    /// Starts a command; it runs until it exits or is dropped.
    pub fn command(&self, arguments: &[&str]) -> OrderdProcess {
        self.command_with(arguments, &[])
    }

    /// [`TestEnv::command`] with settings of its own.
    fn command_with(&self, arguments: &[&str], settings: &[(&str, &str)]) -> OrderdProcess {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let path = |name: &str| self.directory.path().join(format!("run-{run}.{name}"));
        let (stdout, stderr) = (path("stdout"), path("stderr"));
        let child = Command::new(PROGRAM)
            .args(arguments)
            .arg("--config")
            .arg(&self.config)
            .envs(&self.settings)
            .envs(settings.iter().map(|(key, value)| (variable(key), value)))
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        OrderdProcess { child, stdout, stderr }
    }

    /// Starts `orderd run`.
    pub fn spawn(&self) -> OrderdProcess {
        self.command(&["run"])
    }

    /// Starts `orderd run` and waits until the topology is declared and the pools are started.
    pub fn start(&self) -> OrderdProcess {
        self.start_with(&[])
    }

    /// [`TestEnv::open`] with settings of its own: one of several instances.
    pub fn start_with(&self, settings: &[(&str, &str)]) -> OrderdProcess {
        let mut orderd = self.command_with(&["run"], settings);
        wait_until("orderd has started", || {
            assert_eq!(orderd.exit_status(), None, "it ended instead");
            orderd.has_logged("started")
        });
        orderd
    }
}

/// The configuration file of a test environment.
#[derive(Clone)]
pub struct ConfigFile {
    table: toml::Table,
    path: PathBuf,
}

impl ConfigFile {
    /// Sets a key such as `consumers.order.workers`, written as in the environment.
    pub fn set(&mut self, key: &str, value: &str) -> &mut Self {
        let (section, last) = key.rsplit_once('.').unwrap();
        let table = section.split('.').fold(&mut self.table, |table, part| {
            let inner = table.entry(part).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            inner.as_table_mut().unwrap()
        });
        let text = |text: &str| toml::Value::String(text.to_owned());
        let value = match last {
            "delays" | "addresses" | "bindings" => toml::Value::Array(value.split(',').map(text).collect()),
            _ => value.parse::<toml::Value>().ok().filter(|value| !value.is_str()).unwrap_or_else(|| text(value)),
        };
        table.insert(last.to_owned(), value);
        self
    }

    /// Removes a key or a section.
    pub fn remove(&mut self, key: &str) -> &mut Self {
        let (section, last) = key.rsplit_once('.').unwrap();
        let table = section.split('.').fold(&mut self.table, |table, part| table[part].as_table_mut().unwrap());
        table.remove(last).unwrap_or_else(|| panic!("there is no {key}"));
        self
    }

    /// Replaces the file as a whole.
    pub fn save(&self) {
        self.write(&toml::to_string(&self.table).unwrap());
    }

    /// The same, with any text.
    pub fn write(&self, text: &str) {
        let unfinished = self.path.with_extension("new");
        fs::write(&unfinished, text).unwrap();
        fs::rename(unfinished, &self.path).unwrap();
    }
}

/// The environment variable of a setting such as `consumers.order.workers`.
pub fn variable(key: &str) -> String {
    format!("ORDERD_{}", key.to_uppercase().replace('.', "__"))
}

/// A running `orderd`; killed when dropped.
pub struct OrderdProcess {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl OrderdProcess {
    /// Everything it has written to stdout and stderr.
    pub fn output(&self) -> String {
        let read = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        read(&self.stdout) + &read(&self.stderr)
    }

    /// What it has written to standard output.
    pub fn stdout(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap()
    }

    /// How it was called, as every user of the machine can see.
    pub fn command_line(&self) -> String {
        fs::read_to_string(format!("/proc/{}/cmdline", self.child.id())).unwrap().replace('\0', " ")
    }

    /// Its log so far, line by line; each must be JSON.
    pub fn log(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.stderr).unwrap();
        // The last line may be half written.
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        whole.lines().map(parse).collect()
    }

    /// The lines with this message.
    pub fn log_lines(&self, message: &str) -> Vec<Value> {
        self.log().into_iter().filter(|line| line["message"] == message).collect()
    }

    /// The address of its admin listener.
    pub fn admin_address(&self) -> SocketAddr {
        wait_until("the admin listener answers", || self.has_logged("admin listener answers"));
        self.log_lines("admin listener answers")[0]["address"].as_str().unwrap().parse().unwrap()
    }

    /// Whether a line has this message.
    pub fn has_logged(&self, message: &str) -> bool {
        !self.log_lines(message).is_empty()
    }

    /// The errors it has logged, message and cause.
    pub fn logged_errors(&self) -> Vec<String> {
        let errors = self.log().into_iter().filter(|line| line["level"] == "ERROR");
        errors
            .map(|line| {
                let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
                text("message") + ": " + &text("error")
            })
            .collect()
    }

    /// A counter of a consumer, as told at the end.
    pub fn counts(&self, consumer: &str, counter: &str) -> u64 {
        let counts = self.log_lines("since start");
        let line = counts.iter().find(|line| line["consumer"] == consumer);
        line.and_then(|line| line[counter].as_u64()).unwrap_or_else(|| panic!("no {counter} of {consumer}"))
    }

    /// Its status.
    pub fn status(&self) -> Value {
        super::http::json(self.admin_address(), "/api/v1/status")
    }

    /// Has it read its configuration again: the report.
    pub fn reload(&self) -> Value {
        let last = || self.status()["daemon"]["last_reload"].clone();
        let before = last();
        self.signal("HUP");
        wait_until("there is a report", || last() != before);
        last()["report"].clone()
    }

    /// Sends it a signal: `TERM`, `INT`, `HUP`, `STOP`, `CONT`.
    pub fn signal(&self, name: &str) {
        let status = Command::new("sh").args(["-c", "kill -$0 $1", name, &self.child.id().to_string()]).status();
        assert!(status.unwrap().success(), "cannot send {name}");
    }

    /// Its exit status, or `None` while it runs.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits until it exits, and returns its exit code.
    pub fn wait_for_exit(&mut self) -> i32 {
        wait_until("orderd ends", || self.exit_status().is_some());
        self.exit_status().unwrap().code().expect("no signal has ended it")
    }

    /// Waits for exit code 78 (configuration), and returns the only error logged.
    pub fn startup_error(&mut self) -> String {
        assert_eq!(self.wait_for_exit(), 78, "{}", self.output());
        let errors = self.logged_errors();
        assert_eq!(errors.len(), 1, "{errors:#?}");
        errors[0].clone()
    }

    /// Sends TERM, waits until it has drained, and returns its exit code.
    pub fn stop(&mut self) -> i32 {
        self.signal("TERM");
        self.wait_for_exit()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for OrderdProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<_> = output.lines().filter(|line| !line.contains("Processing Order")).collect();
            eprintln!("the end of orderd's output:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}

/// Reads the ledger's file as any other program would.
pub struct LedgerReader(Connection);

impl LedgerReader {
    /// The ledger in this directory.
    pub fn open(directory: &Path) -> Self {
        let connection =
            Connection::open_with_flags(directory.join("orderd.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        LedgerReader(connection)
    }

    /// The one number that a query yields.
    pub fn number(&self, query: &str) -> u64 {
        self.0.query_row(query, [], |row| row.get::<_, i64>(0)).unwrap().try_into().unwrap()
    }

    /// The rows that a query yields, their columns joined by `|`.
    pub fn rows(&self, query: &str) -> Vec<String> {
        let mut statement = self.0.prepare(query).unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| {
            let text = |column| {
                Ok(match row.get_ref(column)? {
                    ValueRef::Null => "-".to_owned(),
                    ValueRef::Integer(number) => number.to_string(),
                    ValueRef::Real(number) => number.to_string(),
                    ValueRef::Text(text) | ValueRef::Blob(text) => String::from_utf8_lossy(text).into_owned(),
                })
            };
            Ok((0..columns).map(text).collect::<rusqlite::Result<Vec<_>>>()?.join("|"))
        });
        rows.unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    /// Orders processed so far.
    pub fn processed(&self) -> u64 {
        self.number("SELECT count(*) FROM orders WHERE status = 'processed'")
    }

    /// Waits until exactly `orders` orders are processed and both events of each are recorded.
    pub fn await_settled(&self, orders: u64) {
        wait_until(&format!("{orders} orders and their events are recorded"), || {
            self.processed() == orders
                && self.number("SELECT count(*) FROM events WHERE name IN ('email', 'processed')") == 2 * orders
        });
    }
}
