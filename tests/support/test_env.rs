//! A test's own environment: a virtual host, a ledger directory, settings, and `orderd` processes that use them.
//!
//! Tests observe only what any other program can observe: exit codes, logs, queues and the ledger file.

mod config_file;
mod ledger_reader;
mod orderd_process;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use config_file::ConfigFile;
pub use ledger_reader::LedgerReader;
pub use orderd_process::OrderdProcess;
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

/// A virtual host, a directory and the settings of the `orderd` processes started in it.
pub struct TestEnv<'a> {
    pub vhost: Vhost<'a>,
    pub directory: TempDir,
    settings: BTreeMap<String, String>,
    /// Further environment variables of the processes.
    environment: BTreeMap<String, String>,
    config: PathBuf,
    /// Processes started so far: numbers their output files.
    runs: AtomicU32,
}

impl<'a> TestEnv<'a> {
    /// A new virtual host and directory; retry delays and reconnect times are short.
    pub fn new(node: &'a Node) -> Self {
        let vhost = node.vhost();
        // Not in /tmp, which may be a tmpfs: the ledger belongs on a disk.
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
            .set("admin.listen", "127.0.0.1:0")
            // Most tests look at what arrives in the dead letter queue. Those in `daemon/dead_letters.rs` have it drained.
            .set("dead_letters.collect", "false");
        for consumer in ["order", "priority", "notification", "analytics"] {
            env = env.set(&format!("consumers.{consumer}.retry.delays"), "300ms");
        }
        env
    }

    /// Adds a setting such as `consumers.order.workers`.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.change(key, value);
        self
    }

    /// Changes a setting for processes started from now on.
    pub fn change(&mut self, key: &str, value: &str) {
        self.settings.insert(environment_variable(key), value.to_owned());
    }

    /// Adds an environment variable.
    pub fn with_env(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Removes a setting.
    pub fn unset(mut self, key: &str) -> Self {
        self.settings.remove(&environment_variable(key));
        self
    }

    /// Uses a configuration file with this text. The settings take precedence.
    pub fn with_config(mut self, text: &str) -> Self {
        self.config = self.directory.path().join("orderd.toml");
        fs::write(&self.config, text).unwrap();
        self
    }

    /// Moves the settings into a configuration file, which can be edited while orderd runs.
    pub fn with_file(mut self) -> (Self, ConfigFile) {
        self.config = self.directory.path().join("orderd.toml");
        let mut file = ConfigFile::new(&fs::read_to_string(CONFIG).unwrap(), self.config.clone());
        for (name, value) in std::mem::take(&mut self.settings) {
            let key = name.trim_start_matches("ORDERD_").to_lowercase().replace("__", ".");
            file.set(&key, &value);
        }
        file.save();
        (self, file)
    }

    /// The directory of `orderd.db`.
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

    /// Starts an orderd command. Dropping the value kills the process.
    pub fn command(&self, arguments: &[&str]) -> OrderdProcess {
        self.command_with(arguments, &[])
    }

    /// The program with these arguments and the settings, but without those of the caller's environment.
    pub fn program(&self, arguments: &[&str]) -> Command {
        let mut command = self.script(PROGRAM);
        command.args(arguments).arg("--config").arg(&self.config);
        command
    }

    /// Another program, which may call `orderd` with the same settings.
    pub fn script(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ORDERD_")) {
            command.env_remove(name);
        }
        command.env("ORDERD_CONFIG", &self.config).envs(&self.settings).envs(&self.environment);
        command
    }

    /// [`TestEnv::command`] with additional settings.
    fn command_with(&self, arguments: &[&str], settings: &[(&str, &str)]) -> OrderdProcess {
        let run = self.runs.fetch_add(1, Ordering::Relaxed);
        let path = |name: &str| self.directory.path().join(format!("run-{run}.{name}"));
        let (stdout, stderr) = (path("stdout"), path("stderr"));
        let child = self
            .program(arguments)
            .envs(settings.iter().map(|(key, value)| (environment_variable(key), value)))
            .stdin(Stdio::null())
            .stdout(File::create(&stdout).unwrap())
            .stderr(File::create(&stderr).unwrap())
            .spawn()
            .unwrap();
        OrderdProcess::new(child, stdout, stderr)
    }

    /// Starts `orderd run`.
    pub fn spawn(&self) -> OrderdProcess {
        self.command(&["run"])
    }

    /// Starts `orderd run` and waits until the topology is declared and the pools are started.
    pub fn start(&self) -> OrderdProcess {
        self.start_with(&[])
    }

    /// [`TestEnv::start`] with additional settings, for one of several instances.
    pub fn start_with(&self, settings: &[(&str, &str)]) -> OrderdProcess {
        let mut orderd = self.command_with(&["run"], settings);
        wait_until("orderd has started", || {
            assert_eq!(orderd.exit_status(), None, "orderd exited instead");
            orderd.has_logged("started")
        });
        orderd
    }
}

/// The environment variable of a setting such as `consumers.order.workers`.
pub fn environment_variable(key: &str) -> String {
    format!("ORDERD_{}", key.to_uppercase().replace('.', "__"))
}
