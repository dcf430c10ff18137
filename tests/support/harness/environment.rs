//! The environment of a run: a broker with the topology declared, and the settings and directories of a daemon.
//!
//! The broker is a private node, unless `ORDERD_BROKER__ADDRESSES` names another, which is neither started nor stopped.

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
    /// Starts the broker, creates an empty directory `target/<name>`, and declares the topology.
    pub fn prepare(name: &str, settings: &[(&'static str, &str)], runtime: &Runtime) -> Outcome<Environment> {
        let directory = super::repository()?.join("target").join(name);
        if directory.exists() {
            fs::remove_dir_all(&directory)?;
        }
        fs::create_dir_all(&directory)?;
        let mut all: Vec<_> = settings.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        all.push(("ORDERD_LEDGER__DIRECTORY", directory.join("ledger").display().to_string()));
        all.push(("ORDERD_LOG__DIRECTORY", directory.join("log").display().to_string()));
        all.push((ADMIN, free_address()?));
        let node = match env::var_os(ADDRESSES) {
            Some(_) => None,
            None => {
                Node::wipe(name)?;
                let node = Node::start(name)?;
                all.push((ADDRESSES, format!("127.0.0.1:{}", node.amqp_port)));
                all.push(("ORDERD_MANAGEMENT__URL", format!("http://127.0.0.1:{}", node.management_port)));
                Some(node)
            }
        };
        let prepare = || -> Outcome<Config> {
            let environment = env::vars_os().chain(all.iter().map(|(key, value)| (OsString::from(key), value.into())));
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
