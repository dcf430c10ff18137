//! A cluster of three private RabbitMQ nodes, and what can be done to them. `node.sh` starts and stops the nodes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::process::Command;
use std::time::{Duration, Instant};

use super::harness::Outcome;
use super::harness::node::Node;

/// How long the nodes may take to be one cluster again.
const HEALTHY: Duration = Duration::from_secs(90);

/// The number of running nodes; the function has another name since RabbitMQ 3.13.
const RUNNING: &str = "length(try rabbit_nodes:list_running() catch error:undef -> rabbit_nodes:all_running() end).";

/// Three nodes. They stay running when this value is dropped.
pub struct Cluster {
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// Starts a new cluster of nodes `<name>1` to `<name>3`.
    pub fn start(name: &str) -> Outcome<Cluster> {
        let names: Vec<String> = (1..=3).map(|number| format!("{name}{number}")).collect();
        for name in &names {
            Node::wipe(name)?;
        }
        let nodes = names.iter().map(|node| Node::start_in_cluster(node, &names[0])).collect::<io::Result<_>>()?;
        let cluster = Cluster { nodes };
        cluster.await_healthy()?;
        Ok(cluster)
    }

    /// Stops all nodes and deletes their data.
    pub fn wipe(&self) -> io::Result<()> {
        self.nodes.iter().try_for_each(|node| Node::wipe(&node.name))
    }

    /// The AMQP addresses, as in `broker.addresses`.
    pub fn addresses(&self) -> String {
        let addresses = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.amqp_port));
        addresses.collect::<Vec<_>>().join(",")
    }

    /// The addresses of the management API, as in `management.url`.
    pub fn management_urls(&self) -> String {
        let urls = self.nodes.iter().map(|node| format!("http://127.0.0.1:{}", node.management_port));
        urls.collect::<Vec<_>>().join(",")
    }

    /// Starts a node that was stopped or killed.
    pub fn restart(&mut self, index: usize) -> io::Result<()> {
        self.nodes[index] = Node::start(&self.nodes[index].name)?;
        Ok(())
    }

    /// Sends a signal to a node's VM.
    pub fn signal(&self, index: usize, signal: &str) -> io::Result<()> {
        let pid = self.nodes[index].pid.to_string();
        Command::new("sh").args(["-c", "kill -\"$1\" \"$0\"", &pid, signal]).status().map(drop)
    }

    /// Evaluates an Erlang expression on a node.
    pub fn eval(&self, index: usize, expression: &str) -> io::Result<String> {
        self.nodes[index].ctl(&["eval", expression])
    }

    /// Moves the leaders of all queues to a node.
    pub fn move_leaders(&self, index: usize) -> io::Result<()> {
        let node = erlang_name(&self.nodes[index]);
        let expression = format!(
            "[catch rabbit_quorum_queue:transfer_leadership(Q, '{node}') || Q <- rabbit_amqqueue:list(<<\"/\">>)]."
        );
        self.eval(index, &expression).map(drop)
    }

    /// Cuts a node off from the others: it has another Erlang cookie for them, and they are disconnected.
    pub fn isolate(&self, index: usize) -> io::Result<()> {
        let cut = "begin erlang:set_cookie(N, isolated), erlang:disconnect_node(N) end";
        self.eval(index, &format!("[{cut} || N <- {}].", self.others(index))).map(drop)
    }

    /// Ends an isolation.
    pub fn reunite(&self, index: usize) -> io::Result<()> {
        let reconnect = "begin erlang:set_cookie(N, erlang:get_cookie()), net_kernel:connect_node(N) end";
        self.eval(index, &format!("[{reconnect} || N <- {}].", self.others(index))).map(drop)
    }

    /// Sets what a node does when it is in a minority: `pause_minority` or `ignore`.
    pub fn set_partition_handling(&self, mode: &str) -> io::Result<()> {
        let set = format!("application:set_env(rabbit, cluster_partition_handling, {mode}).");
        (0..self.nodes.len()).try_for_each(|index| self.eval(index, &set).map(drop))
    }

    fn others(&self, index: usize) -> String {
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != index);
        let names: Vec<_> = others.map(|(_, node)| format!("'{}'", erlang_name(node))).collect();
        format!("[{}]", names.join(","))
    }

    /// Waits until every node sees three running nodes.
    pub fn await_healthy(&self) -> Outcome<()> {
        let begin = Instant::now();
        loop {
            let running = |index| self.eval(index, RUNNING).is_ok_and(|count| count.trim() == "3");
            if (0..self.nodes.len()).all(running) {
                return Ok(());
            }
            if begin.elapsed() > HEALTHY {
                return Err(format!("the cluster is not complete after {HEALTHY:?}").into());
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// The number of established connections of a process to each node.
    pub fn connections_of(&self, pid: u32) -> io::Result<Vec<usize>> {
        let inodes = socket_inodes(pid)?;
        let mut by_port: BTreeMap<u16, usize> = BTreeMap::new();
        for line in fs::read_to_string("/proc/net/tcp")?.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let remote = fields[2].rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            // 01: established.
            if let (Some(port), "01", true) = (remote, fields[3], inodes.iter().any(|inode| *inode == fields[9])) {
                *by_port.entry(port).or_default() += 1;
            }
        }
        Ok(self.nodes.iter().map(|node| by_port.get(&node.amqp_port).copied().unwrap_or(0)).collect())
    }
}

fn erlang_name(node: &Node) -> String {
    format!("orderd_{}@localhost", node.name)
}

fn socket_inodes(pid: u32) -> io::Result<Vec<String>> {
    let links = fs::read_dir(format!("/proc/{pid}/fd"))?.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    Ok(links.filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())).collect())
}
