//! The faults of a cluster. Each is carried out, lasts for some time, and is ended.

use std::time::Duration;

use super::cluster::Cluster;
use super::harness::{Outcome, interrupt};

/// How long a fault lasts.
const LENGTH: Duration = Duration::from_secs(20);

/// A kind of fault. "The node" is the one that orderd publishes to, which also has the leaders of all queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The node is killed, and started again.
    NodeKilled,
    /// The node answers nothing for some time.
    NodeFrozen,
    /// The node is cut off from the others, and pauses (`pause_minority`).
    NodeIsolated,
    /// The node is cut off from the others, and continues (`ignore`).
    NodeIsolatedUnpaused,
    /// The node is put into maintenance mode, as before an upgrade.
    NodeDrained,
    /// All nodes are restarted, one after the other.
    RollingRestart,
    /// Two of three nodes are killed, and started again.
    QuorumLost,
    /// The two other nodes answer nothing for some time.
    OthersFrozen,
}

use Fault::*;

impl Fault {
    pub const ALL: [Fault; 8] = [
        NodeKilled,
        NodeFrozen,
        NodeIsolated,
        NodeIsolatedUnpaused,
        NodeDrained,
        RollingRestart,
        QuorumLost,
        OthersFrozen,
    ];

    /// Its name in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeKilled => "node_killed",
            NodeFrozen => "node_frozen",
            NodeIsolated => "node_isolated",
            NodeIsolatedUnpaused => "node_isolated_unpaused",
            NodeDrained => "node_drained",
            RollingRestart => "rolling_restart",
            QuorumLost => "quorum_lost",
            OthersFrozen => "others_frozen",
        }
    }

    /// Carries it out on the node with this index, and ends it. Waits for no recovery of orderd.
    pub fn inject(self, cluster: &mut Cluster, node: usize) -> Outcome<()> {
        let count = cluster.nodes.len();
        let others = [(node + 1) % count, (node + 2) % count];
        match self {
            NodeKilled => kill(cluster, &[node])?,
            NodeFrozen => freeze(cluster, &[node])?,
            NodeIsolated => {
                cluster.isolate(node)?;
                interrupt::outage(LENGTH, || Ok(cluster.reunite(node)?))?;
            }
            NodeIsolatedUnpaused => {
                cluster.set_partition_handling("ignore")?;
                cluster.isolate(node)?;
                interrupt::outage(LENGTH * 3, || {
                    cluster.reunite(node)?;
                    // What the isolated node has seen differs from what the others have: it joins them again by a restart.
                    cluster.nodes[node].stop()?;
                    cluster.restart(node)?;
                    Ok(cluster.set_partition_handling("pause_minority")?)
                })?;
            }
            NodeDrained => {
                cluster.eval(node, "rabbit_maintenance:drain().")?;
                interrupt::outage(LENGTH, || Ok(cluster.eval(node, "rabbit_maintenance:revive().").map(drop)?))?;
            }
            RollingRestart => {
                for index in 0..count {
                    cluster.nodes[index].stop()?;
                    cluster.restart(index)?;
                    cluster.await_healthy()?;
                }
            }
            QuorumLost => kill(cluster, &others)?,
            OthersFrozen => freeze(cluster, &others)?,
        }
        cluster.await_healthy()
    }
}

/// Kills nodes, and starts them again.
fn kill(cluster: &mut Cluster, nodes: &[usize]) -> Outcome<()> {
    nodes.iter().try_for_each(|node| cluster.nodes[*node].kill())?;
    interrupt::sleep(LENGTH)?;
    Ok(nodes.iter().try_for_each(|node| cluster.restart(*node))?)
}

/// Suspends nodes, and lets them continue.
fn freeze(cluster: &Cluster, nodes: &[usize]) -> Outcome<()> {
    nodes.iter().try_for_each(|node| cluster.signal(*node, "STOP"))?;
    interrupt::outage(LENGTH, || Ok(nodes.iter().try_for_each(|node| cluster.signal(*node, "CONT"))?))
}
