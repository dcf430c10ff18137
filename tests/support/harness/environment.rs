//! The environment of a run: a broker with the topology declared, and the settings and directories of a daemon.
//!
//! The broker is a private node, unless `ORDERD_BROKER__ADDRESSES` names another, which is neither started nor stopped. What
//! `make up` printed for this shell names no other.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use orderd::amqp::Connector;
use orderd::config::{Config, Sources};
use tokio::runtime::Runtime;

use super::Outcome;
use super::daemon::{CONFIG, Daemon};
use super::node::Node;

/// The environment variable that names a broker to use instead of a private node.
pub const ADDRESSES: &str = "ORDERD_BROKER__ADDRESSES";
const ADMIN: &str = "ORDERD_ADMIN__LISTEN";
/// The variables that `make up` printed for the shell to export, one `NAME=VALUE` a line; relative to the repository.
const EXPORTS: &str = "target/up/exports";

/// What happens to the data of an earlier run with the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EarlierData {
    /// It is deleted: the broker and the ledger are empty.
    Deleted,
    /// The broker and the ledger continue with it.
    Kept,
}

/// The address of a broker to use instead of a private node.
pub fn external_broker() -> Outcome<Option<String>> {
    let address = env::var(ADDRESSES).ok();
    let exported = exports()?.into_iter().find(|(name, _)| name == ADDRESSES).map(|(_, value)| value);
    Ok(address.filter(|address| exported.as_ref() != Some(address)))
}

fn exports() -> Outcome<Vec<(String, String)>> {
    let text = fs::read_to_string(super::repository()?.join(EXPORTS)).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// A running broker, and the configuration with which a daemon uses it.
#[derive(Debug)]
pub struct Environment {
    /// The private node; `None` with an external broker.
    pub node: Option<Node>,
    /// The daemon's configuration.
    pub config: Config,
    /// The directory of this run, for ledger and logs.
    pub directory: PathBuf,
    /// The configuration file of the daemons that are started from now on.
    pub config_file: PathBuf,
    settings: Vec<(&'static str, String)>,
}

impl Environment {
    /// Starts the broker, creates the directory `target/<name>`, and declares the topology.
    pub fn prepare(
        name: &str,
        settings: &[(&'static str, &str)],
        earlier: EarlierData,
        runtime: &Runtime,
    ) -> Outcome<Environment> {
        let directory = super::repository()?.join("target").join(name);
        // Before its file is deleted.
        let (external, exported) = (external_broker()?, exports()?);
        if earlier == EarlierData::Deleted && directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        let mut all: Vec<_> = settings.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        all.push(("ORDERD_LEDGER__DIRECTORY", directory.join("ledger").display().to_string()));
        all.push(("ORDERD_LOG__DIRECTORY", directory.join("log").display().to_string()));
        let former = exported.iter().find(|(name, _)| name == ADMIN).map(|(_, address)| address.clone());
        let former = former.filter(|address| earlier == EarlierData::Kept && TcpListener::bind(address).is_ok());
        all.push((ADMIN, former.map_or_else(free_address, Ok)?));
        let node = match external {
            Some(_) => None,
            None => {
                if earlier == EarlierData::Deleted {
                    Node::wipe(name)?;
                }
                let node = Node::start(name)?;
                all.push((ADDRESSES, format!("127.0.0.1:{}", node.amqp_port)));
                all.push(("ORDERD_MANAGEMENT__URL", format!("http://127.0.0.1:{}", node.management_port)));
                Some(node)
            }
        };
        let prepare = || -> Outcome<Config> {
            // What this shell has of an earlier `make up` would be set twice.
            let is_set = |name: &OsString| all.iter().any(|(key, _)| name == key);
            let inherited = env::vars_os().filter(|(name, _)| !is_set(name));
            let environment = inherited.chain(all.iter().map(|(key, value)| (OsString::from(key), value.into())));
            let sources = Sources {
                file: Some(CONFIG.into()),
                environment: environment.collect(),
                ..orderd::handlers::sources()
            };
            let config = Config::load(&sources)?.config;
            runtime.block_on(Connector::new(config.broker.clone()).declare(config.topology().declarations()))?;
            Ok(config)
        };
        let prepared = prepare();
        if prepared.is_err()
            && let Some(node) = &node
        {
            node.stop()?;
        }
        Ok(Environment { node, config: prepared?, directory, config_file: CONFIG.into(), settings: all })
    }

    /// A connector to the broker.
    pub fn connector(&self) -> Connector {
        Connector::new(self.config.broker.clone())
    }

    /// The directory of `orderd.db`.
    pub fn ledger_directory(&self) -> &Path {
        &self.config.ledger.directory
    }

    /// Changes a setting of the daemons that are started from now on.
    pub fn set(&mut self, key: &'static str, value: String) {
        self.settings.retain(|(other, _)| *other != key);
        self.settings.push((key, value));
    }

    /// Environment variables with which any orderd command uses this broker and this daemon.
    pub fn settings(&self) -> &[(&'static str, String)] {
        &self.settings
    }

    /// Keeps the settings as those that `make up` prints for the shell to export.
    pub fn save_exports(&self) -> Outcome<()> {
        let lines: String = self.settings.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        Ok(fs::write(super::repository()?.join(EXPORTS), lines)?)
    }

    /// Starts orderd.
    pub fn start_daemon(&self, program: &Path) -> io::Result<Daemon> {
        Daemon::start(program, &self.config_file, &self.settings, &self.directory.join("orderd.log"))
    }

    /// Starts another orderd with the same settings, except for its admin listener.
    pub fn start_second_daemon(&self, program: &Path) -> io::Result<Daemon> {
        let mut settings = self.settings.clone();
        settings.push((ADMIN, free_address()?));
        Daemon::start(program, &self.config_file, &settings, &self.directory.join("second.log"))
    }

    /// The address of the daemon's admin listener.
    pub fn admin_address(&self) -> &str {
        self.settings.iter().find(|(key, _)| *key == ADMIN).map_or("", |(_, value)| value)
    }

    /// Stops the private node.
    pub fn tear_down(&self) -> io::Result<()> {
        self.node.as_ref().map_or(Ok(()), Node::stop)
    }
}

/// An unused address on 127.0.0.1.
fn free_address() -> io::Result<String> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}
