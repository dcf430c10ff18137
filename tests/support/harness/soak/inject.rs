//! Carries out faults: begins one, waits, and ends it. It waits for no recovery.

use std::process::{Command, Stdio};
use std::time::Duration;

use fastrand::Rng;
use rusqlite::Connection;

use super::super::amqp_proxy::{AmqpProxy, Direction};
use super::super::daemon::{CONFIG, Daemon};
use super::super::environment::Environment;
use super::super::node::Node;
use super::super::{Outcome, interrupt};
use super::broker_api::BrokerApi;
use super::disk::Disk;
use super::fault::FaultKind;

/// The exchanges that a fault may delete. Deleting `orders.dead_letter` or `orders.unrouted` would let the broker drop what it
/// dead-letters or cannot route meanwhile.
const EXCHANGES: [&str; 3] = ["orders", "orders.retry", "orders.requeue"];
/// The queues that a fault may delete while they are empty: those that are hardly ever used, because what arrives between
/// the look and the deletion would be lost. RabbitMQ cannot delete a quorum queue only if it is empty.
const QUEUES: [&str; 3] = ["notification_queue.retry.1s", "notification_queue.retry.5s", "analytics_queue.retry.5s"];
/// Bindings of the exchange `orders`: queue and key. Orders without them are kept in `unrouted_queue`.
const BINDINGS: [(&str, &str); 3] = [
    ("priority_order_queue", "order.priority.%23"),
    ("order_queue", "order.normal.*"),
    ("failed_order_queue", "order.failed.%23"),
];

/// What faults act on.
pub struct Targets<'s> {
    pub environment: &'s Environment,
    pub node: &'s Node,
    pub proxy: &'s AmqpProxy,
    pub disk: Option<&'s Disk>,
    pub program: &'s std::path::Path,
    pub ledger: &'s std::path::Path,
}

impl Targets<'_> {
    /// Carries out one fault. Returns the daemon, which is another one if it was killed, and whether the fault happened.
    pub fn inject(&self, kind: FaultKind, daemon: Daemon, random: &mut Rng) -> Outcome<(Daemon, bool)> {
        let length = Duration::from_millis(random.u64(1_000..4_000));
        let api = BrokerApi(self.node.management_port);
        match kind {
            FaultKind::OrderdKilled => {
                daemon.kill()?;
                interrupt::sleep(length / 10)?;
                return Ok((self.environment.start_daemon(self.program)?, true));
            }
            FaultKind::OrderdFrozen => {
                daemon.signal("STOP")?;
                let slept = interrupt::sleep(length * 2);
                daemon.signal("CONT")?;
                slept?;
            }
            FaultKind::BrokerKilled => {
                self.node.kill()?;
                Node::start(&self.node.name)?;
            }
            FaultKind::BrokerRestarted => {
                self.node.stop()?;
                Node::start(&self.node.name)?;
            }
            FaultKind::ConnectionsCut => self.proxy.cut(),
            FaultKind::ConnectionsBlackHoled => self.proxy.drop_data(&[Direction::ToBroker, Direction::ToClient]),
            FaultKind::HalfOpenToBroker => self.proxy.drop_data(&[Direction::ToBroker]),
            FaultKind::HalfOpenToOrderd => self.proxy.drop_data(&[Direction::ToClient]),
            FaultKind::ConnectionsForceClosed => return Ok((daemon, api.close_connections()? > 0)),
            FaultKind::MemoryAlarm => {
                self.while_set(
                    &["set_vm_memory_high_watermark", "0.000001"],
                    length,
                    &["set_vm_memory_high_watermark", "0.4"],
                )?;
            }
            FaultKind::DiskAlarm => {
                self.while_set(&["set_disk_free_limit", "900000GB"], length, &["set_disk_free_limit", "50MB"])?;
            }
            FaultKind::ExchangeDeleted => {
                let name = EXCHANGES[random.usize(..EXCHANGES.len())];
                let deleted = api.delete(&format!("/exchanges/%2F/{name}"))?;
                return self.declare_again(daemon, deleted, length);
            }
            FaultKind::QueueDeleted => {
                let name = QUEUES[random.usize(..QUEUES.len())];
                let path = format!("/queues/%2F/{name}");
                let deleted = api.is_empty_queue(&path)? && api.delete(&path)?;
                return self.declare_again(daemon, deleted, length);
            }
            FaultKind::BindingDeleted => {
                let (queue, key) = BINDINGS[random.usize(..BINDINGS.len())];
                let deleted = api.delete(&format!("/bindings/%2F/e/orders/q/{queue}/{key}"))?;
                return self.declare_again(daemon, deleted, length);
            }
            FaultKind::LedgerLocked => {
                let ledger = Connection::open(self.ledger.join("orderd.db"))?;
                ledger.busy_timeout(Duration::from_secs(10))?;
                ledger.execute_batch("BEGIN EXCLUSIVE")?;
                interrupt::sleep(length * 2)?;
                ledger.execute_batch("ROLLBACK")?;
            }
            FaultKind::DiskFull => {
                let Some(disk) = self.disk else { return Ok((daemon, false)) };
                disk.fill()?;
                let slept = interrupt::sleep(length);
                disk.free()?;
                slept?;
            }
            FaultKind::DiskHung => {
                let Some(disk) = self.disk else { return Ok((daemon, false)) };
                disk.freeze()?;
                let slept = interrupt::sleep(length * 2);
                disk.thaw()?;
                slept?;
            }
            FaultKind::Reload => daemon.signal("HUP")?,
            FaultKind::Pause => {
                let consumer = ["order", "priority", "failed", "notification"][random.usize(..4)];
                self.command(&["pause", consumer])?;
                interrupt::sleep(length)?;
                self.command(&["resume", consumer])?;
            }
        }
        Ok((daemon, true))
    }

    /// A daemon declares the topology again on a reload.
    fn declare_again(&self, daemon: Daemon, deleted: bool, after: Duration) -> Outcome<(Daemon, bool)> {
        interrupt::sleep(after)?;
        if deleted {
            self.command(&["reload"])?;
        }
        Ok((daemon, deleted))
    }

    /// Sets a limit of the broker, waits, and sets it back.
    fn while_set(&self, set: &[&str], length: Duration, reset: &[&str]) -> Outcome<()> {
        self.node.ctl(set)?;
        let slept = interrupt::sleep(length);
        self.node.ctl(reset)?;
        Ok(slept?)
    }

    /// Runs an orderd command against the daemon.
    fn command(&self, arguments: &[&str]) -> Outcome<()> {
        let settings = self.environment.settings().iter().map(|(key, value)| (key, value));
        let output = Command::new(self.program)
            .args(arguments)
            .args(["--config", CONFIG])
            .envs(settings)
            .stdin(Stdio::null())
            .output()?;
        match output.status.success() {
            true => Ok(()),
            false => Err(format!("orderd {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr)).into()),
        }
    }
}
