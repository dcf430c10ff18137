//! What faults act on, and what they have in common: an outage that lasts, and a moment at which nothing is under way.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::super::amqp_proxy::AmqpProxy;
use super::super::audit::{Progress, Published, RoutingGap, Unsettled, unsettled_ids};
use super::super::daemon::Daemon;
use super::super::environment::Environment;
use super::super::node::Node;
use super::super::queued_messages::{QueuedMessages, are_collected};
use super::super::{Outcome, interrupt};
use super::broker_api::{BrokerApi, is_ready};
use super::disk::Disk;
use super::fault::{Fault, Kill};
use super::faults::topology;
use super::operator::{self, Operator};
use super::producer::Producer;

const POLL: Duration = Duration::from_millis(100);
/// A run without progress for this long is stuck: longer than all delays and back-offs together, and than the 180 s after which
/// the broker tries again to move a message on whose target was missing.
const STUCK: Duration = Duration::from_secs(400);
/// Orders that must be settled after a fault for orderd to have recovered.
const RECOVERED_ORDERS: u64 = 20;

/// The file systems of the ledger and of the event files.
#[derive(Debug)]
pub struct Disks {
    pub ledger: Disk,
    pub events: Disk,
}

/// What faults act on.
pub struct Targets<'s> {
    pub environment: &'s Environment,
    pub node: &'s Node,
    pub proxy: &'s AmqpProxy,
    pub runtime: &'s Runtime,
    pub program: &'s Path,
    /// `None` if they could not be mounted.
    pub disks: Option<&'s Disks>,
    /// The directory of the ledger.
    pub ledger: PathBuf,
    /// The directory of the event files.
    pub events: PathBuf,
    pub daemon: Daemon,
    pub producer: Producer,
    /// Replays dead letters from the middle of the run on.
    pub operator: Option<Operator>,
    /// When bindings to the exchange of orders were missing.
    pub gaps: Vec<RoutingGap>,
    /// Event files that were deleted. What they contain counts as kept.
    pub deleted_files: Vec<File>,
    /// Event files that were moved.
    pub moved_files: u32,
}

impl Targets<'_> {
    /// The broker's management API.
    pub fn api(&self) -> BrokerApi {
        BrokerApi(self.node.management_port)
    }

    /// Starts orderd again. The former one must have ended.
    pub fn start_daemon(&mut self) -> Outcome<()> {
        self.daemon = self.environment.start_daemon(self.program)?;
        Ok(())
    }

    /// Begins a fault, lets it last, and ends it, whatever happens meanwhile. If the fault says so, orderd is killed in the
    /// middle.
    pub fn outage(
        &mut self,
        fault: &Fault,
        begin: impl FnOnce(&mut Self) -> Outcome<()>,
        end: impl FnOnce(&mut Self) -> Outcome<()>,
    ) -> Outcome<()> {
        let begun = begin(self);
        let lasted = begun.and_then(|()| self.last(fault));
        end(self)?;
        lasted?;
        if fault.kill && fault.kind.kill == Kill::RestartAfterwards {
            self.daemon.kill()?;
            self.start_daemon()?;
        }
        Ok(())
    }

    fn last(&mut self, fault: &Fault) -> Outcome<()> {
        interrupt::sleep(fault.length)?;
        match fault.kind.kill {
            _ if !fault.kill => {}
            Kill::Never => {}
            Kill::RestartMeanwhile => {
                self.daemon.kill()?;
                self.start_daemon()?;
            }
            // Without waiting for its end, which a disk that hangs delays.
            Kill::RestartAfterwards => self.daemon.signal("KILL")?,
        }
        Ok(interrupt::sleep(fault.length)?)
    }

    /// Deletes something, after which messages for these queues may be unrouted. Returns whether there was something to delete.
    pub fn open_routing_gap(
        &mut self,
        queues: &[&'static str],
        delete: impl FnOnce(BrokerApi) -> io::Result<bool>,
    ) -> Outcome<bool> {
        // Counted before the ledger is read: an order that is published meanwhile counts as published during the gap.
        let published_before = self.producer.published();
        let unsettled = unsettled_ids(&self.ledger, published_before)?;
        let gap = RoutingGap { queues: queues.to_vec(), unsettled, published_before, published_until: None };
        let deleted = delete(self.api())?;
        if deleted && !queues.is_empty() {
            self.gaps.push(gap);
        }
        Ok(deleted)
    }

    /// Ends the gaps if all bindings are there. If that is not known, they end later.
    pub fn end_routing_gaps(&mut self) {
        let is_open = self.gaps.iter().any(|gap| gap.published_until.is_none());
        if is_open && topology::has_bindings_of_work_queues(self.api()).unwrap_or(false) {
            // Counted afterwards: what was published before the last binding was declared.
            let published = self.producer.published();
            for gap in &mut self.gaps {
                gap.published_until.get_or_insert(published);
            }
        }
    }

    /// Runs an orderd command against the daemon. Returns its error output if it fails.
    pub fn command(&self, arguments: &[&str]) -> Outcome<Result<(), String>> {
        let settings = self.environment.settings().iter().map(|(key, value)| (key, value));
        let output = Command::new(self.program)
            .args(arguments)
            .arg("--config")
            .arg(&self.environment.config_file)
            .envs(settings)
            .stdin(Stdio::null())
            .output()?;
        let error = || format!("orderd {arguments:?} failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(if output.status.success() { Ok(()) } else { Err(error()) })
    }

    /// Waits until orderd says that it is not ready.
    pub fn await_unready(&self, limit: Duration) -> Outcome<()> {
        let begin = Instant::now();
        while is_ready(self.environment.admin_address()) {
            if begin.elapsed() > limit {
                return Err(format!("orderd is still ready after {limit:?}:\n{}", self.daemon.log_tail()).into());
            }
            interrupt::sleep(POLL)?;
        }
        Ok(())
    }

    /// Waits until further orders have been settled and orderd is ready. Returns the number of settled orders.
    pub fn await_recovery(&mut self) -> Outcome<u64> {
        let (begin, before) = (Instant::now(), self.settled());
        loop {
            let settled = self.settled();
            if settled >= before + RECOVERED_ORDERS && is_ready(self.environment.admin_address()) {
                return Ok(settled);
            }
            if begin.elapsed() > STUCK {
                let tail = self.daemon.log_tail();
                return Err(
                    format!("no recovery in {STUCK:?}, {before} → {settled}; end of orderd's log:\n{tail}").into()
                );
            }
            self.daemon.check_alive()?;
            interrupt::sleep(POLL)?;
        }
    }

    fn settled(&self) -> u64 {
        let progress = Progress::read(&self.ledger, "");
        progress.processed + progress.dead_lettered
    }

    /// Lets orders be published and dead letters be replayed again.
    pub fn resume(&self) {
        self.producer.resume();
        self.operator.iter().for_each(Operator::resume);
    }

    /// Pauses the producer and the operator and waits until nothing is under way: all orders are processed, dead-lettered or unrouted, all
    /// events are recorded, and orderd has collected what the dead letter queue and the unrouted queue held. Returns the number of orders.
    /// Then any queue can be deleted, and nothing is in it.
    pub fn quiesce(&mut self) -> Outcome<u64> {
        self.producer.pause();
        self.operator.iter().for_each(Operator::pause);
        let (mut last, mut last_change) = (Progress::default(), Instant::now());
        loop {
            // A queue may be missing, or the broker be restarting.
            let connector = self.environment.connector();
            let collected = self.runtime.block_on(async { timeout(STUCK, are_collected(&connector)).await });
            let progress = Progress::read(&self.ledger, "");
            let mut unrouted = None;
            if let (Ok(Ok(true)), Some(orders)) = (&collected, self.producer.all_confirmed())
                && let Ok(stored) = QueuedMessages::stored(&self.ledger)
                && let Ok(unsettled) = Unsettled::of(&stored, &self.ledger)
            {
                let published = Published::orders(orders.saturating_sub(unsettled.orders));
                let progress = Progress {
                    notifications: progress.notifications + unsettled.notifications,
                    analytics: progress.analytics + unsettled.analytics,
                    ..progress
                };
                if progress.is_settled(&published) && unsettled.dead_letters == 0 && operator::is_idle(&self.ledger)? {
                    return Ok(orders);
                }
                unrouted = Some((orders, unsettled));
            }
            if progress != last {
                (last, last_change) = (progress, Instant::now());
            } else if last_change.elapsed() > STUCK {
                let tail = self.daemon.log_tail();
                let state = format!("{progress:?}, orders and unsettled {unrouted:?}, queues {collected:?}");
                return Err(format!("stuck at {state}; end of orderd's log:\n{tail}").into());
            }
            self.daemon.check_alive()?;
            interrupt::sleep(POLL)?;
        }
    }
}
