//! Private broker nodes, managed through `node.sh`.
//!
//! It never touches a broker that `node.sh` has not started.

use std::io;
use std::process::{Command, Output};

/// Relative to the repository.
const SCRIPT: &str = "tests/support/node.sh";

/// A started node. It stays running when this value is dropped.
#[derive(Debug, Clone)]
pub struct Node {
    /// The name for `node.sh`.
    pub name: String,
    /// The AMQP port on 127.0.0.1; the same after a restart.
    pub amqp_port: u16,
    /// The port of the management API on 127.0.0.1; the same after a restart.
    pub management_port: u16,
    /// The process id of the VM.
    pub pid: u32,
}

impl Node {
    /// Starts the node unless it is running, and waits until it accepts connections.
    pub fn start(name: &str) -> io::Result<Node> {
        Node::started(name, &script(&["start", name])?)
    }

    /// Like [`Node::start`]; a new node joins the cluster of the node `first`, which is started first, or is it.
    pub fn start_in_cluster(name: &str, first: &str) -> io::Result<Node> {
        Node::started(name, &output(Command::new(SCRIPT).args(["start", name]).env("NODE_CLUSTER", first))?)
    }

    fn started(name: &str, env: &str) -> io::Result<Node> {
        let value = |key: &str| {
            env.lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
                .ok_or_else(|| io::Error::other(format!("node.sh start {name} printed no {key}")))
        };
        Ok(Node {
            name: name.to_owned(),
            amqp_port: value("AMQP_PORT")?.parse().map_err(io::Error::other)?,
            management_port: value("MANAGEMENT_PORT")?.parse().map_err(io::Error::other)?,
            pid: value("PID")?.parse().map_err(io::Error::other)?,
        })
    }

    /// Stops the node and keeps its data.
    pub fn stop(&self) -> io::Result<()> {
        Node::stop_by_name(&self.name)
    }

    /// [`Node::stop`] for a node that another process has started. No error if there is no such node.
    pub fn stop_by_name(name: &str) -> io::Result<()> {
        script(&["stop", name]).map(drop)
    }

    /// Kills the VM with SIGKILL.
    pub fn kill(&self) -> io::Result<()> {
        script(&["kill", &self.name]).map(drop)
    }

    /// Stops the node and deletes its data. No error if there is no such node.
    pub fn wipe(name: &str) -> io::Result<()> {
        script(&["wipe", name]).map(drop)
    }

    /// Runs `rabbitmqctl` and returns its output.
    pub fn ctl(&self, arguments: &[&str]) -> io::Result<String> {
        script(&[&["ctl", &self.name], arguments].concat())
    }
}

/// Runs `node.sh` and returns its output; on failure, its stderr is in the error.
fn script(arguments: &[&str]) -> io::Result<String> {
    output(Command::new(SCRIPT).args(arguments))
}

fn output(command: &mut Command) -> io::Result<String> {
    let Output { status, stdout, stderr } = command.output()?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&stderr);
    Err(io::Error::other(format!("{command:?} failed ({status}):\n{stderr}")))
}
